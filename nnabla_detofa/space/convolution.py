"""Exact distribution of the costs of a space with too many choices to enumerate, by convolution of its cost tables.

The distribution of the cost of a path's beginning is an array over all costs, for each width at its end. A layer shifts it by
the cost of each choice and averages; this is repeated for all layers. A path is sampled from its end: the total cost, then for
each stage its share of the rest, then the choices of its layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..common.errors import UserError
from .geometry import Geometry
from .layer_costs import FORBIDDEN, Slice
from .paths import PathBatch
from .search_space import SearchSpace

MAX_CELLS = 1 << 22
"""Largest number of different costs that a distribution has a cell for; each takes about 100 bytes."""
LOOKUPS = 1 << 22  # cases looked up at once when sampling


class Stage(NamedTuple):
    """The part of a stage with one width and one column of the tables.

    Attributes:
        width, column: the index of W, and the column.
        depths: for each D of the space with this width, the indices of its allowed ratios.
        pairs: number of pairs (D, W) of the whole stage, times its columns.
        first: (W, E) cost of the first layer, by the width before the stage.
        other: (E,) cost of another layer.
    """

    width: int
    column: int
    depths: dict[int, list[int]]
    pairs: int
    first: np.ndarray
    other: np.ndarray


class Cases(NamedTuple):
    """All costs of a stage that ends with one width; m cases.

    Attributes:
        part: (m,) index of the part of the stage.
        depth, before: (m,) D, and the index of the width before the stage.
        cost, mass: (m,) cost and probability.
    """

    part: np.ndarray
    depth: np.ndarray
    before: np.ndarray
    cost: np.ndarray
    mass: np.ndarray


Cells = tuple[int, np.ndarray]
"""A cost, and the probabilities, or counts, of paths with this cost and of those that are 1, 2, ... units above it."""
Table = tuple[np.ndarray, np.ndarray]
"""Distinct costs in ascending order, and the probability of each."""


class Convolution:
    """Distribution of the costs of a space under uniform sampling, for given values of its shared named choices.

    Costs of `FORBIDDEN` or more are left out. If there are too many different costs (`MAX_CELLS`), as in a table of latencies
    in nanoseconds, the cost of each layer is rounded down to a coarser unit. Then shares are upper bounds, sampled paths may
    have other costs, by which the caller rejects them, and counts are unknown.

    Args:
        space: the space.
        part: the tables of an additive cost.

    Attributes:
        slack: costs are rounded down by less than this; 0 if they are exact.
    """

    def __init__(self, space: SearchSpace, part: Slice) -> None:
        self.space, self.geometry = space, space.geometry
        self.unit, self.slack = unit_of(part, self.geometry)
        if self.slack:
            stem, head = (table // self.unit * self.unit for table in (part.stem, part.head))
            layers = [[table // self.unit * self.unit for table in tables] for tables in (part.first, part.other)]
            part = part._replace(stem=stem, first=layers[0], other=layers[1], head=head)
        self.part = part
        self._known: dict[tuple, Any] = {}
        self.stages = [list(self._stage(stage)) for stage in range(self.geometry.stages)]
        first, second = ([self.geometry.widths.index(width) for width in allowed] for allowed in space.stem_widths)
        self.stems = np.array(
            [
                (depth, w0, w1, column)
                for depth in space.stem_depths
                for w0 in first
                for w1 in second
                for column in range(len(part.columns[0]))
            ]
        )
        depths, before, after, column = self.stems.T
        residual = (depths == max(self.geometry.depths)).astype(np.intp)
        self.stem_costs = part.stem[residual, before, after, column]
        self.boundaries = [self._stem(np.float64)]
        for stage in range(self.geometry.stages):
            self.boundaries.append(self._convolved(stage, self.boundaries[-1], np.float64))
        self.least, self.total = self._head(self.boundaries[-1], np.float64)

    def _stage(self, stage: int) -> Iterator[Stage]:
        pairs, columns = self.space.pairs[stage], len(self.part.columns[stage + 1])
        for index, width in enumerate(self.geometry.widths):
            depths = {
                depth: [self.geometry.ratios.index(ratio) for ratio in ratios]
                for (depth, w), ratios in pairs.items()
                if w == width
            }
            for column in range(columns if depths else 0):
                first, other = self.part.first[stage][:, index, :, column], self.part.other[stage][index, :, column]
                yield Stage(index, column, depths, len(pairs) * columns, first, other)

    # --- Convolution ------------------------------------------------------------------------------------------------

    def _stem(self, kind: type) -> dict[int, Cells]:
        """Return the distribution, or with another number type than float64 the counts, of the stems by their last width."""
        one: np.ndarray = np.full(1, 1 / len(self.stems) if kind is np.float64 else 1, kind)
        ends: dict[int, list[Cells]] = {}
        for after, cost in zip(self.stems[:, 2].tolist(), self.stem_costs.tolist()):
            ends.setdefault(after, []).append((cost, one))
        return _all_summed(ends, self.unit)

    def _convolved(self, stage: int, before: dict[int, Cells], kind: type) -> dict[int, Cells]:
        """Append a stage to the beginnings `before`, by the width before it."""
        ends: dict[int, list[Cells]] = {}
        base, share = self.geometry.base_depths[stage], (lambda n: kind(1 / n) if kind is np.float64 else kind(1))
        for part in self.stages[stage]:
            by_ratios: dict[tuple[int, ...], list[int]] = {}
            for depth, ratios in part.depths.items():
                by_ratios.setdefault(tuple(ratios), []).append(depth)
            for allowed, depths in by_ratios.items():
                entries = [(least + int(part.first[w, e]), mass) for w, (least, mass) in before.items() for e in allowed]
                for layers in range(1, base + max(depths) + 1):
                    least, mass = _summed(entries, self.unit)
                    mass *= share(len(allowed))
                    entries = [(least + int(part.other[e]), mass) for e in allowed]
                    if layers - base in depths:
                        ends.setdefault(part.width, []).append((least, mass * share(part.pairs)))
        return _all_summed(ends, self.unit)

    def _head(self, before: dict[int, Cells], kind: type) -> Cells:
        columns = self.part.head.shape[1]
        entries = [(least + int(cost), mass) for w, (least, mass) in before.items() for cost in self.part.head[w]]
        least, mass = _summed(entries, self.unit)
        return least, mass * kind(1 / columns) if kind is np.float64 else mass

    def _cells(self, low: int, high: int) -> tuple[int, int]:
        """Return the range [start, stop) of the cells with low <= cost < high."""
        start, stop = (min(max(-(-(bound - self.least) // self.unit), 0), len(self.total)) for bound in (low, high))
        return start, max(start, stop)

    def share(self, low: int, high: int) -> float:
        """Return the probability of low <= cost < high, or an upper bound with a `slack`."""
        start, stop = self._cells(low - self.slack, high)
        return float(self.total[start:stop].sum())

    def count(self, low: int, high: int) -> int:
        """Return the exact number of paths with low <= cost < high.

        Counts are computed modulo 2^64, and approximately in floating point, which determines the multiple of 2^64.

        Raises:
            UserError: costs are rounded.
        """
        if self.slack:
            raise UserError(
                f"the space {self.space.name} has too many choices to count paths exactly by this cost: it has more than "
                f"{MAX_CELLS} different values; round its tables to a coarser unit"
            )
        start, stop = self._cells(low, high)
        wrapped = sum(map(int, self._counts(np.uint64)[start:stop])) % 2**64
        estimate = int(self._counts(np.longdouble)[start:stop].sum()) if self.space.size() >= 2**63 else 0
        return wrapped + 2**64 * max(0, round((estimate - wrapped) / 2**64))

    def _counts(self, kind: type) -> np.ndarray:
        if (kind,) not in self._known:
            ends = self._stem(kind)
            for stage in range(self.geometry.stages):
                ends = self._convolved(stage, ends, kind)
            self._known[kind,] = self._head(ends, kind)[1]
        return self._known[kind,]

    # --- Sampling ---------------------------------------------------------------------------------------------------

    def sample(self, low: int, high: int, n: int, rng: np.random.Generator) -> PathBatch:
        """Sample `n` paths with low <= cost < high, except for the `slack`."""
        start, stop = self._cells(low - self.slack, high)
        occupied = start + np.flatnonzero(self.total[start:stop])
        running = np.cumsum(self.total[occupied])  # of these cells alone: a difference of two sums near 1 would lose rare costs
        cell = np.searchsorted(running, rng.random(n) * running[-1], side="right")
        rest = self.least + occupied[np.minimum(cell, len(occupied) - 1)] * self.unit
        geometry, part = self.geometry, self.part
        columns = [np.zeros(n, np.intp) for _ in part.columns]
        widths = np.empty((n, geometry.stages + 2), np.int8)
        depths = np.empty((n, geometry.stages + 1), np.int8)
        ratios = np.full((n, geometry.layers), -1, np.int8)

        ends = sorted(self.boundaries[-1])
        cost, width = part.head[ends].ravel(), np.repeat(ends, part.head.shape[1])
        chosen = self._choose(self.boundaries[-1], rest, cost, width, np.ones(len(cost)), rng)
        rest, widths[:, -1] = rest - cost[chosen], width[chosen]
        columns[-1] = chosen % part.head.shape[1]
        layer = geometry.layers
        for stage in reversed(range(geometry.stages)):
            layer -= geometry.layers_per_stage[stage]
            for after in np.unique(widths[:, stage + 2]):
                rows, cases = np.flatnonzero(widths[:, stage + 2] == after), self._cases(stage, int(after))
                chosen = self._choose(self.boundaries[stage], rest[rows], cases.cost, cases.before, cases.mass, rng)
                rest[rows] -= cases.cost[chosen]
                depths[rows, stage + 1], widths[rows, stage + 1] = cases.depth[chosen], cases.before[chosen]
                columns[stage + 1][rows] = np.array([part.column for part in self.stages[stage]])[cases.part[chosen]]
                ratios[rows, layer : layer + geometry.layers_per_stage[stage]] = self._layers(stage, cases, chosen, rng)
        for after in np.unique(widths[:, 1]):
            rows, stems = np.flatnonzero(widths[:, 1] == after), np.flatnonzero(self.stems[:, 2] == after)
            fits = self.stem_costs[stems] == rest[rows, None]
            found = self.stems[stems[_pick(fits.astype(float), rng)]]
            depths[rows, 0], widths[rows, 0] = found[:, 0], found[:, 1]
            columns[0][rows] = found[:, 3]
        return PathBatch.canonical(depths, widths, ratios, geometry, part.named(columns))

    def _cases(self, stage: int, after: int) -> Cases:
        """Return the distinct costs of a stage with the width `after`, for each D and each width before it."""
        if (stage, after) in self._known:
            return self._known[stage, after]
        rows, base = [], self.geometry.base_depths[stage]
        for number, part in enumerate(self.stages[stage]):
            for depth, ratios in part.depths.items() if part.width == after else ():
                costs, mass = self._others(stage, number, tuple(ratios), base + depth - 1)
                for before in self.boundaries[stage]:
                    firsts = np.repeat(part.first[before, ratios], len(costs))
                    whole = _merged(firsts + np.tile(costs, len(ratios)), np.tile(mass, len(ratios)) / len(ratios))
                    size = len(whole[0])
                    rows.append((np.full(size, number), np.full(size, depth), np.full(size, before), *whole))
        self._known[stage, after] = Cases(*(np.concatenate(column) for column in zip(*rows)))
        return self._known[stage, after]

    def _others(self, stage: int, number: int, ratios: tuple[int, ...], layers: int) -> Table:
        """Return the distinct costs of `layers` layers after the first of a stage."""
        if layers == 0:
            return np.zeros(1, np.int64), np.ones(1)
        key = stage, number, ratios, layers
        if key not in self._known:
            costs, mass = self._others(stage, number, ratios, layers - 1)
            other = self.stages[stage][number].other[list(ratios)]
            self._known[key] = _merged((costs[:, None] + other).ravel(), np.repeat(mass, len(other)) / len(other))
        return self._known[key]

    def _choose(
        self,
        before: dict[int, Cells],
        rest: np.ndarray,
        cost: np.ndarray,
        width: np.ndarray,
        mass: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Sample for each remaining cost (n,) one of m cases, given its cost, probability and the width before it."""
        chosen = np.empty(len(rest), np.intp)
        step = max(1, LOOKUPS // len(cost))
        for start in range(0, len(rest), step):
            some = rest[start : start + step]
            weights = np.zeros((len(some), len(cost)))
            for w, (least, masses) in before.items():
                here = width == w
                cell, odd = np.divmod(some[:, None] - cost[here] - least, self.unit)
                inside = (cell >= 0) & (cell < len(masses)) & (odd == 0)
                weights[:, here] = np.where(inside, masses[np.clip(cell, 0, len(masses) - 1)], 0.0) * mass[here]
            chosen[start : start + step] = _pick(weights, rng)
        return chosen

    def _layers(self, stage: int, cases: Cases, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sample the ratios of a stage's layers for these cases, (n, layers of the stage); -1 if inactive."""
        ratios = np.full((len(chosen), self.geometry.layers_per_stage[stage]), -1, np.int8)
        kinds = np.stack([cases.part[chosen], cases.depth[chosen], cases.before[chosen]], axis=1)
        for kind in np.unique(kinds, axis=0):
            number, depth, before = map(int, kind)
            rows = np.flatnonzero((kinds == kind).all(axis=1))
            part, left = self.stages[stage][number], cases.cost[chosen[rows]]
            allowed = part.depths[depth]
            layers = self.geometry.base_depths[stage] + depth
            for layer in range(layers):
                own = (part.other if layer else part.first[before])[allowed]
                costs, mass = self._others(stage, number, tuple(allowed), layers - 1 - layer)
                wanted = left[:, None] - own
                place = np.clip(np.searchsorted(costs, wanted), 0, len(costs) - 1)
                picked = _pick(np.where(costs[place] == wanted, mass[place], 0.0), rng)
                ratios[rows, layer] = np.array(allowed)[picked]
                left = left - own[picked]
        return ratios


def unit_of(part: Slice, geometry: Geometry) -> tuple[int, int]:
    """Return the distance of the cells, and the slack of costs that are rounded to it, 0 if they need not be."""
    ends = [table[table < FORBIDDEN] for table in (part.stem, *part.first, part.head)]
    others = [table[table < FORBIDDEN] for table in part.other]
    span = sum(int(np.ptp(table)) for table in ends if len(table))
    for layers, table in zip(geometry.layers_per_stage, others):
        span += (layers - 1) * int(np.max(np.abs(table)))  # a table of other layers holds 0, for inactive ones
    unit = math.gcd(
        *(int(np.gcd.reduce(table - table[0])) for table in ends if len(table)), *map(int, map(np.gcd.reduce, others))
    )
    if span // max(1, unit) < MAX_CELLS:
        return max(1, unit), 0
    coarse = span // MAX_CELLS + 1
    return coarse, coarse * (geometry.layers + 2)


def _summed(parts: Sequence[Cells], unit: int) -> Cells:
    """Add arrays of cells; costs of `FORBIDDEN` or more are left out."""
    parts = [(start, array) for start, array in parts if start < FORBIDDEN]
    if not parts:
        return FORBIDDEN, np.zeros(0)
    least = min(start for start, _ in parts)
    shifts = [(start - least) // unit for start, _ in parts]
    total = np.zeros(max(shift + len(array) for shift, (_, array) in zip(shifts, parts)), parts[0][1].dtype)
    for shift, (_, array) in zip(shifts, parts):
        total[shift : shift + len(array)] += array
    return least, total


def _all_summed(ends: Mapping[int, Sequence[Cells]], unit: int) -> dict[int, Cells]:
    """Add the arrays of each width; a width without any path is left out."""
    summed = {width: _summed(parts, unit) for width, parts in ends.items()}
    return {width: (least, mass) for width, (least, mass) in summed.items() if len(mass)}


def _merged(costs: np.ndarray, mass: np.ndarray) -> Table:
    """Merge equal costs, adding their probabilities."""
    distinct, place = np.unique(costs, return_inverse=True)
    return distinct, np.bincount(place, mass)


def _pick(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample a column of each row (n, m) with probabilities proportional to the weights, of which one is positive."""
    running = np.cumsum(weights, axis=1)
    target = rng.random(len(weights)) * running[:, -1]
    return np.minimum((running <= target[:, None]).sum(axis=1), (running < running[:, -1:]).sum(axis=1))
