"""Curves of AP against FLOPs budgets, from the summaries of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from ..runs.run_folder import points


@dataclass(frozen=True, eq=False)
class Curve:
    """Subnets found by the runs of one experiment.

    Attributes:
        title: title of the experiment.
        budgets: (b,) bounds on the FLOPs of a subnet.
        flops, ap: (seeds, b) FLOPs and AP, in points, of the subnet found for each budget.
        fullnet: (seeds,) AP of the largest path after line 2, in points.
        errors: (seeds, b) standard errors of AP over the test images, in points; None if unknown.
    """

    title: str
    budgets: np.ndarray
    flops: np.ndarray
    ap: np.ndarray
    fullnet: np.ndarray
    errors: np.ndarray | None = None

    @classmethod
    def of(cls, title: str, summaries: Sequence[Mapping], errors: Sequence[Mapping[str, float]] = ()) -> Curve:
        """Return the curve of an experiment's runs.

        Args:
            title: title of the experiment.
            summaries: content of summary.json of the run of each seed.
            errors: standard errors of each run, as returned by `standard_errors.standard_errors_of`; may be empty.

        Raises:
            UserError: the runs have different budgets.
        """
        subnets = [summary["subnets"] for summary in summaries]
        if len({tuple(subnet["budget"] for subnet in found) for found in subnets}) > 1:
            raise UserError(f"the runs of {title} must have the same budgets for all seeds")
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
        """(b,) mean AP over the seeds."""
        return self.ap.mean(axis=0)


def _errors(errors: Sequence[Mapping[str, float]], budgets: int) -> np.ndarray | None:
    names = [f"subnet_{number}" for number in range(1, budgets + 1)]
    complete = bool(errors) and all(name in one for one in errors for name in names)
    return np.array([[one[name] for name in names] for one in errors]) if complete else None


def by_fullnet(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Group curves that have the same fullnets, which depend on the initial weights."""
    groups: dict[bytes, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.fullnet.tobytes(), []).append(curve)
    return list(groups.values())


def with_range(values: np.ndarray) -> str:
    """Format the mean of the seeds' values, and their range if there are several."""
    text = f"{values.mean():.1f}"
    return text if len(values) == 1 else f"{text} ({values.min():.1f} to {values.max():.1f})"
