"""Evolutionary search for the best path within a budget (section 3.3, Eq. 3), over whole populations at once.

The algorithm is OFA's: keep the best quarter of the population as parents, fill it up with mutants of random parents and
crossovers of random pairs of parents, all within the budget, and repeat.
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
"""How often infeasible children, and members of the first population, are drawn at most. Each round draws four times as
many candidates for each that is missing: up to 85 in all for a child, 1365 for a member of the first population."""


@dataclass(frozen=True)
class Constraint:
    """A hard bound: least <= cost <= budget.

    Attributes:
        name: what is bounded, for messages.
        cost: paths -> (n,) costs. An `AdditiveCost` lets even the tightest budget be sampled directly, and with it any
            bounds on a `PeakCost`.
        budget: in the unit of `cost`, inclusive.
        unit: unit of messages, worth `scale`.
        least: the smallest allowed cost, inclusive: searches one FLOPs bucket of many.
    """

    name: str
    cost: Callable[[PathBatch], np.ndarray]
    budget: float
    unit: str = ""
    scale: float = 1.0
    least: float = -np.inf

    @property
    def above(self) -> float:
        """The smallest integer that is not allowed: what ends a half-open interval of an additive cost."""
        return np.floor(self.budget) + 1

    def text(self, *costs: float) -> str:
        """Costs in words, such as "0.52 to 4.31 GFLOPs"."""
        return in_unit(costs, self.unit, self.scale)

    def __str__(self) -> str:
        if np.isfinite(self.least):
            return f"{self.name} from {self.text(self.least, self.budget)}"
        return f"{self.name} <= {self.limit}"

    @property
    def limit(self) -> str:
        """The budget in words, with more digits than costs: beside a cost that it excludes the two must differ."""
        return f"{self.budget / self.scale:.10g} {self.unit}".rstrip()

    def costs(self, batch: PathBatch) -> np.ndarray:
        """(n,) costs of paths.

        Raises:
            ValueError: `cost` gives something other than a number for each path.
        """
        costs = np.asarray(self.cost(batch))
        if costs.shape != (len(batch),) or costs.dtype.kind not in "fiub" or np.isnan(costs).any():
            raise ValueError(
                f"{self.name} of {len(batch)} paths must be as many numbers, got shape {costs.shape} of {costs.dtype}, or NaN"
            )
        return costs


class NoPath(UserError):
    """No path meets the bounds, or none was found."""


def at_most(cost: CostModel | LayerCost, budget: float) -> Constraint:
    """The constraint that a cost (for a model, its FLOPs) is at most `budget`."""
    return between(cost, -np.inf, budget)


def between(cost: CostModel | LayerCost, least: float, budget: float) -> Constraint:
    """The constraint that a cost (for a model, its FLOPs) is `least` to `budget`, both inclusive."""
    cost = layer_cost(cost)
    return Constraint(cost.name, cost, budget, cost.unit, cost.scale, least)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        path: the best path.
        score: its score.
        cost: its cost (of the `cost` argument).
        history: best score so far, of the first population and after each generation: generations + 1 values.
        scored: how many different paths were scored.
        left_out: children given up because every redraw was infeasible.
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
    """The path of `space` with the best score found among those with cost <= budget (Eq. 3).

    The paper gives the number of generations (500); population, parents, mutation and the halves are OFA's. Parents are
    distinct paths, and no path is scored twice (OFA keeps copies). A child that is still infeasible after a bounded
    number of redraws is left out of its generation.

    Args:
        score: paths -> (n,) scores, higher is better; called with distinct paths it has not seen.
        cost: an additive cost, or any function of paths -> (n,) costs; for a model, its FLOPs.
        budget: the largest allowed cost, in the unit of `cost`.
        generations: how many times children are bred.
        population: size of the first population, and children per generation.
        parent_ratio: parents, as a share of `population`.
        mutate_prob: probability with which a mutant redraws each choice.
        mutation_ratio: share of mutants among the children; the rest are crossovers.
        constraints: further bounds that hold as well.
        progress: called after each generation with its number, from 1, and the best score so far.

    Raises:
        UserError: an argument is out of its range, or no path that meets the constraints was found.
    """
    _check(population, generations, parent_ratio=parent_ratio, mutate_prob=mutate_prob, mutation_ratio=mutation_ratio)
    main = at_most(cost, budget) if isinstance(cost, (CostModel, LayerCost)) else Constraint("cost", cost, budget)
    bounds = (main, *constraints)
    n_parents = max(1, round(parent_ratio * population))
    n_mutants = int(mutation_ratio * population + 0.5)  # half up: a population of 1 mutates, or it would never change

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
    """Raise UserError for an argument of a search that is out of its range."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} of the search must be in [0, 1], got {value}")
    if population < 1 or generations < 0:
        raise UserError(
            f"the search needs a population of at least 1 and 0 or more generations, got {population}, {generations}"
        )


def first_population(space: SearchSpace, constraints: Sequence[Constraint], n: int, rng: np.random.Generator) -> PathBatch:
    """`n` paths drawn uniformly among those that meet the constraints, or fewer (at least one) where these are rare.

    Paths come straight from inside the additive constraint that the fewest paths meet, joined with all bounds on peaks;
    other additive constraints, and costs that are neither, reject what does not fit.

    Raises:
        NoPath: a budget is below every path, or no path was found.
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
    """Up to `n` paths that meet the constraints, bred from a population that does not; none where breeding finds none.

    For mixes that random drawing misses: the parents are the distinct paths that exceed the bounds least, the sum of all
    excesses relative to the bounds.
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
    """Each path with each of its choices redrawn with probability `rate`, uniformly within `space`.

    The choices are the stem's depth, its two widths, each stage's (D, W) and each layer's E. Where a new (D, W) brings
    in a layer, or does not allow a layer's E, that E is redrawn too.
    """
    fresh = space.sample_many(rng, len(batch))
    picked = _pick(fresh, batch, rate, rng)
    redrawn = rng.random(batch.ratios.shape) < rate
    return _with_ratios(space, *picked, [np.where(redrawn, -1, batch.ratios)], rng)


def crossover_many(space: SearchSpace, first: PathBatch, second: PathBatch, rng: np.random.Generator) -> PathBatch:
    """Each choice (see `mutate_many`) from either of two paths with equal chance, kept within `space`.

    An E that the child's (D, W) does not allow, or that the parent does not have, comes from the other parent; if that
    fails too, it is redrawn.
    """
    picked = _pick(first, second, 0.5, rng)
    swap = rng.random(first.ratios.shape) < 0.5
    one, other = np.where(swap, second.ratios, first.ratios), np.where(swap, first.ratios, second.ratios)
    return _with_ratios(space, *picked, [one, other], rng)


def _pick(first: PathBatch, second: PathBatch, chance: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Depths and widths, each choice from `first` with probability `chance`; a stage's D and W are one choice."""
    n, stages = len(first), first.geometry.stages
    stem_depth, stem_widths, pairs = np.split(rng.random((n, 3 + stages)) < chance, [1, 3], axis=1)
    depths = np.where(np.hstack([stem_depth, pairs]), first.depths, second.depths)
    return depths, np.where(np.hstack([stem_widths, pairs]), first.widths, second.widths)


def _with_ratios(
    space: SearchSpace, depths: np.ndarray, widths: np.ndarray, wishes: Sequence[np.ndarray], rng: np.random.Generator
) -> PathBatch:
    """Paths with the first allowed of the wished ratios in each layer, or else one drawn uniformly."""
    ratios = space.draw_ratios(depths, widths, rng)
    for wish in reversed(wishes):
        ratios = np.where(space.allows_ratios(depths, widths, wish), wish, ratios)
    return PathBatch.canonical(depths, widths, ratios, space.geometry)


def _feasible(batch: PathBatch, constraints: Sequence[Constraint]) -> np.ndarray:
    """(n,) bool: which paths meet all constraints."""
    feasible = np.ones(len(batch), bool)
    for bound in constraints:
        costs = bound.costs(batch)
        feasible &= (bound.least <= costs) & (costs <= bound.budget)
    return feasible


def _breed(
    make: Callable[[int], PathBatch], n: int, constraints: Sequence[Constraint], rounds: int = CHILD_ROUNDS
) -> list[PathBatch]:
    """`n` feasible paths out of those that `make` draws, fewer if `rounds` of drawing are not enough."""
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
    """The `n` best distinct paths of the batch and their scores, best first; scores that are not known are added."""
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


# --- The whole front at once ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Front:
    """Paths of which none is both cheaper and better than another, by ascending cost and score.

    Attributes:
        paths: n paths. scores: (n,). costs: (n,) of the `cost` argument.
        scored: how many different paths were scored.
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
    """Every trade of cost against score in one run of NSGA-II (Deb et al. 2002, from pymoo), with our mutants and crossovers.

    The paper searches each budget on its own; this is one run for all budgets. Every scored path may enter the front, not
    only the last population. Scores must be comparable over the whole range of costs: those of the path filter are so
    inside a FLOPs bucket, which `constraints` can ask for.

    Args:
        score, cost, generations, population, mutate_prob, constraints, progress: as of `search`.

    Raises:
        UserError: an argument is out of its range, or pymoo is not installed.
        NoPath: no path that meets the constraints was found.
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
        """Costs, scores and whether the constraints are met; a path that does not meet them is not scored."""
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
