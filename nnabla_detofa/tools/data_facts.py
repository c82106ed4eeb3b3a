"""Numbers of images and classes of a config's dataset, assumed from published sizes if the dataset is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from ..common.errors import UserError
from ..config import CenternetOfaResnet50, Config, ImageFolderData, OwnData, VocData, YoloData
from ..data.sets import DetectionSets, open_sets, read_all

VOC_IMAGES = {
    "VOC2007/train": 2501, "VOC2007/val": 2510, "VOC2007/trainval": 5011, "VOC2007/test": 4952,
    "VOC2012/train": 5717, "VOC2012/val": 5823, "VOC2012/trainval": 11540,
}  # fmt: skip
COCO_IMAGES = {"instances_train2017.json": 118287, "instances_val2017.json": 5000}
IMAGENET_IMAGES = {"train": 1281167, "val": 50000}
"""Published numbers of images of each split of the standard datasets."""


@dataclass(frozen=True)
class DataFacts:
    """Numbers of images and classes of a config's dataset.

    Attributes:
        num_classes: number of classes.
        train: number of training images, without the holdout.
        val: number of images of the validation split, on which paths are evaluated.
        test: number of test images; None if there is no test split.
        problem: why the dataset could not be opened, in which case the numbers are the published ones; otherwise empty.
        classes: class names; empty if the dataset could not be opened.
    """

    num_classes: int
    train: int
    val: int
    test: int | None
    problem: str = ""
    classes: tuple[str, ...] = ()


def data_facts(config: Config, whole: bool = False) -> DataFacts:
    """Count the images and classes of a config's dataset, or assume the published sizes if it cannot be opened.

    Args:
        config: the config.
        whole: also decode the images, as a run does before it starts; a problem is then an error if the data folder exists.

    Raises:
        UserError: the dataset cannot be opened, and the published size of one of its splits is not known here, or `whole`.
    """
    try:
        return _found_facts(config, whole)
    except UserError as error:
        if whole and FilePath(config.dataloader.root).is_dir():
            raise
        return _published_facts(config, str(error))


def _found_facts(config: Config, whole: bool) -> DataFacts:
    """Open the dataset and count its images and classes; raises UserError if it cannot be opened."""
    stride = None
    if isinstance(config.network, CenternetOfaResnet50):
        stride = config.network.head_geometry(1).output_stride(config.network.geometry)
    sets = open_sets(config, stride)
    if whole:
        read_all(sets)
    test = len(sets.test) if isinstance(sets, DetectionSets) else None
    return DataFacts(len(sets.classes), len(sets.train), len(sets.val), test, classes=sets.classes)


def _published_facts(config: Config, problem: str) -> DataFacts:
    """Return the published sizes of a config's dataset, with the problem that prevents opening it.

    Raises:
        UserError: the published size of a split is not known here.
    """
    data, classes = config.dataloader, config.network.num_classes
    if isinstance(data, ImageFolderData):
        return DataFacts(classes or 1000, IMAGENET_IMAGES["train"], IMAGENET_IMAGES["val"], None, problem)
    if isinstance(data, VocData):
        train, val, test = (_images(VOC_IMAGES, splits, problem) for splits in (data.train, data.val, data.test))
        known_classes = 20
    elif isinstance(data, (YoloData, OwnData)):
        raise UserError(f"the dataset cannot be opened: {problem}")
    else:
        train, val, test = (
            _images(COCO_IMAGES, [FilePath(split.annotations).name] if split else [], problem)
            for split in (data.train, data.val, data.test)
        )
        known_classes = 80
    count = len(data.classes or ()) or classes or known_classes
    return DataFacts(count, train - data.holdout, data.holdout or val, test, problem)


def _images(known: Mapping[str, int], splits: Sequence[str], problem: str) -> int:
    """Return the number of images of splits with known sizes; raises UserError if the size of one is not known."""
    for name in splits:
        if name not in known:
            raise UserError(f"the dataset cannot be opened ({problem}), and the size of its split {name} is not known")
    return sum(known[name] for name in splits)
