"""pymoo's NSGA-II on paths: the only file that knows pymoo. `evolution.front` is what to call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem

from ..space.geometry import Geometry
from ..space.paths import PathBatch


def to_rows(batch: PathBatch) -> np.ndarray:
    """(n, choices) int64: depths, widths and ratios side by side."""
    return np.concatenate([batch.depths, batch.widths, batch.ratios], axis=1).astype(np.int64)


def from_rows(rows: np.ndarray, geometry: Geometry) -> PathBatch:
    """The batch that `to_rows` gave."""
    parts = np.split(rows.astype(np.int8), np.cumsum([geometry.stages + 1, geometry.stages + 2]), axis=1)
    return PathBatch(*parts, geometry)


class PathProblem(Problem):
    """Minimise (cost, -score); a path that does not meet the constraints violates one by 1."""

    def __init__(self, objectives: Callable, geometry: Geometry):
        super().__init__(n_var=2 * geometry.stages + 3 + geometry.layers, n_obj=2, n_ieq_constr=1, xl=-1, xu=127, vtype=int)
        self.objectives, self.geometry = objectives, geometry

    def _evaluate(self, x, out, *args, **kwargs):
        costs, scores, feasible = self.objectives(from_rows(x, self.geometry))
        out["F"], out["G"] = np.column_stack([costs, -scores]).astype(float), np.where(feasible, -1.0, 1.0)[:, None]


class PathMutation(Mutation):
    """Our mutation; whether a choice changes is decided in it, so that every child goes through."""

    def __init__(self, mutate: Callable[[PathBatch], PathBatch]):
        super().__init__(prob=1.0)
        self.mutate = mutate

    def _do(self, problem, x, *args, **kwargs):
        return to_rows(self.mutate(from_rows(x, problem.geometry)))


class PathCrossover(Crossover):
    """Our crossover: two parents, two children."""

    def __init__(self, cross: Callable[[PathBatch, PathBatch], PathBatch]):
        super().__init__(n_parents=2, n_offsprings=2)
        self.cross = cross

    def _do(self, problem, x, *args, **kwargs):
        first, second = (from_rows(parents, problem.geometry) for parents in x)
        return np.stack([to_rows(self.cross(first, second)) for _ in range(2)])


def evolve(
    first: PathBatch,
    objectives: Callable[[PathBatch], tuple[np.ndarray, np.ndarray, np.ndarray]],
    mutate: Callable[[PathBatch], PathBatch],
    cross: Callable[[PathBatch, PathBatch], PathBatch],
    population: int,
    seed: int,
) -> Iterator[None]:
    """NSGA-II from the population `first`; each step of the iterator evaluates one generation, the first one included.

    Args:
        objectives: paths -> costs, scores, whether they may be kept; (n,) each.
        seed: of pymoo's own draws, which parents meet.
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
