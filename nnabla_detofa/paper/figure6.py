"""Figure 6: what random paths of a trained supernet are worth, method by method, in each FLOPs bucket."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common.files import whole_text
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..tools.report import markdown_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class PathsOf:
    """Evaluated paths of one method, AP among what was measured."""

    title: str
    paths: EvaluatedPaths

    @property
    def points(self) -> np.ndarray:
        """(n,) AP of each path, times 100."""
        return 100 * self.paths.aps

    def in_bucket(self, bucket: int) -> np.ndarray:
        """AP, in points, of the bucket's paths."""
        return self.points[self.paths.buckets == bucket]


def table(methods: Sequence[PathsOf], buckets: int) -> list[str]:
    """Markdown lines: mean and standard deviation of AP in each bucket, and the best path's."""
    header = ["AP, mean ± deviation; best", *(f"bucket {bucket + 1}" for bucket in range(buckets)), "all"]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * (buckets + 1))]
    for method in methods:
        groups = [*(method.in_bucket(bucket) for bucket in range(buckets)), method.points]
        lines.append(markdown_row([method.title, *map(_cell, groups)]))
    return lines


def _cell(points: np.ndarray) -> str:
    if not len(points):
        return "-"
    deviation = f" ± {points.std(ddof=1):.1f}" if len(points) > 1 else ""
    return f"{points.mean():.1f}{deviation}; {points.max():.1f}"


def comparison(one: PathsOf, other: PathsOf) -> str:
    """By how much the second method's paths are better on average, in the buckets where both have some."""
    both = sorted(set(one.paths.buckets) & set(other.paths.buckets))
    if not both:
        return f"No bucket holds paths of {one.title} and of {other.title}."
    gains = [other.in_bucket(bucket).mean() - one.in_bucket(bucket).mean() for bucket in both]
    named = ", ".join(f"{gain:+.1f} in bucket {bucket + 1}" for bucket, gain in zip(both, gains))
    return f"{other.title} above {one.title}, mean AP: {named}; {np.mean(gains):+.1f} on average."


def draw(axes: Axes, methods: Sequence[PathsOf], colors: Mapping[str, str], title: str) -> None:
    """Each path as a point over its FLOPs.

    Args:
        colors: of the methods, by their titles.
    """
    for method, marker in zip(methods, "ox^"):
        look = {"s": 18, "marker": marker, "alpha": 0.8, "color": colors[method.title]}
        axes.scatter(method.paths.flops / 1e9, method.points, label=method.title, **look)
    axes.set(xlabel="GFLOPs (multiply-accumulates)", ylabel="AP50 on validation images [points]", title=title)
    axes.grid(alpha=0.3)
    axes.legend()


def write_csv(file: FilePath, groups: Sequence[tuple[str, PathsOf]]) -> None:
    """One line for each path; groups are data sets and methods."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["data set", "method", "bucket", "FLOPs", "validation loss", "AP50 [points]"])
        for data_set, method in groups:
            for item, points in zip(method.paths.items, method.points):
                row = [item.bucket + 1, item.flops, f"{item.loss:.5f}", f"{points:.2f}"]
                writer.writerow([data_set, method.title, *row])
