"""Adapter of pymoo's NSGA-II to paths, used by `evolution.front`; no other file imports pymoo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem

from ..space.geometry import Geometry
from ..space.paths import PathBatch

Objectives = Callable[[PathBatch], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Function of n paths that returns their costs, scores and feasibility, (n,) each."""


def to_rows(batch: PathBatch) -> np.ndarray:
    """Concatenate the depths, widths, ratios and named choices of paths to rows (n, choices) int64."""
    return np.concatenate([batch.depths, batch.widths, batch.ratios, batch.named], axis=1).astype(np.int64)


def from_rows(rows: np.ndarray, geometry: Geometry) -> PathBatch:
    """Return the batch of paths from the result of `to_rows`."""
    ends = np.cumsum([geometry.stages + 1, geometry.stages + 2, geometry.layers])
    depths, widths, ratios, named = np.split(rows.astype(np.int8), ends, axis=1)
    return PathBatch(depths, widths, ratios, geometry, named)


class PathProblem(Problem):
    """Minimization of (cost, -score); the constraint violation is 1 for an infeasible path."""

    def __init__(self, objectives: Objectives, geometry: Geometry) -> None:
        variables = 2 * geometry.stages + 3 + geometry.layers + len(geometry.named)
        super().__init__(n_var=variables, n_obj=2, n_ieq_constr=1, xl=-1, xu=127, vtype=int)
        self.objectives, self.geometry = objectives, geometry

    def _evaluate(self, x: np.ndarray, out: dict[str, np.ndarray], *args: Any, **kwargs: Any) -> None:
        costs, scores, feasible = self.objectives(from_rows(x, self.geometry))
        out["F"], out["G"] = np.column_stack([costs, -scores]).astype(float), np.where(feasible, -1.0, 1.0)[:, None]


class PathMutation(Mutation):
    """pymoo mutation that calls `mutate` on every child; `mutate` itself decides which choices change."""

    def __init__(self, mutate: Callable[[PathBatch], PathBatch]) -> None:
        super().__init__(prob=1.0)
        self.mutate = mutate

    def _do(self, problem: PathProblem, x: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        return to_rows(self.mutate(from_rows(x, problem.geometry)))


class PathCrossover(Crossover):
    """pymoo crossover that calls `cross` twice for each pair of parents, for two children."""

    def __init__(self, cross: Callable[[PathBatch, PathBatch], PathBatch]) -> None:
        super().__init__(n_parents=2, n_offsprings=2)
        self.cross = cross

    def _do(self, problem: PathProblem, x: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        first, second = (from_rows(parents, problem.geometry) for parents in x)
        return np.stack([to_rows(self.cross(first, second)) for _ in range(2)])


def evolve(
    first: PathBatch,
    objectives: Objectives,
    mutate: Callable[[PathBatch], PathBatch],
    cross: Callable[[PathBatch, PathBatch], PathBatch],
    population: int,
    seed: int,
) -> Iterator[None]:
    """Run NSGA-II; each step of the endless iterator evaluates one generation, including the first population.

    Args:
        first: the first population.
        objectives: see `Objectives`.
        mutate: function that mutates each path of a batch.
        cross: function that crosses two batches of paths pair by pair.
        population: size of the population.
        seed: seed of pymoo's selection of parents.
    """
    algorithm = NSGA2(
        pop_size=population,
        sampling=to_rows(first),
        crossover=PathCrossover(cross),
        mutation=PathMutation(mutate),
        eliminate_duplicates=True,
    )
    algorithm.setup(PathProblem(objectives, first.geometry), termination=("n_gen", np.inf), seed=seed, verbose=False)
    while True:
        algorithm.next()
        yield
