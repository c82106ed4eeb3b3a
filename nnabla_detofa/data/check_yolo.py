"""Check of a dataset in YOLO's layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..common.errors import UserError
from . import yolo
from .check_report import DataReport, ImageInspector, Split, finished, usual_order, valid_boxes, warn_with_defaults
from .dataset import unknown_class
from .images import EXTENSIONS, OTHER_FORMATS, ImageHeader
from .names import Listing, composed
from .yolo_labels import collect, in_pixels, label_lines, parse_label


def check_yolo(
    root: str | os.PathLike,
    splits: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    on_image: Callable[[], None] = lambda: None,
    description: str = yolo.DESCRIPTION,
) -> DataReport:
    """Check a dataset in YOLO's layout.

    Args:
        root: folder of the dataset.
        splits: name -> key of the description; None checks every split of the description.
        classes, whole, on_image: see `check_voc`.
        description: name of the description, relative to `root`.

    Returns:
        the report; problems of the data are listed in it, not raised.

    Raises:
        UserError: `root` is not a folder, or its description is missing or invalid.
    """
    about = yolo.read_description(Path(root), description)
    keys = splits or {name: name for name in sorted(about.splits, key=usual_order)}
    if not keys:
        raise UserError(f"{about.file} must name the images of one or more splits, such as train, val and test, but names none")
    report = yolo_report(about, keys, classes, whole, on_image)

    def opened(name: str) -> yolo.YOLODataset:
        return yolo.YOLODataset(root, keys[name], classes, description=description)

    warn_with_defaults(report, "dataloader.yolo", opened)
    return report


def yolo_report(
    about: yolo.Description,
    splits: Mapping[str, str],
    classes: Sequence[str] | None,
    whole: bool,
    on_image: Callable[[], None],
    ignore_others: bool = False,
) -> DataReport:
    """Check like `check_yolo`, but without the warnings that depend on settings of a config; see `YOLODataset`."""
    report = DataReport(f"{about.file}, in YOLO's layout")
    images = ImageInspector(report, whole, on_image)
    known = set(map(composed, about.names if classes is None else classes))
    for name in about.names:
        if name not in known and not ignore_others:
            report.fatal.append(f"{about.file} has the class {unknown_class(name, classes or ())}")
    found: list[yolo.YOLOFile] = []
    for name, key in splits.items():
        split = Split(name)
        report.splits.append(split)
        listed: yolo.ListedSplit | None = report.attempt(yolo.list_split, about, key)
        if listed is None:
            continue
        report.warnings += listed.notes
        report.fatal += listed.problems
        split.images = len(listed.found) + len(listed.problems)
        if problem := yolo.without_labels(listed.found, f"split {key} of {about.file}"):
            report.fatal.append(problem)
        for file in listed.found:
            split.files.append(file.image)
            header = images.header(file.image)
            if header is not None:
                _check_labels(report, split, file, header, about.names, known)
        found += listed.found
    report.warnings += _unused_labels(about, found)
    return finished(report, images)


def _check_labels(
    report: DataReport, split: Split, file: yolo.YOLOFile, header: ImageHeader, names: Sequence[str], known: set[str]
) -> None:
    """Check the label file of one image, and add its objects to the split."""
    lines: list[tuple[str, str]] = report.attempt(label_lines, file.labels) or []
    parsed = [report.attempt(parse_label, text, where, len(names)) for where, text in lines]
    labels = collect([label for label in parsed if label is not None])
    if labels.repeated:
        report.warnings.append(f"{file.labels} repeats {labels.repeated} labels; each is used once")
    boxes, note = in_pixels(labels.boxes, header)
    if note and len(boxes):
        report.warnings.append(f"{file.image} {note}")
    valid = valid_boxes(report, file.labels, boxes, header.size, boxes, inclusive=False, in_pixels=False)
    used = [names[index] in known for index in labels.classes]
    for index, is_known, is_valid in zip(labels.classes, used, valid):
        if not is_known:
            split.ignored[names[index]] += 1
        elif is_valid:
            split.objects[names[index]] += 1
    split.empty += not any(valid[used])


def _unused_labels(about: yolo.Description, files: Sequence[yolo.YOLOFile]) -> Iterator[str]:
    """Yield warnings about label files without an image, in the folders of the label files of all splits."""
    lists = {about.folder / path for paths in about.splits.values() for path in paths}
    places: dict[Path, dict[Path, Listing]] = {}
    for file in files:
        images = Listing(file.image.parent, (*EXTENSIONS, *OTHER_FORMATS))
        places.setdefault(file.labels.parent, {}).setdefault(file.image.parent, images)
    for folder, listings in sorted(places.items()):
        labels = (file for file in sorted(folder.glob("*.txt")) if file.name != "classes.txt" and file not in lists)
        unused = [file.name for file in labels if not any(listing.find(file.stem) for listing in listings.values())]
        if unused:
            yield f"{folder} contains {len(unused)} label files without an image, such as {unused[0]}; they are ignored"
