"""From a config to its supernet, datasets and cost model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from ..common.errors import UserError
from ..config import CenternetOfaResnet50, Config, DetofaHparams, OwnClassifier, OwnDetector, PretrainHparams
from ..data.sets import open_sets
from ..evaluation.images import Sets
from ..networks import centernet, supernet
from ..networks import weights as weights_files
from ..space.costs import CostModel
from ..space.search_space import SearchSpace

Supernet = supernet.Classifier | centernet.Detector


def build(config: Config, pretrained: bool = True, quiet: bool = False) -> tuple[Supernet, Sets, CostModel]:
    """Create the supernet, the datasets and the cost model of a config.

    Args:
        config: config of a run.
        pretrained: load the config's weights file, if it names one.
        quiet: do not log warnings about the data, because the training of the run has logged them.

    Raises:
        UserError: a dataset or the weights are missing or damaged, or do not match the config.
    """
    network, stride = config.network, None
    if isinstance(network, CenternetOfaResnet50):
        stride = network.head_geometry(1).output_stride(network.geometry)
    sets = open_sets(config, stride, quiet)
    classes = len(sets.classes)
    model = make_model(config, classes, network.weights if pretrained else None)
    return model, sets, make_cost(config, classes, sets.image_size)


def make_model(config: Config, num_classes: int, weights: str | None = None) -> Supernet:
    """Create the supernet of a config.

    Args:
        config: config of a run.
        num_classes: number of classes of the dataset.
        weights: weights file to load: of the backbone of a detector, or of the whole classification supernet. Default: random
            weights.

    Raises:
        UserError: the config specifies another number of classes, or the weights do not match.
    """
    network = config.network
    if network.num_classes not in (None, num_classes):
        raise UserError(
            f"network.{config.network_name}.num_classes must be {num_classes}, the number of classes of the dataset, "
            f"got {network.num_classes}"
        )
    rng, normalization = np.random.default_rng((config.args.seed, 1)), config.dataloader.normalization
    smoothing = config.hparams.label_smoothing if isinstance(config.hparams, PretrainHparams) else 0.0
    if isinstance(network, (OwnDetector, OwnClassifier)):
        settings = json.dumps(asdict(replace(network, num_classes=num_classes, weights=None)))
        net: Supernet
        if isinstance(network, OwnDetector):
            net = centernet.detector_of(network, num_classes, rng=rng, normalization=normalization)
        else:
            net = supernet.classifier_of(network, num_classes, None, rng, normalization, smoothing)
        net.network, net.network_settings = config.network_name, settings
        if weights:
            load = weights_files.load_backbone if isinstance(network, OwnDetector) else partial(weights_files.load, adapt=True)
            load(net, weights)
        return net
    common = num_classes, network.width_scale, network.strides, network.elastic_stem, network.zero_init_residual
    if isinstance(network, CenternetOfaResnet50):
        head = network.deconv_channels, network.head_channels, network.heatmap_std
        return centernet.SearchNet(*common, *head, weights, rng, normalization)
    return supernet.SearchNet(*common, weights, smoothing, rng, normalization)


def make_cost(config: Config, num_classes: int, image_size: int | tuple[int, int]) -> CostModel:
    """Create the cost model of paths.

    FLOPs are counted for the part of a detector that `hparams.cost_scope` selects, and for the backbone of a classification
    supernet, because its classifier is not transferred.

    Args:
        config: config of a run.
        num_classes: number of classes of the dataset.
        image_size: side of the square input, or (height, width), in pixels.
    """
    network = config.network
    scope = config.hparams.cost_scope if isinstance(config.hparams, DetofaHparams) else "backbone"
    cost, space = network.cost_model(image_size, num_classes, scope), network.space
    for member, found, kind in (("cost_model", cost, CostModel), ("space", space, SearchSpace)):
        if not isinstance(found, kind):
            raise UserError(
                f"{member} of the network {config.network_name} must return a {kind.__name__}, got {type(found).__name__}"
            )
    return cost
