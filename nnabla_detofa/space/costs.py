"""FLOPs, parameters and memory of paths, as tables of the costs of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..common.checked import listed
from ..common.errors import UserError
from ..common.reading import shown
from .geometry import OFA_RESNET50, RESOLUTION, Choice, Geometry, HeadGeometry, is_count
from .layer_costs import AdditiveCost, LayerCost, PeakCost
from .paths import Path, PathBatch
from .search_space import SearchSpace

SCOPES = ("classifier", "backbone", "detector")
FLOPS, PARAMS, MEMORY = range(3)
"""Indices of the measures in the last axis of the tables."""
MAX_COMBINATIONS = 10**4
"""Largest number of combinations of the named choices of a geometry; the tables have a column for each."""


Kind = TypeVar("Kind", bound=LayerCost)


@dataclass(frozen=True)
class CostModel:
    """FLOPs, parameters and activation memory of the subnets of one supernet, each at the resolution that its path chooses, if
    paths choose it, and otherwise all at one input size.

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

    def input_size(self, path: Path) -> tuple[int, int]:
        """Return (height, width) of the input of a path in pixels."""
        return self.at(dict(path.named)).size

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
            stem[measure],
            tuple(table[measure] for table in first),
            tuple(table[measure] for table in other),
            head[measure],
        )

    def at(self, named: Mapping[str, Any]) -> CostModel:
        """Return the cost model of the networks with these named choices; a subclass may know further names."""
        head = (self.head or HeadGeometry(self.num_classes)).of(named)
        return replace(self, head=head, image_size=named.get(RESOLUTION, self.image_size))

    @cached_property
    def _tables(self) -> tuple[list, list[list], list[list], list]:
        """Tables of stem, first layers, other layers and head as in `LayerCost`, each as a list [MACs, parameters, bytes]."""
        named = self.backbone.named
        sizes = [len(values) for _, values in named]
        if (combinations := math.prod(sizes)) > MAX_COMBINATIONS:
            raise UserError(
                f"the named choices have {combinations} combinations; costs allow at most {MAX_COMBINATIONS}: make choices of "
                "single layers a part of the choices of layers (Geometry.ratios)"
            )
        names, backbones, found = [name for name, _ in named], {}, []
        for values in product(*(values for _, values in named)):
            model = self.at(dict(zip(names, values))) if names else self
            key = replace(model, head=None)  # the head's choices need the tables of the backbone once
            if key not in backbones:
                backbones[key] = model.backbone_tables()
            *tables, channels, size = backbones[key]
            tops = [_checked("head_cost", model.head_cost(c, size), "[MACs, parameters, bytes]") for c in channels]
            found.append((*tables, np.stack(tops)))

        def joined(tables: Sequence[np.ndarray]) -> list[np.ndarray]:
            """Stack the tables of all combinations, for each measure, with an axis for each choice on which it depends."""
            measures = []
            for measure in range(3):
                stacked = np.stack([table[..., measure] for table in tables], axis=-1).reshape(*tables[0].shape[:-1], *sizes)
                for axis in range(stacked.ndim - len(sizes), stacked.ndim):
                    first = stacked.take([0], axis)
                    stacked = first if (stacked == first).all() else stacked
                measures.append(stacked)
            return measures

        stems, firsts, others, heads = zip(*found)
        return joined(stems), [*map(joined, zip(*firsts))], [*map(joined, zip(*others))], joined(heads)

    def backbone_tables(self) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], list[int], MapSize]:
        """Compute the tables of the backbone; override this if it consists of other layers than bottlenecks.

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
                    middle = self.middle_cost(mid, after.area, ratio)
                    inner = _checked("middle_cost", middle, "[MACs, parameters]") + conv_cost(1, mid, out, after.area)
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


def _checked(method: str, cost: Any, entries: str) -> np.ndarray:
    """Return what a method of a subclass returned as an array, after a check of its shape and values."""
    try:
        numbers = np.asarray(cost, np.float64)
        right = numbers.shape == (entries.count(",") + 1,) and np.isfinite(numbers).all() and (numbers >= 0).all()
    except (TypeError, ValueError):
        right = False
    if not right:
        raise UserError(f"{method} of the cost model must return {entries}, numbers of 0 or more, got {shown(cost)}")
    return np.asarray(cost)


def _branch_peak(x: int, one: int, two: int, y: int) -> int:
    """Return the peak bytes of the convolutions x -> one -> two -> y of a bottleneck, which keeps x for the shortcut."""
    return peak_bytes(x + one, x + one + two, x + two + y)


def layer_cost(cost: CostModel | LayerCost) -> LayerCost:
    """Return `cost`, or the FLOPs of a `CostModel`."""
    return cost.flops if isinstance(cost, CostModel) else cost


def cost_range(space: SearchSpace, cost: CostModel | LayerCost) -> tuple[int, int]:
    """Return the exact smallest and largest cost (of a `CostModel`, FLOPs) of the paths of a space."""
    return layer_cost(cost).extremes(space)
