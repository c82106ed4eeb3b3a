"""AP over the FLOPs budgets, a curve for each experiment: Figures 5, 7, 9, 10, A1 and A2, from the summaries of runs alone."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import UserError
from ..common.files import whole_text
from ..runs.run_folder import points
from ..tools.report import markdown_row
from .intervals import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Curve:
    """What an experiment's runs found.

    Attributes:
        title: of the experiment.
        budgets: (b,) most FLOPs of the searched paths.
        flops, ap: (seeds, b) FLOPs and AP, in points, of the subnet found for each budget.
        fullnet: (seeds,) AP of the largest path after line 2, in points.
        errors: (seeds, b) standard errors of AP over the test images, in points; None where they are not known.
    """

    title: str
    budgets: np.ndarray
    flops: np.ndarray
    ap: np.ndarray
    fullnet: np.ndarray
    errors: np.ndarray | None = None

    @classmethod
    def of(cls, title: str, summaries: Sequence[Mapping], errors: Sequence[Mapping[str, float]] = ()) -> Curve:
        """The curve of the summaries of an experiment's runs, one for each seed.

        Args:
            errors: of each run, as `image_errors.errors_of` has them; may be empty.
        """
        subnets = [summary["subnets"] for summary in summaries]
        if len({tuple(subnet["budget"] for subnet in found) for found in subnets}) > 1:
            raise UserError(f"the budgets of the runs of {title} must be the same for all seeds")
        return cls(
            title,
            np.array([subnet["budget"] for subnet in subnets[0]]),
            np.array([[subnet["flops"] for subnet in found] for found in subnets]),
            np.array([[points(subnet) for subnet in found] for found in subnets]),
            np.array([points(summary["fullnet"]) for summary in summaries]),
            _errors(errors, len(subnets[0])),
        )

    @property
    def mean(self) -> np.ndarray:
        """(b,) AP over the seeds."""
        return self.ap.mean(axis=0)


def _errors(errors: Sequence[Mapping[str, float]], budgets: int) -> np.ndarray | None:
    names = [f"subnet_{number}" for number in range(1, budgets + 1)]
    whole = bool(errors) and all(name in one for one in errors for name in names)
    return np.array([[one[name] for name in names] for one in errors]) if whole else None


def check_budgets(curves: Sequence[Curve]) -> None:
    """Raise UserError unless all curves have the same budgets, which their table has as columns."""
    for curve in curves[1:]:
        if not np.array_equal(curve.budgets, curves[0].budgets):
            names = [f"{one.title} has {', '.join(f'{budget:.0f}' for budget in one.budgets)}" for one in (curves[0], curve)]
            raise UserError(f"the runs' budgets, in FLOPs, must be the same: {' and '.join(names)}")


def table(curves: Sequence[Curve], measure: str) -> str:
    """Markdown: one row a curve, one column a budget, and the mean over the budgets; ranges over the seeds."""
    budgets = [f"≤ {budget / 1e9:.3g} G" for budget in curves[0].budgets]
    lines = [
        markdown_row([measure, *budgets, "mean"]),
        markdown_row(["---"] + ["---:"] * (len(budgets) + 1)),
    ]
    for curve in curves:
        cells = [_with_range(column) for column in curve.ap.T]
        lines.append(markdown_row([curve.title, *cells, _with_range(curve.ap.mean(axis=1))]))
        if curve.errors is not None:
            shown = [f"{error:.1f}" for error in curve.errors.mean(axis=0)]
            lines.append(markdown_row(["SE over the test images", *shown, ""]))
    return "\n".join(lines)


def _with_range(values: np.ndarray) -> str:
    """The mean of the seeds' values, and between what they are."""
    text = f"{values.mean():.1f}"
    return text if len(values) == 1 else f"{text} ({values.min():.1f} to {values.max():.1f})"


def order(curves: Sequence[Curve]) -> str:
    """What was found, in a sentence: the curves by their mean AP, and how far seeds differ where there are several."""
    means = [float(curve.ap.mean()) for curve in curves]
    ranked = ", ".join(f"{curves[index].title} ({means[index]:.1f})" for index in np.argsort(means)[::-1])
    seeds = len(curves[0].ap)
    if seeds == 1:
        return f"Ours, mean over the budgets: {ranked}. One seed: nothing says how far another would differ."
    spread = np.mean([curve.ap.mean(axis=1).std(ddof=1) for curve in curves])
    return f"Ours, mean over the budgets: {ranked}; its standard deviation over the {seeds} seeds is {spread:.1f} on average."


def gains(curves: Sequence[Curve]) -> str:
    """The last curve against each other and against its fullnet, in a sentence; seeds are compared with their like.

    Of several seeds: the mean of the differences, its 95% t interval, and each seed's.
    """
    *others, last = curves
    mean = last.ap.mean(axis=1)
    against = ", ".join(f"{_difference(mean - other.ap.mean(axis=1))} against {other.title}" for other in others)
    best = _difference(last.ap.max(axis=1) - last.fullnet)
    title = last.title[0].upper() + last.title[1:]
    return f"{title}, mean over the budgets: {against}. Its best subnet: {best} against its fullnet."


def _difference(values: np.ndarray) -> str:
    """The mean of the seeds' differences, its t interval, and each of them."""
    return Values(tuple(map(float, values))).text()


def by_fullnet(curves: Sequence[Curve]) -> list[list[Curve]]:
    """The curves in groups that have one fullnet, seed by seed: another start gives another."""
    groups: dict[bytes, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.fullnet.tobytes(), []).append(curve)
    return list(groups.values())


def fullnets(curves: Sequence[Curve]) -> str:
    """What the fullnets have, in a sentence."""
    groups = by_fullnet(curves)
    if len(groups) == 1:
        return f"The fullnet (line 2) has {_with_range(curves[0].fullnet)}."
    each = "; ".join(f"{', '.join(c.title for c in group)} {_with_range(group[0].fullnet)}" for group in groups)
    return f"The fullnets (line 2) have: {each}."


def write_csv(file: FilePath, curves: Sequence[Curve]) -> None:
    """One line for each experiment, seed and budget."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["experiment", "seed", "budget [FLOPs]", "FLOPs", "AP [points]"])
        for curve in curves:
            for seed, (flops, ap) in enumerate(zip(curve.flops, curve.ap)):
                writer.writerows(
                    [curve.title, seed, f"{b:.0f}", f, f"{a:.2f}"] for b, f, a in zip(curve.budgets, flops.tolist(), ap)
                )


def draw(axes: Axes, curves: Sequence[Curve], measure: str, colors: Mapping[str, str], title: str = "") -> None:
    """The curves into a panel, and their fullnets dotted; bars go from the least to the largest of the seeds.

    Args:
        colors: of the curves, by their titles.
    """
    for curve in curves:
        spread = np.stack([curve.mean - curve.ap.min(axis=0), curve.ap.max(axis=0) - curve.mean])
        seeds = {"yerr": spread} if len(curve.ap) > 1 else {}
        axes.errorbar(curve.budgets / 1e9, curve.mean, marker="o", color=colors[curve.title], label=curve.title, **seeds)
    groups = by_fullnet(curves)
    for group in groups:
        color, label = ("0.6", "fullnet") if len(groups) == 1 else (colors[group[0].title], f"fullnet of {group[0].title}, …")
        axes.axhline(group[0].fullnet.mean(), color=color, linestyle=":", label=label)
    axes.set(xlabel="budget [GFLOPs, multiply-accumulates]", ylabel=f"{measure} [points]", title=title)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    axes.grid(alpha=0.3)
