"""Numbers of images and classes of a config's dataset, assumed from published sizes if the dataset is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

from ..common.errors import UserError
from ..config import CocoData, Config, DetofaHparams, ImageFolderData, VocData
from ..data.sets import open_sets, read_all

VOC_IMAGES = {
    "VOC2007/train": 2501, "VOC2007/val": 2510, "VOC2007/trainval": 5011, "VOC2007/test": 4952,
    "VOC2012/train": 5717, "VOC2012/val": 5823, "VOC2012/trainval": 11540,
}  # fmt: skip


COCO_IMAGES = {"instances_train2017.json": 118287, "instances_val2017.json": 5000}


IMAGENET_IMAGES = {"train": 1281167, "val": 50000}


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
        whole: also decode the images, as a run does before it starts.

    Raises:
        UserError: the dataset cannot be opened, and the published size of one of its splits is not known here.
    """
    detection, data = isinstance(config.hparams, DetofaHparams), config.dataloader
    stride = config.network.head_geometry(1).output_stride(config.network.geometry) if detection else None
    try:
        sets = open_sets(config, stride)
        if whole:
            read_all(sets)
        return DataFacts(
            len(sets.classes), len(sets.train), len(sets.val), len(sets.test) if detection else None, classes=sets.classes
        )
    except UserError as error:
        problem = str(error)
    if isinstance(data, ImageFolderData):
        return DataFacts(config.network.num_classes or 1000, IMAGENET_IMAGES["train"], IMAGENET_IMAGES["val"], None, problem)
    assert isinstance(data, (VocData, CocoData))
    known = VOC_IMAGES if isinstance(data, VocData) else COCO_IMAGES

    def images(splits) -> int:
        names = splits if isinstance(data, VocData) else (FilePath(splits.annotations).name,)
        for name in names:
            if name not in known:
                raise UserError(f"the data set cannot be opened ({problem}), and the size of its split {name} is not known")
        return sum(known[name] for name in names)

    classes = len(data.classes or ()) or config.network.num_classes or (20 if isinstance(data, VocData) else 80)
    everything = images(data.train)
    val = data.holdout or images(data.val)
    return DataFacts(classes, everything - data.holdout, val, images(data.test), problem)
