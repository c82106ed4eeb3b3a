"""Costs of paths, computed for many paths at once.

For given widths, the cost of a path is the sum (memory: the maximum) of the costs of its layers, so all costs are computed from
a few small tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from itertools import product
from typing import ClassVar, NamedTuple

import numpy as np

from ..common.errors import UserError
from .geometry import Geometry
from .paths import Path, PathBatch
from .search_space import SearchSpace

FORBIDDEN = 2**52
"""Layer cost larger than the cost of any network; sums over all layers still fit into int64."""


@dataclass(frozen=True, eq=False)
class LayerCost:
    """Cost of paths that is computed from the costs of their layers: `cost(paths)` returns an (n,) int64 array.

    Tables hold integers, so that sums and comparisons are exact, and are indexed by indices into `geometry.widths` and
    `geometry.ratios`. If the geometry has named choices, each table has one more axis for each of them, at the end: with an
    element for each value, or with a single one if the table does not depend on this choice. These axes may be left out of
    tables that depend on none.

    Attributes:
        name: name of the cost in messages.
        unit: unit in messages.
        scale: value of one `unit`.
        geometry: geometry of the supernet.
        stem: (2, W, W) int64, [has a residual convolution, width of the first convolutions, width of the output].
        first: for each stage (W, W, E), cost of its first layer: [width before the stage, width of the stage, ratio].
        other: for each stage (W, E + 1), cost of any other layer; the last column, selected by index -1, is 0.
        head: (W,) cost of everything after the last stage, by the width of the last stage.

    Raises:
        UserError: the cost of a layer exceeds `FORBIDDEN` in magnitude, or the axes of a table do not fit the named choices.
    """

    name: str
    unit: str
    scale: float
    geometry: Geometry
    stem: np.ndarray
    first: tuple[np.ndarray, ...]
    other: tuple[np.ndarray, ...]
    head: np.ndarray

    def __post_init__(self) -> None:
        for name, dims in (("stem", 3), ("head", 1)):
            object.__setattr__(self, name, self._with_named_axes(getattr(self, name), dims))
        for name, dims in (("first", 3), ("other", 2)):
            object.__setattr__(self, name, tuple(self._with_named_axes(table, dims) for table in getattr(self, name)))
        for table in (self.stem, *self.first, *self.other, self.head):
            if not (table.min() >= -FORBIDDEN and table.max() <= FORBIDDEN):
                raise UserError(
                    f"a layer's {self.name} must be at most {FORBIDDEN}, so that sums stay exact, got "
                    f"{table.max() if table.max() > FORBIDDEN else table.min()}"
                )

    def _with_named_axes(self, table: np.ndarray, dims: int) -> np.ndarray:
        """Return a table with an axis for each named choice after its first `dims` axes."""
        sizes = [len(values) for _, values in self.geometry.named]
        if table.ndim == dims:
            return table.reshape(*table.shape, *[1] * len(sizes))
        if table.ndim != dims + len(sizes) or any(n not in (1, size) for n, size in zip(table.shape[dims:], sizes)):
            names = ", ".join(name for name, _ in self.geometry.named) or "none"
            raise UserError(
                f"a table of {self.name} has the shape {table.shape}, which does not fit the named choices ({names})"
            )
        return table

    combine: ClassVar[np.ufunc]
    """Ufunc that combines the costs of two layers."""

    def __call__(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """Return the cost of each path, (n,) int64."""
        batch = self._batch(paths)
        residual = (batch.depths[:, 0] == max(self.geometry.depths)).astype(np.intp)
        stem = _lookup(self.stem, batch, residual, batch.widths[:, 0], batch.widths[:, 1])
        stages = self.combine.reduce(self.stages(batch), axis=1)
        return self.combine(self.combine(stem, stages), _lookup(self.head, batch, batch.widths[:, -1]))

    def stages(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """Return the cost of each stage of each path, (n, stages) int64."""
        batch = self._batch(paths)
        costs = np.empty((len(batch), self.geometry.stages), np.int64)
        ratios = np.split(batch.ratios, np.cumsum(self.geometry.layers_per_stage)[:-1], axis=1)
        for stage, (first, other, layers) in enumerate(zip(self.first, self.other, ratios)):
            before, width = batch.widths[:, stage + 1], batch.widths[:, stage + 2]
            each = _lookup(other, batch, width, layers[:, 1:])
            others = self.combine.reduce(each, axis=1, initial=0)  # a stage may have one layer
            costs[:, stage] = self.combine(_lookup(first, batch, before, width, layers[:, 0]), others)
        return costs

    def extremes(self, space: SearchSpace) -> tuple[int, int]:
        """Return the exact smallest and largest cost of the paths of a space, by dynamic programming over stages and widths.

        Raises:
            ValueError: the space has another geometry.
        """
        if space.geometry != self.geometry:
            raise ValueError(f"{self.name} are known for {self.geometry}, the space {space.name} is of {space.geometry}")
        slices = list(self.slices(space))
        return min(self._extreme(part, space, min) for part in slices), max(self._extreme(part, space, max) for part in slices)

    def slices(self, space: SearchSpace) -> Iterator[Slice]:
        """Yield this cost for each combination of the named choices of a space on which several parts of the network depend.

        A choice on which only the stem, one stage or the head depends becomes one more column of their tables; so does one
        that no cost depends on, of the head's.
        """
        allowed = space.named_indices
        count, last = len(allowed), self.geometry.stages + 1
        groups = [(self.stem,), *zip(self.first, self.other), (self.head,)]
        readers = [
            [part for part, tables in enumerate(groups) if any(table.shape[table.ndim - count + k] > 1 for table in tables)]
            for k in range(count)
        ]
        owners = [found[0] if len(found) == 1 else last if not found else -1 for found in readers]  # -1: shared
        for shared in product(*([-1] if owner >= 0 else indices for owner, indices in zip(owners, allowed))):
            columns = [
                np.array(list(product(*(own if owner == part else [-1] for owner, own in zip(owners, allowed)))), np.intp)
                for part in range(len(groups))
            ]

            def flat(table: np.ndarray, part: int, shared: tuple = shared, columns: list = columns) -> np.ndarray:
                values = np.maximum(columns[part], np.array(shared, np.intp))
                dims = table.ndim - count
                index = [np.where(size > 1, values[:, k], 0) for k, size in enumerate(table.shape[dims:])]
                return table[(slice(None),) * dims + tuple(index)] if count else table[..., None]

            yield Slice(
                np.array(shared, np.intp),
                columns,
                flat(self.stem, 0),
                [flat(table, part) for part, table in enumerate(self.first, 1)],
                [flat(table, part) for part, table in enumerate(self.other, 1)],
                flat(self.head, last),
            )

    def _extreme(self, part: Slice, space: SearchSpace, pick: Callable) -> int:
        net, combine = self.geometry, self.combine
        residuals = [int(depth == max(net.depths)) for depth in space.stem_depths]
        first, second = ([net.widths.index(width) for width in allowed] for allowed in space.stem_widths)
        # width index -> extreme cost of the stem and the stages so far that end with this width
        so_far = {after: pick(pick(part.stem[r, before, after]) for r in residuals for before in first) for after in second}
        for stage, pairs in enumerate(space.pairs):
            reached: dict[int, list] = {}
            for (depth, width), allowed in pairs.items():
                w, ratios = net.widths.index(width), [net.ratios.index(ratio) for ratio in allowed]
                layers = net.base_depths[stage] + depth
                for before, cost in so_far.items():
                    for column in range(len(part.columns[stage + 1])):
                        here = pick(part.first[stage][before, w, ratios, column])
                        more = [pick(part.other[stage][w, ratios, column])] * (layers - 1)
                        reached.setdefault(w, []).append(combine.reduce([cost, here, *more]))
            so_far = {w: pick(costs) for w, costs in reached.items()}
        return int(pick(combine(cost, pick(part.head[w])) for w, cost in so_far.items()))

    def text(self, *costs: float) -> str:
        """Format costs, such as "0.52 to 4.31 GFLOPs"."""
        return in_unit(costs, self.unit, self.scale)

    def reachable(self, space: SearchSpace) -> str:
        """Format the smallest and largest cost of a space, rounded up so that each, used as a budget, admits its path."""
        return self.text(*(float(Context(4, ROUND_CEILING).create_decimal(cost)) for cost in self.extremes(space)))

    def _batch(self, paths: Sequence[Path] | PathBatch) -> PathBatch:
        batch = PathBatch.from_paths(paths, self.geometry)
        if batch.geometry != self.geometry:
            raise ValueError(f"{self.name} are known for {self.geometry}, the paths are of {batch.geometry}")
        return batch


class Slice(NamedTuple):
    """A cost for some values of the named choices; parts are the stem, each stage, and the head.

    Attributes:
        shared: (named choices,) index of the value of each choice on which several parts depend; -1 for the others.
        columns: for each part (C, named choices), the indices of the values of its own choices in each column; -1 for others.
        stem, first, other, head: tables as in `LayerCost`, with one last axis of C columns instead of the named choices.
    """

    shared: np.ndarray
    columns: list[np.ndarray]
    stem: np.ndarray
    first: list[np.ndarray]
    other: list[np.ndarray]
    head: np.ndarray

    def named(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Return the named choices of n paths, as in `PathBatch`, from the columns (n,) that each part has chosen."""
        own = [values[chosen] for values, chosen in zip(self.columns, columns, strict=True)]
        return np.maximum.reduce([np.broadcast_to(self.shared, own[0].shape), *own])


def _lookup(table: np.ndarray, batch: PathBatch, *indices: np.ndarray) -> np.ndarray:
    """Return the elements of a table at these indices, (n,) or (n, layers) each, for the named choices of n paths."""
    count = batch.named.shape[1]
    sizes = table.shape[table.ndim - count :]
    named = [batch.named[:, k] if size > 1 else np.zeros(len(batch), np.intp) for k, size in enumerate(sizes)]
    dims = max(index.ndim for index in indices)
    return table[tuple(index if index.ndim == dims else index[:, None] for index in (*indices, *named))]


class AdditiveCost(LayerCost):
    """Cost that is the sum over layers, such as FLOPs, parameters, or measured latencies in ns (`latency.Latency`).

    Only for such a cost can the paths inside an interval be counted and sampled exactly.
    """

    combine = np.add


class PeakCost(LayerCost):
    """Cost that is the maximum over layers, such as peak memory."""

    combine = np.maximum

    def forbid(self, cost: AdditiveCost, limit: float) -> AdditiveCost:
        """Return `cost`, raised above any real cost for paths whose peak is over `limit`.

        So the paths that satisfy both bounds can be counted and sampled exactly.
        """

        def barred(costs: np.ndarray, peaks: np.ndarray) -> np.ndarray:
            return np.where(peaks > limit, FORBIDDEN, costs)

        return replace(
            cost,
            stem=barred(cost.stem, self.stem),
            first=tuple(map(barred, cost.first, self.first)),
            other=tuple(map(barred, cost.other, self.other)),
            head=barred(cost.head, self.head),
        )


def in_unit(values: Sequence[float], unit: str, scale: float) -> str:
    """Format values, such as "0.52 to 4.31 GFLOPs"; `scale` is the value of one `unit`."""
    return f"{' to '.join(f'{value / scale:.4g}' for value in values)} {unit}".rstrip()
