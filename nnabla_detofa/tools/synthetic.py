"""Synthetic training batches, for steps that need no data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..config import Config, DetofaHparams
from ..config.detection import detection_sections
from ..data.compact import AnyArray
from ..data.sets import ClassificationSets, DetectionSets, sets_type


class SyntheticBatch:
    """Substitute for a `data.loader.Loader` that repeats one batch, made by `synthetic`."""

    def __init__(self, arrays: list[AnyArray]):
        self.arrays = arrays

    def batches(self, start: int) -> Iterator[list[AnyArray]]:
        """Yield the batch without end."""
        while True:
            yield self.arrays


def synthetic(config: Config, num_classes: int) -> list[AnyArray]:
    """Make a batch of one image of Gaussian noise, with one object or label, in the format of the config's training batches.

    Returns:
        The image (1, 3, H, W) float32, then the targets of a detector (`data.targets.Targets` of CenterNet) at each of its
        resolutions, or the label (1, 1) of a classifier.
    """
    side = input_side(config)
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    sets = _sets(config, num_classes)
    if isinstance(sets, ClassificationSets):
        return [image, np.zeros((1, 1))]
    box = np.array([[0.25, 0.25, 0.75, 0.75]]) * image.shape[-1]
    return [image, *(array[None] for array in sets.train_targets(box, np.array([0])))]


def shapes(config: Config, num_classes: int) -> list[tuple[int, ...]]:
    """Return the shapes of the arrays that `synthetic` makes, which may be large, without making them."""
    side = input_side(config)
    return [(1, 3, side, side), *((1, *shape) for shape in _sets(config, num_classes).train_shapes())]


def _sets(config: Config, num_classes: int) -> DetectionSets | ClassificationSets:
    """Return datasets without images, for their targets."""
    side, classes = input_side(config), tuple(map(str, range(num_classes)))
    if not isinstance(config.hparams, DetofaHparams):
        return ClassificationSets(classes, None, None, (side, side))
    network, data, _ = detection_sections(config)
    stride, resolutions = network.head_geometry(num_classes).output_stride(network.geometry), network.geometry.resolutions
    kind = sets_type(config) or DetectionSets
    return kind(classes, None, None, None, (side, side), stride, data.max_objects, resolutions=resolutions)


def input_side(config: Config) -> int:
    """Return the side of the largest training input, in pixels."""
    return max((*getattr(config.dataloader, "train_sizes", ()), 0)) or config.dataloader.image_size
