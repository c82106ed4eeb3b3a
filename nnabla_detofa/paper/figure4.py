"""Figure 4: which of the random paths of each FLOPs bucket the path filter keeps, and what they are worth."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.files import whole_text
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..tools.report import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class FilteredPaths:
    """Paths of a fine-tuned supernet, and what Algorithm 1 line 12 says of them.

    Attributes:
        paths: n of them, AP among what was measured.
        scores: (n,) path scores of the filter that pruned.
        thresholds: (buckets,) of line 7; a path below that of its bucket is pruned. NaN, or None, prunes nothing.
        edges: (buckets + 1,) FLOPs between the buckets.
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
        """(n,) AP of each path, times 100."""
        return 100 * self.paths.aps


def table(found: FilteredPaths) -> list[str]:
    """Markdown lines: how many are kept and pruned in each bucket, and their mean AP."""
    lines = [
        markdown_row(["bucket", "threshold", "kept", "pruned", "mean AP of the kept", "of the pruned"]),
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
    """By how much the kept paths are better, in the buckets that have both kinds."""
    gains = []
    for bucket in range(len(found.thresholds)):
        inside = found.paths.buckets == bucket
        kept, pruned = found.points[inside & found.kept], found.points[inside & ~found.kept]
        if len(kept) and len(pruned):
            gains.append(kept.mean() - pruned.mean())
    if not gains:
        return "No bucket holds both kept and pruned paths."
    better = sum(gain > 0 for gain in gains)
    return (
        f"Kept paths are {np.mean(gains):+.1f} points of AP above pruned ones, as the mean over the {len(gains)} buckets that "
        f"have both; above them in {better}."
    )


def draw(found: FilteredPaths, title: str) -> Figure:
    """Path score and AP of each path over its FLOPs; lines are the thresholds."""
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
    """One line for each path."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["bucket", "FLOPs", "path score", "kept", "validation loss", "AP50 [points]"])
        for item, score, kept, points in zip(found.paths.items, found.scores, found.kept, found.points):
            writer.writerow([item.bucket + 1, item.flops, f"{score:.6f}", int(kept), f"{item.loss:.5f}", f"{points:.2f}"])
