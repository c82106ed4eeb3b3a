"""The report of a dataset check, and the parts of the check that all formats share."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.reading import one_line
from ..config import VocData
from .images import ImageHeader, inspect_image, read_image
from .object_warnings import alike, crowded, thin, undetectable, untrained
from .objects import NORMALIZED, check_boxes
from .sets import heard

PARTS = {"trainval": {"train", "val"}, "train": {"trainval"}, "val": {"trainval"}}
"""Splits of VOC that share images because one contains the other."""


@dataclass
class Split:
    """Counts of one split.

    Attributes:
        name: of the split.
        images: number of listed images.
        empty: number of images without an object.
        difficult: number of objects marked difficult (VOC) or crowds (COCO).
        objects: number of other objects of each class.
        ignored: number of objects of each class that the config leaves out.
        files: the images that exist.
    """

    name: str
    images: int = 0
    empty: int = 0
    difficult: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    files: list[Path] = field(default_factory=list)


@dataclass
class DataReport:
    """Report of a dataset check.

    Attributes:
        source: the dataset's folder and layout.
        splits: one per checked split, in the order in which they were given.
        fatal: problems that make training reject the dataset or stop.
        warnings: problems that training only warns about or would not notice.
    """

    source: str
    splits: list[Split] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function and return its result; if it raises a UserError, add its message to `fatal` and return None."""
        try:
            return function(*args)
        except UserError as error:
            self.fatal.append(str(error))
            return None

    def __str__(self) -> str:
        """Format a table of counts with a row per class and a column per split, followed by all problems and warnings."""
        classes = sorted({name for split in self.splits for name in split.objects}, key=_natural)
        rows = [["", *(split.name for split in self.splits)]]
        for title, key in (("images", "images"), ("  without objects", "empty"), ("  difficult or crowds", "difficult")):
            values = [getattr(split, key) for split in self.splits]
            if key == "images" or any(values):
                rows.append([title, *map(str, values)])
        rows.append(["objects", *(str(sum(split.objects.values())) for split in self.splits)])
        rows += [[f"  {name}", *(str(split.objects[name]) for split in self.splits)] for name in classes]
        if any(split.ignored for split in self.splits):
            rows.append(["ignored, of other classes", *(str(sum(split.ignored.values())) for split in self.splits)])
        wide = [max(map(len, column)) for column in zip(*rows)]
        lines = [self.source]
        lines += ["  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]).rstrip() for row in rows]
        lines += [f"problem: {text}" for text in self.fatal]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(map(one_line, [*lines, _verdict(self)]))


def _verdict(report: DataReport) -> str:
    warned = f"{len(report.warnings)} warning{'s' * (len(report.warnings) != 1)}"
    if report.fatal:
        return f"{len(report.fatal)} problem{'s' * (len(report.fatal) != 1)} that would stop training, {warned}"
    return f"ready for training, {warned if report.warnings else 'no warnings'}"


def usual_order(name: str) -> tuple[str, int]:
    """Sort key for split names: by folder, then train, val, test and others."""
    folder, _, last = name.rpartition("/")
    known = [index for index, word in enumerate(("train", "val", "test")) if last.rstrip("0123456789") == word]
    return folder, known[0] if known else 3


def _natural(name: str) -> tuple[int, int, str]:
    """Sort key for class names: numbers by value, then other names."""
    return (0, int(name), "") if name.isdecimal() and len(name) < 20 else (1, 0, name)


def warn_with_defaults(report: DataReport, key: str, opened: Callable[[str], Any]) -> None:
    """Add warnings about the objects of each split that a config with default settings would drop."""
    if not report.fatal:
        report.warnings += alike(sorted({name for split in report.splits for name in split.objects}))
        parts: dict[str, Counter[str]] = {}  # VOC has a train of several years
        for split in report.splits:
            parts.setdefault(split.name.rpartition("/")[2], Counter()).update(split.objects)
        if {"train", "test"} <= set(parts):
            report.warnings += untrained(parts["train"], parts["test"])
    for split in () if report.fatal else report.splits:
        with heard(quiet=True):  # the report already has these warnings
            dataset = report.attempt(opened, split.name)
        if dataset is None:
            return
        if not any(len(dataset.objects(index)[0]) for index in range(len(dataset))):
            report.warnings.append(f"no image of {split.name} has an object")
        report.warnings += crowded(split.name, dataset, VocData.max_objects, key)
        report.warnings += thin(split.name, dataset) + undetectable(split.name, dataset)


class ImageInspector:
    """Inspects each image once, even if several splits contain it."""

    def __init__(self, report: DataReport, whole: bool, on_image: Callable[[], None]):
        self.report, self.whole, self.on_image = report, whole, on_image
        self.headers: dict[Path, ImageHeader | None] = {}
        self.contents: dict[Path, bytes] = {}

    def header(self, file: Path) -> ImageHeader | None:
        """Return the header of an image; if the image is broken, add a fatal problem and return None."""
        if file not in self.headers:
            self.headers[file] = self.report.attempt(self._inspect, file)
            self.on_image()
        return self.headers[file]

    def _inspect(self, file: Path) -> ImageHeader:
        header = inspect_image(file)
        if self.whole:
            self.contents[file] = hashlib.sha256(file.read_bytes()).digest()
            read_image(file)
        return header


def valid_boxes(
    report: DataReport,
    where: object,
    boxes: np.ndarray,
    size: tuple[int, int],
    written: np.ndarray,
    inclusive: bool,
    in_pixels: bool = True,
) -> np.ndarray:
    """Return which boxes are valid objects of their image (see `objects.check_boxes`); warn about dropped and clipped boxes.

    Args:
        written: (n, 4) numbers for the messages, as in the file.
    """
    found = check_boxes(boxes, size, inclusive, in_pixels)
    for corners, kept, clipped, normalized in zip(written, found.kept, found.clipped, found.normalized):
        text = f"{where}: the box ({', '.join(f'{corner:g}' for corner in corners)})"
        if normalized:
            report.warnings.append(f"{text} has corners in 0..1 and is dropped; {NORMALIZED}")
        elif not kept:
            report.warnings.append(f"{text} has no area inside the image and is dropped")
        elif clipped:
            report.warnings.append(f"{text} extends outside the image and is clipped")
    return found.kept


def finished(report: DataReport, images: ImageInspector) -> DataReport:
    """Add warnings about images that two splits share, and remove repeated messages from the report."""
    for one, other in combinations(report.splits, 2):
        names = one.name.rpartition("/")[2], other.name.rpartition("/")[2]
        if names[1] not in PARTS.get(names[0], ()):
            report.warnings += _shared_images(one, other, images.contents)
    report.fatal[:] = dict.fromkeys(report.fatal)
    report.warnings[:] = dict.fromkeys(report.warnings)
    return report


def _shared_images(one: Split, other: Split, contents: dict[Path, bytes]) -> Iterator[str]:
    """Yield warnings about images that are in both splits, under the same or under different names.

    Args:
        contents: digest of each decoded image file; empty unless the check decodes whole images.
    """
    if shared := set(one.files) & set(other.files):
        listed = ", ".join(sorted(file.name for file in shared)[:5]) + (", ..." if len(shared) > 5 else "")
        yield f"splits {one.name} and {other.name} share {len(shared)} images ({listed}): results will be too optimistic"
    copies = {contents[file]: file for file in one.files if file in contents}
    for file in other.files:
        twin = copies.get(contents.get(file, b""))
        if twin is not None and twin != file:
            yield f"{file} in {other.name} is the same image as {twin} in {one.name}"
