"""Construction of a network from a weights file, with the architecture inferred from the shapes of its arrays."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checked import read
from ..common.errors import UserError
from ..config import CenternetOfaResnet50, OwnClassifier, network_type
from ..space.geometry import OFA_RESNET50, Geometry
from ..space.search_space import ofa_resnet50
from . import weights as weights_file
from .resnet50 import LayerPlan, Plan

if TYPE_CHECKING:
    from . import centernet, supernet

logger = logging.getLogger(__name__)

CONV = "conv/conv/_W"
CLASSES = {"classification": "classifier/0/linear/linear/_b", "detection": "heatmap/conv2/_b"}
"""For each task, a parameter that only networks of this task have; its length is the number of classes."""


def load_supernet(
    weights: str | os.PathLike, task: str = "classification", num_classes: int | None = None, **options: Any
) -> supernet.Classifier | centernet.Detector:
    """Load a supernet from a weights file; see `nnabla_detofa.load_supernet`."""
    from . import centernet, supernet

    if task not in CLASSES:
        raise UserError(f"task must be {' or '.join(CLASSES)}, got {task!r}")
    kind = (centernet if task == "detection" else supernet).SearchNet
    arrays = weights_file.read(weights)
    if (own := weights_file.network_of(weights)) is not None:
        return _recorded(weights, arrays, *own, num_classes, options)
    options = {"normalization": weights_file.normalization_of(weights), **found_in(arrays, task, str(weights)), **options}
    stored = weights_file.strides_of(weights)
    if stored is not None:
        options.setdefault("strides", stored)
    strides = options.get("strides", OFA_RESNET50.strides)
    if not isinstance(strides, Sequence) or len(strides) != OFA_RESNET50.stages or not set(strides) <= {1, 2}:
        raise UserError(f"strides must be {OFA_RESNET50.stages} numbers, each 1 or 2, got {strides!r}")
    if num_classes is not None and num_classes != options["num_classes"]:
        raise UserError(f"num_classes must be {options['num_classes']}, as in {weights}, got {num_classes}")
    known = [name for name in inspect.signature(kind).parameters if name not in ("num_classes", "weights")]
    for name in options:
        if name not in ("num_classes", *known):
            raise UserError(f"load_supernet has no option {name} for {task}; known are {', '.join(known)}")
    net = kind(**options)
    weights_file.load(net, weights, arrays)
    return net


def _recorded(
    weights: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    name: str,
    settings: Any,
    num_classes: int | None,
    options: Mapping[str, Any],
) -> supernet.Classifier | centernet.Detector:
    """Load a supernet whose file records its name and settings, such as one of the user's own."""
    from . import centernet, supernet

    network = read(network_type(name), settings, f"the network {name} recorded in {weights}")
    classes = network.num_classes
    if options or num_classes not in (None, classes) or classes is None:
        got = ", ".join(options) or f"num_classes={num_classes}"
        raise UserError(f"{weights} records the settings of its network {name}, with {classes} classes; leave out {got}")
    normalization = weights_file.normalization_of(weights)
    net: supernet.Classifier | centernet.Detector
    if isinstance(network, OwnClassifier):
        net = supernet.classifier_of(network, classes, normalization=normalization)
    else:
        assert isinstance(network, CenternetOfaResnet50)
        net = centernet.detector_of(network, classes, normalization=normalization)
    net.network, net.network_settings = name, json.dumps(settings)
    weights_file.load(net, weights, arrays)
    return net


def found_in(arrays: Mapping[str, np.ndarray], task: str, source: str) -> dict:
    """Infer arguments of `SearchNet` from the shapes in a weights file.

    Args:
        arrays: parameter name -> array.
        task: "classification" or "detection".
        source: name of the file, for errors.

    Returns:
        `num_classes` and `width_scale`, and for a detector also `deconv_channels` and `head_channels`.

    Raises:
        UserError: the file contains another kind of network, or lacks a parameter.
    """
    if CLASSES[task] not in arrays:
        other = next((name for name, parameter in CLASSES.items() if parameter in arrays), None)
        hint = "; centernet.SearchNet(weights=...) builds a detector from it" if other == "classification" else ""
        raise UserError(
            f"{source} must contain a {task} supernet, got {f'a {other} supernet{hint}' if other else 'another network'}"
        )
    found: dict = {"num_classes": len(arrays[CLASSES[task]])}
    try:
        if task == "detection":
            deconvs = [name for name in arrays if name.startswith("deconv/") and name.endswith(CONV)]
            found["deconv_channels"] = tuple(arrays[f"deconv/{index}/{CONV}"].shape[1] for index in range(len(deconvs)))
            found["head_channels"] = len(arrays["heatmap/conv1/_b"])
        plan = _largest_plan(arrays, "backbone/" if task == "detection" else "")
    except KeyError as error:
        raise UserError(f"{source} contains no complete {task} supernet: it lacks the parameter {error.args[0]}") from error
    found["width_scale"] = width_scale(plan, source)
    return found


def width_scale(plan: Plan, source: str) -> float:
    """Return the width scale, as the fraction with the smallest denominator, whose largest path has these channels.

    Other scales close to it may have the same largest path and, rarely, a width choice that differs by one divisor. Pass
    `width_scale` to `load_supernet` if the supernet was trained with a scale that is not a simple fraction.

    Raises:
        UserError: no scale fits.
    """
    share = plan.stages[-1][-1].outputs / OFA_RESNET50.stage_channels[-1]
    for denominator in range(1, 1001):
        geometry = Geometry(width_scale=max(1, round(share * denominator)) / denominator)
        if Plan.of(ofa_resnet50(geometry).largest, geometry) == plan:
            logger.info("%s has the channels of width_scale %g", source, geometry.width_scale)
            return geometry.width_scale
    raise UserError(f"the network in {source} has channels that no width_scale of OFA-ResNet50 gives")


def _largest_plan(arrays: Mapping[str, np.ndarray], prefix: str) -> Plan:
    """Return the channels of the largest path, inferred from the shapes in the file."""

    def outputs(layer: str) -> int:
        return len(arrays[f"{prefix}{layer}/{CONV}"])

    stem = (outputs("input_stem/0"), outputs("input_stem/2"))
    channels, index, stages = stem[1], 0, []
    for most in OFA_RESNET50.layers_per_stage:
        layers = []
        for _ in range(most):
            layers.append(LayerPlan(channels, outputs(f"blocks/{index}/conv1"), outputs(f"blocks/{index}/conv3")))
            channels = layers[-1].outputs
            index += 1
        stages.append(tuple(layers))
    return Plan(stem, True, tuple(stages))
