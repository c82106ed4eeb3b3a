"""The report of a dataset check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import UserError

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

    def attempt(self, function: Callable, *args):
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
        return "\n".join([*lines, _verdict(self)])


def _verdict(report: DataReport) -> str:
    warned = f"{len(report.warnings)} warning{'s' * (len(report.warnings) != 1)}"
    if report.fatal:
        return f"{len(report.fatal)} problem{'s' * (len(report.fatal) != 1)} that training would stop at, {warned}"
    return f"fit for training, {warned if report.warnings else 'nothing to warn of'}"


def _usual_order(name: str) -> tuple[str, int]:
    """Sort key for split names: by folder, then train, val, test and others."""
    folder, _, last = name.rpartition("/")
    known = [index for index, word in enumerate(("train", "val", "test")) if last.rstrip("0123456789") == word]
    return folder, known[0] if known else 3


def _natural(name: str) -> tuple[int, int, str]:
    """Sort key for class names: numbers by value, then other names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
