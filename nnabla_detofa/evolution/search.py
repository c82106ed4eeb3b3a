"""Evolutionary search for the best path within a budget (section 3.3, Eq. 3), vectorized over populations.

The algorithm is OFA's: keep the best quarter of the population as parents, breed children within the budget by mutation of
random parents and crossover of random pairs of parents, and repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from ..space.costs import FORBIDDEN, AdditiveCost, CostModel, LayerCost, PeakCost, cost_range, in_unit, layer_cost
from ..space.counting import sample_within, share_within
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace

CHILD_ROUNDS = 4
FIRST_ROUNDS = 6
APPROACHES = 100
"""Largest numbers of rounds in which infeasible children, and members of the first population, are resampled, and in which the
first population is bred towards the bounds (`_approach`). Each round samples four times as many candidates per missing path
as the one before: up to 85 in all for a child, 1365 for a member of the first population."""


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
    _check(population, generations, parent_ratio=parent_ratio, mutate_prob=mutate_prob, mutation_ratio=mutation_ratio)
    main = at_most(cost, budget) if isinstance(cost, (CostModel, LayerCost)) else Constraint("cost", cost, budget)
    bounds = (main, *constraints)
    n_parents = max(1, round(parent_ratio * population))
    n_mutants = int(mutation_ratio * population + 0.5)  # half up: otherwise a population of 1 would never change

    known: dict[bytes, float] = {}
    parents, scores = _best(first_population(space, bounds, population, rng), score, known, n_parents)
    history, left_out = [scores[0]], 0

    def mutants(n: int) -> PathBatch:
        return mutate_many(space, parents[rng.integers(len(parents), size=n)], mutate_prob, rng)

    def crossovers(n: int) -> PathBatch:
        first, second = rng.integers(len(parents), size=(2, n))
        return crossover_many(space, parents[first], parents[second], rng)

    for generation in range(1, generations + 1):
        children = [*_breed(mutants, n_mutants, bounds), *_breed(crossovers, population - n_mutants, bounds)]
        left_out += population - sum(map(len, children))
        parents, scores = _best(PathBatch.concatenate([parents, *children]), score, known, n_parents)
        history.append(scores[0])
        if progress:
            progress(generation, history[-1])
    found = parents[:1]
    return SearchResult(found[0], history[-1], main.costs(found).item(), tuple(history), len(known), left_out)


def _check(population: int, generations: int, **shares: float) -> None:
    """Raise UserError if an argument of a search is out of its range."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} of the search must be in [0, 1], got {value}")
    if population < 1 or generations < 0:
        raise UserError(
            f"the search needs a population of at least 1 and 0 or more generations, got {population}, {generations}"
        )


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
    peaks = [bound for bound in constraints if isinstance(bound.cost, PeakCost)]
    for bound in constraints:
        if isinstance(bound.cost, LayerCost) and bound.budget < cost_range(space, bound.cost)[0]:
            raise NoPath(
                f"{bound.name} budget {bound.limit} is below the smallest path; reachable are {bound.cost.reachable(space)}"
            )
        if isinstance(bound.cost, AdditiveCost):
            cost = bound.cost
            for peak in peaks:
                cost = peak.cost.forbid(cost, peak.budget)
            interval = space, cost, bound.least, min(bound.above, FORBIDDEN)
            shares.append((share_within(*interval), interval))

    def draw(count: int) -> PathBatch:
        if not shares:
            return space.sample_many(rng, count)
        _, interval = min(shares, key=lambda entry: entry[0])
        return sample_within(*interval, count, rng)

    names = " and ".join(map(str, constraints))
    if not all(share for share, _ in shares):
        raise NoPath(f"no path of the space {space.name} has {names}; allow more")
    found = PathBatch.concatenate(_breed(draw, n, constraints, FIRST_ROUNDS))
    if not len(found):
        found = _approach(space, constraints, draw(4 * n), n, rng)
    if not len(found):
        draws = n * (4**FIRST_ROUNDS - 1) // 3
        raise NoPath(
            f"none of {draws} paths drawn from the space {space.name}, nor of those bred from them, has {names}; allow more"
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


def mutate_many(space: SearchSpace, batch: PathBatch, rate: float, rng: np.random.Generator) -> PathBatch:
    """Mutate each path: resample each of its choices with probability `rate`, uniformly within `space`.

    The choices are the stem's depth, its two widths, each stage's (D, W) and each layer's E. If a new (D, W) adds a layer,
    or does not allow a layer's E, that E is resampled too.
    """
    fresh = space.sample_many(rng, len(batch))
    picked = _pick(fresh, batch, rate, rng)
    redrawn = rng.random(batch.ratios.shape) < rate
    return _with_ratios(space, *picked, [np.where(redrawn, -1, batch.ratios)], rng)


def crossover_many(space: SearchSpace, first: PathBatch, second: PathBatch, rng: np.random.Generator) -> PathBatch:
    """Cross pairs of paths: take each choice (see `mutate_many`) from either parent with equal probability, within `space`.

    An E that the child's (D, W) does not allow, or that the parent does not have, is taken from the other parent; if that
    fails too, it is resampled.
    """
    picked = _pick(first, second, 0.5, rng)
    swap = rng.random(first.ratios.shape) < 0.5
    one, other = np.where(swap, second.ratios, first.ratios), np.where(swap, first.ratios, second.ratios)
    return _with_ratios(space, *picked, [one, other], rng)


def _pick(first: PathBatch, second: PathBatch, chance: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Take depths and widths from `first` with probability `chance`, else from `second`; a stage's (D, W) is one choice."""
    n, stages = len(first), first.geometry.stages
    stem_depth, stem_widths, pairs = np.split(rng.random((n, 3 + stages)) < chance, [1, 3], axis=1)
    depths = np.where(np.hstack([stem_depth, pairs]), first.depths, second.depths)
    return depths, np.where(np.hstack([stem_widths, pairs]), first.widths, second.widths)


def _with_ratios(
    space: SearchSpace, depths: np.ndarray, widths: np.ndarray, wishes: Sequence[np.ndarray], rng: np.random.Generator
) -> PathBatch:
    """Build paths with the first of the proposed ratios that is allowed in each layer, or else a uniformly sampled one."""
    ratios = space.sample_ratios(depths, widths, rng)
    for wish in reversed(wishes):
        ratios = np.where(space.allows_ratios(depths, widths, wish), wish, ratios)
    return PathBatch.canonical(depths, widths, ratios, space.geometry)


def _feasible(batch: PathBatch, constraints: Sequence[Constraint]) -> np.ndarray:
    """Return which paths satisfy all constraints, (n,) bool."""
    feasible = np.ones(len(batch), bool)
    for bound in constraints:
        costs = bound.costs(batch)
        feasible &= (bound.least <= costs) & (costs <= bound.budget)
    return feasible


def _breed(
    make: Callable[[int], PathBatch], n: int, constraints: Sequence[Constraint], rounds: int = CHILD_ROUNDS
) -> list[PathBatch]:
    """Return `n` feasible paths among those that `make` samples, or fewer if `rounds` rounds of sampling are not enough."""
    kept = []
    for draws in range(rounds):
        if not n:
            break
        drawn = make(n * 4**draws)
        kept.append(drawn[_feasible(drawn, constraints)][:n])
        n -= len(kept[-1])
    return kept


def _best(
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


# --- Pareto fronts ----------------------------------------------------------------------------------------------------


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
    _check(population, generations, mutate_prob=mutate_prob)
    try:
        from .nsga2 import evolve
    except ImportError as error:
        raise UserError(f"a front needs pymoo, which does not load ({error}): install nnabla-detofa[search]") from error
    measured = Constraint("cost", layer_cost(cost) if isinstance(cost, (CostModel, LayerCost)) else cost, np.inf).costs
    scored: dict[bytes, float] = {}
    seen: list[PathBatch] = []

    def objectives(batch: PathBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return costs, scores and feasibility of paths, (n,) each; infeasible paths are not scored."""
        feasible = _feasible(batch, constraints)
        scores = np.zeros(len(batch))
        if feasible.any():
            inside = batch[feasible]
            _best(inside, score, scored, 1)
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
    order = np.lexsort((-scores, costs))
    best_so_far = np.maximum.accumulate(np.concatenate([[-np.inf], scores[order][:-1]]))
    kept = order[scores[order] > best_so_far]
    return Front(every[kept], scores[kept], costs[kept], len(scored))
