"""Exact counts and exact uniform sampling of the paths inside an interval of costs, and FLOPs buckets.

The cost of a stage depends on its (D, W), the width before it, the E of its first layer and the multiset of the other E, so a
stage has only a few hundred cases. All beginnings (stem and first half of the stages) and all ends (second half) of paths are
enumerated, and joined at the width between them. Sorted costs and cumulative sums then give, for each beginning, the total
probability of the ends for which the cost of the path is inside the interval. Spaces that are too large to enumerate are
counted by convolution (`convolution`).
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
from .convolution import Convolution, unit_of
from .costs import CostModel, cost_range, layer_cost
from .layer_costs import AdditiveCost, LayerCost, Slice
from .paths import PathBatch
from .search_space import SearchSpace

FEW_PARTS, MAX_PARTS = 10**6, 5 * 10**6
"""Numbers of beginnings, or ends, up to which a space is always enumerated, and up to which it is if a convolution would have
to round costs; each of them takes about 100 bytes. OFA-ResNet50 has half a million."""
ROUNDS = 100  # in which paths are sampled by rounded costs until enough have the right cost


def count_within(space: SearchSpace, cost: CostModel | AdditiveCost, low: float, high: float) -> int:
    """Return the exact number of canonical paths with low <= cost < high (infinities allowed).

    Args:
        space: the search space.
        cost: an additive cost, or a model, of which FLOPs are used.
        low, high: bounds, in the unit of the cost.

    Raises:
        TypeError: the cost is not additive.
        UserError: the space is too large for exact counts by this cost, see `convolution.Convolution`.
    """
    return _joint(space, layer_cost(cost)).count(low, high)


def share_within(space: SearchSpace, cost: CostModel | AdditiveCost, low: float, high: float) -> float:
    """Return the probability that a uniformly sampled path has low <= cost < high (see `count_within`)."""
    return _joint(space, layer_cost(cost)).share(low, high)


def sample_within(
    space: SearchSpace, cost: CostModel | AdditiveCost, low: float, high: float, n: int, rng: np.random.Generator
) -> PathBatch:
    """Sample `n` paths from the distribution of `space.sample_many`, conditioned on low <= cost < high.

    Arguments and further errors are as in `count_within`.

    Raises:
        UserError: the space has no such path.
    """
    layers = layer_cost(cost)
    joint = _joint(space, layers)
    found = None
    if joint.share(low, high):
        found = joint.sample(low, high, n, rng) if n else space.sample_many(rng, 0)
    if found is None or len(found) < n:
        raise UserError(
            f"the space {space.name} has no path from {layers.text(low)} up to (not including) {layers.text(high)}; "
            f"reachable are {layers.reachable(space)}"
        )
    return found


@dataclass(frozen=True)
class Buckets:
    """`n` intervals of equal width between the smallest and the largest cost of `space`, numbered from 0.

    An edge belongs to the bucket above it, and the largest cost to the last bucket. The first and the last bucket are
    unbounded below and above, so every cost has a bucket. Methods with an argument `space` consider the paths of that space,
    such as a pruned one, but keep the edges. The paper computes new edges after pruning; we keep them, since the bucket index
    is an input of the path filter.

    Attributes:
        space: the space whose costs determine the edges, normally the paper's A.
        cost: the cost; for a model, its FLOPs.
        n: number of buckets (5 in the paper).

    Raises:
        UserError: `n` is less than 1.
    """

    space: SearchSpace
    cost: CostModel | AdditiveCost
    n: int = 5

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"the number of buckets must be 1 or more, got {self.n}")

    @cached_property
    def edges(self) -> np.ndarray:
        """Edges of the buckets, (n + 1,) float64, ascending."""
        return np.linspace(*cost_range(self.space, self.cost), self.n + 1)

    def index(self, costs: np.ndarray) -> np.ndarray:
        """Return the bucket of each cost, in the shape of `costs`."""
        return np.searchsorted(self.edges[1:-1], costs, side="right")

    def interval(self, bucket: int) -> tuple[float, float]:
        """Return (low, high) of a bucket, which contains low <= cost < high.

        Raises:
            ValueError: `bucket` is not in [0, n).
        """
        if not 0 <= bucket < self.n:
            raise ValueError(f"bucket must be from 0 to {self.n - 1}, got {bucket}")
        low = self.edges[bucket] if bucket else -math.inf
        return low, self.edges[bucket + 1] if bucket < self.n - 1 else math.inf

    def sample(self, bucket: int, n: int, rng: np.random.Generator, space: SearchSpace | None = None) -> PathBatch:
        """Sample `n` paths of a bucket, with the distribution of uniformly sampled paths conditioned on the bucket.

        Raises:
            UserError: the bucket is empty in the space.
        """
        space = space or self.space
        if not self.share(bucket, space):
            edges = layer_cost(self.cost).text(*self.edges[bucket : bucket + 2])
            raise UserError(f"bucket {bucket} ({edges}) holds no path of the space {space.name}")
        return sample_within(space, self.cost, *self.interval(bucket), n, rng)

    def below(self, budget: float, space: SearchSpace | None = None) -> list[tuple[float, float]]:
        """Return (lowest, highest) allowed cost, both inclusive, of each bucket that has a path of cost at most `budget`."""
        found = []
        for bucket in range(self.n):
            low, high = self.interval(bucket)
            most = min(np.floor(budget), np.ceil(high) - 1)  # costs are integers, and `high` belongs to the next bucket
            if count_within(space or self.space, self.cost, low, most + 1):
                found.append((low, most))
        return found

    def share(self, bucket: int, space: SearchSpace | None = None) -> float:
        """Return the probability that a uniformly sampled path is in the bucket."""
        return share_within(space or self.space, self.cost, *self.interval(bucket))

    def count(self, bucket: int, space: SearchSpace | None = None) -> int:
        """Return the exact number of canonical paths in the bucket."""
        return count_within(space or self.space, self.cost, *self.interval(bucket))


class _Cases(NamedTuple):
    """All configurations of a stage, up to the order of its layers after the first; m cases.

    Attributes:
        column: (m,) column of the stage's tables, see `Slice`.
        depths, widths: (m,) D and index of W.
        ratios: (m, layers) ratio indices: the first layer's, then the others' in ascending order, then -1.
        mass: (m,) probability under uniform sampling.
        orders: (m,) number of orders of the layers after the first.
        cost: (W, m) cost, by the width before the stage.
    """

    column: np.ndarray
    depths: np.ndarray
    widths: np.ndarray
    ratios: np.ndarray
    mass: np.ndarray
    orders: np.ndarray
    cost: np.ndarray


def _is_enumerated(space: SearchSpace, part: Slice) -> bool:
    """Return whether paths are enumerated: the fastest way for small spaces, and exact for any costs."""
    rounded = bool(unit_of(part, space.geometry)[1])
    return _parts(space, part) <= (MAX_PARTS if rounded else FEW_PARTS) and space.size() < 2**63


class _Part(NamedTuple):
    """Beginnings or ends of paths: all combinations of the cases of consecutive parts of the network, in C order of `shape`.

    Attributes:
        shape: number of cases of each part.
        cost, mass, paths: (N,) summed cost; probability; number of paths.
        widths: (N,) index of W of the last part.
    """

    shape: tuple[int, ...]
    cost: np.ndarray
    mass: np.ndarray
    paths: np.ndarray
    widths: np.ndarray

    def extended(self, cases: _Cases) -> _Part:
        """Append a stage."""
        return _Part(
            (*self.shape, len(cases.mass)),
            (self.cost[:, None] + cases.cost[self.widths]).ravel(),
            np.outer(self.mass, cases.mass).ravel(),
            np.outer(self.paths, cases.orders).ravel(),
            np.tile(cases.widths, len(self.cost)),
        )


def _stage_cases(space: SearchSpace, part: Slice, stage: int) -> _Cases:
    geometry = space.geometry
    most, pairs, columns = geometry.layers_per_stage[stage], space.pairs[stage], range(len(part.columns[stage + 1]))
    rows = []
    for (depth, width), allowed in pairs.items():
        layers = geometry.base_depths[stage] + depth
        indices = sorted(geometry.ratios.index(ratio) for ratio in allowed)
        for first in indices:
            for others in combinations_with_replacement(indices, layers - 1):
                orders = math.factorial(layers - 1) // math.prod(map(math.factorial, Counter(others).values()))
                mass = orders / (len(pairs) * len(columns) * len(indices) ** layers)
                layer_ratios = (first, *others, *[-1] * (most - layers))
                rows += [(column, depth, geometry.widths.index(width), layer_ratios, mass, orders) for column in columns]
    column, depths, widths, ratios, mass, count = (np.array(values) for values in zip(*rows))
    first_layer, other_layers = part.first[stage], part.other[stage]
    others = other_layers[widths[:, None], ratios[:, 1:], column[:, None]].sum(axis=1)
    return _Cases(column, depths, widths, ratios, mass, count, first_layer[:, widths, ratios[:, 0], column] + others)


def _parts(space: SearchSpace, part: Slice) -> int:
    """Return the number of beginnings, or of ends if there are more, that `_Joint` would enumerate."""
    numbers = [len(space.stem_depths) * len(space.stem_widths[0]) * len(space.stem_widths[1])]
    for pairs, base in zip(space.pairs, space.geometry.base_depths):
        sizes = [(len(ratios), base + depth - 1) for (depth, _), ratios in pairs.items()]
        numbers.append(sum(n * math.comb(others + n - 1, n - 1) for n, others in sizes))
    numbers = [number * len(columns) for number, columns in zip((*numbers, 1), part.columns)]
    half = 1 + space.geometry.stages // 2
    return max(math.prod(numbers[:half]), math.prod(numbers[half:]))


class _Join(NamedTuple):
    """All beginnings that end with one width, and all ends that follow it, both in ascending order of cost.

    Attributes:
        begin, end: row of each beginning and end in its `_Part`.
        begin_cost, begin_mass, begin_count: cost, probability and number of paths of each beginning.
        end_cost: cost of each end.
        end_mass, end_count: cumulative sums over the ends, starting at 0, so one element longer than `end`.
    """

    begin: np.ndarray
    begin_cost: np.ndarray
    begin_mass: np.ndarray
    begin_count: np.ndarray
    end: np.ndarray
    end_cost: np.ndarray
    end_mass: np.ndarray
    end_count: np.ndarray

    def ends_within(self, low: int, high: int, begins: slice | np.ndarray = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Return for each beginning the range [start, stop) of ends for which the total cost is in [low, high)."""
        costs = self.begin_cost[begins]
        return np.searchsorted(self.end_cost, low - costs), np.searchsorted(self.end_cost, high - costs)


class _Joint:
    """Exact distribution of the costs of a space for given shared choices, and sampling of the paths in an interval."""

    slack = 0

    def __init__(self, space: SearchSpace, part: Slice) -> None:
        geometry = space.geometry
        self.part, self.geometry = part, geometry
        self.cases = [_stage_cases(space, part, stage) for stage in range(geometry.stages)]
        first, second = ([geometry.widths.index(width) for width in allowed] for allowed in space.stem_widths)
        columns = range(len(part.columns[0]))
        self.stems = np.array([(d, w0, w1, c) for d in space.stem_depths for w0 in first for w1 in second for c in columns])
        depths, before, after, column = self.stems.T
        n = len(self.stems)
        begins = _Part(
            (n,),
            part.stem[(depths == max(geometry.depths)).astype(np.intp), before, after, column],
            np.full(n, 1 / n),
            np.ones(n, np.int64),
            after,
        )
        half = geometry.stages // 2
        for cases in self.cases[:half]:
            begins = begins.extended(cases)
        self.begin_shape = begins.shape
        self.end_shape = (*(len(cases.mass) for cases in self.cases[half:]), part.head.shape[1])
        self.joins = [self._join(begins, width, half, part.head) for width in np.unique(begins.widths)]

    def _join(self, begins: _Part, width: int, half: int, head: np.ndarray) -> _Join:
        ends = _Part((), np.zeros(1, np.int64), np.ones(1), np.ones(1, np.int64), np.array([width]))
        for cases in self.cases[half:]:
            ends = ends.extended(cases)
        columns = head.shape[1]
        end_cost = (ends.cost[:, None] + head[ends.widths]).ravel()
        end_mass, end_count = np.repeat(ends.mass / columns, columns), np.repeat(ends.paths, columns)
        begin = np.flatnonzero(begins.widths == width)
        begin = begin[np.argsort(begins.cost[begin], kind="stable")]
        end = np.argsort(end_cost, kind="stable")
        return _Join(
            begin=begin,
            begin_cost=begins.cost[begin],
            begin_mass=begins.mass[begin],
            begin_count=begins.paths[begin],
            end=end,
            end_cost=end_cost[end],
            end_mass=np.concatenate([[0.0], np.cumsum(end_mass[end])]),
            end_count=np.concatenate([[0], np.cumsum(end_count[end])]),
        )

    def count(self, low: int, high: int) -> int:
        total = 0
        for join in self.joins:
            start, stop = join.ends_within(low, high)
            total += int(join.begin_count @ (join.end_count[stop] - join.end_count[start]))
        return total

    def share(self, low: int, high: int) -> float:
        return float(_masses(self, low, high)[-1])

    def sample(self, low: int, high: int, n: int, rng: np.random.Generator) -> PathBatch:
        rows = _sample_rows(_masses(self, low, high), n, rng)
        sizes = [len(join.begin) for join in self.joins]
        starts = np.cumsum([0, *sizes[:-1]])
        which = np.searchsorted(starts, rows, side="right") - 1
        begin, end = np.empty(n, np.intp), np.empty(n, np.intp)
        for number, join in enumerate(self.joins):
            here = np.flatnonzero(which == number)
            row = rows[here] - starts[number]
            start, stop = join.ends_within(low, high, row)
            mass = join.end_mass
            target = mass[start] + rng.random(len(here)) * (mass[stop] - mass[start])
            place = np.clip(np.searchsorted(mass, target, side="right") - 1, start, stop - 1)
            begin[here], end[here] = join.begin[row], join.end[place]
        stem, *cases = np.unravel_index(begin, self.begin_shape)
        *more, head = np.unravel_index(end, self.end_shape)
        return self._paths(stem, [*cases, *more], head, rng)

    def _paths(self, stem: np.ndarray, cases: list[np.ndarray], head: np.ndarray, rng: np.random.Generator) -> PathBatch:
        """Build the paths of these stems and cases, with the layers after the first of each stage in random order."""
        columns = [self.stems[stem, 3], *(stage.column[chosen] for stage, chosen in zip(self.cases, cases)), head]
        named = self.part.named(columns)
        depths, ratios, widths = [self.stems[stem, 0]], [], [self.stems[stem, 1], self.stems[stem, 2]]
        for stage, chosen in zip(self.cases, cases):
            depths.append(stage.depths[chosen])
            widths.append(stage.widths[chosen])
            layers = stage.ratios[chosen]
            others = layers[:, 1:]
            order = np.argsort(np.where(others < 0, 1.0, rng.random(others.shape)), axis=1)
            np.put_along_axis(layers[:, 1:], order, others.copy(), axis=1)
            ratios.append(layers)
        arrays = np.stack(depths, 1), np.stack(widths, 1), np.concatenate(ratios, axis=1)
        return PathBatch.canonical(*arrays, self.geometry, named)


class _Mixture:
    """Exact distribution of the costs of a space: for each combination of its shared choices, enumerated or convolved."""

    def __init__(self, space: SearchSpace, cost: LayerCost) -> None:
        if not isinstance(cost, AdditiveCost):
            raise TypeError(f"{cost.name} does not add up over layers: only an additive cost can be counted and sampled")
        self.range, self.cost = cost.extremes(space), cost
        self.parts = [
            _Joint(space, part) if _is_enumerated(space, part) else Convolution(space, part) for part in cost.slices(space)
        ]

    def count(self, low: float, high: float) -> int:
        return sum(part.count(*self._bounds(low, high)) for part in self.parts)

    def share(self, low: float, high: float) -> float:
        return sum(part.share(*self._bounds(low, high)) for part in self.parts) / len(self.parts)

    def sample(self, low: float, high: float, n: int, rng: np.random.Generator) -> PathBatch:
        """Sample `n` paths; fewer, possibly none, if costs are rounded and paths with these costs are rare."""
        bounds = self._bounds(low, high)
        if not any(part.slack for part in self.parts):
            return self._sample(*bounds, n, rng)
        found: list[PathBatch] = []
        for _ in range(ROUNDS):
            batch = self._sample(*bounds, n, rng)
            costs = self.cost(batch)
            found.append(batch[(bounds[0] <= costs) & (costs < bounds[1])])
            if sum(map(len, found)) >= n:
                break
        return PathBatch.concatenate(found)[:n]

    def _sample(self, low: int, high: int, n: int, rng: np.random.Generator) -> PathBatch:
        if len(self.parts) == 1:
            return self.parts[0].sample(low, high, n, rng)
        shares = np.array([part.share(low, high) for part in self.parts])
        which = rng.choice(len(shares), n, p=shares / shares.sum())
        numbers = np.bincount(which, minlength=len(shares))
        batches = [part.sample(low, high, number, rng) for part, number in zip(self.parts, numbers.tolist()) if number]
        return PathBatch.concatenate(batches)[np.argsort(np.argsort(which, kind="stable"), kind="stable")]

    def _bounds(self, low: float, high: float) -> tuple[int, int]:
        """Convert the bounds of the half-open interval to integers, since costs are integers."""
        least, most = self.range
        low, high = (math.ceil(min(max(bound, least), most + 1)) for bound in (low, high))
        return low, max(low, high)


@lru_cache(maxsize=8)
def _joint(space: SearchSpace, cost: LayerCost) -> _Mixture:
    return _Mixture(space, cost)


@lru_cache(maxsize=16)
def _masses(joint: _Joint, low: int, high: int) -> np.ndarray:
    """Return the cumulative sum, over all beginnings, of the probability of the beginning and a cost in [low, high)."""
    masses = []
    for join in joint.joins:
        start, stop = join.ends_within(low, high)
        masses.append(join.begin_mass * (join.end_mass[stop] - join.end_mass[start]))
    return np.cumsum(np.concatenate(masses))


def _sample_rows(running: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Sample `n` rows with probabilities proportional to the increments of the cumulative sums `running`."""
    rows = np.searchsorted(running, rng.random(n) * running[-1], side="right")
    # Rounding may produce the total itself, which belongs to the last row with nonzero probability, the first to reach it.
    return np.minimum(rows, np.searchsorted(running, running[-1]))
