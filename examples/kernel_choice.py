"""A new choice in the search space: every layer chooses, beside its E, whether its middle convolution is 3x3 or 5x5.

What a layer chooses becomes a pair (E, K). Sampling, exact counts, FLOPs buckets, path filter, operation pruning and evolution
take it as it is; to be written are what the pair means for channels (geometry), for FLOPs (costs) and for weights (supernet).

    python examples/kernel_choice.py [--steps N]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import NamedTuple

import nnabla.functions as F
import numpy as np
from on_digits import digits, fitted_scorer, train_steps

from nnabla_detofa.backend.kernels import leading
from nnabla_detofa.common.normalization import IMAGENET
from nnabla_detofa.config import OwnDetector
from nnabla_detofa.evolution import search
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.layers import ConvBN
from nnabla_detofa.networks.resnet50 import Bottleneck, ElasticResNet50, LayerPlan
from nnabla_detofa.space.costs import CostModel, conv_cost
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.pruning import operation_scores, prune_operations
from nnabla_detofa.space.search_space import ofa_resnet50


class Choice(NamedTuple):
    """What a layer chooses: its expand ratio E, and the side K of its middle kernel. The largest E comes first in order."""

    ratio: float
    kernel: int

    def __str__(self) -> str:  # in tokens and logs
        return f"E{self.ratio}_K{self.kernel}"


@dataclass(frozen=True)
class KernelGeometry(Geometry):
    ratios: tuple[Choice, ...] = tuple(Choice(ratio, kernel) for ratio in (0.2, 0.35) for kernel in (3, 5))

    def __post_init__(self):
        # So that pairs which come as plain lists, from a file, are choices again.
        object.__setattr__(self, "ratios", tuple(Choice(*pair) for pair in self.ratios))
        super().__post_init__()

    def expand_ratio(self, choice: Choice) -> float:
        return choice.ratio


class KernelCost(CostModel):
    def middle_cost(self, channels: int, pixels: int, choice: Choice) -> np.ndarray:
        return conv_cost(choice.kernel, channels, channels, pixels)


class KernelConv(ConvBN):
    """A convolution that runs with any kernel up to its own: the middle of it, as in OFA-MobileNetV3."""

    def __call__(self, x, outputs: int, kernel: int, statistics):
        weight = leading(self.parameters["conv/conv/_W"], outputs, x.shape[1])
        edge = (weight.shape[2] - kernel) // 2
        if edge:
            weight = F.slice(weight, (0, 0, edge, edge), (outputs, x.shape[1], edge + kernel, edge + kernel))
        return self.run(x, weight, statistics)


class KernelBottleneck(Bottleneck):
    def middle_layer(self, name: str, plan: LayerPlan, stride: int, rng) -> KernelConv:
        return KernelConv(name, plan.middle, plan.middle, plan.choice.kernel, rng, stride=stride)

    def middle(self, y, plan: LayerPlan, statistics):
        return self.conv2(y, plan.middle, plan.choice.kernel, statistics)


class KernelResNet50(ElasticResNet50):
    layer_type = KernelBottleneck


@dataclass(frozen=True)
class KernelCenterNet(OwnDetector):
    """The network of a config: `"network": {"kernel_choice:KernelCenterNet": {"kernels": [3, 5]}}`.

    Attributes:
        ratios, kernels: expand ratios, and sides of the middle kernels, that a layer chooses from.
    """

    ratios: tuple[float, ...] = (0.2, 0.35)
    kernels: tuple[int, ...] = (3, 5)

    @property
    def geometry(self) -> KernelGeometry:
        ratios = tuple(Choice(ratio, kernel) for ratio in self.ratios for kernel in self.kernels)
        return KernelGeometry(strides=self.strides, width_scale=self.width_scale, ratios=ratios)

    def cost_model(self, image_size, num_classes: int, scope: str) -> KernelCost:
        return KernelCost(image_size, num_classes, scope, self.geometry, self.head_geometry(num_classes))

    def detector(self, num_classes: int, path=None, rng=None, normalization=IMAGENET) -> Detector:
        backbone = KernelResNet50(self.geometry, self.zero_init_residual, rng, path)
        head = self.head_geometry(num_classes)
        return Detector(
            head, self.geometry, heatmap_std=self.heatmap_std, rng=rng, backbone=backbone, normalization=normalization
        )


GEOMETRY = KernelGeometry(width_scale=0.0625, strides=(1, 2, 2, 1))
HEAD = HeadGeometry(num_classes=10, deconv_channels=(16, 16), head_channels=16)
SIZE = 64


def detector(path=None, seed: int = 0) -> Detector:
    """The supernet; with `path` its weights alone."""
    rng = np.random.default_rng(seed)
    backbone = KernelResNet50(GEOMETRY, rng=rng, path=path)
    return Detector(HEAD, GEOMETRY, heatmap_std=0.1, rng=rng, backbone=backbone)


def main(steps: int = 40) -> dict:
    """Algorithm 1 in small: train, evaluate paths, fit the filter, prune operations, search."""
    rng = np.random.default_rng(0)
    space, net = ofa_resnet50(GEOMETRY, elastic_stem=False), detector()
    cost = KernelCost(SIZE, 10, "detector", GEOMETRY, HEAD)
    buckets = Buckets(space, cost.flops, 3)
    print(f"{space.size():.3g} paths, {cost.flops.reachable(space)}")
    with digits(SIZE) as sets:
        losses = train_steps(net, space, sets, steps)
        scorer = fitted_scorer(net, sets, cost.flops, buckets, rng)
    print(f"the largest path's first tokens are {' '.join(scorer.filter.tokenizer.words(space.largest)[:5])}")

    scores = operation_scores(space, scorer, cost.stage_flops, 10, rng)
    pruned = space.without(prune_operations(scores, "flops_score_all", space.largest, rng, buckets=3).removed)
    print(f"{len(pruned.operations)} of {len(space.operations)} operations are left, and {pruned.size():.3g} paths")

    budget = buckets.edges[1]
    found = search(pruned, scorer, cost.flops, budget, rng, generations=20, population=20)
    kernels = [choice.kernel for stage in found.path.expand_ratios for choice in stage]
    print(f"found {cost.flops.text(found.cost)}, at most {cost.flops.text(budget)}; its kernels are {kernels}")
    return {
        "losses": losses, "net": net, "space": space, "pruned": pruned, "cost": cost, "scorer": scorer, "found": found,
        "budget": budget,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="training steps (default: %(default)s)")
    main(parser.parse_args().steps)
