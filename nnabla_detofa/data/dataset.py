"""What all detection datasets have in common: their samples, and the access to the images, sizes and objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.errors import UserError
from ..common.reading import shown
from .images import check_whole, read_image

Objects = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes (n, 4), labels (n,) and difficult (n,), as in `Sample`."""

MAX_NOTES = 20
"""Largest number of warnings of one kind that are logged individually."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its objects.

    Attributes:
        image: (H, W, 3) uint8, channels blue, green, red.
        boxes: (n, 4) float32, x1 y1 x2 y2 in image pixels. For VOC these are the file's coordinates minus 1, so x2 and y2 are
            the last column and row; for COCO and YOLO, x2 and y2 are the far edges.
        labels: (n,) int64, indices into the dataset's `classes`.
        difficult: (n,) bool, true for objects that evaluation ignores (difficult in VOC, crowds in COCO, none in YOLO).
        image_id: name of the image in the split file (VOC), its `file_name` (COCO) or its path below the dataset (YOLO).
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    image_id: str


class DetectionDataset:
    """Images and their objects. The constructors of the subclasses read all annotations; `load` reads the pixels.

    Attributes:
        classes: class names of the labels 0, 1, ...
        files: paths of the images, by index.
        image_ids: names of the images, by index; see `Sample`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        files: Sequence[Path],
        image_ids: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        objects: Sequence[Objects],
    ):
        self.classes, self.files, self.image_ids = tuple(classes), list(files), tuple(image_ids)
        self._sizes, self._objects = list(sizes), list(objects)

    def __len__(self) -> int:
        return len(self.files)

    def objects(self, index: int) -> Objects:
        """Return boxes (n, 4), labels (n,) and difficult flags (n,) of image `index`, without reading the image."""
        return self._objects[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of image `index`, without decoding it."""
        return self._sizes[index]

    def check_images(self) -> None:
        """Check all image files for truncation and changed sizes, without decoding them, so that errors occur before training.

        Raises:
            UserError: an image is truncated or unreadable, or its size changed since the dataset was opened.
        """
        for file, before in zip(self.files, self._sizes):
            _check_unchanged(file, check_whole(file), before)

    def load(self, index: int) -> Sample:
        """Read image `index`.

        Raises:
            UserError: the image is truncated or unreadable, or its size changed since the dataset was opened.
        """
        image = read_image(self.files[index])
        height, width, _ = image.shape
        _check_unchanged(self.files[index], (height, width), self._sizes[index])
        return Sample(image, *self._objects[index], self.image_ids[index])


def _check_unchanged(file: Path, size: tuple[int, int], before: tuple[int, int]) -> None:
    """Raise UserError if the size (height, width) of an image changed after its dataset was opened."""
    if size != before:
        raise UserError(
            f"{file} has {size[0]} x {size[1]} pixels (height x width), but had {before[0]} x {before[1]} when the dataset was "
            "opened: do not change the files while they are in use"
        )


def unknown_class(name: str, known: Collection[str]) -> str:
    """Return the end of an error message about a class that is not among the `known` ones, with advice."""
    return (
        f"{shown(name)}; known classes are {', '.join(known)}; add it to the classes, or drop its objects with "
        "ignore_other_classes=true"
    )


def ignored_classes(counts: Counter[str]) -> str:
    """List the 20 most frequent classes of dropped objects, for a warning."""
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(20))
