"""Figure 6: AP of random paths of each FLOPs bucket, by method."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.files import whole_text
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..tools.report import markdown_row
from .budget_figures import colors_of
from .experiments import DETOFA, OFA
from .random_paths import RANDOM_PATHS, random_paths
from .run import Run
from .run_results import runs_and_code
from .target import Request, Target, csv_file, picture_line, save_picture, write_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class MethodPaths:
    """Evaluated paths of one method.

    Attributes:
        title: title of the method.
        paths: n paths with their AP.
    """

    title: str
    paths: EvaluatedPaths

    @property
    def points(self) -> np.ndarray:
        """(n,) AP of each path in points."""
        return 100 * self.paths.aps

    def in_bucket(self, bucket: int) -> np.ndarray:
        """Return the AP of a bucket's paths in points."""
        return self.points[self.paths.buckets == bucket]


def table(methods: Sequence[MethodPaths], buckets: int) -> list[str]:
    """Return Markdown lines: mean, standard deviation and maximum of AP in each bucket."""
    header = ["AP: mean ± std; best", *(f"bucket {bucket + 1}" for bucket in range(buckets)), "all"]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * (buckets + 1))]
    for method in methods:
        groups = [*(method.in_bucket(bucket) for bucket in range(buckets)), method.points]
        lines.append(markdown_row([method.title, *map(_cell, groups)]))
    return lines


def _cell(points: np.ndarray) -> str:
    if not len(points):
        return "-"
    std = f" ± {points.std(ddof=1):.1f}" if len(points) > 1 else ""
    return f"{points.mean():.1f}{std}; {points.max():.1f}"


def comparison(one: MethodPaths, other: MethodPaths) -> str:
    """Describe the difference of the mean AP of two methods, in the buckets in which both have paths."""
    both = sorted(set(one.paths.buckets) & set(other.paths.buckets))
    if not both:
        return f"No bucket has paths of both {one.title} and {other.title}."
    gains = [other.in_bucket(bucket).mean() - one.in_bucket(bucket).mean() for bucket in both]
    named = ", ".join(f"{gain:+.1f} in bucket {bucket + 1}" for bucket, gain in zip(both, gains))
    return f"Mean AP of {other.title} minus {one.title}: {named}; {np.mean(gains):+.1f} on average."


def draw(axes: Axes, methods: Sequence[MethodPaths], colors: Mapping[str, str], title: str) -> None:
    """Plot the AP of each path against its FLOPs.

    Args:
        axes: the panel.
        methods: paths of each method.
        colors: color of each method by title.
        title: title of the panel.
    """
    for method, marker in zip(methods, "ox^"):
        flops = method.paths.flops / 1e9
        axes.scatter(flops, method.points, label=method.title, s=18, marker=marker, alpha=0.8, color=colors[method.title])
    axes.set(xlabel="GFLOPs (multiply-accumulates)", ylabel="AP50 on validation images [points]", title=title)
    axes.grid(alpha=0.3)
    axes.legend()


def write_csv(file: FilePath, groups: Sequence[tuple[str, MethodPaths]]) -> None:
    """Write one row for each path; `groups` are pairs of a data set and the paths of a method."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["data set", "method", "bucket", "FLOPs", "validation loss", "AP50 [points]"])
        for data_set, method in groups:
            for item, points in zip(method.paths.items, method.points):
                row = [item.bucket + 1, item.flops, f"{item.loss:.5f}", f"{points:.2f}"]
                writer.writerow([data_set, method.title, *row])


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Figure 6 from random paths of the runs of seed 0."""
    data_sets = request.profile.chosen(target.keys)
    figure, axes = figures.subplots(len(data_sets), 1, figsize=(6.5, 4 * len(data_sets)), squeeze=False, layout="constrained")
    lines: list[str] = []
    groups: list[tuple[str, MethodPaths]] = []
    shown: list[Run] = []
    for panel, (key, data_set) in zip(axes[:, 0], data_sets.items()):
        own = [
            next(run for run in runs if run.key == key and run.experiment.name == experiment.name and run.seed == 0)
            for experiment in (OFA, DETOFA)
        ]
        found = [MethodPaths(run.experiment.title, random_paths(run)) for run in own]
        draw(panel, found, colors_of([paths.title for paths in found]), data_set.title)
        lines += [f"## {data_set.title}", "", *table(found, own[0].hparams.buckets), "", comparison(*found), ""]
        groups += [(data_set.title, paths) for paths in found]
        shown += own
    save_picture(request, target, figure)
    write_csv(csv_file(request, target), groups)
    lines += [
        picture_line(target),
        "",
        f"AP50 on the validation images of {RANDOM_PATHS} uniformly sampled paths of each FLOPs bucket, seed 0. The paths of "
        "OFA (w/o PS) are from the whole search space A, the paths of DetOFA from the pruned space, in which a bucket may be "
        f"empty. Runs: {runs_and_code(shown)}.",
    ]
    return write_markdown(request, target, lines)


TARGET = Target(
    "figure6",
    "Figure 6: random paths of each FLOPs bucket",
    ("voc", "coco"),
    (OFA, DETOFA),
    write,
    paper="DetOFA has more paths with a high AP than OFA (w/o PS), for all FLOPs.",
    one_seed=True,
    evaluates=True,
)
