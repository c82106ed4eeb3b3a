"""The elastic ResNet50 backbone: one set of weights, and `backbone(x, path)` applies any path.

Networks are stateless: the path and the statistics of its batch normalizations are arguments of every call. Parameters have
the names of NNablaNAS' `ofa_resnet50`, so weights trained there can be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np

from ..backend.compat import F, Mo, Model, Optimizer, nn
from ..common.errors import UserError
from ..space.geometry import OFA_RESNET50, Geometry
from ..space.paths import Path
from ..space.search_space import ofa_resnet50
from .layers import STORED, ConvBN, StatisticsSource

Step = Callable[[nn.Variable], nn.Variable]
"""A layer of a path as a function of its input."""


@dataclass(frozen=True)
class LayerPlan:
    """Channels of one bottleneck layer of a path, and the choice (of `Geometry.ratios`) that determines the middle ones."""

    inputs: int
    middle: int
    outputs: int
    choice: Hashable = field(default=None, compare=False)


@dataclass(frozen=True)
class Plan:
    """Channels of every layer of a path.

    Attributes:
        stem: channels of the stem's first convolutions and of its output.
        stem_residual: whether the stem has its residual convolution.
        stages: for each stage, its active layers.
    """

    stem: tuple[int, int]
    stem_residual: bool
    stages: tuple[tuple[LayerPlan, ...], ...]

    @classmethod
    def of(cls, path: Path, geometry: Geometry) -> Plan:
        """Compute the channels of a path."""
        stem = (geometry.stem_mid(path.stem_widths[0]), geometry.stem_out(path.stem_widths[1]))
        channels, stages = stem[1], []
        for stage, (width, ratios) in enumerate(zip(path.stage_widths, path.expand_ratios)):
            outputs, layers = geometry.stage_out(stage, width), []
            for ratio in ratios:
                layers.append(LayerPlan(channels, geometry.middle(outputs, ratio), outputs, ratio))
                channels = outputs
            stages.append(tuple(layers))
        return cls(stem, path.stem_depth == max(geometry.depths), tuple(stages))


class Bottleneck(Mo.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut, which the first layer of a stage pools and projects.

    Args:
        name: unique name in the network.
        plan: largest numbers of channels.
        stride: stride of the 3x3 convolution and of the pooled shortcut.
        first: whether this is the first layer of a stage.
        zero_init: whether the scale of the last batch normalization is initialized to 0, so that the layer initially equals
            its shortcut (as in OFA).
        rng: random generator of the initial weights.
    """

    def __init__(self, name: str, plan: LayerPlan, stride: int, first: bool, zero_init: bool, rng: np.random.Generator):
        super().__init__(name=name)
        self._stride = stride
        self.conv1 = ConvBN(f"{name}/conv1", plan.inputs, plan.middle, 1, rng)
        self.conv2 = self.middle_layer(f"{name}/conv2", plan, stride, rng)
        self.conv3 = ConvBN(f"{name}/conv3", plan.middle, plan.outputs, 1, rng, relu=False, gamma=0.0 if zero_init else 1.0)
        if first:
            self.downsample = ConvBN(f"{name}/downsample", plan.inputs, plan.outputs, 1, rng, relu=False)

    def middle_layer(self, name: str, plan: LayerPlan, stride: int, rng: np.random.Generator) -> Mo.Module:
        """Create the layer between the 1x1 convolutions, with the channels of `plan`. Override together with `middle`."""
        return ConvBN(name, plan.middle, plan.middle, 3, rng, stride=stride)

    def middle(self, y: nn.Variable, plan: LayerPlan, statistics: StatisticsSource) -> nn.Variable:
        """Apply the middle layer of a path: (B, plan.middle, H, W) -> (B, plan.middle, H', W')."""
        return self.conv2(y, plan.middle, statistics)

    def __call__(self, x: nn.Variable, plan: LayerPlan, statistics: StatisticsSource) -> nn.Variable:
        """Apply the layer with the channels of `plan`: (B, plan.inputs, H, W) -> (B, plan.outputs, H', W')."""
        y = self.conv1(x, plan.middle, statistics)
        size = tuple(-(-side // self._stride) for side in y.shape[2:])
        expected, y = (y.shape[0], plan.middle, *size), self.middle(y, plan, statistics)
        if getattr(y, "shape", None) != expected:
            got = getattr(y, "shape", type(y).__name__)
            raise UserError(f"middle of {type(self).__name__} must return the shape {expected} for {plan.choice}, got {got}")
        y = self.conv3(y, plan.outputs, statistics)
        if "downsample" in self.modules:
            if self._stride > 1:
                kernel = (self._stride, self._stride)
                # The last window of a map with an odd side is cropped, not padded: its mean covers only existing pixels.
                x = F.average_pooling(x, kernel, stride=kernel, ignore_border=False, including_pad=False)
            x = self.downsample(x, plan.outputs, statistics)
        return statistics.add_relu(y, x)

    def sort_middle(self, edges: Sequence[int]) -> list[tuple[nn.Variable, int, np.ndarray]]:
        """Sort the middle channels by decreasing importance, without changing the function of the layer.

        The importance of a channel is the L1 norm of the weights that read it, as in OFA.

        Args:
            edges: numbers of middle channels of already trained paths. Channels are sorted only within the segments between
                these numbers, so the function of those paths does not change either.

        Returns:
            the reordered parameters in the order of the operations, each with the axis and the permutation.
        """
        moved = []
        # conv3 reads the output of conv2, and conv2 the output of conv1: two permutations, the later layers first. A
        # depthwise conv2 keeps the order of its channels, so there is one permutation.
        three = self.conv1, self.conv2, self.conv3
        chains = (three,) if self.conv2.depthwise else (three[1:], three[:2])
        for *writers, reader in chains:
            weight = reader.parameters["conv/conv/_W"]
            importance = np.abs(weight.d).sum(axis=(0, 2, 3))
            segment = np.searchsorted(np.sort(edges), np.arange(len(importance)), side="right")
            order = np.lexsort((-importance, segment))
            sorting = [(weight, 1, order)]
            for writer in writers:
                sorting.append((writer.parameters["conv/conv/_W"], 0, order))
                sorting += [(writer.parameters[f"bn/bn/{key}"], 1, order) for key in ("_beta", "_gamma", "_mean", "_var")]
            for parameter, axis, _ in sorting:
                parameter.d = parameter.d.take(order, axis)
            moved += sorting
        return moved

    def sort_obstacle(self) -> str:
        """Return what keeps `sort_middle` from sorting the layer, such as further weights; empty if nothing does."""
        if type(self).sort_middle is not Bottleneck.sort_middle:
            return ""
        further = sorted({*self.modules, *self.parameters} - {"conv1", "conv2", "conv3", "downsample"})
        if further or type(self.conv2) is not ConvBN:
            return f"{type(self).__name__} has {', '.join(further) or f'a middle layer {type(self.conv2).__name__}'}"
        return ""


class _Residual(Mo.Module):
    """The stem's optional convolution with an identity shortcut."""

    def __init__(self, name: str, channels: int, rng: np.random.Generator):
        super().__init__(name=name)
        self.conv = ConvBN(f"{name}/conv", channels, channels, 3, rng)

    def __call__(self, x: nn.Variable, outputs: int, statistics: StatisticsSource) -> nn.Variable:
        return F.add2(self.conv(x, outputs, statistics), x)


class LayeredBackbone(Model):
    """Base class of elastic backbones that consist of a stem and stages of layers, which a subclass returns from `steps`."""

    def __call__(self, x: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> nn.Variable:
        """Map images (B, 3, H, W) to the last feature map (B, C, H / total_stride, W / total_stride)."""
        return self.trunk(x, path, statistics)

    def trunk(self, x: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> nn.Variable:
        """Apply the network up to its last batch normalization, which suffices to re-estimate statistics."""
        return self.features(x, path, statistics)[-1]

    def features(self, x: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> list[nn.Variable]:
        """Return the feature maps after the stem and after each stage."""
        maps = []
        for part in self.steps(path, statistics):
            for step in part:
                x = step(x)
            maps.append(x)
        return maps

    def steps(self, path: Path, statistics: StatisticsSource = STORED) -> Iterable[Iterable[Step]]:
        """Return the layers of a path, of the stem and of each stage; those of the stem together are one layer of the costs."""
        raise NotImplementedError


class ElasticResNet50(LayeredBackbone):
    """Feature extractor of OFA-ResNet50: stem, max-pool and four stages of bottlenecks (Table 1, section 4.1).

    Args:
        geometry: channels and strides.
        zero_init_residual: see `zero_init` of `Bottleneck`.
        rng: random generator of the initial weights.
        path: if given, only the weights of this path are allocated (a static network) instead of those of the largest path.

    Attributes:
        channels: number of channels of the last feature map of `path`, or of the largest path.
    """

    layer_type: ClassVar[type[Bottleneck]] = Bottleneck
    """Class of the layers in the stages; a subclass may override it."""

    def __init__(
        self,
        geometry: Geometry = OFA_RESNET50,
        zero_init_residual: bool = True,
        rng: np.random.Generator | None = None,
        path: Path | None = None,
    ):
        super().__init__(name="")
        rng = rng or np.random.default_rng(0)
        self._geometry = geometry
        allocated = Plan.of(path or ofa_resnet50(geometry).largest, geometry)
        stem: list[Mo.Module] = [ConvBN("input_stem/0", 3, allocated.stem[0], 3, rng, stride=2)]
        if allocated.stem_residual:
            stem.append(_Residual("input_stem/1", allocated.stem[0], rng))
        stem.append(ConvBN("input_stem/2", allocated.stem[0], allocated.stem[1], 3, rng))
        self.input_stem = Named({int(layer.name[-1]): layer for layer in stem})
        blocks, first = {}, 0
        for layers, stride, most in zip(allocated.stages, geometry.strides, geometry.layers_per_stage):
            for place, layer in enumerate(layers):
                index = first + place
                blocks[index] = self.layer_type(
                    f"blocks/{index}", layer, stride if place == 0 else 1, place == 0, zero_init_residual, rng
                )
            first += most
        self.blocks = Named(blocks)
        self.channels = allocated.stages[-1][-1].outputs

    def steps(self, path: Path, statistics: StatisticsSource = STORED) -> list[list[Step]]:
        """Return the layers of a path, of the stem and of each stage; the stem with its max-pool is one layer."""
        plan, first = Plan.of(path, self._geometry), 0
        parts: list[list[Step]] = [[partial(self.stem, plan=plan, statistics=statistics)]]
        for layers, most in zip(plan.stages, self._geometry.layers_per_stage):
            parts.append([partial(self.blocks[first + n], plan=layer, statistics=statistics) for n, layer in enumerate(layers)])
            first += most
        return parts

    def stem(self, x: nn.Variable, plan: Plan, statistics: StatisticsSource = STORED) -> nn.Variable:
        """Map images (B, 3, H, W) to the feature map after the max-pool (B, C, H / 4, W / 4)."""
        x = self.input_stem[0](x, plan.stem[0], statistics)
        if plan.stem_residual:
            x = self.input_stem[1](x, plan.stem[0], statistics)
        x = self.input_stem[2](x, plan.stem[1], statistics)
        return F.max_pooling(x, (3, 3), stride=(2, 2), pad=(1, 1), ignore_border=True)


def check_sortable(net: Model) -> None:
    """Raise UserError if `sort_middle_channels` cannot sort the layers of a supernet."""
    backbone = getattr(net, "backbone", net)
    layers = backbone.blocks.modules.values() if isinstance(backbone, ElasticResNet50) else ()
    obstacle = next(filter(None, (layer.sort_obstacle() for layer in layers)), "")
    if not layers:
        obstacle = f"the backbone {type(backbone).__name__} is not based on ElasticResNet50"
    if obstacle:
        raise UserError(
            f"the middle channels cannot be sorted, since {obstacle}: override sort_middle in the class of the layers, or set "
            "hparams.shrinking_sort=false (sort_channels=false in hparams.shrinking)"
        )


def sort_middle_channels(
    net: Model, ratios: Sequence[float], widths: Sequence[float] = (1.0,), optimizer: Optimizer | None = None
) -> None:
    """Sort the middle channels of every bottleneck by importance (`Bottleneck.sort_middle`), before smaller E or W are trained.

    The functions of all paths whose widths are in `widths` and whose expand ratios are in `ratios` do not change.

    Args:
        net: a supernet, or a detector with one as its backbone.
        ratios: values of E that were trained before.
        widths: values of W that were trained before.
        optimizer: optimizer of the ongoing training, whose moments are reordered together with the weights.

    Raises:
        UserError: the layers cannot be sorted, see `check_sortable`.
    """
    check_sortable(net)
    geometry, first = net.space.geometry, 0
    names = {id(parameter): name for name, parameter in net.get_parameters().items()}
    states = optimizer._solver.get_states() if optimizer else {}
    for stage, most in enumerate(geometry.layers_per_stage):
        outputs = [geometry.stage_out(stage, width) for width in widths]
        edges = [geometry.middle(channels, ratio) for channels in outputs for ratio in ratios]
        for index in range(first, first + most):
            for parameter, axis, order in getattr(net, "backbone", net).blocks[index].sort_middle(edges):
                if (state := states.get(names[id(parameter)])) is not None:  # running statistics have no optimizer state
                    for moments in state.pstate.values():
                        moments.d = moments.d.take(order, axis)
        first += most


class Named(Mo.Module):
    """Modules named by numbers, possibly with gaps (a static path has no inactive layers)."""

    def __init__(self, modules: Mapping[int, Mo.Module]):
        super().__init__(name="")
        for index, module in modules.items():
            self.modules[str(index)] = module

    def __getitem__(self, index: int) -> Mo.Module:
        return self.modules[str(index)]
