"""What a path costs, for many paths at once, and exact uniform sampling of paths inside an interval of costs.

Given the widths, a path's cost is a sum over its layers (memory: the largest of them), so every figure comes from a few
small tables. The same fact makes sampling inside an interval of an additive cost exact: a stage's cost depends on its
(D, W), the width before it, the E of its first layer and the MULTISET of the other E, which leaves a few hundred cases per
stage. All beginnings (stem and first half of the stages) and all ends of paths are listed, and joined at the width between
them; sorted costs and running sums then give, for each beginning, the probability of the ends that land inside the interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from functools import cached_property, lru_cache
from itertools import combinations_with_replacement
from typing import ClassVar, NamedTuple

import numpy as np

from .errors import UserError
from .geometry import OFA_RESNET50, Geometry, HeadGeometry, is_count
from .search_space import Path, PathBatch, SearchSpace

SCOPES = ("classifier", "backbone", "detector")
FLOPS, PARAMS, MEMORY = range(3)
"""Places of the measures in the tables' last axis."""
FORBIDDEN = 2**52
"""A layer cost over that of any network; the sum over all layers still fits into int64."""
MOST_PARTS = 5 * 10**6
"""Beginnings, or ends, of paths that are listed at most: some 100 bytes each. OFA-ResNet50 has half a million."""


@dataclass(frozen=True, eq=False)
class LayerCost:
    """A cost made of the layers' costs: call it with paths, get a (n,) int64 array.

    Tables hold integers (so that sums and comparisons are exact) and are indexed by indices into `geometry.widths` and
    `geometry.ratios`.

    Attributes:
        name: what is counted, for messages.
        unit: unit of messages, worth `scale`.
        geometry: the supernet.
        stem: (2, W, W) int64, [residual conv is there, width of the first convs, width of the output].
        first: per stage (W, W, E), the stage's first layer: [width before the stage, its width, its ratio].
        other: per stage (W, E + 1), any other layer; the last column, which index -1 finds, is 0.
        head: (W,) all that follows the last stage, by the last stage's width.
    """

    name: str
    unit: str
    scale: float
    geometry: Geometry
    stem: np.ndarray
    first: tuple[np.ndarray, ...]
    other: tuple[np.ndarray, ...]
    head: np.ndarray

    def __post_init__(self):
        for table in (self.stem, *self.first, *self.other, self.head):
            if not (table.min() >= -FORBIDDEN and table.max() <= FORBIDDEN):
                raise UserError(
                    f"a layer's {self.name} must be at most {FORBIDDEN}, so that sums stay exact, got "
                    f"{table.max() if table.max() > FORBIDDEN else table.min()}"
                )

    combine: ClassVar[np.ufunc]
    """How the costs of two layers make that of both."""

    def __call__(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """(n,) int64 cost of each path."""
        batch = self._batch(paths)
        residual = (batch.depths[:, 0] == max(self.geometry.depths)).astype(np.intp)
        stem = self.stem[residual, batch.widths[:, 0], batch.widths[:, 1]]
        stages = self.combine.reduce(self.stages(batch), axis=1)
        return self.combine(self.combine(stem, stages), self.head[batch.widths[:, -1]])

    def stages(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """(n, stages) int64 cost of each stage of each path."""
        batch = self._batch(paths)
        costs = np.empty((len(batch), self.geometry.stages), np.int64)
        ratios = np.split(batch.ratios, np.cumsum(self.geometry.layers_per_stage)[:-1], axis=1)
        for stage, (first, other, layers) in enumerate(zip(self.first, self.other, ratios)):
            before, width = batch.widths[:, stage + 1], batch.widths[:, stage + 2]
            others = self.combine.reduce(other[width[:, None], layers[:, 1:]], axis=1, initial=0)  # a stage may be one layer
            costs[:, stage] = self.combine(first[before, width, layers[:, 0]], others)
        return costs

    def extremes(self, space: SearchSpace) -> tuple[int, int]:
        """The exact smallest and largest cost of the space's paths: stage by stage, the best for each width so far."""
        if space.geometry != self.geometry:
            raise ValueError(f"{self.name} are known for {self.geometry}, the space {space.name} is of {space.geometry}")
        return self._extreme(space, min), self._extreme(space, max)

    def _extreme(self, space: SearchSpace, pick: Callable) -> int:
        net, combine = self.geometry, self.combine
        residuals = [int(depth == max(net.depths)) for depth in space.stem_depths]
        first, second = ([net.widths.index(width) for width in allowed] for allowed in space.stem_widths)
        # width index -> the extreme cost of all that goes before and ends with it
        so_far = {after: pick(self.stem[r, before, after] for r in residuals for before in first) for after in second}
        for stage, pairs in enumerate(space.pairs):
            reached: dict[int, list] = {}
            for (depth, width), allowed in pairs.items():
                w, ratios = net.widths.index(width), [net.ratios.index(ratio) for ratio in allowed]
                more = [pick(self.other[stage][w, ratios])] * (net.base_depths[stage] + depth - 1)
                for before, cost in so_far.items():
                    here = pick(self.first[stage][before, w, ratios])
                    reached.setdefault(w, []).append(combine.reduce([cost, here, *more]))
            so_far = {w: pick(costs) for w, costs in reached.items()}
        return int(pick(combine(cost, self.head[w]) for w, cost in so_far.items()))

    def text(self, *costs: float) -> str:
        """Costs in words, such as "0.52 to 4.31 GFLOPs"."""
        return in_unit(costs, self.unit, self.scale)

    def reachable(self, space: SearchSpace) -> str:
        """The space's smallest and largest cost in words, rounded up: given as a bound, each allows its path."""
        return self.text(*(float(Context(4, ROUND_CEILING).create_decimal(cost)) for cost in self.extremes(space)))

    def _batch(self, paths: Sequence[Path] | PathBatch) -> PathBatch:
        batch = PathBatch.from_paths(paths, self.geometry)
        if batch.geometry != self.geometry:
            raise ValueError(f"{self.name} are known for {self.geometry}, the paths are of {batch.geometry}")
        return batch


class AdditiveCost(LayerCost):
    """A cost that adds up over the layers, such as FLOPs, parameters, or measured latencies in ns (`latency.Latency`).

    Only such a cost can be counted and sampled exactly inside an interval.
    """

    combine = np.add


class PeakCost(LayerCost):
    """A cost that is the largest of the layers' costs, such as peak memory."""

    combine = np.maximum

    def forbid(self, cost: AdditiveCost, most: float) -> AdditiveCost:
        """`cost`, made larger than any real cost for paths whose peak is over `most`.

        So the paths that keep both bounds can be counted and sampled exactly.
        """

        def barred(costs: np.ndarray, peaks: np.ndarray) -> np.ndarray:
            return np.where(peaks > most, FORBIDDEN, costs)

        return replace(
            cost,
            stem=barred(cost.stem, self.stem),
            first=tuple(map(barred, cost.first, self.first)),
            other=tuple(map(barred, cost.other, self.other)),
            head=barred(cost.head, self.head),
        )


@dataclass(frozen=True)
class CostModel:
    """FLOPs, parameters and activation memory of the subnets of one supernet, at one input size.

    FLOPs are multiply-accumulates of convolutions, transposed convolutions and the linear layer, as OFA counts them;
    pooling, BatchNorm, activations and biases are free. Parameters are what training changes in the subnet: weights,
    biases, and gamma and beta of BatchNorm (its running statistics are not counted).

    Memory is the peak of float32 activations at inference, batch 1, when layers run one after another in the order of
    the graph: while a layer runs, its input, its output and what waits for later (the input or the branch beside a
    shortcut, the up-sampled map and the finished outputs of the heads) are in memory, the input image too. BatchNorm,
    bias and ReLU work in place, and a sum overwrites its branch. Weights and a convolution's workspace are not counted.

    Attributes:
        image_size: input pixels: the side of a square, or (height, width).
        num_classes: classes of the classifier; of the detector too where `head` is not given.
        scope: "classifier" is backbone, global pooling and a linear layer; "backbone" is stem and stages; "detector" is
            CenterNet: backbone, up-convolutions and three heads.
        backbone: the supernet.
        head: up-convolutions and heads; by default `HeadGeometry(num_classes)`.
    """

    image_size: int | tuple[int, int] = 224
    num_classes: int = 10
    scope: str = "classifier"
    backbone: Geometry = OFA_RESNET50
    head: HeadGeometry | None = None

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise UserError(f"scope is {self.scope!r}; allowed are {', '.join(SCOPES)}")
        sides = self.image_size if isinstance(self.image_size, (tuple, list)) else (self.image_size,) * 2
        if len(sides) != 2 or not all(map(is_count, sides)):
            raise UserError(f"image_size is {self.image_size!r}; allowed are a positive integer or (height, width)")
        if not is_count(self.num_classes):
            raise UserError(f"num_classes is {self.num_classes}; allowed is an integer of 1 or more")
        if isinstance(self.image_size, list):  # a list, as JSON has it, would leave the model without a hash
            object.__setattr__(self, "image_size", tuple(self.image_size))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2

    @cached_property
    def flops(self) -> AdditiveCost:
        """`flops(paths)`: (n,) int64 multiply-accumulates."""
        return self._cost(AdditiveCost, FLOPS, "FLOPs", "GFLOPs", 1e9)

    @cached_property
    def params(self) -> AdditiveCost:
        """`params(paths)`: (n,) int64 trainable parameters."""
        return self._cost(AdditiveCost, PARAMS, "parameters", "M parameters", 1e6)

    @cached_property
    def memory(self) -> PeakCost:
        """`memory(paths)`: (n,) int64 bytes of activations at the peak; see the class."""
        return self._cost(PeakCost, MEMORY, "memory", "MB", 1e6)

    def stage_flops(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """(n, stages) int64 multiply-accumulates of each stage."""
        return self.flops.stages(paths)

    def _cost(self, kind: type[LayerCost], measure: int, name: str, unit: str, scale: float) -> LayerCost:
        stem, first, other, head = self._tables
        return kind(
            f"{name} of the backbone" if self.scope == "backbone" else name,
            unit,
            scale,
            self.backbone,
            stem[..., measure],
            tuple(table[..., measure] for table in first),
            tuple(table[..., measure] for table in other),
            head[..., measure],
        )

    @cached_property
    def _tables(self) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Stem, first layers, other layers and head as in `LayerCost`, with a last axis [MACs, parameters, bytes]."""
        net = self.backbone
        n_widths, n_ratios = len(net.widths), len(net.ratios)
        image = MapSize(*self.size)
        size = image.shrunk(2)
        pooled = size.shrunk(2)
        stem = np.zeros((2, n_widths, n_widths, 3), np.int64)
        for w0, mid in enumerate(map(net.stem_mid, net.widths)):
            for w1, out in enumerate(map(net.stem_out, net.widths)):
                stem[:, w0, w1, :MEMORY] = conv_cost(3, 3, mid, size.area) + conv_cost(3, mid, out, size.area)
                stem[1, w0, w1, :MEMORY] += conv_cost(3, mid, mid, size.area)
                stem[:, w0, w1, MEMORY] = peak_bytes(
                    3 * image.area + mid * size.area, (mid + out) * size.area, out * (size.area + pooled.area)
                )
                stem[1, w0, w1, MEMORY] = max(stem[1, w0, w1, MEMORY], peak_bytes(2 * mid * size.area))
        size = pooled
        ins = [net.stem_out(w) for w in net.widths]
        first_tables, other_tables = [], []
        for stage, stride in enumerate(net.strides):
            outs = [net.stage_out(stage, w) for w in net.widths]
            after = size.shrunk(stride)
            first = np.zeros((n_widths, n_widths, n_ratios, 3), np.int64)
            other = np.zeros((n_widths, n_ratios + 1, 3), np.int64)
            for w, out in enumerate(outs):
                for e, ratio in enumerate(net.ratios):
                    mid = net.middle(out, ratio)
                    inner = self.middle_cost(mid, after.area, ratio) + conv_cost(1, mid, out, after.area)
                    other[w, e, :MEMORY] = conv_cost(1, out, mid, after.area) + inner
                    other[w, e, MEMORY] = _branch_peak(out * after.area, mid * after.area, mid * after.area, out * after.area)
                    for w_in, before in enumerate(ins):
                        shortcut = conv_cost(1, before, out, after.area)
                        first[w_in, w, e, :MEMORY] = conv_cost(1, before, mid, size.area) + inner + shortcut
                        x, y = before * size.area, out * after.area
                        pool = before * after.area if stride > 1 else 0
                        first[w_in, w, e, MEMORY] = max(
                            _branch_peak(x, mid * size.area, mid * after.area, y),
                            peak_bytes(y + x + pool, y + (pool or x) + y),
                        )
            first_tables.append(first)
            other_tables.append(other)
            ins, size = outs, after
        head = np.stack([self.head_cost(channels, size) for channels in ins])
        return stem, first_tables, other_tables, head

    def middle_cost(self, channels: int, pixels: int, choice: Hashable) -> np.ndarray:
        """[MACs, parameters] of a bottleneck's middle layer with this choice (of `Geometry.ratios`), on `pixels` outputs."""
        return conv_cost(3, channels, channels, pixels)

    def map_channels(self, head: HeadGeometry) -> tuple[int, ...]:
        """Channels of each head's map, in the order of the graph: CenterNet's heat map, offset and size."""
        return head.num_classes, 2, 2

    def head_cost(self, channels: int, size: MapSize) -> np.ndarray:
        """[MACs, parameters, bytes] of what follows a feature map of these channels and this size."""
        total, tensors = np.zeros(2, np.int64), [0]
        if self.scope == "classifier":
            total += conv_cost(1, channels, self.num_classes, 1, per_channel=1)
            tensors += [channels * (size.area + 1), channels + self.num_classes]
        elif self.scope == "detector":
            head = self.head or HeadGeometry(self.num_classes)
            for filters in head.deconv_channels:
                # Each input pixel meets all 4 x 4 weights of every filter; 4x4, stride 2, padding 1 doubles the size.
                total += conv_cost(4, channels, filters, size.area)
                tensors.append(channels * size.area + 4 * filters * size.area)
                channels, size = filters, MapSize(2 * size.height, 2 * size.width)
            hidden, finished = head.head_channels, 0
            maps = self.map_channels(head)
            for number, outputs in enumerate(maps, 1):
                total += conv_cost(3, channels, hidden, size.area, per_channel=1)
                total += conv_cost(1, hidden, outputs, size.area, per_channel=1)
                waiting = channels if number < len(maps) else 0
                tensors += [
                    (finished + channels + hidden) * size.area,
                    (finished + waiting + hidden + outputs) * size.area,
                ]
                finished += outputs
        return np.array([*total, peak_bytes(*tensors)])


class MapSize(NamedTuple):
    """Pixels of a feature map."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width

    def shrunk(self, stride: int) -> MapSize:
        """After a 3x3 convolution or max-pool with padding 1, or a ceil-mode average pooling, of this stride."""
        return MapSize(-(-self.height // stride), -(-self.width // stride))


def conv_cost(kernel: int, ins: int, outs: int, pixels: int, per_channel: int = 2) -> np.ndarray:
    """[MACs, parameters] of a convolution over `pixels` positions with BatchNorm (gamma, beta: 2 per output channel).

    `per_channel` 1 is a bias without BatchNorm.
    """
    weights = kernel**2 * ins * outs
    return np.array([weights * pixels, weights + per_channel * outs], np.int64)


def peak_bytes(*numbers: int) -> int:
    """Bytes of the largest of these numbers of float32 values."""
    return 4 * max(numbers)


def _branch_peak(x: int, one: int, two: int, y: int) -> int:
    """Peak of a bottleneck's three convolutions x -> one -> two -> y, by sizes of tensors; x waits for the shortcut."""
    return peak_bytes(x + one, x + one + two, x + two + y)


def in_unit(values: Sequence[float], unit: str, scale: float) -> str:
    """Values in words, such as "0.52 to 4.31 GFLOPs"."""
    return f"{' to '.join(f'{value / scale:.4g}' for value in values)} {unit}".rstrip()


def layer_cost(cost: CostModel | LayerCost) -> LayerCost:
    """The cost itself; for a model, its FLOPs."""
    return cost.flops if isinstance(cost, CostModel) else cost


def cost_range(space: SearchSpace, cost: CostModel | LayerCost) -> tuple[int, int]:
    """The exact smallest and largest cost of the space's paths."""
    return layer_cost(cost).extremes(space)


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
