"""Opens the datasets of a config's `dataloader` section and converts their images to network inputs and targets."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..common.checked import counted
from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from ..common.progress import ProgressBar
from ..config import AnyDetectionData, CocoData, CocoSplit, Config, ImageFolderData, OwnData, OwnDetector, VocData, YoloData
from .augment import Augmentation, letterbox_pixels, train_transform, transform_boxes
from .coco import COCODataset
from .compact import AnyArray, Pixels, stacked
from .dataset import DetectionDataset
from .image_folder import CHECKED, ImageFolder, center_pixels, random_crop
from .images import read_image
from .loader import CachedDataset
from .object_warnings import object_warnings
from .own import open_own
from .targets import make_targets
from .voc import VOCDataset, VOCReader
from .yolo import YOLODataset

log = logging.getLogger("nnabla_detofa")

Arrays = tuple[AnyArray, ...]


class Subset:
    """A subset of a dataset's images, with new indices."""

    def __init__(self, dataset: Any, indices: np.ndarray):
        self.dataset, self.indices, self.classes = dataset, indices, dataset.classes

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Any:
        """Load image `index` of the subset."""
        return self.dataset.load(int(self.indices[index]))

    @property
    def files(self) -> list[Path]:
        """Paths of the images, by index."""
        return [self.dataset.files[index] for index in self.indices]

    def objects(self, index: int) -> Any:
        """Return the objects of image `index`, without reading the image."""
        return self.dataset.objects(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of image `index`."""
        return self.dataset.size(int(self.indices[index]))

    def areas(self, index: int) -> np.ndarray:
        """Return the areas of the objects of image `index`, if the dataset has them."""
        return self.dataset.areas(int(self.indices[index]))


@dataclass(frozen=True)
class DetectionSets:
    """The datasets of a detection task, and the conversion of their images to inputs and targets.

    Attributes:
        classes: class names; a label is an index into them.
        train: training dataset.
        val: dataset on which paths are evaluated.
        test: dataset on which only the searched subnets are evaluated.
        image_size: (height, width) of the network's input.
        stride: input pixels per heatmap cell.
        max_objects: largest number of objects per image that become targets.
        augmentation: augmentation of training images.
        normalization: normalization of all images.
        warnings: messages that were logged when the datasets were opened.
        resolutions: sides of the input, in ascending order, if paths choose it; the largest one is that of `image_size`.
    """

    classes: tuple[str, ...]
    train: Any
    val: Any
    test: Any
    image_size: tuple[int, int]
    stride: int
    max_objects: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    normalization: Normalization = IMAGENET
    warnings: tuple[str, ...] = ()
    resolutions: tuple[int, ...] = ()

    def at(self, side: int | None) -> DetectionSets:
        """Return the sets for a path whose input has this side in pixels; None: `image_size`, the sets themselves."""
        return self if side is None else replace(self, image_size=(side, side), resolutions=())

    @cached_property
    def _at_resolutions(self) -> tuple[DetectionSets, ...]:
        return tuple(map(self.at, self.resolutions)) or (self,)

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the heatmap, in cells."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    def target_shapes(self) -> list[list[int]]:
        """Return the shapes of one image's targets, in the order of `targets.Targets`."""
        objects = self.max_objects
        return [[len(self.classes), *self.map_size], [objects, 2], [objects, 2], [objects], [objects]]

    def train_shapes(self) -> list[list[int]]:
        """Return the shapes of the targets of `train_item`."""
        return [shape for sets in self._at_resolutions for shape in sets.target_shapes()]

    def train_item(self, dataset: Any, index: int, rng: np.random.Generator) -> Arrays:
        """Return an augmented image (3, H, W) and its targets, the transform of a `Loader`.

        If paths choose the resolution, the targets at each of `resolutions` follow each other: the image is resized when the
        path is known (`training.resolution`).
        """
        sample = dataset.load(index)
        image, boxes, _ = train_transform(sample, self.image_size, rng, self.augmentation, self.normalization)
        return (image, *self.train_targets(boxes, sample.labels))

    def train_targets(self, boxes: np.ndarray, labels: np.ndarray) -> Arrays:
        """Return the `targets` of one image at each resolution, for boxes (n, 4) in pixels at `image_size`."""
        side, stride = self.image_size[0], self.stride
        each = (sets.targets(boxes * (sets.image_size[0] / side) / stride, labels) for sets in self._at_resolutions)
        return tuple(array for targets in each for array in targets)

    def eval_item(self, dataset: Any, index: int) -> Arrays:
        """Return the whole image fitted into the input (3, H, W), as 8-bit `Pixels`, and its targets."""
        sample = dataset.load(index)
        image, matrix = letterbox_pixels(sample.image, self.image_size)
        boxes = transform_boxes(sample.boxes, matrix)
        return (Pixels.of(image, self.normalization), *self.targets(boxes / self.stride, sample.labels))

    def targets(self, boxes: np.ndarray, labels: np.ndarray) -> Arrays:
        """Compute CenterNet's targets of one image. Override this and `target_shapes` for a detector with other heads.

        Args:
            boxes: (n, 4) x1 y1 x2 y2 in heatmap cells, clipped or not.
            labels: (n,).
        """
        return make_targets(boxes, labels, len(self.classes), self.map_size, self.max_objects)


@dataclass(frozen=True)
class ClassificationSets:
    """The datasets of a classification task, and the conversion of their images to inputs and labels.

    Attributes:
        classes: class names; a label is an index into them.
        train, val: training and validation datasets.
        image_size: (height, width) of the network's input, a square.
        flip: whether training images are mirrored, with probability 0.5.
        crop_area: smallest and largest fraction of the image area of a training crop.
        center_share: side of the evaluation crop, as a fraction of the shorter side of the image.
        normalization: normalization of all images.
        warnings: messages that were logged when the datasets were opened.
    """

    classes: tuple[str, ...]
    train: Any
    val: Any
    image_size: tuple[int, int]
    flip: bool = True
    crop_area: tuple[float, float] = (0.35, 1.0)
    center_share: float = 0.875
    normalization: Normalization = IMAGENET
    warnings: tuple[str, ...] = ()
    resolutions: ClassVar[tuple[int, ...]] = ()

    def at(self, side: int | None) -> ClassificationSets:
        """Return the sets themselves: paths of a classifier do not choose the resolution."""
        return self

    def train_shapes(self) -> list[list[int]]:
        """Return the shape of one image's target, its label."""
        return [[1]]

    def train_item(self, dataset: Any, index: int, rng: np.random.Generator, size: int | None = None) -> Arrays:
        """Return a random crop (3, H, W) and its label (1,); `size` replaces the side given by `image_size`."""
        image, label = dataset.load(index)
        side, flip = size or self.image_size[0], 0.5 * self.flip
        return random_crop(image, side, rng, self.crop_area, flip, self.normalization), np.array([label])

    def eval_item(self, dataset: Any, index: int) -> Arrays:
        """Return the center crop (3, H, W), as 8-bit `Pixels`, and the label (1,)."""
        image, label = dataset.load(index)
        return Pixels.of(center_pixels(image, self.image_size[0], self.center_share), self.normalization), np.array([label])


def open_sets(config: Config, stride: int | None = None, quiet: bool = False) -> DetectionSets | ClassificationSets:
    """Open the datasets of a config and check that all files they need exist.

    Args:
        config: the config, of which `dataloader` and the seed are used.
        stride: input pixels per heatmap cell of the detector; None means 4.
        quiet: do not log warnings about the data.

    Raises:
        UserError: a folder, a split or an annotation is missing or broken, or a split is too small or has no objects.
    """
    with heard(quiet) as warnings:
        sets = _open(config, stride)
    return replace(sets, warnings=tuple(warnings))


def read_all(sets: DetectionSets | ClassificationSets) -> None:
    """Decode the first `CHECKED` images of each split, so that broken images are found before training or evaluation.

    Raises:
        UserError: an image is broken.
    """
    files: dict[Path, None] = {}
    for part in ("train", "val", "test"):
        files |= dict.fromkeys(getattr(sets, part).files[:CHECKED] if hasattr(sets, part) else ())

    def read(file: Path) -> None:
        read_image(file)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        ProgressBar(total=len(files), desc="reading all images once", unit="image", delay=2, leave=False) as bar,
    ):
        try:
            for _ in pool.map(read, files):
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def heard(quiet: bool = False) -> Iterator[list[str]]:
    """Context manager that collects the warnings logged by this thread; `quiet` keeps them out of the parent loggers."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                found.append(record.getMessage())

    thread, handler, before = threading.get_ident(), Handler(logging.WARNING), log.propagate
    log.addHandler(handler)
    log.propagate = before and not quiet
    try:
        yield found
    finally:
        log.propagate = before
        log.removeHandler(handler)


def _open(config: Config, stride: int | None) -> DetectionSets | ClassificationSets:
    data = config.dataloader
    if isinstance(data, ImageFolderData):
        return _open_classification(data)
    name = config.dataloader_name
    everything, train, val, test = _open_detection(data)
    chosen: Any = train  # a `Subset` if validation images are held out
    held_out: Any = val
    if val is None:
        if data.holdout >= len(train):
            raise UserError(f"dataloader.{name}.holdout must be less than the {len(train)} training images, got {data.holdout}")
        order = np.random.default_rng(config.args.seed).permutation(len(train))
        chosen, held_out = (Subset(train, np.sort(part)) for part in (order[data.holdout :], order[: data.holdout]))
    else:
        _warn_of_overlap(name, val=val, train=everything)
    _warn_of_overlap(name, test=test, train=everything)
    if not any(len(chosen.objects(index)[0]) for index in range(len(chosen))):
        raise UserError(f"dataloader.{name}.train must contain objects to learn from; all images there are empty")
    if all(test.objects(index)[2].all() for index in range(len(test))):
        raise UserError(f"dataloader.{name}.test must contain objects to detect, but all of its images are empty")
    sets = (sets_type(config) or DetectionSets)(
        everything.classes,
        CachedDataset(chosen),
        CachedDataset(held_out),
        CachedDataset(test),
        (data.image_size, data.image_size),
        stride or 4,
        data.max_objects,
        _augmentation(data),
        data.normalization,
        resolutions=config.network.geometry.resolutions,
    )
    for text in object_warnings(sets, f"dataloader.{name}"):
        log.warning("%s", text)
    return sets


def sets_type(config: Config) -> type[DetectionSets] | None:
    """Return the class of the datasets of a network of the user's own, if its heads have targets of their own."""
    return config.network.sets_type if isinstance(config.network, OwnDetector) else None


def _open_classification(data: ImageFolderData) -> ClassificationSets:
    train = ImageFolder(f"{data.root}/{data.train}")
    val = ImageFolder(f"{data.root}/{data.val}", train.classes)
    for folder in (train, val):
        folder.check_images()
    size = (data.image_size, data.image_size)
    datasets = CachedDataset(train), CachedDataset(val)
    return ClassificationSets(train.classes, *datasets, size, data.flip, data.crop_area, data.center_share, data.normalization)


def _augmentation(data: AnyDetectionData) -> Augmentation:
    """Return the augmentation that a config sets; its switches turn off parts of CenterNet's."""
    return Augmentation(
        scale=data.scale_range,
        crop=data.crop,
        flip=0.5 * data.flip,
        jitter=Augmentation.jitter * data.color,
        lighting=Augmentation.lighting * data.color,
    )


def _open_detection(data: AnyDetectionData) -> tuple[Any, Any, Any, Any]:
    """Open the datasets of all training images, training, validation (None if held out) and test; see `_open_voc`."""
    if isinstance(data, VocData):
        return _open_voc(data)
    if isinstance(data, OwnData):
        train, *others = open_own(data)
        return train, train, *others
    return _open_coco(data) if isinstance(data, CocoData) else _open_yolo(data)


def _open_voc(data: VocData) -> tuple[VOCDataset, VOCDataset, VOCDataset | None, VOCDataset]:
    """Open all training images, the training set (maybe without difficult objects), validation (None if held out) and test."""
    reader = VOCReader()

    def opened(splits: tuple[str, ...], classes: tuple[str, ...] | None, keep_difficult: bool = True) -> VOCDataset:
        return VOCDataset(data.root, splits, classes, keep_difficult, data.ignore_other_classes, reader)

    # If the config names no classes, they are the classes of all splits together.
    classes = data.classes or opened(tuple(dict.fromkeys((*data.train, *data.val, *data.test))), None).classes
    everything = opened(data.train, classes)
    train = everything if data.train_difficult else opened(data.train, classes, keep_difficult=False)
    val = opened(data.val, classes, data.train_difficult) if data.val else None
    return everything, train, val, opened(data.test, classes)


def _open_coco(data: CocoData) -> tuple[COCODataset, COCODataset, COCODataset | None, COCODataset]:
    """Open COCO datasets as `_open_voc` does. The categories of the training file apply to all splits."""

    def opened(split: CocoSplit, classes: tuple[str, ...] | None, keep_crowds: bool) -> COCODataset:
        places = Path(data.root, split.annotations), Path(data.root, split.images)
        return COCODataset(*places, classes, keep_crowds, data.ignore_other_classes)

    train = opened(data.train, data.classes, keep_crowds=False)
    val = opened(data.val, train.classes, keep_crowds=False) if data.val else None
    return train, train, val, opened(data.test, train.classes, keep_crowds=True)


def _open_yolo(data: YoloData) -> tuple[YOLODataset, YOLODataset, YOLODataset | None, YOLODataset]:
    """Open the datasets of YOLO's layout as `_open_voc` does."""

    def opened(split: str) -> YOLODataset:
        return YOLODataset(data.root, split, data.classes, data.ignore_other_classes, data.description)

    train = opened(data.train)
    return train, train, opened(data.val) if data.val else None, opened(data.test)


def _warn_of_overlap(name: str, **two: DetectionDataset) -> None:
    """Log a warning if two datasets, passed as keyword arguments named after their splits, share images."""
    (one, first), (other, second) = two.items()
    if shared := len(set(first.files) & set(second.files)):
        images = counted(shared, "image")
        log.warning("dataloader.%s: %s and %s share %s, so results on %s are too optimistic", name, one, other, images, one)


def eval_batches(
    sets: DetectionSets | ClassificationSets, dataset: Any, indices: Sequence[int] | np.ndarray, batch: int
) -> Iterator[Arrays]:
    """Yield stacked batches of the `eval_item`s at `indices`, `batch` items each; the last may be smaller."""
    for start in range(0, len(indices), batch):
        items = [sets.eval_item(dataset, int(index)) for index in indices[start : start + batch]]
        yield tuple(stacked(arrays) for arrays in zip(*items))
