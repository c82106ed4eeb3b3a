"""Figure 4: random paths that the path filter keeps and prunes, and their AP (Algorithm 1, line 12)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.errors import UserError
from ..common.files import whole_text, write_json
from ..common.reading import read_json
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.model import PathFilter, PathScorer
from ..runs import result_files
from ..runs.run_folder import read_result
from ..tools.report import markdown_row
from ..tools.search import load_run
from .experiments import DETOFA
from .random_paths import RANDOM_PATHS, random_paths
from .run import Run
from .run_results import runs_and_code
from .study_paths import study_folder
from .target import Request, Target, csv_file, picture_line, save_picture, write_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class FilteredPaths:
    """Evaluated paths of a fine-tuned supernet, with their path scores and the thresholds of path pruning.

    Attributes:
        paths: n paths with their AP.
        scores: (n,) path scores by the filter that pruned.
        thresholds: (buckets,) thresholds of line 7. A path with a lower score than its bucket's threshold is pruned; NaN prunes
            none.
        edges: (buckets + 1,) FLOPs that separate the buckets.
    """

    paths: EvaluatedPaths
    scores: np.ndarray
    thresholds: np.ndarray
    edges: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(n,) whether the filter keeps a path."""
        return ~(self.scores < self.thresholds[self.paths.buckets])

    @property
    def points(self) -> np.ndarray:
        """(n,) AP of each path in points."""
        return 100 * self.paths.aps


def table(found: FilteredPaths) -> list[str]:
    """Return Markdown lines: the number of kept and pruned paths of each bucket, and their mean AP."""
    lines = [
        markdown_row(["bucket", "threshold", "kept", "pruned", "mean AP, kept", "mean AP, pruned"]),
        markdown_row(["---"] + ["---:"] * 5),
    ]
    groups = [(str(bucket + 1), found.paths.buckets == bucket) for bucket in range(len(found.thresholds))]
    for name, inside in [*groups, ("all", np.ones(len(found.paths), bool))]:
        kept, pruned = inside & found.kept, inside & ~found.kept
        threshold = "" if name == "all" else f"{found.thresholds[int(name) - 1]:.3f}".replace("nan", "-")
        cells = [name, threshold, str(kept.sum()), str(pruned.sum())]
        lines.append(
            markdown_row([*cells, *(f"{found.points[part].mean():.1f}" if part.any() else "-" for part in (kept, pruned))])
        )
    return lines


def comparison(found: FilteredPaths) -> str:
    """Describe how much better the kept paths are, on average over the buckets that have kept and pruned paths."""
    gains = []
    for bucket in range(len(found.thresholds)):
        inside = found.paths.buckets == bucket
        kept, pruned = found.points[inside & found.kept], found.points[inside & ~found.kept]
        if len(kept) and len(pruned):
            gains.append(kept.mean() - pruned.mean())
    if not gains:
        return "No bucket has both kept and pruned paths."
    better = sum(gain > 0 for gain in gains)
    return (
        f"Mean AP of kept paths minus mean AP of pruned paths: {np.mean(gains):+.1f} points, averaged over the {len(gains)} "
        f"buckets that have both; positive in {better}."
    )


def draw(found: FilteredPaths, title: str) -> Figure:
    """Plot the path score and the AP of each path against its FLOPs; horizontal lines are thresholds."""
    figure, (upper, lower) = figures.subplots(2, 1, figsize=(6.5, 7), sharex=True, layout="constrained")
    flops = found.paths.flops / 1e9
    for part, marker, color, label in ((found.kept, "o", "tab:blue", "kept"), (~found.kept, "x", "tab:red", "pruned")):
        for axes, values in ((upper, found.scores), (lower, found.points)):
            axes.scatter(flops[part], values[part], s=22, marker=marker, color=color, label=f"{label} ({part.sum()})")
    for threshold, left, right in zip(found.thresholds, found.edges / 1e9, found.edges[1:] / 1e9):
        upper.hlines(threshold, left, right, color="0.4", linewidth=1)
    for axes in (upper, lower):
        for edge in found.edges / 1e9:
            axes.axvline(edge, color="0.85", linewidth=1, zorder=0)
        axes.grid(alpha=0.3, axis="y")
    upper.set(ylabel="path score g(a); lines: thresholds", title=title)
    upper.legend()
    lower.set(xlabel="GFLOPs (multiply-accumulates); vertical lines: buckets", ylabel="AP50 on validation images [points]")
    return figure


def write_csv(file: FilePath, found: FilteredPaths) -> None:
    """Write one row for each path."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["bucket", "FLOPs", "path score", "kept", "validation loss", "AP50 [points]"])
        for item, score, kept, points in zip(found.paths.items, found.scores, found.kept, found.points):
            writer.writerow([item.bucket + 1, item.flops, f"{score:.6f}", int(kept), f"{item.loss:.5f}", f"{points:.2f}"])


def path_scores(run: Run, paths: EvaluatedPaths) -> np.ndarray:
    """Return the (n,) scores of paths by the filter that pruned in a run; they are computed once and stored."""
    file = study_folder(run) / f"figure4_{paths.header['weights'][:8]}.json"
    if not file.is_file():
        if run.archive:
            raise UserError(f"the archives of {run.profile.name} do not have the path scores of Figure 4 for {run.name}")
        searched = load_run(run.folder)
        scorer = PathScorer(
            PathFilter.load(run.folder / "path_filter.h5", type(run.config.network.geometry)),
            searched.costs["flops"],
            searched.buckets.index,
        )
        write_json(file, scorer(paths.batch).tolist())
    return np.array(read_json(file, "the path scores"), float)


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Figure 4 from random paths of the pruned space of the run of seed 0."""
    run = runs[0]
    buckets = run.hparams.buckets
    thresholds = read_result(run.folder, "summary", lambda content: result_files.thresholds(content, buckets))
    paths = random_paths(run)
    edges = np.array(paths.settings["bucket_edges"], float)
    found = FilteredPaths(paths, path_scores(run, paths), np.array(thresholds, float), edges)
    save_picture(request, target, draw(found, run.data_set.title))
    write_csv(csv_file(request, target), found)
    lines = [
        *table(found),
        "",
        comparison(found),
        "",
        picture_line(target),
        "",
        f"{RANDOM_PATHS} uniformly sampled paths of each FLOPs bucket of the pruned space (fewer if a bucket does not have as "
        "many), with their AP50 on the validation images under the final weights. The filter of lines 5 to 14 computed the "
        f"scores. One run: {runs_and_code([run])}.",
    ]
    return write_markdown(request, target, lines)


TARGET = Target(
    "figure4",
    "Figure 4: path pruning",
    ("voc",),
    (DETOFA,),
    write,
    paper="an example of 15 uniformly sampled paths, kept and pruned, without numbers.",
    one_seed=True,
    evaluates=True,
    names_data=False,
)
