"""Check of a dataset in COCO format."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..common.errors import UserError
from ..config import CocoSplit
from . import coco
from .check_report import DataReport, ImageInspector, Split, finished, usual_order, valid_boxes, warn_with_defaults
from .dataset import unknown_class
from .images import EXTENSIONS, ImageHeader
from .names import Listing, composed
from .objects import upright_boxes


def check_coco(
    root: str | os.PathLike,
    splits: Mapping[str, CocoSplit] | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> DataReport:
    """Check a dataset in COCO format.

    Args:
        root: folder of the dataset.
        splits: name -> its paths below `root`; None: see `coco_splits`.
        classes, whole, on_image: see `check_voc`.

    Returns:
        the report; problems of the data are listed in it, not raised.

    Raises:
        UserError: `root` is not a folder or contains no annotations.
    """
    places = splits or coco_splits(Path(root))
    report = coco_report(root, places, classes, whole, on_image)

    def opened(name: str) -> coco.COCODataset:
        return coco.COCODataset(Path(root, places[name].annotations), Path(root, places[name].images), classes)

    warn_with_defaults(report, "dataloader.coco", opened)
    return report


ROBOFLOW = "_annotations.coco.json"
"""Name of the annotation file beside the images of each split of data exported by Roboflow."""


def coco_splits(root: Path) -> dict[str, CocoSplit]:
    """Find the splits: the folders with `ROBOFLOW`, or else annotations/instances_<split>.json with the images in <split>.

    Raises:
        UserError: `root` is not a folder or contains no annotations.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; it must contain a dataset in COCO format; {coco.ORIGIN}")
    if exported := sorted((file.parent.name for file in root.glob(f"*/{ROBOFLOW}")), key=usual_order):
        return {name: CocoSplit(f"{name}/{ROBOFLOW}", name) for name in exported}
    files = sorted(root.glob("annotations/instances_*.json"))
    names = sorted((file.stem.removeprefix("instances_") for file in files), key=usual_order)
    if not names:
        raise UserError(f"{root} must contain annotations/instances_<split>.json, but does not; {coco.ORIGIN}")
    return {name: CocoSplit(f"annotations/instances_{name}.json", name) for name in names}


def coco_report(
    root: str | os.PathLike,
    splits: Mapping[str, CocoSplit],
    classes: Sequence[str] | None,
    whole: bool,
    on_image: Callable[[], None],
    ignore_others: bool = False,
) -> DataReport:
    """Check like `check_coco`, but without the warnings that depend on settings of a config; see `COCODataset`."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; it must contain a dataset in COCO format; {coco.ORIGIN}")
    report = DataReport(f"{root}, in COCO format")
    images = ImageInspector(report, whole, on_image)
    lists: dict[Path, list[str]] = {}
    for name, places in splits.items():
        split = Split(name)
        report.splits.append(split)
        file, folder = root / places.annotations, root / places.images
        content = report.attempt(coco.read_annotations, file)
        categories = content and report.attempt(coco.read_categories, content, file)
        if not categories:
            continue
        known = set(map(composed, categories.values() if classes is None else classes))
        for category in categories.values():
            if category not in known and not ignore_others:
                report.fatal.append(f"{file} has the category {unknown_class(category, classes or ())}")
        if not folder.is_dir():
            report.fatal.append(f"{folder} is not a folder; it must contain the images that {file} lists; {coco.ORIGIN}")
            continue
        listed = _check_images(report, images, split, content["images"], file, folder)
        _check_objects(report, split, content, file, listed, categories, known)
        if not listed:
            report.fatal.append(f"{file} must list at least one image")
        lists.setdefault(folder, []).append(file.name)
    report.warnings += _unlisted_images(report, lists)
    return finished(report, images)


def _unlisted_images(report: DataReport, lists: Mapping[Path, list[str]]) -> Iterator[str]:
    """Yield a warning for each image folder with images that no annotation file lists.

    Args:
        lists: image folder -> names of the annotation files that list its images.
    """
    used = {file for split in report.splits for file in split.files}
    for folder, names in lists.items():
        on_disk = (file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
        if unlisted := sum(file not in used for file in on_disk):
            files = " or ".join(dict.fromkeys(names))
            yield f"{folder} contains {unlisted} images that are not listed in {files}; they are ignored"


def _check_images(
    report: DataReport, images: ImageInspector, split: Split, entries: list, file: Path, folder: Path
) -> dict[int, coco.ListedImage]:
    """Check the elements of `images`, and map the id of each valid one to its image."""
    found: dict[int, coco.ListedImage] = {}
    ids: set[int] = set()
    used: set[Path] = set()
    on_disk = Listing(folder)
    for number, entry in enumerate(entries):
        where = f"images[{number}] of {file}"
        read = report.attempt(coco.read_image_entry, entry, where, on_disk)
        if read is None:
            continue
        key, path, size = read
        if key in ids or path in used:
            report.fatal.append(f"{where} must have a unique id and a unique file_name, got {key} and {entry['file_name']!r}")
            continue
        ids.add(key)
        split.images += 1
        if path is None:
            report.fatal.append(coco.missing_image(entry, file, folder))
            continue
        used.add(path)
        split.files.append(path)
        header = images.header(path)
        found[key] = coco.ListedImage(path, size, header or ImageHeader(size))
        if header and (problem := coco.other_size(path, size, header)):
            report.fatal.append(problem)
            found[key] = coco.ListedImage(path, header.size, header)
    return found


def _check_objects(
    report: DataReport,
    split: Split,
    content: Mapping[str, list],
    file: Path,
    images: Mapping[int, coco.ListedImage],
    categories: Mapping[int, str],
    known: Collection[str],
) -> None:
    """Check the elements of `annotations`, and count the valid objects in the split."""
    ids: set[int] = set()
    filled: set[int] = set()
    noted: set[int] = set()
    all_ids = (entry.get("id") for entry in content["images"] if isinstance(entry, dict))  # also of invalid images
    listed = set(filter(coco.is_integer, all_ids))
    for number, entry in enumerate(content["annotations"]):
        where = f"annotations[{number}] of {file}"
        found: coco.Annotation | None = report.attempt(coco.read_annotation, entry, where)
        if found is None:
            continue
        if found.id in ids:
            report.fatal.append(f"{where} must have a unique integer id, got {found.id}")
        if found.id is not None:
            ids.add(found.id)
        if found.image not in listed:
            report.fatal.append(f"{where}: image_id must be the id of a listed image, got {found.image}")
        if found.category not in categories:
            report.fatal.append(f"{where}: category_id must be the id of a listed category, got {found.category}")
        elif (name := categories[found.category]) not in known:
            split.ignored[name] += 1
        elif found.image in images:
            _, size, header = images[found.image]
            boxes, _, note = upright_boxes(found.box[None], size, header, inclusive=False)
            if note and found.image not in noted:
                noted.add(found.image)
                report.warnings.append(f"image {found.image} of {file} {note}")
            if valid_boxes(report, where, boxes, header.size, found.box[None], inclusive=False)[0]:
                filled.add(found.image)
                split.difficult += found.crowd
                split.objects[name] += not found.crowd
    split.empty = len(images) - len(filled)
