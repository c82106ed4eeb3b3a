"""A new choice in the search space: every layer chooses, beside its E, whether its middle convolution is 3x3 or 5x5.

What a layer chooses becomes a pair (E, K). This file defines what the pair means for channels (geometry), for FLOPs (costs) and
for weights (supernet). Sampling, exact counts, path filter, pruning, evolution and all commands need no change.

    PYTHONPATH=examples nnabla_nas -f examples/kernel_choice.json
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from nnabla_detofa.common.normalization import IMAGENET
from nnabla_detofa.config import OwnDetector
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.layers import ConvBN
from nnabla_detofa.networks.resnet50 import Bottleneck, ElasticResNet50, LayerPlan
from nnabla_detofa.space.costs import CostModel, conv_cost
from nnabla_detofa.space.geometry import Geometry


class Choice(NamedTuple):
    """What a layer chooses: its expand ratio E, and the side K of its middle kernel."""

    ratio: float
    kernel: int

    def __str__(self) -> str:  # in tokens and logs
        return f"E{self.ratio}_K{self.kernel}"


@dataclass(frozen=True)
class KernelGeometry(Geometry):
    ratios: tuple[Choice, ...] = tuple(Choice(ratio, kernel) for ratio in (0.2, 0.35) for kernel in (3, 5))

    def expand_ratio(self, choice: Choice) -> float:
        return choice.ratio


class KernelCost(CostModel):
    def middle_cost(self, channels: int, pixels: int, choice: Choice) -> np.ndarray:
        return conv_cost(choice.kernel, channels, channels, pixels)


class KernelBottleneck(Bottleneck):
    def middle_layer(self, name: str, plan: LayerPlan, stride: int, rng) -> ConvBN:
        return ConvBN(name, plan.middle, plan.middle, plan.choice.kernel, rng, stride=stride)

    def middle(self, y, plan: LayerPlan, statistics):
        return self.conv2(y, plan.middle, statistics, plan.choice.kernel)


class KernelResNet50(ElasticResNet50):
    layer_type = KernelBottleneck


@dataclass(frozen=True)
class KernelCenterNet(OwnDetector):
    """The network of a config: `"network": {"kernel_choice:KernelCenterNet": {"kernels": [3, 5]}}`.

    Attributes:
        ratios, kernels: expand ratios, and sides of the middle kernels, that a layer chooses from.
    """

    ratios: tuple[Annotated[float, "(0, 1]"], ...] = (0.2, 0.35)
    kernels: tuple[Annotated[int, "[1, 15]"], ...] = (3, 5)

    @property
    def geometry(self) -> KernelGeometry:
        ratios = tuple(Choice(ratio, kernel) for ratio in self.ratios for kernel in self.kernels)
        shape = {"strides": self.strides, "width_scale": self.width_scale}
        return KernelGeometry(**shape, ratios=ratios, named=self.resolution_choice)

    def cost_model(self, image_size, num_classes: int, scope: str) -> KernelCost:
        return KernelCost(image_size, num_classes, scope, self.geometry, self.head_geometry(num_classes))

    def detector(self, num_classes: int, path=None, rng=None, normalization=IMAGENET) -> Detector:
        rng = rng or np.random.default_rng(0)
        backbone = KernelResNet50(self.geometry, self.zero_init_residual, rng, path)
        head = self.head_geometry(num_classes)
        return Detector(head, heatmap_std=self.heatmap_std, rng=rng, backbone=backbone, normalization=normalization)
