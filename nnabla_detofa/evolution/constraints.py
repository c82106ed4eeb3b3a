"""Hard constraints on the costs of paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from ..space.costs import CostModel, layer_cost
from ..space.layer_costs import LayerCost, in_unit
from ..space.paths import PathBatch


@dataclass(frozen=True)
class Constraint:
    """Hard constraint least <= cost <= budget.

    Attributes:
        name: name of the cost in messages.
        cost: function of n paths that returns (n,) costs. With an `AdditiveCost`, paths can be sampled directly even for the
            tightest budget, combined with any bounds on a `PeakCost`.
        budget: largest allowed cost, inclusive, in the unit of `cost`.
        unit: unit in messages.
        scale: value of one `unit`.
        least: smallest allowed cost, inclusive; it can restrict a search to one FLOPs bucket.
    """

    name: str
    cost: Callable[[PathBatch], np.ndarray]
    budget: float
    unit: str = ""
    scale: float = 1.0
    least: float = -np.inf

    @property
    def above(self) -> float:
        """The smallest integer above the budget: the end of the half-open interval of an additive cost."""
        return np.floor(self.budget) + 1

    def text(self, *costs: float) -> str:
        """Format costs, such as "0.52 to 4.31 GFLOPs"."""
        return in_unit(costs, self.unit, self.scale)

    def __str__(self) -> str:
        if np.isfinite(self.least):
            return f"{self.name} from {self.text(self.least, self.budget)}"
        return f"{self.name} <= {self.limit}"

    @property
    def limit(self) -> str:
        """The budget with its unit, with more digits than costs, so that it differs from the costs it excludes in messages."""
        return f"{self.budget / self.scale:.10g} {self.unit}".rstrip()

    def costs(self, batch: PathBatch) -> np.ndarray:
        """Return the (n,) costs of n paths.

        Raises:
            ValueError: `cost` does not return one number, other than NaN, for each path.
        """
        costs = np.asarray(self.cost(batch))
        if costs.shape != (len(batch),) or costs.dtype.kind not in "fiub" or np.isnan(costs).any():
            raise ValueError(
                f"{self.name} of {len(batch)} paths must be as many numbers, got shape {costs.shape} of {costs.dtype}, or NaN"
            )
        return costs


class NoPath(UserError):
    """No path satisfies the constraints, or none was found."""


def at_most(cost: CostModel | LayerCost, budget: float) -> Constraint:
    """Return the constraint cost <= `budget`; for a model, the cost is its FLOPs."""
    return between(cost, -np.inf, budget)


def between(cost: CostModel | LayerCost, least: float, budget: float) -> Constraint:
    """Return the constraint `least` <= cost <= `budget`; for a model, the cost is its FLOPs."""
    cost = layer_cost(cost)
    return Constraint(cost.name, cost, budget, cost.unit, cost.scale, least)


def feasible_paths(batch: PathBatch, constraints: Sequence[Constraint]) -> np.ndarray:
    """Return which paths satisfy all constraints, (n,) bool."""
    feasible = np.ones(len(batch), bool)
    for bound in constraints:
        costs = bound.costs(batch)
        feasible &= (bound.least <= costs) & (costs <= bound.budget)
    return feasible
