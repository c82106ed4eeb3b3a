"""How many images and classes a config has, also where its data are missing."""

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
    """Numbers of images, and of classes, of a config's data set.

    Attributes:
        train: images trained on, less the holdout. val: on which paths are evaluated. test: None where there is no such.
        classes: names; empty where the data set is not there.
        problem: empty where the data set was opened, otherwise why not: then the numbers are the published ones, assumed.
    """

    num_classes: int
    train: int
    val: int
    test: int | None
    problem: str = ""
    classes: tuple[str, ...] = ()


def data_facts(config: Config, whole: bool = False) -> DataFacts:
    """From the data set where it is there, else from the published sizes.

    Args:
        whole: decode the images too, as a run does before it begins.

    Raises:
        UserError: it is not there, and its splits are none of those known here.
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
