"""Another elastic backbone under the same detector: in the manner of OFA-MobileNetV3, from nnabla-nas' own dynamic layers.

Stages of inverted bottlenecks, each of 2 to 4 layers; every layer chooses its expand ratio E and the side K of its depthwise
kernel. There is no width to choose, so W is always 1. The space is the package's, backbone and table of costs are written here.

    python examples/mobilenet_backbone.py [--steps N]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial

import nnabla.functions as F
import numpy as np
from kernel_choice import Choice
from nnabla_nas.contrib.common.ofa.elastic_nn.modules.dynamic_op import DynamicConv, DynamicDepthwiseConv, DynamicSE
from nnabla_nas.contrib.common.ofa.utils.common_tools import make_divisible
from on_digits import digits, fitted_scorer, train_steps

from nnabla_detofa.backend.compat import Mo, Model
from nnabla_detofa.evolution import search
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.layers import he_normal, slice_channels
from nnabla_detofa.networks.resnet50 import Named
from nnabla_detofa.space.costs import AdditiveCost, CostModel, MapSize, conv_cost
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import ofa_resnet50


@dataclass(frozen=True)
class MobileGeometry(Geometry):
    """Four stages, MobileNetV3's first; E is middle channels as a share of the layer's INPUT channels."""

    widths: tuple[float, ...] = (1.0,)
    ratios: tuple[Choice, ...] = tuple(Choice(ratio, kernel) for ratio in (3, 6) for kernel in (3, 5))
    base_depths: tuple[int, ...] = (2, 2, 2, 2)
    stage_channels: tuple[int, ...] = (24, 40, 80, 112)
    strides: tuple[int, ...] = (2, 2, 2, 1)
    stem_channels: int = 16
    squeeze: tuple[bool, ...] = (False, True, False, True)

    def expand_ratio(self, choice: Choice) -> float:
        return choice.ratio

    def inputs(self, stage: int, place: int) -> int:
        """Input channels of a layer."""
        return self.stage_out(stage if place else stage - 1, 1.0) if stage or place else self.stem_out(1.0)


class Normalized(Mo.Module):
    """One of nnabla-nas' dynamic convolutions and a batch normalization, with the statistics that the call asks for."""

    output_axis = 0  # of the convolution's weight

    def __init__(self, name: str, conv: Mo.Module, channels: int, stride: int, rng):
        super().__init__(name=name)
        self.layer, self.bn, self._stride = conv, Mo.BatchNormalization(channels, 4), stride
        draw(conv.conv._W, rng)

    mean, var = property(lambda self: self.bn._mean), property(lambda self: self.bn._var)  # stored statistics

    def __call__(self, x, filters: tuple, statistics, group: int = 1):
        weight = self.layer.get_active_filter(*filters)
        pad, stride = (weight.shape[2] // 2,) * 2, (self._stride,) * 2
        gamma, beta = (slice_channels(p, weight.shape[0]) for p in (self.bn._gamma, self.bn._beta))
        return statistics(self, partial(F.convolution, x, pad=pad, stride=stride, group=group), weight, gamma, beta)


def draw(weight, rng) -> None:
    weight.d = he_normal(rng, weight.shape, int(np.prod(weight.shape[1:])))


def hard_swish(x):
    return x * F.minimum_scalar(F.maximum_scalar(x + 3.0, 0.0), 6.0) / 6.0


class InvertedBottleneck(Mo.Module):
    def __init__(self, name: str, net: MobileGeometry, stage: int, place: int, rng):
        super().__init__(name=name)
        inputs, outputs = net.inputs(stage, place), net.stage_out(stage, 1.0)
        most, stride = net.middle(inputs, net.ratios[-1]), 1 if place else net.strides[stage]
        kernels = sorted({choice.kernel for choice in net.ratios})
        self._net, self._residual, self._outputs = net, place > 0, outputs
        self.expand = Normalized(f"{name}/expand", DynamicConv(inputs, most, (1, 1)), most, 1, rng)
        self.depthwise = Normalized(f"{name}/depthwise", DynamicDepthwiseConv(most, kernels), most, stride, rng)
        self.project = Normalized(f"{name}/project", DynamicConv(most, outputs, (1, 1)), outputs, 1, rng)
        if net.squeeze[stage]:
            self.squeeze = DynamicSE(most)
            draw(self.squeeze.fc.reduce._W, rng)
            draw(self.squeeze.fc.expand._W, rng)

    def __call__(self, x, choice: Choice, statistics):
        inputs, middle = x.shape[1], self._net.middle(x.shape[1], choice)
        y = hard_swish(self.expand(x, (middle, inputs), statistics))
        y = hard_swish(self.depthwise(y, (middle, choice.kernel), statistics, group=middle))
        y = self.squeeze(y) if "squeeze" in self.modules else y
        y = self.project(y, (self._outputs, middle), statistics)
        return x + y if self._residual else y


class MobileNet(Model):
    """The backbone: a fixed stem, then the path's layers. Its last map has 1/16 of the input's sides."""

    def __init__(self, geometry: MobileGeometry, rng):
        super().__init__(name="")
        stem = geometry.stem_out(1.0)
        self.stem = Normalized("stem", DynamicConv(3, stem, (3, 3)), stem, 2, rng)
        self.stages = Named({
            stage: Named({
                place: InvertedBottleneck(f"stages/{stage}/{place}", geometry, stage, place, rng) for place in range(most)
            })
            for stage, most in enumerate(geometry.layers_per_stage)
        })  # fmt: skip
        self.channels = geometry.stage_out(geometry.stages - 1, 1.0)

    def __call__(self, x, path: Path, statistics):
        x = hard_swish(self.stem(x, (self.stem.mean.shape[1], 3), statistics))
        for stage, choices in enumerate(path.expand_ratios):
            for place, choice in enumerate(choices):
                x = self.stages[stage][place](x, choice, statistics)
        return x


def flops(net: MobileGeometry, head: HeadGeometry, size: int) -> AdditiveCost:
    """Multiply-accumulates of the detector: tables of layers, from which the package counts and samples paths exactly."""
    at = MapSize(size, size).shrunk(2)
    stem = np.full((2, 1, 1), conv_cost(3, 3, net.stem_out(1.0), at.area)[0])
    first, other = [], []
    for stage, stride in enumerate(net.strides):
        tables, outputs = [], net.stage_out(stage, 1.0)
        for place in (0, 1):
            inputs, after = net.inputs(stage, place), at if place else at.shrunk(stride)
            costs = []
            for choice in net.ratios:
                middle = net.middle(inputs, choice)
                parts = (1, inputs, middle, at.area), (choice.kernel, 1, middle, after.area), (1, middle, outputs, after.area)
                squeeze = 2 * middle * make_divisible(middle // 4) * net.squeeze[stage]
                costs.append(squeeze + sum(conv_cost(*part)[0] for part in parts))
            tables.append(costs)
            at = after
        first.append(np.array(tables[0])[None, None])
        other.append(np.array([*tables[1], 0])[None])
    detector = CostModel(size, head.num_classes, "detector", head=head)
    rest = detector.head_cost(net.stage_out(net.stages - 1, 1.0), at)[:1]
    return AdditiveCost("FLOPs", "MFLOPs", 1e6, net, stem, tuple(first), tuple(other), rest)


GEOMETRY = MobileGeometry(width_scale=0.25)
HEAD = HeadGeometry(num_classes=10, deconv_channels=(16, 16), head_channels=16)
SIZE = 64


def main(steps: int = 30) -> dict:
    """Train, evaluate paths, fit the filter, and search under a budget."""
    rng = np.random.default_rng(0)
    space, cost = ofa_resnet50(GEOMETRY, elastic_stem=False), flops(GEOMETRY, HEAD, SIZE)
    net = Detector(HEAD, heatmap_std=0.1, rng=rng, backbone=MobileNet(GEOMETRY, rng))
    buckets = Buckets(space, cost, 3)
    print(f"{space.size():.3g} paths, {cost.reachable(space)}")
    with digits(SIZE) as sets:
        losses = train_steps(net, space, sets, steps)
        scorer = fitted_scorer(net, sets, cost, buckets, rng)
    found = search(space, scorer, cost, buckets.edges[1], rng, generations=20, population=20)
    print(f"found {cost.text(found.cost)}, at most {cost.text(buckets.edges[1])}; layers of its stages:")
    for stage, choices in enumerate(found.path.expand_ratios, 1):
        print(f"  {stage}: {', '.join(map(str, choices))}")
    return {"losses": losses, "net": net, "cost": cost, "scorer": scorer, "found": found, "budget": buckets.edges[1]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="training steps (default: %(default)s)")
    main(parser.parse_args().steps)
