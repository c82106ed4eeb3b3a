"""Exact counts and exact uniform sampling of the paths inside an interval of costs, and FLOPs buckets.

A stage's cost depends on its (D, W), the width before it, the E of its first layer and the MULTISET of the other E, which
leaves a few hundred cases per stage. All beginnings (stem and first half of the stages) and all ends of paths are listed, and
joined at the width between them; sorted costs and running sums then give, for each beginning, the probability of the ends that
land inside the interval.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np

from ..common.errors import UserError
from .costs import AdditiveCost, CostModel, cost_range, layer_cost
from .paths import PathBatch
from .search_space import SearchSpace

MOST_PARTS = 5 * 10**6
"""Beginnings, or ends, of paths that are listed at most: some 100 bytes each. OFA-ResNet50 has half a million."""


def count_within(space: SearchSpace, cost: CostModel | AdditiveCost, low: float, high: float) -> int:
    """The exact number of canonical paths with low <= cost < high (infinities allowed)."""
    return _joint(space, layer_cost(cost)).count(low, high)


def share_within(space: SearchSpace, cost: CostModel | AdditiveCost, low: float, high: float) -> float:
    """The probability that a uniformly sampled path has low <= cost < high (infinities allowed)."""
    return _joint(space, layer_cost(cost)).share(low, high)


def sample_within(
    space: SearchSpace, cost: CostModel | AdditiveCost, low: float, high: float, n: int, rng: np.random.Generator
) -> PathBatch:
    """`n` paths drawn as `space.sample_many` draws them, given low <= cost < high (infinities allowed).

    Raises:
        UserError: the space has no such path.
    """
    cost = layer_cost(cost)
    joint = _joint(space, cost)
    if not joint.share(low, high):
        raise UserError(
            f"the space {space.name} has no path from {cost.text(low)} up to (not including) {cost.text(high)}; "
            f"reachable are {cost.reachable(space)}"
        )
    return joint.sample(low, high, n, rng)


@dataclass(frozen=True)
class Buckets:
    """`n` intervals of equal width between the smallest and the largest cost of `space`, numbered from 0.

    An edge belongs to the bucket above it, the largest cost to the last bucket. The first and the last bucket are open
    outwards, so every cost has a bucket. The methods take the paths of another space, such as a pruned one, on request;
    the edges stay (the paper bins anew after pruning; we keep the edges, since the index is an input of the filter).

    Attributes:
        space: the space whose costs set the edges: A.
        cost: what is binned; for a model, its FLOPs.
        n: how many buckets (the paper: five).
    """

    space: SearchSpace
    cost: CostModel | AdditiveCost
    n: int = 5

    def __post_init__(self):
        if self.n < 1:
            raise UserError(f"the number of buckets is {self.n}; allowed is 1 or more")

    @cached_property
    def edges(self) -> np.ndarray:
        """(n + 1,) float64, ascending."""
        return np.linspace(*cost_range(self.space, self.cost), self.n + 1)

    def index(self, costs: np.ndarray) -> np.ndarray:
        """The bucket of each cost, in the shape of `costs`."""
        return np.searchsorted(self.edges[1:-1], costs, side="right")

    def interval(self, bucket: int) -> tuple[float, float]:
        """(low, high) of a bucket: it holds low <= cost < high."""
        if not 0 <= bucket < self.n:
            raise ValueError(f"bucket is {bucket}; allowed are 0 to {self.n - 1}")
        low = self.edges[bucket] if bucket else -math.inf
        return low, self.edges[bucket + 1] if bucket < self.n - 1 else math.inf

    def sample(self, bucket: int, n: int, rng: np.random.Generator, space: SearchSpace | None = None) -> PathBatch:
        """`n` paths of the bucket, distributed as uniformly sampled paths that fell into it.

        Raises:
            UserError: the bucket is empty in the space.
        """
        space = space or self.space
        if not self.share(bucket, space):
            edges = layer_cost(self.cost).text(*self.edges[bucket : bucket + 2])
            raise UserError(f"bucket {bucket} ({edges}) holds no path of the space {space.name}")
        return sample_within(space, self.cost, *self.interval(bucket), n, rng)

    def below(self, budget: float, space: SearchSpace | None = None) -> list[tuple[float, float]]:
        """For each bucket with a path of at most `budget`: the least (inclusive) and the largest cost allowed in it."""
        found = []
        for bucket in range(self.n):
            low, high = self.interval(bucket)
            most = min(np.floor(budget), np.ceil(high) - 1)  # costs are integers, and `high` is the next bucket's
            if count_within(space or self.space, self.cost, low, most + 1):
                found.append((low, most))
        return found

    def share(self, bucket: int, space: SearchSpace | None = None) -> float:
        """The probability that a uniformly sampled path falls into the bucket."""
        return share_within(space or self.space, self.cost, *self.interval(bucket))

    def count(self, bucket: int, space: SearchSpace | None = None) -> int:
        """The exact number of canonical paths in the bucket."""
        return count_within(space or self.space, self.cost, *self.interval(bucket))


class _Cases(NamedTuple):
    """What a stage can be, up to the order of its layers after the first. Rows are cases.

    Attributes:
        depths, widths: (m,) D and index of W.
        ratios: (m, layers) ratio indices: the first layer's, then the others' in ascending order, then -1.
        mass: (m,) probability under uniform sampling.
        count: (m,) how many orders.
        cost: (W, m) by the width before the stage.
    """

    depths: np.ndarray
    widths: np.ndarray
    ratios: np.ndarray
    mass: np.ndarray
    count: np.ndarray
    cost: np.ndarray


class _Part(NamedTuple):
    """Beginnings or ends of paths: every combination of the cases of some parts of the network, in C order of `shape`.

    Attributes:
        shape: how many cases each part has.
        cost, mass, count: (N,) summed cost; probability; number of paths.
        widths: (N,) index of W at its end.
    """

    shape: tuple[int, ...]
    cost: np.ndarray
    mass: np.ndarray
    count: np.ndarray
    widths: np.ndarray

    def extended(self, cases: _Cases) -> _Part:
        """Followed by a stage."""
        return _Part(
            (*self.shape, len(cases.mass)),
            (self.cost[:, None] + cases.cost[self.widths]).ravel(),
            np.outer(self.mass, cases.mass).ravel(),
            np.outer(self.count, cases.count).ravel(),
            np.tile(cases.widths, len(self.cost)),
        )


def _stage_cases(space: SearchSpace, cost: AdditiveCost, stage: int) -> _Cases:
    geometry = space.geometry
    most, pairs = geometry.layers_per_stage[stage], space.pairs[stage]
    rows = []
    for (depth, width), allowed in pairs.items():
        layers = geometry.base_depths[stage] + depth
        indices = sorted(geometry.ratios.index(ratio) for ratio in allowed)
        for first in indices:
            for others in combinations_with_replacement(indices, layers - 1):
                orders = math.factorial(layers - 1) // math.prod(map(math.factorial, Counter(others).values()))
                mass = orders / (len(pairs) * len(indices) ** layers)
                rows.append((depth, geometry.widths.index(width), (first, *others, *[-1] * (most - layers)), mass, orders))
    depths, widths, ratios, mass, count = (np.array(column) for column in zip(*rows))
    first, other = cost.first[stage], cost.other[stage]
    return _Cases(
        depths,
        widths,
        ratios,
        mass,
        count,
        first[:, widths, ratios[:, 0]] + other[widths[:, None], ratios[:, 1:]].sum(axis=1),
    )


class _Join(NamedTuple):
    """All beginnings that end with one width, and all ends that follow it, both in ascending order of cost.

    Attributes:
        begin, end: row of each beginning and end in the order of its `_Part`.
        begin_cost, begin_mass, begin_count: of each beginning.
        end_cost: of each end.
        end_mass, end_count: running sums over the ends, from 0: one entry more than there are ends.
    """

    begin: np.ndarray
    begin_cost: np.ndarray
    begin_mass: np.ndarray
    begin_count: np.ndarray
    end: np.ndarray
    end_cost: np.ndarray
    end_mass: np.ndarray
    end_count: np.ndarray

    def ends_within(self, low: int, high: int, begins=slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """For each beginning the first end, and the end after the last, whose sum with it is in [low, high)."""
        costs = self.begin_cost[begins]
        return np.searchsorted(self.end_cost, low - costs), np.searchsorted(self.end_cost, high - costs)


class _Joint:
    """The exact distribution of a space's costs, and sampling from its slices (see the module)."""

    def __init__(self, space: SearchSpace, cost: AdditiveCost):
        geometry = space.geometry
        if not isinstance(cost, AdditiveCost):
            raise TypeError(f"{cost.name} does not add up over layers: only an additive cost can be counted and sampled")
        if space.size() >= 2**63:
            raise UserError(f"the space {space.name} has {space.size()} paths; exact counts allow fewer than 2^63")
        self.range = cost.extremes(space)
        self.geometry = geometry
        self.cases = [_stage_cases(space, cost, stage) for stage in range(geometry.stages)]
        first, second = ([geometry.widths.index(width) for width in allowed] for allowed in space.stem_widths)
        self.stems = np.array([(d, w0, w1) for d in space.stem_depths for w0 in first for w1 in second])
        depths, before, after = self.stems.T
        n = len(self.stems)
        begins = _Part(
            (n,),
            cost.stem[(depths == max(geometry.depths)).astype(np.intp), before, after],
            np.full(n, 1 / n),
            np.ones(n, np.int64),
            after,
        )
        half = geometry.stages // 2
        numbers = [len(cases.mass) for cases in self.cases]
        for parts in (n * math.prod(numbers[:half]), math.prod(numbers[half:])):
            if parts > MOST_PARTS:
                raise UserError(
                    f"the space {space.name} has too many choices for exact counts and samples: a half of its stages makes "
                    f"{parts} cases, allowed are {MOST_PARTS}; a search takes the cost as a plain function, "
                    "which is not counted but tried"
                )
        for cases in self.cases[:half]:
            begins = begins.extended(cases)
        self.begin_shape = begins.shape
        self.end_shape = tuple(len(cases.mass) for cases in self.cases[half:])
        self.joins = [self._join(begins, width, half, cost.head) for width in np.unique(begins.widths)]

    def _join(self, begins: _Part, width: int, half: int, head: np.ndarray) -> _Join:
        ends = _Part((), np.zeros(1, np.int64), np.ones(1), np.ones(1, np.int64), np.array([width]))
        for cases in self.cases[half:]:
            ends = ends.extended(cases)
        end_cost = ends.cost + head[ends.widths]
        begin = np.flatnonzero(begins.widths == width)
        begin = begin[np.argsort(begins.cost[begin], kind="stable")]
        end = np.argsort(end_cost, kind="stable")
        return _Join(
            begin=begin,
            begin_cost=begins.cost[begin],
            begin_mass=begins.mass[begin],
            begin_count=begins.count[begin],
            end=end,
            end_cost=end_cost[end],
            end_mass=np.concatenate([[0.0], np.cumsum(ends.mass[end])]),
            end_count=np.concatenate([[0], np.cumsum(ends.count[end])]),
        )

    def count(self, low: float, high: float) -> int:
        total = 0
        for join in self.joins:
            start, stop = join.ends_within(*self._bounds(low, high))
            total += int(join.begin_count @ (join.end_count[stop] - join.end_count[start]))
        return total

    def share(self, low: float, high: float) -> float:
        return float(_masses(self, *self._bounds(low, high))[-1])

    def sample(self, low: float, high: float, n: int, rng: np.random.Generator) -> PathBatch:
        low, high = self._bounds(low, high)
        rows = _draw(_masses(self, low, high), n, rng)
        sizes = [len(join.begin) for join in self.joins]
        starts = np.cumsum([0, *sizes[:-1]])
        which = np.searchsorted(starts, rows, side="right") - 1
        begin, end = np.empty(n, np.intp), np.empty(n, np.intp)
        for index, join in enumerate(self.joins):
            here = np.flatnonzero(which == index)
            row = rows[here] - starts[index]
            start, stop = join.ends_within(low, high, row)
            mass = join.end_mass
            drawn = mass[start] + rng.random(len(here)) * (mass[stop] - mass[start])
            place = np.clip(np.searchsorted(mass, drawn, side="right") - 1, start, stop - 1)
            begin[here], end[here] = join.begin[row], join.end[place]
        stem, *cases = np.unravel_index(begin, self.begin_shape)
        return self._paths(stem, [*cases, *np.unravel_index(end, self.end_shape)], rng)

    def _bounds(self, low: float, high: float) -> tuple[int, int]:
        """The integers that stand for the half-open interval: costs are integers."""
        least, most = self.range
        low, high = (math.ceil(min(max(bound, least), most + 1)) for bound in (low, high))
        return low, max(low, high)

    def _paths(self, stem: np.ndarray, cases: list[np.ndarray], rng: np.random.Generator) -> PathBatch:
        """The paths of these stems and cases, with the layers after each stage's first in a random order."""
        depths, ratios, widths = [self.stems[stem, 0]], [], [self.stems[stem, 1], self.stems[stem, 2]]
        for stage, chosen in zip(self.cases, cases):
            depths.append(stage.depths[chosen])
            widths.append(stage.widths[chosen])
            layers = stage.ratios[chosen]
            others = layers[:, 1:]
            order = np.argsort(np.where(others < 0, 1.0, rng.random(others.shape)), axis=1)
            np.put_along_axis(layers[:, 1:], order, others.copy(), axis=1)
            ratios.append(layers)
        return PathBatch.canonical(np.stack(depths, 1), np.stack(widths, 1), np.concatenate(ratios, axis=1), self.geometry)


@lru_cache(maxsize=8)
def _joint(space: SearchSpace, cost: AdditiveCost) -> _Joint:
    return _Joint(space, cost)


@lru_cache(maxsize=16)
def _masses(joint: _Joint, low: int, high: int) -> np.ndarray:
    """Running sum over all beginnings of the probability that a path has the beginning and a cost in [low, high)."""
    masses = []
    for join in joint.joins:
        start, stop = join.ends_within(low, high)
        masses.append(join.begin_mass * (join.end_mass[stop] - join.end_mass[start]))
    return np.cumsum(np.concatenate(masses))


def _draw(running: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` rows, each with the probability that the running sums give it."""
    rows = np.searchsorted(running, rng.random(n) * running[-1], side="right")
    # Rounding may reach the total itself: the last row with any probability is the first to reach it.
    return np.minimum(rows, np.searchsorted(running, running[-1]))
