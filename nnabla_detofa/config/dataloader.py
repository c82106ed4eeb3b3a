"""Section `dataloader` of a config: the datasets."""

from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal
from unicodedata import normalize

from ..common.errors import UserError
from ..common.normalization import COCO, IMAGENET, Normalization
from ..common.reading import short
from .imported import imported
from .values import Crop, Natural, PathStr, Side, Window


@dataclass(frozen=True)
class DetectionData:
    """Keys of all detection datasets.

    Attributes:
        holdout: number of training images that are held out to evaluate paths; 0 if `val` names a split.
        classes: names of the classes, in the order of their indices; null: those of the dataset.
        ignore_other_classes: ignore objects of classes that are not in `classes`; otherwise they are an error.
        image_size: side of the square input in pixels.
        flip: mirror half of the training images; not suitable where left and right matter, as for digits.
        crop: shift the crop window randomly over a training image; otherwise it is centered.
        scale_range: smallest and largest size of the crop window relative to the longer side of the image, in steps of 0.1.
        color: vary brightness, contrast, saturation and lighting of training images.
        max_objects: maximum number of objects of an image that become targets.
        normalization: mean and std of the images with values in [0, 1], each for blue, green, red.
    """

    holdout: Natural = 0
    classes: tuple[str, ...] | None = None
    ignore_other_classes: bool = False
    image_size: Side = 384
    flip: bool = True
    crop: bool = True
    scale_range: tuple[Window, Window] = (0.6, 1.3)
    color: bool = True
    max_objects: Annotated[int, "[1, 10000]"] = 128
    normalization: Normalization = IMAGENET

    def __post_init__(self) -> None:
        if self.scale_range[0] > self.scale_range[1]:
            raise UserError(f"scale_range must be the smallest and the largest scale, got {list(self.scale_range)}")
        names = {normalize("NFC", name) for name in self.classes or () if name.strip()}  # as annotations are read
        if self.classes is not None and not 0 < len(self.classes) == len(names):
            given = ", ".join(repr(short(name)) for name in self.classes[:20]) or "none"
            raise UserError(f"classes must name at least one class, and each once, got {given}")
        if self.ignore_other_classes and self.classes is None:
            raise UserError("ignore_other_classes needs classes: the names of those that are not ignored")


def _check_holdout(val: object, holdout: int) -> None:
    """Raise UserError unless exactly one of the two says which images evaluate paths."""
    if bool(val) == bool(holdout):
        raise UserError(f"val must name the split that evaluates paths, or else set holdout; got {val!r} and {holdout}")


@dataclass(frozen=True)
class VocData(DetectionData):
    """A dataset in Pascal VOC's layout: Annotations, ImageSets/Main and JPEGImages in `root` or in its folders VOC<year>.

    Attributes:
        root: folder of the dataset.
        train, val, test: names of splits, such as "trainval", or "VOC2007/trainval" in a folder of years.
        train_difficult: train on objects marked as difficult; evaluation always ignores them.
        ap_metric: main metric: "11point" is the average precision of VOC 2007, "area" that of later years. Results contain
            both.
    """

    root: PathStr = "data/VOCdevkit"
    train: tuple[str, ...] = ("VOC2007/trainval", "VOC2012/trainval")
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ("VOC2007/test",)
    train_difficult: bool = True
    ap_metric: Literal["11point", "area"] = "11point"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_holdout(self.val, self.holdout)


@dataclass(frozen=True)
class CocoSplit:
    """One split of a dataset in COCO's format.

    Attributes:
        annotations: annotation file, relative to `root`.
        images: folder of the images, relative to `root`.
    """

    annotations: str
    images: str


@dataclass(frozen=True)
class CocoData(DetectionData):
    """A dataset in COCO's format, with COCO's metrics. Crowd annotations are not trained on.

    Attributes:
        root: folder of the dataset.
        train, val, test: splits; null for `val`: paths are evaluated on `holdout` training images.
        ap_metric: main metric, AP averaged over IoU thresholds from 0.5 to 0.95.
    """

    root: PathStr = "data/coco"
    train: CocoSplit = CocoSplit("annotations/instances_train2017.json", "train2017")
    val: CocoSplit | None = None
    test: CocoSplit = CocoSplit("annotations/instances_val2017.json", "val2017")
    ap_metric: Literal["coco"] = "coco"
    normalization: Normalization = COCO

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_holdout(self.val, self.holdout)


@dataclass(frozen=True)
class YoloData(DetectionData):
    """A dataset in YOLO's layout: data.yaml, images and a text file of labels per image, with COCO's metrics.

    Attributes:
        root: folder of the dataset.
        description: file that names the classes and the images of the splits, relative to `root`.
        train, val, test: keys of `description` that name the images; null for `val`: paths are evaluated on `holdout`
            training images.
        ap_metric: main metric, AP averaged over IoU thresholds from 0.5 to 0.95.
    """

    root: PathStr = "data/yolo"
    description: str = "data.yaml"
    train: str = "train"
    val: str | None = "val"
    test: str = "test"
    ap_metric: Literal["coco"] = "coco"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_holdout(self.val, self.holdout)


@dataclass(frozen=True)
class OwnData(DetectionData):
    """Base class of a dataset of your own, which a config names by its import path: "package.module:Class".

    A subclass is a frozen dataclass with a method `open`. Its fields, the inherited ones included, are the keys of the config's
    section.

    Attributes:
        root: folder of the dataset.
        ap_metric: main metric: "11point" is the average precision of VOC 2007, "area" that of later years. Results contain
            both.
    """

    root: PathStr = "data"
    ap_metric: Literal["11point", "area"] = "area"

    def open(self) -> tuple[Any, Any, Any]:
        """Read the annotations; return the datasets of the training, validation and test images.

        Each is a `data.dataset.DetectionDataset` with the same classes. The validation dataset is None if `holdout` training
        images take its place. The keys `classes` and `ignore_other_classes` have no effect unless this method uses them.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ImageFolderData:
    """A classification dataset: one folder of images for each class, in `root`/`train` and `root`/`val`.

    Attributes:
        root: folder of the dataset.
        train, val: names of the folders of the training and the validation images.
        image_size: side of the square input in pixels.
        flip: mirror half of the training images; not suitable where left and right matter, as for digits.
        crop_area: smallest and largest area of the random crop of a training image, relative to the area of the image.
        center_share: side of the central square that is evaluated, relative to the shorter side of the image.
        train_sizes: sides of the training input in pixels: each training step chooses one, determined by the seed and the
            step. Empty: `image_size`.
        normalization: mean and std of the images with values in [0, 1], each for blue, green, red.
    """

    root: PathStr
    train: str = "train"
    val: str = "val"
    image_size: Side = 224
    flip: bool = True
    crop_area: tuple[Crop, Crop] = (0.35, 1.0)
    center_share: Crop = 0.875
    train_sizes: tuple[Side, ...] = ()
    normalization: Normalization = IMAGENET

    def __post_init__(self) -> None:
        if self.crop_area[0] > self.crop_area[1]:
            raise UserError(f"crop_area must be the smallest and the largest share, got {list(self.crop_area)}")


def dataloader_type(name: str) -> type:
    """Return the class of the section of a dataset: one of `DATALOADERS`, or a class that the name imports.

    Raises:
        UserError: the module or the class cannot be imported, or it is not a dataclass based on `OwnData`.
    """
    if name in DATALOADERS:
        return DATALOADERS[name]
    kind = imported("dataloader", name)
    if not (isinstance(kind, type) and issubclass(kind, OwnData) and is_dataclass(kind)):
        raise UserError(
            f"dataloader {name}: {name.partition(':')[2]} must be a frozen dataclass based on nnabla_detofa.config.OwnData"
        )
    return kind


DATALOADERS: dict[str, type] = {"voc": VocData, "coco": CocoData, "yolo": YoloData, "image_folder": ImageFolderData}
"""Datasets by their names in a config."""
AnyDetectionData = VocData | CocoData | YoloData | OwnData
AnyData = AnyDetectionData | ImageFolderData
