"""Check of a dataset in Pascal VOC layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..common.errors import UserError
from . import voc
from .check_report import DataReport, ImageInspector, Split, finished, usual_order, valid_boxes, warn_with_defaults
from .dataset import unknown_class
from .images import EXTENSIONS, ImageHeader
from .names import Listing, composed


def check_voc(
    root: str | os.PathLike,
    splits: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> DataReport:
    """Check a dataset in VOC layout.

    Args:
        root: folder of the dataset, as in `voc.VOCDataset`.
        splits: name -> the split files that it consists of; None checks every split file in `root` as a split of its own.
        classes: class names that objects may have; None allows any.
        whole: whether to decode every image, which also finds damage in the middle of a file and equal images with different
            names in two splits; otherwise only the beginning and end of a large JPEG are read.
        on_image: called after each image.

    Returns:
        the report; problems of the data are listed in it, not raised.

    Raises:
        UserError: `root` is not a folder or contains no split.
    """
    report = voc_report(root, splits, classes, whole, on_image)
    parts = splits or {split.name: (split.name,) for split in report.splits}
    warn_with_defaults(report, "dataloader.voc", lambda name: voc.VOCDataset(root, parts[name], classes))
    return report


def voc_report(
    root: str | os.PathLike,
    splits: Mapping[str, Sequence[str]] | None,
    classes: Sequence[str] | None,
    whole: bool,
    on_image: Callable[[], None],
    ignore_others: bool = False,
) -> DataReport:
    """Check like `check_voc`, but without the warnings that depend on settings of a config; see `VOCDataset`."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; it must contain a dataset in VOC layout ({voc.LAYOUT})")
    if splits is None:
        splits = {name: (name,) for name in sorted(voc.split_names(root), key=usual_order)}
        if not splits:
            found = "has no split file; detofa init --voc FOLDER --make-splits writes them"
            if not any(root.rglob("Annotations")):
                found = "has no folder Annotations"
            raise UserError(f"{root} must contain a dataset in VOC layout ({voc.LAYOUT}), but {found}")
    report = DataReport(f"{root}, in VOC layout")
    images = ImageInspector(report, whole, on_image)
    for name, parts in splits.items():
        split = Split(name)
        report.splits.append(split)
        listed: dict[voc.VOCFile, None] = {}
        missing: dict[str, None] = {}
        for part in parts:
            found = report.attempt(voc.list_split, root, part)
            if found is None:
                continue
            for file, count in found.repeated.items():
                report.warnings.append(f"{found.file} lists {file.name} {count} times; it is used once")
            listed |= dict.fromkeys(found.found)
            missing |= dict.fromkeys(found.problems)
        report.fatal += missing
        split.images = len(listed) + len(missing)
        for file in listed:
            split.files.append(file.image)
            header = images.header(file.image)
            if header is not None:
                _check_annotation(report, split, file, header, classes, ignore_others)
        if not split.images:
            report.fatal.append(f"split {name} of {root} must list at least one image")
    _unused_annotations(report, root)
    return finished(report, images)


def _check_annotation(
    report: DataReport,
    split: Split,
    file: voc.VOCFile,
    header: ImageHeader,
    classes: Sequence[str] | None,
    ignore_others: bool,
) -> None:
    """Read the annotation of one image, and add its objects and problems to the split and the report."""
    annotation = report.attempt(voc.read_annotation, file, header)
    if annotation is None:
        split.empty += 1
        return
    size, written = annotation.size, annotation.written
    if written and written != size:
        report.warnings.append(
            f"{annotation.path} says {written[0]} x {written[1]} pixels (height x width), but {file.image.name} has "
            f"{size[0]} x {size[1]}; the size of the image is used"
        )
    if annotation.note:
        report.warnings.append(f"{file.image} {annotation.note}")
    known = classes and {composed(name): name for name in classes}
    valid = valid_boxes(report, annotation.path, annotation.boxes, size, annotation.boxes + 1, inclusive=True)
    filled = False
    for name, difficult, keep in zip(annotation.names, annotation.difficult, valid):
        if known and name not in known:
            if ignore_others:
                split.ignored[name] += 1
            else:
                report.fatal.append(f"{annotation.path} has an object of class {unknown_class(name, known)}")
        elif keep:
            filled = True
            split.difficult += bool(difficult)
            split.objects[name] += not difficult
    split.empty += not filled


def _unused_annotations(report: DataReport, root: Path) -> None:
    """Add warnings about annotations without an image."""
    for folder in sorted([*root.glob("Annotations"), *root.glob("*/Annotations")]):
        images = folder.parent / "JPEGImages"
        present = Listing(images, EXTENSIONS)
        for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".xml"):
            if present.find(file.relative_to(folder).with_suffix("").as_posix()) is None:
                report.warnings.append(f"{file} has no image in {images}")
