"""Dataset check that reports all problems together, whereas opening a dataset stops at the first problem."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..config import CocoData, CocoSplit, Config, VocData
from . import coco, voc
from .check_report import PARTS, DataReport, Split, _usual_order
from .image_folder import list_classes, other_files
from .images import EXTENSIONS, ImageHeader, inspect_image, read_image
from .names import Listing, composed
from .objects import NORMALIZED, judge, place
from .sets import crowded, heard, object_warnings, open_sets, thin, undetectable

# --- Checks of VOC and COCO datasets and image folders ----------------------------------------------------------------


def check_config(config: Config, whole: bool = False, on_image: Callable[[], None] = lambda: None) -> DataReport:
    """Check the splits of a config's dataset with the classes of the config; see `check_voc` for `whole` and `on_image`."""
    data = config.dataloader
    if isinstance(data, VocData):
        splits = {"train": data.train, **({"val": data.val} if data.val else {}), "test": data.test}
        report = _check_voc(data.root, splits, data.classes, whole, on_image, data.ignore_other_classes)
    elif isinstance(data, CocoData):
        named = {"train": data.train, **({"val": data.val} if data.val else {}), "test": data.test}
        report = _check_coco(data.root, named, data.classes, whole, on_image, data.ignore_other_classes)
    else:
        return check_folders(data.root, {"train": data.train, "val": data.val}, whole, on_image)
    train, test = report.splits[0], report.splits[-1]
    if report.fatal:
        return report
    if not data.val and data.holdout >= train.images:
        report.fatal.append(
            f"dataloader.{config.dataloader_name}.holdout must be less than the {train.images} training images, "
            f"got {data.holdout}"
        )
        return report
    if not sum(test.objects.values()):
        report.fatal.append("the test split must hold objects to find; all its images are empty")
        return report
    stride = config.network.head_geometry(1).output_stride(config.network.geometry)
    with heard(quiet=True):  # the report already has these warnings
        sets = report.attempt(open_sets, config, stride)
    if sets:
        report.warnings += object_warnings(sets, f"dataloader.{config.dataloader_name}")
    return report


def check_voc(
    root: str | os.PathLike,
    splits: dict[str, Sequence[str]] | None = None,
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
    report = _check_voc(root, splits, classes, whole, on_image)
    parts = splits or {split.name: (split.name,) for split in report.splits}
    _by_defaults(report, "dataloader.voc", lambda name: voc.VOCDataset(root, parts[name], classes))
    return report


def _by_defaults(report: DataReport, key: str, opened: Callable[[str], Any]) -> None:
    """Add warnings about the objects of each split that a config with default settings would drop."""
    for split in () if report.fatal else report.splits:
        with heard(quiet=True):  # the report already has these warnings
            dataset = report.attempt(opened, split.name)
        if dataset is None:
            return
        report.warnings += crowded(split.name, dataset, VocData.max_objects, key)
        report.warnings += thin(split.name, dataset) + undetectable(split.name, dataset)


def _check_voc(
    root: str | os.PathLike,
    splits: dict[str, Sequence[str]] | None,
    classes: Sequence[str] | None,
    whole: bool,
    on_image: Callable[[], None],
    ignore_others: bool = False,
) -> DataReport:
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: a data set in VOC layout ({voc.LAYOUT}) must be there")
    if splits is None:
        splits = {name: (name,) for name in sorted(voc._splits(root), key=_usual_order)}
        if not splits:
            raise UserError(f"{root} must hold a data set in VOC layout ({voc.LAYOUT}), and has no split file")
    report = DataReport(f"{root}, in VOC's layout")
    seen = _Photographs(report, whole, on_image)
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
                report.warnings.append(f"{found.file} lists {file.name} {count} times: it is used once")
            listed |= dict.fromkeys(found.found)
            missing |= dict.fromkeys(found.problems)
        report.fatal += missing
        split.images = len(listed) + len(missing)
        for file in listed:
            split.files.append(file.image)
            header = seen.header(file.image)
            if header is not None:
                _check_annotation(report, split, file, header, classes, ignore_others)
        if not split.images:
            report.fatal.append(f"split {name} of {root} must name at least one image")
    _unused_annotations(report, root)
    return _finished(report, seen)


def _check_annotation(
    report: DataReport,
    split: Split,
    file: voc.VOCFile,
    header: ImageHeader,
    classes: Sequence[str] | None,
    ignore_others: bool,
) -> None:
    annotation = report.attempt(voc.read_annotation, file, header)
    if annotation is None:
        split.empty += 1
        return
    size, written = annotation.size, annotation.written
    if written not in (None, size):
        said = f"{written[0]} x {written[1]}"
        report.warnings.append(
            f"{annotation.path} says {said} pixels (height x width), {file.image.name} has {size[0]} x {size[1]}"
        )
    if annotation.note:
        report.warnings.append(f"{file.image} {annotation.note}")
    known = classes and {composed(name): name for name in classes}
    sound = _sound_boxes(report, annotation.path, annotation.boxes, size, annotation.boxes + 1, inclusive=True)
    filled = False
    for name, difficult, keep in zip(annotation.names, annotation.difficult, sound):
        if known and name not in known:
            if ignore_others:
                split.ignored[name] += 1
            else:
                report.fatal.append(f"{annotation.path} has an object of class {voc.other_class(name, known)}")
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
        for file in sorted(folder.rglob("*.xml")):
            if present.find(file.relative_to(folder).with_suffix("").as_posix()) is None:
                report.warnings.append(f"{file} has no photograph in {images}")


def check_coco(
    root: str | os.PathLike,
    splits: dict[str, CocoSplit] | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> DataReport:
    """Check a dataset in COCO format.

    Args:
        root: folder of the dataset.
        splits: name -> its paths below `root`; None uses annotations/instances_<split>.json with the images in <split>.
        classes, whole, on_image: see `check_voc`.

    Returns:
        the report; problems of the data are listed in it, not raised.

    Raises:
        UserError: `root` is not a folder or contains no annotations.
    """
    splits = splits or _coco_splits(Path(root))
    report = _check_coco(root, splits, classes, whole, on_image)

    def opened(name: str) -> coco.COCODataset:
        return coco.COCODataset(Path(root, splits[name].annotations), Path(root, splits[name].images), classes)

    _by_defaults(report, "dataloader.coco", opened)
    return report


def _coco_splits(root: Path) -> dict[str, CocoSplit]:
    """Find the splits with annotations/instances_<split>.json and images in <split>."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: a data set in COCO's format must be there; {coco.ORIGIN}")
    files = sorted(root.glob("annotations/instances_*.json"))
    names = sorted((file.stem.removeprefix("instances_") for file in files), key=_usual_order)
    if not names:
        raise UserError(f"{root} must hold annotations/instances_<split>.json, and has none; {coco.ORIGIN}")
    return {name: CocoSplit(f"annotations/instances_{name}.json", name) for name in names}


def _check_coco(
    root: str | os.PathLike,
    splits: dict[str, CocoSplit],
    classes: Sequence[str] | None,
    whole: bool,
    on_image: Callable[[], None],
    ignore_others: bool = False,
) -> DataReport:
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: a data set in COCO's format must be there; {coco.ORIGIN}")
    report = DataReport(f"{root}, in COCO's format")
    seen = _Photographs(report, whole, on_image)
    lists: dict[Path, list[str]] = {}
    for name, places in splits.items():
        split = Split(name)
        report.splits.append(split)
        file, folder = root / places.annotations, root / places.images
        content = report.attempt(coco._read, file)
        categories = content and report.attempt(coco._categories, content["categories"], file)
        if not categories:
            continue
        known = {composed(name): name for name in categories.values() if classes is None} or dict.fromkeys(
            map(composed, classes or ())
        )
        for category in categories.values():
            if category not in known and not ignore_others:
                report.fatal.append(f"{file} has the category {voc.other_class(category, known)}")
        if not folder.is_dir():
            report.fatal.append(f"{folder} is not a folder: the images that {file} lists must be there; {coco.ORIGIN}")
            continue
        sizes = _check_images(report, seen, split, content["images"], file, folder)
        _check_objects(report, split, content, file, sizes, categories, known)
        if not sizes:
            report.fatal.append(f"{file} must list at least one image")
        lists.setdefault(folder, []).append(file.name)
    used = {file for split in report.splits for file in split.files}
    for folder, names in lists.items():
        if unlisted := sum(place not in used for place in _images_below(folder)):
            files, verb = " and ".join(dict.fromkeys(names)), "does" if len(set(names)) == 1 else "do"
            report.warnings.append(f"{folder} holds {unlisted} photographs that {files} {verb} not list: they are not used")
    return _finished(report, seen)


def _images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders."""
    return [file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file()]


def _check_images(
    report: DataReport, seen: _Photographs, split: Split, entries: list, file: Path, folder: Path
) -> dict[int, tuple[tuple[int, int], ImageHeader]]:
    """Check the elements of `images`; map the id of each valid one to its annotated (height, width) and its header."""
    sizes: dict[int, tuple[tuple[int, int], ImageHeader]] = {}
    ids: set[int] = set()
    listed: set[Path] = set()
    on_disk = Listing(folder)
    for number, entry in enumerate(entries):
        where = f"images[{number}] of {file}"
        found = report.attempt(coco._image, entry, where, on_disk)
        if found is None:
            continue
        key, path, size = found
        if key in ids or path in listed:
            report.fatal.append(f"{where} must have an id and a file_name of its own, got {key} and {entry['file_name']!r}")
            continue
        ids.add(key)
        split.images += 1
        if path is None:
            report.fatal.append(coco._missing(entry, file, folder))
            continue
        listed.add(path)
        split.files.append(path)
        header = seen.header(path)
        sizes[key] = size, header or ImageHeader(size)
        if header and place(np.zeros((0, 4)), size, header, inclusive=False)[1] != header.size:
            report.fatal.append(str(coco._other_size(path, size, header)))
            sizes[key] = header.size, header
    return sizes


def _check_objects(
    report: DataReport,
    split: Split,
    content: Mapping[str, list],
    file: Path,
    sizes: dict[int, tuple[tuple[int, int], ImageHeader]],
    categories: dict[int, str],
    known: Collection[str],
) -> None:
    ids: set[int] = set()
    filled: set[int] = set()
    noted: set[int] = set()
    all_ids = (entry.get("id") for entry in content["images"] if isinstance(entry, dict))  # also of invalid images
    listed = set(filter(coco._integer, all_ids))
    for number, entry in enumerate(content["annotations"]):
        where = f"annotations[{number}] of {file}"
        found = report.attempt(coco._annotation, entry, where)
        if found is None:
            continue
        box, label, crowd, image = found
        if "id" in entry:
            if not coco._integer(entry["id"]) or entry["id"] in ids:
                report.fatal.append(f"{where} must have an integer id of its own, got {entry['id']!r}")
            else:
                ids.add(entry["id"])
        if image not in listed:
            report.fatal.append(f"{where}: image_id must be the id of one of its images, got {image!r}")
        if label not in categories:
            report.fatal.append(f"{where}: category_id must be the id of one of its categories, got {label!r}")
        elif categories[label] not in known:
            split.ignored[categories[label]] += 1
        elif image in sizes:
            size, header = sizes[image]
            boxes, _, note = place(box[None], size, header, inclusive=False)
            if note and image not in noted:
                noted.add(image)
                report.warnings.append(f"image {image} of {file} {note}")
            if _sound_boxes(report, where, boxes, header.size, box[None], inclusive=False)[0]:
                filled.add(image)
                split.difficult += crowd
                split.objects[categories[label]] += not crowd
    split.empty = len(sizes) - len(filled)


def check_folders(
    root: str | os.PathLike, splits: dict[str, str], whole: bool = False, on_image: Callable[[], None] = lambda: None
) -> DataReport:
    """Check a classification dataset with one folder per class.

    Args:
        root: folder of the dataset.
        splits: name -> its folder below `root`.
        whole, on_image: see `check_voc`.

    Returns:
        the report; problems of the data are listed in it, not raised.
    """
    report = DataReport(f"{root}, one folder for each class")
    seen = _Photographs(report, whole, on_image)
    classes: set[str] | None = None
    for name, part in splits.items():
        split, folder = Split(name), Path(root, part)
        report.splits.append(split)
        if not folder.is_dir():
            report.fatal.append(f"{folder} is not a folder: one subfolder of JPEG or PNG images for each class must be there")
            continue
        inside = list_classes(folder)
        if not inside:
            report.fatal.append(f"{folder} must hold one subfolder of images for each class, and has no subfolder")
        here = set(inside)
        classes = here if classes is None else classes
        for odd in sorted(here ^ classes):
            report.fatal.append(f"class {odd} must be in every split: it is {'not ' * (odd not in here)}in {folder}")
        for class_name, (where, files) in inside.items():
            split.objects[class_name] = len(files)
            split.files += files
            report.warnings += filter(None, [other_files(where, len(files))])
            if not files:
                report.fatal.append(f"{where} must hold at least one JPEG or PNG image")
            for file in files:
                seen.header(file)
        split.images = len(split.files)
    return _finished(report, seen)


# --- Shared by all layouts --------------------------------------------------------------------------------------------


class _Photographs:
    """Inspects each image once, even if several splits contain it."""

    def __init__(self, report: DataReport, whole: bool, on_image: Callable[[], None]):
        self.report, self.whole, self.on_image = report, whole, on_image
        self.headers: dict[Path, ImageHeader | None] = {}
        self.contents: dict[Path, bytes] = {}

    def header(self, file: Path) -> ImageHeader | None:
        """Return the header of an image; if the image is broken, add a fatal problem and return None."""
        if file not in self.headers:
            self.headers[file] = self.report.attempt(self._look, file)
            self.on_image()
        return self.headers[file]

    def _look(self, file: Path) -> ImageHeader:
        header = inspect_image(file)
        if self.whole:
            self.contents[file] = hashlib.sha256(file.read_bytes()).digest()
            read_image(file)
        return header


def _sound_boxes(
    report: DataReport, where: object, boxes: np.ndarray, size: tuple[int, int], written: np.ndarray, inclusive: bool
) -> np.ndarray:
    """Return which boxes are valid objects of their image (see `objects.judge`); warn about dropped and clipped boxes.

    Args:
        written: (n, 4) corners for the messages, as in the file.
    """
    found = judge(boxes, size, inclusive)
    for corners, kept, clipped, normalized in zip(written, found.kept, found.clipped, found.normalized):
        text = f"{where}: the box ({', '.join(f'{corner:g}' for corner in corners)})"
        if normalized:
            report.warnings.append(f"{text} has corners in 0..1: it is left out; {NORMALIZED}")
        elif not kept:
            report.warnings.append(f"{text} has no area inside the image: it is left out")
        elif clipped:
            report.warnings.append(f"{text} reaches outside the image: it is clipped")
    return found.kept


def _finished(report: DataReport, seen: _Photographs) -> DataReport:
    """Add warnings about images that two splits share, and remove repeated messages from the report."""
    for one, other in combinations(report.splits, 2):
        tail = one.name.rpartition("/")[2], other.name.rpartition("/")[2]
        if tail[1] in PARTS.get(tail[0], ()):
            continue
        if shared := set(one.files) & set(other.files):
            listed = ", ".join(sorted(file.name for file in shared)[:5]) + (", ..." if len(shared) > 5 else "")
            report.warnings.append(
                f"splits {one.name} and {other.name} share {len(shared)} images ({listed}): results look too good"
            )
        copies = {seen.contents[file]: file for file in one.files if file in seen.contents}
        for file in other.files:
            twin = copies.get(seen.contents.get(file, b""))
            if twin not in (None, file):
                report.warnings.append(f"{file} in {other.name} is the same photograph as {twin} in {one.name}")
    report.fatal[:] = dict.fromkeys(report.fatal)
    report.warnings[:] = dict.fromkeys(report.warnings)
    return report
