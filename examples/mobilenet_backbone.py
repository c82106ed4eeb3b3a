"""Another elastic backbone under the same detector: stages of MobileNet's inverted bottlenecks, with elastic depthwise kernels.

A stage has 2 to 4 layers, the third 4 to 6; every layer chooses its expand ratio E and the side K of its depthwise kernel, and
W is always 1. Backbone and costs are written here; everything else is the package's.

    PYTHONPATH=examples nnabla_nas -f examples/mobilenet_backbone.json
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from kernel_choice import Choice, KernelGeometry

from nnabla_detofa.backend.compat import Mo
from nnabla_detofa.common.normalization import IMAGENET
from nnabla_detofa.config import OwnDetector
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.layers import STORED, ConvBN
from nnabla_detofa.networks.resnet50 import LayeredBackbone, Named
from nnabla_detofa.space.costs import CostModel, MapSize, conv_cost, peak_bytes
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import ofa_resnet50


@dataclass(frozen=True)
class MobileGeometry(KernelGeometry):
    """Four stages, MobileNet's first; E is middle channels as a share of the layer's INPUT channels."""

    widths: tuple[float, ...] = (1.0,)
    ratios: tuple[Choice, ...] = tuple(Choice(ratio, kernel) for ratio in (3, 6) for kernel in (3, 5))
    stage_channels: tuple[int, ...] = (24, 40, 80, 112)
    strides: tuple[int, ...] = (2, 2, 2, 1)
    stem_channels: int = 16

    @property
    def total_stride(self) -> int:
        return super().total_stride // 2  # the stem has no max-pool

    def inputs(self, stage: int, place: int) -> int:
        return self.stage_out(stage if place else stage - 1, 1.0) if stage or place else self.stem_out(1.0)


class InvertedBottleneck(Mo.Module):
    def __init__(self, name: str, inputs: int, middle: int, outputs: int, kernel: int, stride: int, shortcut: bool, rng):
        super().__init__(name=name)
        self._outputs, self._shortcut = outputs, shortcut
        self.expand = ConvBN(f"{name}/expand", inputs, middle, 1, rng)
        self.depthwise = ConvBN(f"{name}/depthwise", middle, middle, kernel, rng, stride=stride, depthwise=True)
        self.project = ConvBN(f"{name}/project", middle, outputs, 1, rng, relu=False)

    def __call__(self, net: MobileGeometry, choice: Choice, statistics, x):
        middle = net.middle(x.shape[1], choice)
        y = self.depthwise(self.expand(x, middle, statistics), middle, statistics, choice.kernel)
        y = self.project(y, self._outputs, statistics)
        return x + y if self._shortcut else y


class MobileNet(LayeredBackbone):
    """The backbone: a fixed stem, then the path's layers. With `path`, only its weights are allocated."""

    def __init__(self, net: MobileGeometry, rng, path: Path | None = None):
        super().__init__(name="")
        self._net, self.channels = net, net.stage_out(net.stages - 1, 1.0)
        self.stem = ConvBN("stem", 3, net.stem_out(1.0), 3, rng, stride=2)
        layers = {}
        for stage, choices in enumerate((path or ofa_resnet50(net).largest).expand_ratios):
            for place, choice in enumerate(choices):
                index, stride, inputs = 10 * stage + place, 1 if place else net.strides[stage], net.inputs(stage, place)
                channels = inputs, net.middle(inputs, choice), net.stage_out(stage, 1.0)
                layers[index] = InvertedBottleneck(f"layers/{index}", *channels, choice.kernel, stride, place > 0, rng)
        self.layers = Named(layers)

    def steps(self, path: Path, statistics=STORED):
        yield [lambda x: self.stem(x, self._net.stem_out(1.0), statistics)]
        for stage, choices in enumerate(path.expand_ratios):
            yield [partial(self.layers[10 * stage + n], self._net, choice, statistics) for n, choice in enumerate(choices)]


class MobileCost(CostModel):
    def backbone_tables(self):
        net, size, channels = self.backbone, MapSize(*self.size).shrunk(2), self.backbone.stem_out(1.0)
        memory = peak_bytes(3 * self.size[0] * self.size[1] + channels * size.area)
        stem, first, other = np.full((2, 1, 1, 3), [*conv_cost(3, 3, channels, size.area), memory]), [], []
        for stage, stride in enumerate(net.strides):
            after = size.shrunk(stride)
            first.append(np.array([[[self.layer(stage, 0, choice, size, after) for choice in net.ratios]]]))
            other.append(np.array([[*(self.layer(stage, 1, choice, after, after) for choice in net.ratios), [0, 0, 0]]]))
            size = after
        return stem, first, other, [net.stage_out(net.stages - 1, 1.0)], size

    def layer(self, stage: int, place: int, choice: Choice, before: MapSize, after: MapSize) -> list[int]:
        """[MACs, parameters, bytes] of a layer, from the map `before` to the map `after`."""
        inputs, outputs = self.backbone.inputs(stage, place), self.backbone.stage_out(stage, 1.0)
        middle = self.backbone.middle(inputs, choice)
        parts = (1, inputs, middle, before.area), (choice.kernel, 1, middle, after.area), (1, middle, outputs, after.area)
        x, wide, narrow, y = inputs * before.area, middle * before.area, middle * after.area, outputs * after.area
        memory = peak_bytes(x + wide, wide + narrow + x * place, narrow + y + x * place)  # later layers have a shortcut
        return [*sum(conv_cost(*part) for part in parts), memory]


@dataclass(frozen=True)
class MobileCenterNet(OwnDetector):
    strides: tuple[int, ...] = (2, 2, 2, 1)
    elastic_stem: bool = False

    @property
    def geometry(self) -> MobileGeometry:
        return MobileGeometry(strides=self.strides, width_scale=self.width_scale, named=self.resolution_choice)

    def cost_model(self, image_size, num_classes: int, scope: str) -> MobileCost:
        return MobileCost(image_size, num_classes, scope, self.geometry, self.head_geometry(num_classes))

    def detector(self, num_classes: int, path=None, rng=None, normalization=IMAGENET) -> Detector:
        head, rng = self.head_geometry(num_classes), rng or np.random.default_rng(0)
        backbone = MobileNet(self.geometry, rng, path)
        return Detector(head, heatmap_std=self.heatmap_std, rng=rng, backbone=backbone, normalization=normalization)
