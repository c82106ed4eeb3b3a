"""Checks of a network of the user's own: its costs against built graphs, and its paths against their static networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backend.compat import F, Mo, nn
from ..config import CenternetOfaResnet50, OfaResnet50
from ..networks.centernet import detector_of
from ..networks.layers import STORED
from ..networks.supernet import classifier_of, take_over
from ..space.costs import CostModel
from ..space.paths import Path
from .static_network import largest_difference

TOLERANCE = 1e-3
"""Largest difference between a path and its static network, as in `largest_difference`; float32 gives about 1e-6."""
CONVOLUTIONS = ("Convolution", "DepthwiseConvolution", "DeformableConvolution")
DECONVOLUTIONS = ("Deconvolution", "DepthwiseDeconvolution")


def graph_macs(output: nn.Variable) -> int:
    """Count the multiply-accumulates of one image in a graph: of convolutions, transposed convolutions and linear layers."""
    total = 0

    def visit(function: nn.function.Function) -> None:
        nonlocal total
        kind = function.info.type_name
        if kind in CONVOLUTIONS:
            total += _size(function.inputs[1]) * _size(function.outputs[0], 2)
        elif kind in DECONVOLUTIONS:
            total += _size(function.inputs[1]) * _size(function.inputs[0], 2)
        elif kind == "Affine":
            total += _size(function.inputs[1])

    output.visit(visit)
    return total


def network_checks(network: OfaResnet50, num_classes: int, cost: CostModel, paths: int = 2) -> Iterator[str]:
    """Yield one line for each property that holds or fails.

    Args:
        network: section `network` of a config.
        num_classes: number of classes.
        cost: its cost model, with the scope "detector" or "classifier".
        paths: number of random paths that are checked besides the largest one.
    """
    of: Any = detector_of if isinstance(network, CenternetOfaResnet50) else classifier_of
    net = _varied(of(network, num_classes))
    chosen = [net.space.largest, *net.space.sample_many(np.random.default_rng(0), paths)]
    counts: dict[str, list[tuple[int, int]]] = {"FLOPs": [], "parameters": []}
    differences = []
    for path in chosen:
        static = of(network, num_classes, path)
        take_over(static, net)
        noise = np.random.default_rng(0).normal(size=(1, 3, *cost.input_size(path)))
        image = nn.Variable.from_numpy_array(noise.astype(np.float32))
        both = [some(image, path, STORED) for some in (net, static)]
        outputs = [[found] if isinstance(found, nn.Variable) else list(found) for found in both]
        nn.forward_all([variable for several in outputs for variable in several])
        ours, theirs = ([variable.d for variable in several] for several in outputs)
        differences.append(largest_difference(ours, theirs))
        counted = sum(parameter.size for parameter in static.get_parameters(grad_only=True).values())
        counts["FLOPs"].append((_value(cost, "flops", path), graph_macs(F.sink(*outputs[1]))))
        counts["parameters"].append((_value(cost, "params", path), counted))
    for name, pairs in counts.items():
        yield next(
            (
                f"WRONG: cost_model counts {ours} {name} of a path, its graph has {theirs}"
                for ours, theirs in pairs
                if ours != theirs
            ),
            f"{name} of {len(chosen)} paths: as in their graphs",
        )
    most = max(differences)
    yield (
        f"outputs of {len(chosen)} paths in the supernet: those of their static networks (difference {most:.1g})"
        if most <= TOLERANCE
        else f"WRONG: the outputs of a path in the supernet differ by {most:.2g} from those of its static network"
    )


def _size(variable: nn.Variable, first_axis: int = 0) -> int:
    return int(np.prod(variable.shape[first_axis:], dtype=np.int64))


def _value(cost: CostModel, name: str, path: Path) -> int:
    return int(getattr(cost, name)([path])[0])


def _varied(net: Mo.Module) -> Mo.Module:
    """Give every batch normalization of a network other values, since a scale of 0, as initialized, hides differences."""
    rng = np.random.default_rng(1)
    for name, parameter in net.get_parameters().items():
        if name.endswith(("_gamma", "_beta", "_mean", "_var")):
            parameter.d = rng.uniform(0.5, 1.5, parameter.shape)
    return net
