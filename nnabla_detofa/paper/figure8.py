"""Figure 8: operation scores before and after the transfer to detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.errors import UserError
from ..common.files import write_json
from ..common.reading import read_json
from ..common.seeds import rng_for
from ..methods.build import make_cost
from ..path_filter.model import PathFilter, PathScorer
from ..runs.run_folder import trained_classes
from ..space.counting import Buckets
from ..space.pruning import operation_scores
from ..tools.report import markdown_row
from ..tools.search import load_run
from .experiments import DETOFA
from .profiles import Pretraining
from .run import Run
from .run_results import operations_of, runs_and_code
from .scored_operations import ScoredOperations, write_csv
from .study_paths import study_folder
from .target import Request, Target, csv_file, picture_line, save_picture, write_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FILE = "figure8.json"
"""Name in the folder of the filter study, and in its archive."""
DISTINCT = 0.1
"""Least difference of two means of four correlations that is called a difference."""


def measured_operations(run: Run) -> list[ScoredOperations]:
    """Return operation scores by the pre-trained path filter, and then by the run's path filter for each stem depth.

    They are stored in the folder of the run's filter study, since archives hold no path filters.

    Raises:
        UserError: results are made from archives, which lack the scores.
    """
    file, geometry = study_folder(run) / FILE, run.config.network.geometry
    if not run.archive:
        after = same_stem_operations(run, title_after(run))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, [pretrained_operations(run.data_set.pretraining, run.hparams.paths_per_operation), *after])
    elif not file.is_file():
        raise UserError(f"the archives of {run.profile.name} do not have the operation scores of Figure 8 for {run.name}")
    contents = read_json(file, "the operation scores of Figure 8")
    return [ScoredOperations.from_json(content["title"], geometry, content) for content in contents]


def title_after(run: Run) -> str:
    """Return the title of the run's supernet."""
    return f"{run.data_set.title}, after warm-up"


def pretrained_operations(pretraining: Pretraining, count: int) -> dict:
    """Compute operation scores with the pre-trained path filter, over `count` paths of its own supernet."""
    config, hparams = pretraining.load()
    space = config.network.space
    path_filter = PathFilter.load(pretraining.path_filter, geometry=space.geometry, buckets=hparams.buckets)
    cost = make_cost(config, 1, config.dataloader.image_size)  # the backbone's FLOPs do not depend on the classes
    scorer = PathScorer(path_filter, cost.flops, Buckets(space, cost.flops, hparams.buckets).index)
    found = operation_scores(space, scorer, cost.stage_flops, count, rng_for(config.args.seed, "operation scores"))
    return {"title": f"{config.name}, before transfer", **found.to_json(), "removed": []}


def same_stem_operations(run: Run, title: str) -> list[dict]:
    """Compute operation scores with the run's path filter, over paths of each stem depth separately."""
    searched, geometry = load_run(run.folder), run.config.network.geometry
    scorer = PathScorer(
        PathFilter.load(run.folder / "path_filter.h5", type(run.config.network.geometry)),
        searched.costs["flops"],
        searched.buckets.index,
    )
    side, count = run.config.dataloader.image_size, run.hparams.paths_per_operation
    stage_flops = make_cost(run.config, len(trained_classes(run.folder)), (side, side)).stage_flops
    nets = []
    for depth in geometry.stem_depths:
        rng = rng_for(run.config.args.seed, "operation scores")
        found = operation_scores(searched.buckets.space, scorer, stage_flops, count, rng, depth)
        nets.append({"title": f"{title}, stem depth {depth}", **found.to_json(), "removed": []})
    return nets


def table(supernets: Sequence[ScoredOperations]) -> list[str]:
    """Return Markdown lines: correlations of the scores with an operation's size, by stage."""
    stages = range(1, supernets[0].geometry.stages + 1)
    lines = [
        markdown_row(["supernet", "Spearman's rho of score and", *(f"stage {stage}" for stage in stages), "mean"]),
        markdown_row(["---", "---"] + ["---:"] * (len(stages) + 1)),
    ]
    for supernet in supernets:
        for name, values in supernet.correlations().items():
            lines.append(markdown_row([supernet.title, name, *(f"{v:.2f}" for v in values), f"{np.mean(values):.2f}"]))
    return lines


def comparison(before: ScoredOperations, after: ScoredOperations) -> str:
    """Describe whether scores depend on size more strongly after the transfer than before."""
    old, new = (float(np.mean(net.correlations()["FLOPs"])) for net in (before, after))
    outcome = "as in the paper" if new > old else "unlike in the paper"
    if abs(new - old) < DISTINCT:
        outcome = "too close to tell them apart"
    return (
        f"Here rho of score and FLOPs inside a stage is {old:.2f} ({before.title}) and {new:.2f} ({after.title}), on average: "
        f"{outcome}."
    )


def draw(supernets: Sequence[ScoredOperations]) -> Figure:
    """Draw a row for each supernet and a panel for each stage: D and W on the y axis, E on the x axis, score as color.

    The colors span the scores of a supernet. A cross marks pruned operations.
    """
    stages = supernets[0].geometry.stages
    figure, rows = figures.subplots(
        len(supernets), stages, figsize=(2.7 * stages, 3.9 * len(supernets)), squeeze=False, layout="constrained"
    )
    for panels, net in zip(rows, supernets):
        images = [_draw_stage(panel, net, stage) for stage, panel in enumerate(panels)]
        panels[0].set_ylabel(net.title)
        figure.colorbar(images[-1], ax=panels, label="mean path score", shrink=0.8)
    return figure


def _draw_stage(panel: Axes, net: ScoredOperations, stage: int) -> AxesImage:
    geometry = net.geometry
    pairs = [(depth, width) for depth in geometry.depths for width in geometry.widths]
    low, high = float(net.scores.min()), float(net.scores.max())
    image = np.full((len(pairs), len(geometry.ratios)), np.nan)
    for index in net.in_stage(stage):
        operation = net.operations[index]
        row, column = pairs.index((operation.depth, operation.width)), geometry.ratios.index(operation.ratio)
        image[row, column] = net.scores[index]
        dark = net.scores[index] < (low + high) / 2
        text = f"{net.scores[index]:.3f}" + (" ×" if operation in net.removed else "")
        panel.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    drawn = panel.imshow(image, vmin=low, vmax=high, aspect="auto", cmap="viridis")
    panel.set_xticks(range(len(geometry.ratios)), [f"E {ratio}" for ratio in geometry.ratios], fontsize=8)
    labels = [f"D {depth}, W {width}" for depth, width in pairs] if stage == 0 else [""] * len(pairs)
    panel.set_yticks(range(len(pairs)), labels, fontsize=8)
    panel.set_title(f"stage {stage + 1}", fontsize=9)
    return drawn


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Figure 8 from the pre-trained filter on the classification supernet, and from the run of seed 0."""
    run, count = runs[0], runs[0].hparams.paths_per_operation
    before, *same_stem = measured_operations(run)
    after = ScoredOperations.from_json(title_after(run), run.config.network.geometry, operations_of(run))
    save_picture(request, target, draw([before, after]))
    write_csv(csv_file(request, target), [before, after])
    lines = [
        *table([before, after, *same_stem]),
        "",
        comparison(before, after),
        "",
        picture_line(target),
        "",
        f"The score of an operation is the mean path score g over {count} uniformly sampled paths, with the operation inserted "
        "into its stage; × marks pruned operations. The rows with a stem depth use the run's filter and the same paths, all "
        f"with that stem depth. One run: {runs_and_code([run])}.",
    ]
    return write_markdown(request, target, lines)


TARGET = Target(
    "figure8",
    "Figure 8: operation scores",
    ("voc",),
    (DETOFA,),
    write,
    paper="inside each block, scores increase with the size of an operation, more strongly after warm-up on Pascal VOC than on "
    "ImageNet.",
    one_seed=True,
)
