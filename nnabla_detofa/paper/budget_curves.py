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
        budgets: (b,) bounds on the FLOPs of a subnet, ascending.
        flops, ap: (seeds, b) FLOPs and AP, in points, of the subnet found for each budget.
        fullnet: (seeds,) AP of the largest path after line 2, in points.
        errors: (seeds, b + 1) standard errors over the test images, in points: of the fullnet, then of the subnets. Seeds for
            which they are unknown have NaN.
    """

    title: str
    budgets: np.ndarray
    flops: np.ndarray
    ap: np.ndarray
    fullnet: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, title: str, summaries: Sequence[Mapping], errors: Sequence[Mapping[str, float]] = ()) -> Curve:
        """Return the curve of an experiment's runs.

        Args:
            title: title of the experiment.
            summaries: content of summary.json of the run of each seed.
            errors: standard errors of each run, as returned by `standard_errors.standard_errors_of`, or none.

        Raises:
            UserError: the runs have different budgets.
        """
        given = [[subnet["budget"] for subnet in summary["subnets"]] for summary in summaries]
        if any(budgets != given[0] for budgets in given):
            raise UserError(f"the runs of {title} must have the same budgets for all seeds")
        order = sorted(range(len(given[0])), key=lambda place: given[0][place])
        subnets = [[summary["subnets"][place] for place in order] for summary in summaries]
        return cls(
            title,
            np.array([subnet["budget"] for subnet in subnets[0]]),
            np.array([[subnet["flops"] for subnet in found] for found in subnets]),
            np.array([[points(subnet) for subnet in found] for found in subnets]),
            np.array([points(summary["fullnet"]) for summary in summaries]),
            _errors(errors or [{}] * len(summaries), order),
        )

    @property
    def mean(self) -> np.ndarray:
        """(b,) mean AP over the seeds."""
        return self.ap.mean(axis=0)

    @property
    def over_budgets(self) -> np.ndarray:
        """(seeds,) mean AP over the budgets."""
        return self.ap.mean(axis=1)

    @property
    def known_errors(self) -> np.ndarray:
        """Seeds whose standard errors are known."""
        return np.flatnonzero(~np.isnan(self.errors).any(axis=1))


def _errors(errors: Sequence[Mapping[str, float]], order: Sequence[int]) -> np.ndarray:
    """Return (seeds, b + 1) standard errors, with the subnets in the given order; a seed that lacks one has NaN for all."""
    names = ["fullnet", *(f"subnet_{place + 1}" for place in order)]
    complete = [all(name in one for name in names) for one in errors]
    return np.array([[one[name] if has else np.nan for name in names] for one, has in zip(errors, complete)], float)


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
