"""Label files in YOLO's format: one line per object with its class and its box or polygon."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.errors import UserError
from ..common.reading import read_text, short
from .images import ImageHeader
from .objects import NUMBER, upright_boxes

SLACK = 0.01
"""How far a coordinate may be outside [0, 1], because some tools round or do not clip."""


class Labels(NamedTuple):
    """Content of a label file.

    Attributes:
        classes: (n,) int64, indices of the classes.
        boxes: (n, 4) x1 y1 x2 y2 as fractions of the sides of the image, not clipped.
        repeated: number of dropped repetitions of a line.
    """

    classes: np.ndarray
    boxes: np.ndarray
    repeated: int


class Label(NamedTuple):
    """An object: index of its class, and its box (x1, y1, x2, y2) as fractions of the sides of the image."""

    class_index: int
    box: tuple[float, float, float, float]


def read_labels(file: Path, num_classes: int) -> Labels:
    """Read and check the labels of an image; an image without a label file has no objects.

    Raises:
        UserError: the label file cannot be read, or one of its lines is invalid.
    """
    labels = [parse_label(text, where, num_classes) for where, text in label_lines(file)]
    return collect(labels)


def collect(labels: Sequence[Label]) -> Labels:
    """Put the labels of one image into arrays; repeated labels are dropped."""
    unique = list(dict.fromkeys(labels))
    boxes = np.array([label.box for label in unique], float).reshape(-1, 4)
    return Labels(np.array([label.class_index for label in unique], np.int64), boxes, len(labels) - len(unique))


def label_lines(file: Path) -> list[tuple[str, str]]:
    """Return the place, for error messages, and the text of each non-blank line of a label file; none if it does not exist.

    Raises:
        UserError: the file exists and cannot be read.
    """
    if not os.path.lexists(file):  # a link to a missing file is an error
        return []
    lines = enumerate(read_text(file, "the labels").splitlines(), 1)
    return [(f"{file} line {number}", line) for number, line in lines if line.strip()]


def parse_label(text: str, where: str, num_classes: int) -> Label:
    """Parse one line of a label file.

    Args:
        text: the line.
        where: the place of the line, for error messages.
        num_classes: number of classes.

    Raises:
        UserError: the line is not a class and a box, or a class and a polygon, or a number is out of range.
    """
    first, *words = text.split()
    index = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else -1
    if not 0 <= index < num_classes:
        raise UserError(f"{where}: the class must be an integer from 0 to {num_classes - 1}, got {short(first)}")
    numbers = [_number(word) for word in words]
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise UserError(
            f"{where} must be a class and 4 numbers (center x, center y, width, height), or a class and the x and y of at "
            f"least 3 corners, got {len(numbers)} numbers after the class"
        )
    for word, number in zip(words, numbers):
        if not -SLACK <= number <= 1 + SLACK:
            raise UserError(
                f"{where}: coordinates must be fractions of the image's width and height in [0, 1], got {short(word)}"
            )
    if len(numbers) == 4:
        x, y, width, height = numbers
        if width < 0 or height < 0:
            raise UserError(f"{where}: width and height must not be negative, got {short(text)}")
        return Label(index, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return Label(index, (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])))


def _number(word: str) -> float:
    """Convert a word to a number; nan if it is not one."""
    return float(word) if NUMBER.fullmatch(word) else math.nan


def in_pixels(boxes: np.ndarray, header: ImageHeader) -> tuple[np.ndarray, str]:
    """Convert boxes (n, 4) in fractions to pixels of the image as `read_image` returns it.

    Sides that exceed the image by less than half a pixel, which is rounding, are moved to its edge.

    Returns:
        the boxes, and a warning for the user if the orientation of the image is ambiguous (empty if it is not).
    """
    height, width = header.size
    most = np.array([width, height, width, height], float)
    pixels = boxes * most
    pixels = np.where((pixels < 0) & (pixels > -0.5), 0.0, pixels)
    pixels = np.where((pixels > most) & (pixels < most + 0.5), most, pixels)
    placed, _, note = upright_boxes(pixels, None, header, inclusive=False)
    return placed, note
