"""From a config's `dataloader` section to data sets, and to the arrays that networks train and are evaluated on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..config import CocoData, CocoSplit, Config, ImageFolderData, VocData
from .augment import Augmentation, eval_transform, train_transform
from .coco import COCODataset
from .image_folder import ImageFolder, centre_crop, random_crop
from .loader import CachedDataset
from .targets import make_targets
from .voc import VOCDataset

log = logging.getLogger("nnabla_detofa")

Arrays = tuple[np.ndarray, ...]


class Subset:
    """Some of a data set's images, under new indices."""

    def __init__(self, dataset: Any, indices: np.ndarray):
        self.dataset, self.indices, self.classes = dataset, indices, dataset.classes

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int):
        """Image `index` of the subset."""
        return self.dataset.load(int(self.indices[index]))

    def areas(self, index: int) -> np.ndarray:
        """Of the objects of image `index`, where the data set knows them."""
        return self.dataset.areas(int(self.indices[index]))


@dataclass(frozen=True)
class DetectionSets:
    """A detection data set, and what an image of it becomes.

    Attributes:
        classes: names; a label is a position here.
        train: trained on. val: paths are evaluated on it. test: found subnets are evaluated on it, nothing else.
        image_size: (height, width) of the network's input.
        stride: input pixels per heat-map cell.
        max_objects: objects of an image that become targets.
        augmentation: of training images.
    """

    classes: tuple[str, ...]
    train: Any
    val: Any
    test: Any
    image_size: tuple[int, int]
    stride: int
    max_objects: int
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def map_size(self) -> tuple[int, int]:
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    def target_shapes(self) -> list[list[int]]:
        """Shapes of one image's targets, as `targets.Targets` orders them."""
        objects = self.max_objects
        return [[len(self.classes), *self.map_size], [objects, 2], [objects, 2], [objects], [objects]]

    def train_item(self, dataset, index: int, rng: np.random.Generator) -> Arrays:
        """Augmented image (3, H, W) and its targets: what a `Loader` stacks."""
        sample = dataset.load(index)
        image, boxes, _ = train_transform(sample, self.image_size, rng, self.augmentation)
        return (image, *self.targets(boxes / self.stride, sample.labels))

    def eval_item(self, dataset, index: int) -> Arrays:
        """The whole image fitted into the input, and its targets."""
        sample = dataset.load(index)
        image, boxes, _ = eval_transform(sample, self.image_size)
        return (image, *self.targets(boxes / self.stride, sample.labels))

    def targets(self, boxes: np.ndarray, labels: np.ndarray) -> Arrays:
        """CenterNet's targets of one image, of `target_shapes`; a detector with other heads has others, in a subclass.

        Args:
            boxes: (n, 4) x1 y1 x2 y2 in cells, clipped or not. labels: (n,).
        """
        return make_targets(boxes, labels, len(self.classes), self.map_size, self.max_objects)


@dataclass(frozen=True)
class ClassificationSets:
    """A classification data set, and what an image of it becomes."""

    classes: tuple[str, ...]
    train: Any
    val: Any
    image_size: tuple[int, int]
    flip: bool = True
    crop_area: tuple[float, float] = (0.35, 1.0)
    centre_share: float = 0.875

    def target_shapes(self) -> list[list[int]]:
        """Shape of one image's target: its label."""
        return [[1]]

    def train_item(self, dataset, index: int, rng: np.random.Generator, size: int | None = None) -> Arrays:
        """A random crop (3, H, W) and its label (1,); `size` is another side than `image_size`'s."""
        image, label = dataset.load(index)
        return random_crop(image, size or self.image_size[0], rng, self.crop_area, 0.5 * self.flip), np.array([label])

    def eval_item(self, dataset, index: int) -> Arrays:
        """The centre (3, H, W) and the label (1,)."""
        image, label = dataset.load(index)
        return centre_crop(image, self.image_size[0], self.centre_share), np.array([label])


def open_sets(config: Config, stride: int | None = None) -> DetectionSets | ClassificationSets:
    """The data sets that a config names; every file that will be needed is looked for now.

    Args:
        stride: input pixels per heat-map cell of the detector.

    Raises:
        UserError: a folder, a split or an annotation is missing or broken.
    """
    data = config.dataloader
    size = (data.image_size, data.image_size)
    if isinstance(data, ImageFolderData):
        train = ImageFolder(f"{data.root}/{data.train}")
        val = ImageFolder(f"{data.root}/{data.val}", train.classes)
        for folder in (train, val):
            folder.check_images()
        return ClassificationSets(
            train.classes, CachedDataset(train), CachedDataset(val), size, data.flip, data.crop_area, data.centre_share
        )
    name, splits = ("voc", _open_voc(data)) if isinstance(data, VocData) else ("coco", _open_coco(data))
    everything, train, val, test = splits
    if val is None:
        if data.holdout >= len(train):
            raise UserError(f"dataloader.{name}.holdout must be less than the {len(train)} training images, got {data.holdout}")
        order = np.random.default_rng(config.args.seed).permutation(len(train))
        train, val = Subset(train, np.sort(order[data.holdout :])), Subset(train, np.sort(order[: data.holdout]))
    else:
        _warn_of_overlap(name, val=val, train=everything)
        val.check_images()
    _warn_of_overlap(name, test=test, train=everything)
    if all(test.objects(index)[2].all() for index in range(len(test))):
        raise UserError(f"dataloader.{name}.test must hold objects to find; all images there are empty")
    for dataset in (everything, test):
        dataset.check_images()
    augmentation = Augmentation(
        scale=data.scale_range,
        crop=data.crop,
        flip=0.5 * data.flip,
        jitter=Augmentation.jitter * data.colour,
        lighting=Augmentation.lighting * data.colour,
    )
    return DetectionSets(
        everything.classes, *map(CachedDataset, (train, val, test)), size, stride or 4, data.max_objects, augmentation
    )


def _open_voc(data: VocData) -> tuple[VOCDataset, VOCDataset, VOCDataset | None, VOCDataset]:
    """All training images, those with the objects to train on, validation if it is a split of its own, and test."""
    # Without names from the config, a class counts in whatever split it occurs.
    classes = data.classes or VOCDataset(data.root, tuple(dict.fromkeys((*data.train, *data.val, *data.test)))).classes
    everything = VOCDataset(data.root, data.train, classes)
    train = everything if data.train_difficult else VOCDataset(data.root, data.train, classes, keep_difficult=False)
    val = VOCDataset(data.root, data.val, classes, data.train_difficult) if data.val else None
    return everything, train, val, VOCDataset(data.root, data.test, classes)


def _open_coco(data: CocoData) -> tuple[COCODataset, COCODataset, COCODataset | None, COCODataset]:
    """As `_open_voc`. The training file's categories are those of all splits."""

    def opened(split: CocoSplit, classes: tuple[str, ...] | None, keep_crowds: bool) -> COCODataset:
        return COCODataset(Path(data.root, split.annotations), Path(data.root, split.images), classes, keep_crowds)

    train = opened(data.train, data.classes, keep_crowds=False)
    val = opened(data.val, train.classes, keep_crowds=False) if data.val else None
    return train, train, val, opened(data.test, train.classes, keep_crowds=True)


def _warn_of_overlap(name: str, **two: VOCDataset | COCODataset) -> None:
    """Log a warning if two data sets, given by their splits' names, share photographs."""
    (one, first), (other, second) = two.items()
    if shared := len(set(first.files) & set(second.files)):
        log.warning("dataloader.%s: %d images of %s are in %s too: results on them look too good", name, shared, one, other)


def eval_batches(sets, dataset, indices, batch: int) -> Iterator[Arrays]:
    """Stacked `eval_item`s of `indices`, `batch` at a time; the last may be smaller."""
    for start in range(0, len(indices), batch):
        items = [sets.eval_item(dataset, int(index)) for index in indices[start : start + batch]]
        yield tuple(np.stack(arrays) for arrays in zip(*items))
