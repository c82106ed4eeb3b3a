"""Costs of paths, computed for many paths at once.

For given widths, the cost of a path is the sum (memory: the maximum) of the costs of its layers, so all costs are computed from
a few small tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from functools import cached_property
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from ..common.checked import listed
from ..common.errors import UserError
from .geometry import OFA_RESNET50, Choice, Geometry, HeadGeometry, is_count
from .paths import Path, PathBatch
from .search_space import SearchSpace

SCOPES = ("classifier", "backbone", "detector")
FLOPS, PARAMS, MEMORY = range(3)
"""Indices of the measures in the last axis of the tables."""
FORBIDDEN = 2**52
"""Layer cost larger than the cost of any network; sums over all layers still fit into int64."""


@dataclass(frozen=True, eq=False)
class LayerCost:
    """Cost of paths that is computed from the costs of their layers: `cost(paths)` returns an (n,) int64 array.

    Tables hold integers, so that sums and comparisons are exact, and are indexed by indices into `geometry.widths` and
    `geometry.ratios`.

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
        UserError: the cost of a layer exceeds `FORBIDDEN` in magnitude.
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
        for table in (self.stem, *self.first, *self.other, self.head):
            if not (table.min() >= -FORBIDDEN and table.max() <= FORBIDDEN):
                raise UserError(
                    f"a layer's {self.name} must be at most {FORBIDDEN}, so that sums stay exact, got "
                    f"{table.max() if table.max() > FORBIDDEN else table.min()}"
                )

    combine: ClassVar[np.ufunc]
    """Ufunc that combines the costs of two layers."""

    def __call__(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """Return the cost of each path, (n,) int64."""
        batch = self._batch(paths)
        residual = (batch.depths[:, 0] == max(self.geometry.depths)).astype(np.intp)
        stem = self.stem[residual, batch.widths[:, 0], batch.widths[:, 1]]
        stages = self.combine.reduce(self.stages(batch), axis=1)
        return self.combine(self.combine(stem, stages), self.head[batch.widths[:, -1]])

    def stages(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """Return the cost of each stage of each path, (n, stages) int64."""
        batch = self._batch(paths)
        costs = np.empty((len(batch), self.geometry.stages), np.int64)
        ratios = np.split(batch.ratios, np.cumsum(self.geometry.layers_per_stage)[:-1], axis=1)
        for stage, (first, other, layers) in enumerate(zip(self.first, self.other, ratios)):
            before, width = batch.widths[:, stage + 1], batch.widths[:, stage + 2]
            others = self.combine.reduce(other[width[:, None], layers[:, 1:]], axis=1, initial=0)  # a stage may have one layer
            costs[:, stage] = self.combine(first[before, width, layers[:, 0]], others)
        return costs

    def extremes(self, space: SearchSpace) -> tuple[int, int]:
        """Return the exact smallest and largest cost of the paths of a space, by dynamic programming over stages and widths.

        Raises:
            ValueError: the space has another geometry.
        """
        if space.geometry != self.geometry:
            raise ValueError(f"{self.name} are known for {self.geometry}, the space {space.name} is of {space.geometry}")
        return self._extreme(space, min), self._extreme(space, max)

    def _extreme(self, space: SearchSpace, pick: Callable) -> int:
        net, combine = self.geometry, self.combine
        residuals = [int(depth == max(net.depths)) for depth in space.stem_depths]
        first, second = ([net.widths.index(width) for width in allowed] for allowed in space.stem_widths)
        # width index -> extreme cost of the stem and the stages so far that end with this width
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


Kind = TypeVar("Kind", bound=LayerCost)


@dataclass(frozen=True)
class CostModel:
    """FLOPs, parameters and activation memory of the subnets of one supernet, at one input size.

    FLOPs are multiply-accumulates of convolutions, transposed convolutions and the linear layer, as OFA counts them;
    pooling, BatchNorm, activations and biases are not counted. Parameters are the trainable parameters of the subnet:
    weights, biases, and gamma and beta of BatchNorm, but not its running statistics.

    Memory is the peak of float32 activations at inference with batch size 1, if layers run one after another in the order of
    the graph. While a layer runs, memory holds its input, its output and the tensors that later layers use (the input or the
    branch beside a shortcut, the up-sampled map and the finished outputs of the heads), including the input image.
    BatchNorm, bias and ReLU work in place, and a sum overwrites its branch. Weights and the workspace of convolutions are not
    counted.

    Attributes:
        image_size: input size in pixels: the side of a square, or (height, width).
        num_classes: classes of the classifier, or of the detector if `head` is None.
        scope: "classifier" is backbone, global pooling and a linear layer; "backbone" is stem and stages; "detector" is
            CenterNet: backbone, up-convolutions and three heads.
        backbone: geometry of the supernet.
        head: up-convolutions and heads; None: `HeadGeometry(num_classes)`.

    Raises:
        UserError: an attribute is out of its range.
    """

    image_size: int | tuple[int, int] = 224
    num_classes: int = 10
    scope: str = "classifier"
    backbone: Geometry = OFA_RESNET50
    head: HeadGeometry | None = None

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise UserError(f"scope must be {listed(SCOPES, 'or')}, got {self.scope!r}")
        sides = self.image_size if isinstance(self.image_size, (tuple, list)) else (self.image_size,) * 2
        if len(sides) != 2 or not all(map(is_count, sides)):
            raise UserError(f"image_size must be a positive integer or (height, width), got {self.image_size!r}")
        if not is_count(self.num_classes):
            raise UserError(f"num_classes must be an integer of 1 or more, got {self.num_classes}")
        if isinstance(self.image_size, list):  # a list, as in JSON, would make the model unhashable
            object.__setattr__(self, "image_size", tuple(self.image_size))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2

    @cached_property
    def flops(self) -> AdditiveCost:
        """FLOPs: `flops(paths)` returns (n,) int64 multiply-accumulates."""
        return self._cost(AdditiveCost, FLOPS, "FLOPs", "GFLOPs", 1e9)

    @cached_property
    def params(self) -> AdditiveCost:
        """Parameters: `params(paths)` returns (n,) int64 trainable parameters."""
        return self._cost(AdditiveCost, PARAMS, "parameters", "M parameters", 1e6)

    @cached_property
    def memory(self) -> PeakCost:
        """Memory: `memory(paths)` returns (n,) int64 peak bytes of activations (see the class)."""
        return self._cost(PeakCost, MEMORY, "memory", "MB", 1e6)

    def stage_flops(self, paths: Sequence[Path] | PathBatch) -> np.ndarray:
        """Return the multiply-accumulates of each stage, (n, stages) int64."""
        return self.flops.stages(paths)

    def _cost(self, kind: type[Kind], measure: int, name: str, unit: str, scale: float) -> Kind:
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
        """Tables of stem, first layers, other layers and head as in `LayerCost`, with a last axis [MACs, parameters, bytes]."""
        stem, first, other, channels, size = self.backbone_tables()
        return stem, first, other, np.stack([self.head_cost(outputs, size) for outputs in channels])

    def backbone_tables(self) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], list[int], MapSize]:
        """Compute the tables of another backbone; override this if it consists of other layers than bottlenecks.

        Returns:
            the tables of stem, first layers and other layers as in `LayerCost`, with a last axis [MACs, parameters, bytes]; the
            channels of the last feature map for each width of the last stage; and the size of this map.
        """
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
        return stem, first_tables, other_tables, ins, size

    def middle_cost(self, channels: int, pixels: int, choice: Choice) -> np.ndarray:
        """Return [MACs, parameters] of the middle layer of a bottleneck.

        Args:
            channels: its input and output channels.
            pixels: its output pixels.
            choice: choice of the layer, one of `Geometry.ratios`.
        """
        return conv_cost(3, channels, channels, pixels)

    def map_channels(self, head: HeadGeometry) -> tuple[int, ...]:
        """Return the output channels of each head in the order of the graph: heatmap, offset and size."""
        return head.num_classes, 2, 2

    def head_cost(self, channels: int, size: MapSize) -> np.ndarray:
        """Return [MACs, parameters, bytes] of everything after a feature map of this size with `channels` channels."""
        total, tensors = np.zeros(2, np.int64), [0]
        if self.scope == "classifier":
            total += conv_cost(1, channels, self.num_classes, 1, per_channel=1)
            tensors += [channels * (size.area + 1), channels + self.num_classes]
        elif self.scope == "detector":
            head = self.head or HeadGeometry(self.num_classes)
            for filters in head.deconv_channels:
                # Each input pixel is multiplied by all 4 x 4 weights of every filter; stride 2 and padding 1 double the size.
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
    """Size of a feature map in pixels."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width

    def shrunk(self, stride: int) -> MapSize:
        """Return the size after a 3x3 convolution or max-pool with padding 1, or ceil-mode average pooling, of this stride."""
        return MapSize(-(-self.height // stride), -(-self.width // stride))


def conv_cost(kernel: int, ins: int, outs: int, pixels: int, per_channel: int = 2) -> np.ndarray:
    """Return [MACs, parameters] of a convolution, int64.

    Args:
        kernel: side of the kernel in pixels.
        ins, outs: input and output channels.
        pixels: number of positions of the kernel.
        per_channel: further parameters per output channel: 2 for BatchNorm (gamma, beta), 1 for a bias.
    """
    weights = kernel**2 * ins * outs
    return np.array([weights * pixels, weights + per_channel * outs], np.int64)


def peak_bytes(*numbers: int) -> int:
    """Return the largest of these numbers of float32 values, in bytes."""
    return 4 * max(numbers)


def _branch_peak(x: int, one: int, two: int, y: int) -> int:
    """Return the peak bytes of the convolutions x -> one -> two -> y of a bottleneck, which keeps x for the shortcut."""
    return peak_bytes(x + one, x + one + two, x + two + y)


def in_unit(values: Sequence[float], unit: str, scale: float) -> str:
    """Format values, such as "0.52 to 4.31 GFLOPs"; `scale` is the value of one `unit`."""
    return f"{' to '.join(f'{value / scale:.4g}' for value in values)} {unit}".rstrip()


def layer_cost(cost: CostModel | LayerCost) -> LayerCost:
    """Return `cost`, or the FLOPs of a `CostModel`."""
    return cost.flops if isinstance(cost, CostModel) else cost


def cost_range(space: SearchSpace, cost: CostModel | LayerCost) -> tuple[int, int]:
    """Return the exact smallest and largest cost (of a `CostModel`, FLOPs) of the paths of a space."""
    return layer_cost(cost).extremes(space)
