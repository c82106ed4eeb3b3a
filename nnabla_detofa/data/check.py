"""Dataset check that reports all problems together, whereas opening a dataset stops at the first problem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config import AnyDetectionData, CenternetOfaResnet50, CocoData, Config, ImageFolderData, OwnData, VocData
from .check_coco import check_coco, coco_report
from .check_folders import check_folders
from .check_own import own_report
from .check_report import DataReport
from .check_voc import check_voc, voc_report
from .check_yolo import check_yolo, yolo_report
from .object_warnings import object_warnings
from .sets import DetectionSets, heard, open_sets
from .yolo import read_description

__all__ = ["DataReport", "check_coco", "check_config", "check_folders", "check_voc", "check_yolo"]


def check_config(config: Config, whole: bool = False, on_image: Callable[[], None] = lambda: None) -> DataReport:
    """Check the splits of a config's dataset with the classes of the config; see `check_voc` for `whole` and `on_image`."""
    data = config.dataloader
    if isinstance(data, ImageFolderData):
        return check_folders(data.root, {"train": data.train, "val": data.val}, whole, on_image)
    options = data.classes, whole, on_image, data.ignore_other_classes
    if isinstance(data, VocData):
        splits = {"train": data.train, "val": data.val, "test": data.test}
        report = voc_report(data.root, {name: parts for name, parts in splits.items() if parts}, *options)
    elif isinstance(data, CocoData):
        places = {"train": data.train, "val": data.val, "test": data.test}
        report = coco_report(data.root, {name: place for name, place in places.items() if place}, *options)
    elif isinstance(data, OwnData):
        report = own_report(data, whole, on_image)
    else:
        keys = {"train": data.train, "val": data.val, "test": data.test}
        about = read_description(Path(data.root), data.description)
        report = yolo_report(about, {name: key for name, key in keys.items() if key}, *options)
    if not report.fatal:
        _check_use(report, config, data)
    return report


def _check_use(report: DataReport, config: Config, data: AnyDetectionData) -> None:
    """Add the problems and warnings of using a valid dataset with the settings of a config."""
    key, train, test = f"dataloader.{config.dataloader_name}", report.splits[0], report.splits[-1]
    if data.holdout >= train.images:
        report.fatal.append(f"{key}.holdout must be less than the {train.images} training images, got {data.holdout}")
    elif not sum(test.objects.values()):
        report.fatal.append("the test split must contain objects to detect, but all of its images are empty")
    else:
        assert isinstance(config.network, CenternetOfaResnet50)
        stride = config.network.head_geometry(1).output_stride(config.network.geometry)
        with heard(quiet=True):  # the report already has these warnings
            sets = report.attempt(open_sets, config, stride)
        if isinstance(sets, DetectionSets):
            report.warnings += object_warnings(sets, key)
