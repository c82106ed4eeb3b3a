"""Populations of an evolutionary search: the first one, feasible children, and selection of the best paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..space.costs import cost_range
from ..space.counting import sample_within, share_within
from ..space.layer_costs import FORBIDDEN, AdditiveCost, LayerCost, PeakCost
from ..space.paths import PathBatch
from ..space.search_space import SearchSpace
from .constraints import Constraint, NoPath, feasible_paths
from .operators import crossover_many, mutate_many

CHILD_ROUNDS = 4
FIRST_ROUNDS = 6
APPROACHES = 100
"""Largest numbers of rounds in which infeasible children, and members of the first population, are resampled, and in which the
first population is bred towards the bounds (`_approach`). Each round samples four times as many candidates per missing path
as the one before: up to 85 in all for a child, 1365 for a member of the first population."""


def first_population(space: SearchSpace, constraints: Sequence[Constraint], n: int, rng: np.random.Generator) -> PathBatch:
    """Sample `n` paths uniformly among those that satisfy the constraints, or fewer (at least one) if these are rare.

    Paths are sampled directly from the additive constraint that the fewest paths satisfy, combined with all bounds on peak
    costs; the other constraints reject sampled paths. If no path remains, paths are bred towards the bounds.

    Args:
        space: the search space.
        constraints: the constraints.
        n: number of paths.
        rng: random generator.

    Raises:
        NoPath: a budget is below the cost of every path, or no path was found.
    """
    shares = []
    peaks = [(bound.cost, bound.budget) for bound in constraints if isinstance(bound.cost, PeakCost)]
    for bound in constraints:
        if isinstance(bound.cost, LayerCost) and bound.budget < cost_range(space, bound.cost)[0]:
            raise NoPath(
                f"{bound.name} budget {bound.limit} is below the smallest path; reachable are {bound.cost.reachable(space)}"
            )
        if isinstance(bound.cost, AdditiveCost):
            cost = bound.cost
            for peak, limit in peaks:
                cost = peak.forbid(cost, limit)
            interval = space, cost, bound.least, min(bound.above, FORBIDDEN)
            shares.append((share_within(*interval), interval))

    def sample(count: int) -> PathBatch:
        if not shares:
            return space.sample_many(rng, count)
        _, interval = min(shares, key=lambda entry: entry[0])
        return sample_within(*interval, count, rng)

    names = " and ".join(map(str, constraints))
    if not all(share for share, _ in shares):
        raise NoPath(f"no path of the space {space.name} has {names}; allow more")
    found = PathBatch.concatenate(breed(sample, n, constraints, FIRST_ROUNDS))
    if not len(found):
        found = _approach(space, constraints, sample(4 * n), n, rng)
    if not len(found):
        sampled = n * (4**FIRST_ROUNDS - 1) // 3
        raise NoPath(
            f"none of {sampled} paths sampled from the space {space.name}, nor of those bred from them, has {names}; allow more"
        )
    return found


def _approach(
    space: SearchSpace, constraints: Sequence[Constraint], population: PathBatch, n: int, rng: np.random.Generator
) -> PathBatch:
    """Breed up to `n` paths that satisfy the constraints from a population that does not; possibly none.

    For combinations of constraints that random sampling misses: the parents are the distinct paths with the least excess, the
    sum over constraints of the excess relative to the bound.
    """

    def excess(batch: PathBatch) -> np.ndarray:
        total = np.zeros(len(batch))
        for bound in constraints:
            cost = bound.costs(batch).astype(float)
            over = np.maximum(0.0, cost - bound.budget) / max(1.0, abs(bound.budget))
            under = np.maximum(0.0, bound.least - cost) / max(1.0, abs(bound.least))
            total += over + (under if np.isfinite(bound.least) else 0.0)
        return total

    for _ in range(APPROACHES):
        population = population[np.sort(np.unique(population.keys, return_index=True)[1])]
        excesses = excess(population)
        parents = population[np.argsort(excesses, kind="stable")[:n]]
        if np.count_nonzero(excesses == 0) >= n:
            break
        mothers, fathers, mutated = (parents[rng.integers(len(parents), size=n)] for _ in range(3))
        children = crossover_many(space, mothers, fathers, rng), mutate_many(space, mutated, 0.1, rng)
        population = PathBatch.concatenate([parents, *children])
    return parents[excess(parents) == 0]


def breed(
    make: Callable[[int], PathBatch], n: int, constraints: Sequence[Constraint], rounds: int = CHILD_ROUNDS
) -> list[PathBatch]:
    """Return `n` feasible paths among those that `make` samples, or fewer if `rounds` rounds of sampling are not enough."""
    feasible: list[PathBatch] = []
    for number in range(rounds):
        if not n:
            break
        sampled = make(n * 4**number)
        feasible.append(sampled[feasible_paths(sampled, constraints)][:n])
        n -= len(feasible[-1])
    return feasible


def best_paths(
    batch: PathBatch, score: Callable[[PathBatch], np.ndarray], known: dict[bytes, float], n: int
) -> tuple[PathBatch, list[float]]:
    """Return the `n` best distinct paths of the batch and their scores, best first; new scores are added to `known`."""
    keys = batch.keys.tolist()
    rows = {key: row for row, key in reversed(list(enumerate(keys)))}
    new = [key for key in rows if key not in known]
    if new:
        scores = np.asarray(score(batch[[rows[key] for key in new]]), float)
        if scores.shape != (len(new),) or np.isnan(scores).any():
            raise ValueError(f"the score of {len(new)} paths must be as many numbers, got shape {scores.shape} or NaN")
        known.update(zip(new, scores.tolist()))
    best = sorted(rows, key=lambda key: (-known[key], rows[key]))[:n]
    return batch[[rows[key] for key in best]], [known[key] for key in best]
