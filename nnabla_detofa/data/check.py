"""Everything that is wrong with a data set, at once: where the data sets themselves stop at the first problem, this goes on."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.errors import UserError
from ..config import CocoData, CocoSplit, Config, VocData
from . import coco, voc
from .images import EXTENSIONS, check_whole, read_image

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""The Exif tag that says how a camera was held, and its values that swap width and height, as OpenCV does on reading."""
PARTS = {"trainval": {"train", "val"}, "train": {"trainval"}, "val": {"trainval"}}
"""Splits of VOC that share images because one is a part of the other."""


@dataclass
class Split:
    """What one split holds.

    Attributes:
        objects: how many of each class; those marked difficult, and crowds, are in `difficult` instead.
        empty: images without an object.
        files: the photographs, as far as they are there.
    """

    name: str
    images: int = 0
    empty: int = 0
    difficult: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    files: list[Path] = field(default_factory=list)


@dataclass
class DataReport:
    """A checked data set.

    Attributes:
        source: what was checked.
        splits: in the order they were named.
        fatal: what makes training refuse the data set, or stop.
        warnings: what it only warns of, or would not notice.
    """

    source: str
    splits: list[Split] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, function: Callable, *args):
        """What the function returns; None where it raises a UserError, which is fatal then."""
        try:
            return function(*args)
        except UserError as error:
            self.fatal.append(str(error))
            return None

    def __str__(self) -> str:
        """The counts, a row for each class and a column for each split, and then every problem."""
        classes = sorted({name for split in self.splits for name in split.objects}, key=_natural)
        rows = [["", *(split.name for split in self.splits)]]
        for title, key in (("images", "images"), ("  without objects", "empty"), ("  difficult or crowds", "difficult")):
            values = [getattr(split, key) for split in self.splits]
            if key == "images" or any(values):
                rows.append([title, *map(str, values)])
        rows.append(["objects", *(str(sum(split.objects.values())) for split in self.splits)])
        rows += [[f"  {name}", *(str(split.objects[name]) for split in self.splits)] for name in classes]
        wide = [max(map(len, column)) for column in zip(*rows)]
        lines = [self.source]
        lines += ["  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]).rstrip() for row in rows]
        lines += [f"problem: {text}" for text in self.fatal]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join([*lines, _verdict(self)])


def _verdict(report: DataReport) -> str:
    warned = f"{len(report.warnings)} warning{'s' * (len(report.warnings) != 1)}"
    if report.fatal:
        return f"{len(report.fatal)} problem{'s' * (len(report.fatal) != 1)} that training would stop at, {warned}"
    return f"fit for training, {warned if report.warnings else 'nothing to warn of'}"


def _usual_order(name: str) -> tuple[str, int]:
    """Sorts splits: train, val, test and then others, in each folder."""
    folder, _, last = name.rpartition("/")
    known = [index for index, word in enumerate(("train", "val", "test")) if last.rstrip("0123456789") == word]
    return folder, known[0] if known else 3


def _natural(name: str) -> tuple[int, int, str]:
    """Sorts numbers by value, before names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


# --- Entries ----------------------------------------------------------------------------------------------------------


def check_config(config: Config, whole: bool = False, on_image: Callable[[], None] = lambda: None) -> DataReport:
    """Check the data set of a config: the splits that it names, with its classes; see `check_voc`."""
    data = config.dataloader
    if isinstance(data, VocData):
        splits = {"train": data.train, **({"val": data.val} if data.val else {}), "test": data.test}
        report = check_voc(data.root, splits, data.classes, whole, on_image)
    elif isinstance(data, CocoData):
        named = {"train": data.train, **({"val": data.val} if data.val else {}), "test": data.test}
        report = check_coco(data.root, named, data.classes, whole, on_image)
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
    if not sum(test.objects.values()):
        report.fatal.append("the test split must hold objects to find; all its images are empty")
    for name in train.objects.keys() | test.objects.keys():
        if not train.objects[name]:
            report.warnings.append(f"class {name} has no object to learn from in train, and {test.objects[name]} in test")
    return report


def check_voc(
    root: str | os.PathLike,
    splits: dict[str, Sequence[str]] | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> DataReport:
    """Check a data set in VOC's layout.

    Args:
        root: as `voc.VOCDataset`'s.
        splits: name -> the split files it is made of; None takes every split that is there, each alone.
        classes: the names that objects may have; None takes any.
        whole: decode every photograph, which finds damage in the middle and photographs that are in two splits under two
            names; otherwise only the ends of the files are looked at.
        on_image: called after each photograph.

    Raises:
        UserError: `root` is not a folder, or holds no split.
    """
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
        listed: dict[Path, None] = {}
        for part in parts:
            _list_split(report, root, part, listed)
        split.images = len(listed)
        for image in listed:
            size = seen.size(image)
            if size is None and not image.is_file():
                report.fatal.append(f"{image.with_suffix('')}.jpg is missing (no .jpeg or .png either): split {name} lists it")
                continue
            split.files.append(image)
            if size is not None:
                _check_annotation(report, split, image, size, classes)
        if not listed:
            report.fatal.append(f"split {name} of {root} must name at least one image")
    _unused_annotations(report, root)
    return _finished(report, seen)


def _list_split(report: DataReport, root: Path, part: str, listed: dict[Path, None]) -> None:
    """Add the photographs that a split file names, those that are missing as <name>.jpg."""
    *folders, name = part.split("/")
    tree = root.joinpath(*folders)
    file = tree / "ImageSets" / "Main" / f"{name}.txt"
    if ".." in folders or not file.is_file():
        known = ", ".join(voc._splits(root)) or f"none found ({voc.LAYOUT})"
        report.fatal.append(f"split {part!r} of {root} must be one of: {known}")
        return
    on_disk = report.attempt(voc._list_images, tree / "JPEGImages")
    names = report.attempt(voc._read_split, file) or []
    if on_disk is None:
        return
    for image_id, count in Counter(names).items():
        if count > 1:
            report.warnings.append(f"{file} lists {image_id} {count} times: it is used once")
        listed[on_disk.get(image_id, tree / "JPEGImages" / f"{image_id}.jpg")] = None


def _check_annotation(
    report: DataReport, split: Split, image: Path, size: tuple[int, int], classes: Sequence[str] | None
) -> None:
    annotation = report.attempt(voc._read_annotation, image)
    if annotation is None:
        return
    if annotation.size != size:
        said = f"{annotation.size[0]} x {annotation.size[1]}"
        report.warnings.append(f"{annotation.path} says {said} pixels (height x width), {image.name} has {size[0]} x {size[1]}")
    sound = False
    for box, name, difficult in zip(annotation.boxes, annotation.names, annotation.difficult):
        if classes is not None and name not in classes:
            report.fatal.append(f"{annotation.path} has an object of class {name!r}; known are {', '.join(classes)}")
        if _sound_box(report, annotation.path, box, (size[0] - 1, size[1] - 1), box + 1):
            sound = True
            split.difficult += bool(difficult)
            split.objects[name] += not difficult
    split.empty += not sound


def _unused_annotations(report: DataReport, root: Path) -> None:
    """Annotations that belong to no photograph."""
    for folder in sorted([*root.glob("Annotations"), *root.glob("*/Annotations")]):
        images = folder.parent / "JPEGImages"
        present = {Path(name).stem for name in os.listdir(images)} if images.is_dir() else set()
        for file in sorted(folder.glob("*.xml")):
            if file.stem not in present:
                report.warnings.append(f"{file} has no photograph in {images}")


def check_coco(
    root: str | os.PathLike,
    splits: dict[str, CocoSplit] | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> DataReport:
    """Check a data set in COCO's format.

    Args:
        splits: name -> its files below `root`; None takes annotations/instances_<split>.json with the images in <split>.
        classes, whole, on_image: as `check_voc`'s.

    Raises:
        UserError: `root` is not a folder, or holds no annotations.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: a data set in COCO's format must be there; {coco.ORIGIN}")
    if splits is None:
        files = sorted(root.glob("annotations/instances_*.json"))
        names = sorted((file.stem.removeprefix("instances_") for file in files), key=_usual_order)
        splits = {name: CocoSplit(f"annotations/instances_{name}.json", name) for name in names}
        if not splits:
            raise UserError(f"{root} must hold annotations/instances_<split>.json, and has none; {coco.ORIGIN}")
    report = DataReport(f"{root}, in COCO's format")
    seen = _Photographs(report, whole, on_image)
    for name, places in splits.items():
        split = Split(name)
        report.splits.append(split)
        file, folder = root / places.annotations, root / places.images
        content = report.attempt(coco._read, file)
        categories = content and report.attempt(coco._categories, content["categories"], file)
        if not categories:
            continue
        for category in categories.values():
            if classes is not None and category not in classes:
                report.fatal.append(f"{file} has the category {category!r}; known are {', '.join(classes)}")
        if not folder.is_dir():
            report.fatal.append(f"{folder} is not a folder: the images that {file} lists must be there; {coco.ORIGIN}")
            continue
        sizes = _check_images(report, seen, split, content["images"], file, folder)
        _check_objects(report, split, content, file, sizes, categories)
        if not sizes:
            report.fatal.append(f"{file} must list at least one image")
        unlisted = sum(entry.suffix.lower() in EXTENSIONS for entry in folder.iterdir()) - split.images
        if unlisted > 0:
            report.warnings.append(f"{folder} holds {unlisted} photographs that {file.name} does not list: they are not used")
    return _finished(report, seen)


def _check_images(
    report: DataReport, seen: _Photographs, split: Split, entries: list, file: Path, folder: Path
) -> dict[int, tuple[int, int]]:
    """Image id -> (height, width), of the sound entries."""
    sizes: dict[int, tuple[int, int]] = {}
    listed: set[Path] = set()
    for number, entry in enumerate(entries):
        where = f"images[{number}] of {file}"
        found = report.attempt(coco._image, entry, where, folder)
        if found is None:
            continue
        key, path, size = found
        if key in sizes or path in listed:
            report.fatal.append(f"{where} must have an id and a file_name of its own, got {key} and {entry['file_name']!r}")
            continue
        sizes[key] = size
        listed.add(path)
        split.images += 1
        real = seen.size(path)
        if real is None and not path.is_file():
            report.fatal.append(f"{path} is missing: {file} lists it")
            continue
        split.files.append(path)
        if real not in (None, size):
            report.fatal.append(
                f"{path} is {real[0]} x {real[1]} pixels (height x width), its annotations say {size[0]} x {size[1]}"
            )
    return sizes


def _check_objects(
    report: DataReport, split: Split, content: Mapping[str, list], file: Path, sizes: dict, categories: dict[int, str]
) -> None:
    known: set[int] = set()
    filled: set[int] = set()
    ids = (entry.get("id") for entry in content["images"] if isinstance(entry, dict))  # of those with other faults too
    listed = set(filter(coco._integer, ids))
    for number, entry in enumerate(content["annotations"]):
        where = f"annotations[{number}] of {file}"
        found = report.attempt(coco._annotation, entry, where)
        if found is None:
            continue
        box, label, crowd, image = found
        if "id" in entry:
            if not coco._integer(entry["id"]) or entry["id"] in known:
                report.fatal.append(f"{where} must have an integer id of its own, got {entry['id']!r}")
            else:
                known.add(entry["id"])
        if image not in listed:
            report.fatal.append(f"{where}: image_id must be the id of one of its images, got {image!r}")
        if label not in categories:
            report.fatal.append(f"{where}: category_id must be the id of one of its categories, got {label!r}")
        elif image in sizes and _sound_box(report, where, box, sizes[image], box):
            filled.add(image)
            split.difficult += crowd
            split.objects[categories[label]] += not crowd
    split.empty = len(sizes) - len(filled)


def check_folders(
    root: str | os.PathLike, splits: dict[str, str], whole: bool = False, on_image: Callable[[], None] = lambda: None
) -> DataReport:
    """Check a classification data set, one folder for each class; see `check_voc`.

    Args:
        splits: name -> its folder below `root`.
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
        inside = sorted(place for place in folder.iterdir() if place.is_dir() and place.name[0] != ".")
        if not inside:
            report.fatal.append(f"{folder} must hold one subfolder of images for each class, and has no subfolder")
        here = {place.name for place in inside}
        classes = here if classes is None else classes
        for odd in sorted(here ^ classes):
            report.fatal.append(f"class {odd} must be in every split: it is {'not ' * (odd not in here)}in {folder}")
        for place in inside:
            files = [file for file in sorted(place.iterdir()) if file.suffix.lower() in EXTENSIONS]
            split.objects[place.name] = len(files)
            split.files += files
            if not files:
                report.fatal.append(f"{place} must hold at least one JPEG or PNG image")
            for file in files:
                seen.size(file)
        split.images = len(split.files)
    return _finished(report, seen)


# --- What all have in common ------------------------------------------------------------------------------------------


class _Photographs:
    """Looks at each photograph once, however many splits it is in."""

    def __init__(self, report: DataReport, whole: bool, on_image: Callable[[], None]):
        self.report, self.whole, self.on_image = report, whole, on_image
        self.sizes: dict[Path, tuple[int, int] | None] = {}
        self.contents: dict[Path, bytes] = {}

    def size(self, file: Path) -> tuple[int, int] | None:
        """(height, width) of a photograph; None where it is missing or broken, and what is broken is fatal."""
        if file not in self.sizes:
            self.sizes[file] = self._look(file) if file.is_file() else None
            self.on_image()
        return self.sizes[file]

    def _look(self, file: Path) -> tuple[int, int] | None:
        try:
            if self.whole:
                self.contents[file] = hashlib.sha256(file.read_bytes()).digest()
                return read_image(file).shape[:2]
            check_whole(file)
            with Image.open(file) as opened:
                width, height = opened.size
                return (width, height) if opened.getexif().get(ORIENTATION) in TURNED else (height, width)
        except (UserError, OSError) as error:
            text = str(error) if isinstance(error, UserError) else f"{file} is not a readable image ({error})"
            self.report.fatal.append(text)
            return None


def _sound_box(report: DataReport, where: object, box: np.ndarray, most: tuple[int, int], written: Iterable[float]) -> bool:
    """Whether a box has area inside its image; what is clipped or left out is a warning.

    Args:
        most: largest y and x. written: the corners as they are in the file.
    """
    inside = np.clip(box, 0, [most[1], most[0]] * 2)
    corners = ", ".join(f"{corner:g}" for corner in written)
    if not (inside[2:] > inside[:2]).all():
        report.warnings.append(f"{where}: the box ({corners}) has no area inside the image: it is left out")
        return False
    if not np.allclose(inside, box, atol=1e-3):
        report.warnings.append(f"{where}: the box ({corners}) reaches outside the image: it is clipped")
    return True


def _finished(report: DataReport, seen: _Photographs) -> DataReport:
    """Add what two splits have in common; each problem stays once."""
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
