"""Evolutionary search for the best path within a budget (section 3.3, Eq. 3), vectorized over populations.

The algorithm is OFA's: keep the best quarter of the population as parents, breed children within the budget by mutation of
random parents and crossover of random pairs of parents, and repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from ..space.costs import CostModel
from ..space.layer_costs import LayerCost
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace
from .constraints import Constraint, at_most
from .operators import crossover_many, mutate_many
from .population import best_paths, breed, first_population


@dataclass(frozen=True)
class SearchResult:
    """Result of `search`.

    Attributes:
        path: the best path.
        score: its score.
        cost: its cost (the `cost` argument of `search`).
        history: best score so far, of the first population and after each generation: generations + 1 values.
        scored: number of distinct paths that were scored.
        left_out: number of children left out because all their candidates were infeasible.
    """

    path: Path
    score: float
    cost: float
    history: tuple[float, ...]
    scored: int
    left_out: int


def search(
    space: SearchSpace,
    score: Callable[[PathBatch], np.ndarray],
    cost: CostModel | LayerCost | Callable[[PathBatch], np.ndarray],
    budget: float,
    rng: np.random.Generator,
    generations: int = 500,
    population: int = 100,
    parent_ratio: float = 0.25,
    mutate_prob: float = 0.1,
    mutation_ratio: float = 0.5,
    constraints: Sequence[Constraint] = (),
    progress: Callable[[int, float], None] | None = None,
) -> SearchResult:
    """Search `space` for the path with the best score among all paths with cost <= budget (Eq. 3).

    The paper gives the number of generations (500); the population size and the shares of parents, mutants and crossovers are
    OFA's. Parents are distinct paths, and no path is scored twice (OFA keeps copies). A child that is still infeasible after
    a bounded number of resamplings is left out of its generation.

    Args:
        space: the search space.
        score: function of n paths that returns (n,) scores, higher is better; called with distinct paths that have not been
            scored before.
        cost: an additive cost, any function of n paths that returns (n,) costs, or a model, of which FLOPs are used.
        budget: the largest allowed cost, in the unit of `cost`.
        rng: random generator.
        generations: number of generations.
        population: size of the first population, and number of children per generation.
        parent_ratio: number of parents as a share of `population`.
        mutate_prob: probability with which a mutant resamples each choice.
        mutation_ratio: share of mutants among the children; the rest are crossovers.
        constraints: further constraints on the paths.
        progress: called after each generation with its number, from 1, and the best score so far.

    Raises:
        UserError: an argument is out of its range.
        NoPath: no path that satisfies the constraints was found.
    """
    check_arguments(population, generations, parent_ratio=parent_ratio, mutate_prob=mutate_prob, mutation_ratio=mutation_ratio)
    main = at_most(cost, budget) if isinstance(cost, (CostModel, LayerCost)) else Constraint("cost", cost, budget)
    bounds = (main, *constraints)
    n_parents = max(1, round(parent_ratio * population))
    n_mutants = int(mutation_ratio * population + 0.5)  # half up: otherwise a population of 1 would never change

    known: dict[bytes, float] = {}
    parents, scores = best_paths(first_population(space, bounds, population, rng), score, known, n_parents)
    history, left_out = [scores[0]], 0

    for generation in range(1, generations + 1):
        children = _children(space, parents, n_mutants, population - n_mutants, mutate_prob, bounds, rng)
        left_out += population - sum(map(len, children))
        parents, scores = best_paths(PathBatch.concatenate([parents, *children]), score, known, n_parents)
        history.append(scores[0])
        if progress:
            progress(generation, history[-1])
    found = parents[:1]
    return SearchResult(found[0], history[-1], main.costs(found).item(), tuple(history), len(known), left_out)


def _children(
    space: SearchSpace,
    parents: PathBatch,
    n_mutants: int,
    n_crossovers: int,
    mutate_prob: float,
    bounds: Sequence[Constraint],
    rng: np.random.Generator,
) -> list[PathBatch]:
    """Breed mutants of random parents and crossovers of random pairs of parents, all feasible."""

    def mutants(n: int) -> PathBatch:
        return mutate_many(space, parents[rng.integers(len(parents), size=n)], mutate_prob, rng)

    def crossovers(n: int) -> PathBatch:
        first, second = rng.integers(len(parents), size=(2, n))
        return crossover_many(space, parents[first], parents[second], rng)

    return [*breed(mutants, n_mutants, bounds), *breed(crossovers, n_crossovers, bounds)]


def check_arguments(population: int, generations: int, **shares: float) -> None:
    """Raise UserError if an argument of a search is out of its range."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} of the search must be in [0, 1], got {value}")
    if population < 1 or generations < 0:
        raise UserError(
            f"the search needs a population of at least 1 and 0 or more generations, got {population}, {generations}"
        )
