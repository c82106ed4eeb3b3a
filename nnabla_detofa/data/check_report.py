"""What a check of a data set has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import UserError

PARTS = {"trainval": {"train", "val"}, "train": {"trainval"}, "val": {"trainval"}}
"""Splits of VOC that share images because one is a part of the other."""


@dataclass
class Split:
    """What one split holds.

    Attributes:
        objects: how many of each class; those marked difficult, and crowds, are in `difficult` instead.
        ignored: objects of classes that a config leaves out.
        empty: images without an object.
        files: the photographs, as far as they are there.
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
    """Sorts splits: train, val, test and then others, in each folder."""
    folder, _, last = name.rpartition("/")
    known = [index for index, word in enumerate(("train", "val", "test")) if last.rstrip("0123456789") == word]
    return folder, known[0] if known else 3


def _natural(name: str) -> tuple[int, int, str]:
    """Sorts numbers by value, before names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
