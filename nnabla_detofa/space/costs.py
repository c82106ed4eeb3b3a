"""What a path costs, for many paths at once.

Given the widths, a path's cost is a sum over its layers (memory: the largest of them), so every number comes from a few small
tables.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from ..common.errors import UserError
from .geometry import OFA_RESNET50, Geometry, HeadGeometry, is_count
from .paths import Path, PathBatch
from .search_space import SearchSpace

SCOPES = ("classifier", "backbone", "detector")
FLOPS, PARAMS, MEMORY = range(3)
"""Places of the measures in the tables' last axis."""
FORBIDDEN = 2**52
"""A layer cost over that of any network; the sum over all layers still fits into int64."""


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
