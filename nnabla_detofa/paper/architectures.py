"""Architectures of the found subnets: depth and width of each stage under each budget (section 4.2)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.errors import UserError
from ..common.files import whole_text
from ..common.seeds import rng_for
from ..methods.build import make_cost
from ..space.counting import sample_within
from ..space.geometry import Geometry
from ..space.paths import Path
from ..tools.report import markdown_row
from .experiments import DETOFA, OFA
from .run import Run
from .run_results import runs_and_code, summary_of
from .target import Request, Target, csv_file, picture_line, save_picture, write_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


RANDOM_PATHS, NEAR = 500, 0.01
"""Random paths for each found subnet, and how much their FLOPs may differ, relative to the subnet's."""


@dataclass(frozen=True, eq=False)
class Architectures:
    """Subnets found by the runs of one experiment.

    Attributes:
        title: title of the experiment.
        budgets: (b,) bounds on the FLOPs of a subnet.
        depths: (seeds, b, stages) choice of D; for random paths, the samples take the place of the seeds.
        widths: (seeds, b, stages) choice of W.
        ratios: (seeds, b, stages) mean E of a stage's layers.
    """

    title: str
    budgets: np.ndarray
    depths: np.ndarray
    widths: np.ndarray
    ratios: np.ndarray

    @classmethod
    def of(cls, title: str, summaries: Sequence[Mapping], geometry: Geometry) -> Architectures:
        """Return the subnets of an experiment from the content of summary.json of the run of each seed."""
        paths = [[Path.from_ofa(subnet["path"], geometry) for subnet in summary["subnets"]] for summary in summaries]
        return cls.of_paths(title, [subnet["budget"] for subnet in summaries[0]["subnets"]], paths)

    @classmethod
    def of_paths(cls, title: str, budgets: Sequence[float], paths: Sequence[Sequence[Path]]) -> Architectures:
        """Return the architectures of paths: for each seed or sample, one for each budget."""
        return cls(
            title,
            np.array(budgets),
            np.array([[path.stage_depths for path in found] for found in paths], float),
            np.array([[path.stage_widths for path in found] for found in paths], float),
            np.array([[[np.mean(ratios) for ratios in path.expand_ratios] for path in found] for found in paths], float),
        )


def random_architectures(title: str, runs: Sequence[Run]) -> Architectures:
    """Sample paths of the whole space A with the FLOPs of the subnets that runs found, to within `NEAR`.

    Args:
        title: title of the result.
        runs: runs of one experiment.

    Raises:
        UserError: the space is too large to count its paths.
    """
    config, rng = runs[0].config, rng_for(0, "architectures")
    space, side = config.network.space, config.dataloader.image_size
    flops = make_cost(config, 1, (side, side)).flops
    samples = []
    for run in runs:
        found = summary_of(run)["subnets"]
        own = flops([Path.from_ofa(subnet["path"], space.geometry) for subnet in found])  # of one class
        ranges = [((1 - NEAR) * cost, (1 + NEAR) * cost) for cost in own.tolist()]
        samples.append([list(sample_within(space, flops, low, high, RANDOM_PATHS, rng)) for low, high in ranges])
    budgets = [subnet["budget"] for subnet in found]
    return Architectures.of_paths(title, budgets, [paths for each in samples for paths in zip(*each)])


def table(found: Architectures) -> list[str]:
    """Return Markdown lines: D, W and mean E of each stage, by budget."""
    stages = range(1, 1 + found.depths.shape[2])
    header = ["budget", *(f"{name}, stage {stage}" for name in ("D", "W", "E") for stage in stages)]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * (len(header) - 1))]
    for number, budget in enumerate(found.budgets):
        cells = [f"{value:.2f}" for part in (found.depths, found.widths, found.ratios) for value in part[:, number].mean(0)]
        lines.append(markdown_row([f"≤ {budget / 1e9:.3g} G", *cells]))
    return lines


def draw(groups: Sequence[Architectures], title: str) -> Figure:
    """Plot D and W against the budgets, with one line for each stage and one row of panels for each experiment."""
    size = (9, 3.4 * len(groups))
    figure, axes = figures.subplots(len(groups), 2, figsize=size, squeeze=False, sharey="col", layout="constrained")
    for row, found in zip(axes, groups):
        for panel, values, name in zip(row, (found.depths, found.widths), ("depth D", "width W")):
            for stage, line in enumerate(values.mean(0).T, 1):
                panel.plot(found.budgets / 1e9, line, "o-", label=f"stage {stage}")
            panel.set(xlabel="budget [GFLOPs, multiply-accumulates]", ylabel=name, title=f"{title}: {found.title}")
            panel.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    return figure


def write_csv(file: FilePath, groups: Sequence[Architectures]) -> None:
    """Write one row for each experiment, seed, budget and stage."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["experiment", "seed", "budget [FLOPs]", "stage", "D", "W", "mean E"])
        for found in groups:
            for seed, number, stage in np.ndindex(found.depths.shape):
                place = (seed, number, stage)
                values = [f"{found.depths[place]:g}", f"{found.widths[place]:g}", f"{found.ratios[place]:.3f}"]
                writer.writerow([found.title, seed, f"{found.budgets[number]:.0f}", stage + 1, *values])


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write the architectures found by OFA (w/o PS) and DetOFA."""
    ((_, data_set),) = request.profile.chosen(target.keys).items()
    groups = [
        Architectures.of(experiment.title, [summary_of(run) for run in own], own[0].config.network.geometry)
        for experiment in (OFA, DETOFA)
        if (own := [run for run in runs if run.experiment.name == experiment.name])
    ]
    write_csv(csv_file(request, target), groups)
    detofa = [run for run in runs if run.experiment.name == DETOFA.name]
    with suppress(UserError):  # the space is too large to count
        groups.append(random_architectures("Random paths", detofa))
    save_picture(request, target, draw(groups, data_set.title))
    lines = []
    for group in groups:
        lines += [f"## {group.title}", "", *table(group), ""]
    about = "Means over the seeds."
    if len(groups) > 2:
        near = f"FLOPs that differ by at most {NEAR:.0%}"
        about += f" For each of DetOFA's subnets, there are {RANDOM_PATHS} random paths of the space A, with {near}."
    lines += [picture_line(target), "", f"{about} Runs: {runs_and_code(runs)}."]
    return write_markdown(request, target, lines)


TARGET = Target(
    "architectures",
    "Architectures: depth and width of the found subnets",
    ("voc",),
    (OFA, DETOFA),
    write,
    paper="small paths are better with larger depths and smaller channels on the output side (section 4.2).",
    names_data=False,
)
