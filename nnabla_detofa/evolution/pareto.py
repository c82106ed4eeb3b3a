"""Pareto fronts of cost and score by NSGA-II."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from ..space.costs import CostModel, layer_cost
from ..space.layer_costs import LayerCost
from ..space.paths import PathBatch
from ..space.search_space import SearchSpace
from .constraints import Constraint, feasible_paths
from .operators import crossover_many, mutate_many
from .population import best_paths, first_population
from .search import check_arguments


@dataclass(frozen=True)
class Front:
    """Pareto front of cost and score, in ascending order of both: no path is dominated by another.

    Attributes:
        paths: n paths.
        scores: (n,) their scores.
        costs: (n,) their costs (the `cost` argument of `front`).
        scored: number of distinct paths that were scored.
    """

    paths: PathBatch
    scores: np.ndarray
    costs: np.ndarray
    scored: int


def front(
    space: SearchSpace,
    score: Callable[[PathBatch], np.ndarray],
    cost: CostModel | LayerCost | Callable[[PathBatch], np.ndarray],
    rng: np.random.Generator,
    generations: int = 500,
    population: int = 100,
    mutate_prob: float = 0.1,
    constraints: Sequence[Constraint] = (),
    progress: Callable[[int, float], None] | None = None,
) -> Front:
    """Search for the Pareto front of cost and score with NSGA-II (Deb et al. 2002, pymoo's implementation).

    Mutation and crossover are the same as in `search`. The paper searches for each budget separately; this is one run for all
    budgets. All scored paths are candidates for the Pareto front, not only the last population. Scores must be comparable over
    the whole range of costs; scores of the path filter are comparable only inside a FLOPs bucket, to which `constraints` can
    restrict the search.

    Args:
        space, score, cost, rng, generations, population, mutate_prob, constraints, progress: as in `search`.

    Raises:
        UserError: an argument is out of its range, or pymoo is not installed.
        NoPath: no path that satisfies the constraints was found.
    """
    check_arguments(population, generations, mutate_prob=mutate_prob)
    evolve = _nsga2()
    measured = Constraint("cost", layer_cost(cost) if isinstance(cost, (CostModel, LayerCost)) else cost, np.inf).costs
    scored: dict[bytes, float] = {}
    seen: list[PathBatch] = []

    def objectives(batch: PathBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return costs, scores and feasibility of paths, (n,) each; infeasible paths are not scored."""
        feasible = feasible_paths(batch, constraints)
        scores = np.zeros(len(batch))
        if feasible.any():
            inside = batch[feasible]
            best_paths(inside, score, scored, 1)
            scores[feasible] = [scored[key] for key in inside.keys.tolist()]
            seen.append(inside)
        return measured(batch), scores, feasible

    first = first_population(space, constraints, population, rng)
    algorithm = evolve(
        first,
        objectives,
        lambda parents: mutate_many(space, parents, mutate_prob, rng),
        lambda one, other: crossover_many(space, one, other, rng),
        population,
        int(rng.integers(2**31)),
    )
    for generation in range(generations + 1):
        next(algorithm)
        if progress and generation:
            progress(generation, max(scored.values()))
    every = PathBatch.concatenate(seen)
    costs, scores = np.asarray(measured(every)), np.array([scored[key] for key in every.keys.tolist()])
    best = non_dominated(costs, scores)
    return Front(every[best], scores[best], costs[best], len(scored))


def _nsga2() -> Callable[..., Iterator[None]]:
    """Import NSGA-II.

    Raises:
        UserError: pymoo is not installed.
    """
    try:
        from .nsga2 import evolve
    except ImportError as error:
        raise UserError(
            f"a Pareto front needs pymoo, which fails to import ({error}): install nnabla-detofa[search]"
        ) from error
    return evolve


def non_dominated(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the indices of the points (n,) that no other point dominates, in ascending order of cost and score."""
    order = np.lexsort((-scores, costs))
    best_so_far = np.maximum.accumulate(np.concatenate([[-np.inf], scores[order][:-1]]))
    return order[scores[order] > best_so_far]
