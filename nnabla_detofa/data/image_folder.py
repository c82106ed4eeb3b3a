"""Classification data sets, one folder per class, and the transforms that pre-training uses on them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..common.errors import UserError
from .augment import normalise
from .images import EXTENSIONS, check_whole, read_image

CHECKED = 20000
"""Images that are looked at before training; ImageNet's 1.3 million would take minutes each time."""


class LabelledImage(NamedTuple):
    """One photograph, (H, W, 3) uint8, blue, green, red, and the position of its class."""

    image: np.ndarray
    label: int


class ImageFolder:
    """The images of `folder`/<class>/; classes and files are sorted by name.

    Args:
        folder: usually the data set's folder and the split, as in `imagenet/train`.
        classes: the class names expected, as from the training split's `classes`; None takes the folders that are there.

    Raises:
        UserError: the folder is missing, holds other classes, or a class has no image.
    """

    def __init__(self, folder: str | os.PathLike, classes: Sequence[str] | None = None):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: one subfolder of JPEG or PNG images for each class must be there")
        self.classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
        if not self.classes:
            raise UserError(f"{folder} must hold one subfolder of JPEG or PNG images for each class, and has no subfolder")
        if classes is not None and self.classes != tuple(classes):
            raise UserError(f"{folder} must hold the classes {', '.join(classes)}, got {', '.join(self.classes)}")
        self._items: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            files = [file for file in sorted((folder / name).iterdir()) if file.suffix.lower() in EXTENSIONS]
            if not files:
                raise UserError(f"{folder / name} must hold at least one JPEG or PNG image")
            self._items += [(file, label) for file in files]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def files(self) -> list[Path]:
        """The photographs, in order."""
        return [file for file, _ in self._items]

    def check_images(self) -> None:
        """Look at both ends of every photograph, of no more than `CHECKED` of them: broken ones are found now.

        Raises:
            UserError: a photograph is truncated or not readable.
        """
        for file in self.files[:CHECKED]:
            check_whole(file)

    def load(self, index: int) -> LabelledImage:
        """Read image `index`.

        Raises:
            UserError: the photograph is truncated or not readable.
        """
        file, label = self._items[index]
        return LabelledImage(read_image(file), label)


def random_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, area: tuple[float, float] = (0.35, 1.0), flip: float = 0.5
) -> np.ndarray:
    """For training: a random part of the image, resized to a square: (3, size, size) float32, normalised.

    The part has a share of the image's area drawn from `area` and sides in a ratio between 3/4 and 4/3; after ten that do
    not fit, it is the central square. (The paper pre-trains with OFA's recipe; `area` is milder than its 0.08.)

    Args:
        flip: probability of a mirrored image; 0 where left and right matter, as in digits.
    """
    height, width = image.shape[:2]
    crop_height = crop_width = min(height, width)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    for _ in range(10):
        pixels, ratio = rng.uniform(*area) * height * width, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = max(1, round(np.sqrt(pixels / ratio))), max(1, round(np.sqrt(pixels * ratio)))
        if h <= height and w <= width:
            crop_height, crop_width = h, w
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            break
    crop = _resize(image[top : top + crop_height, left : left + crop_width], size, size)
    return normalise(np.float32(crop[:, ::-1] if rng.random() < flip else crop) / 255)


def centre_crop(image: np.ndarray, size: int, share: float = 0.875) -> np.ndarray:
    """For evaluation: the central square, `share` of the shorter side: (3, size, size) float32, normalised."""
    shorter = round(size / share)
    factor = shorter / min(image.shape[:2])
    height, width = (max(size, round(side * factor)) for side in image.shape[:2])
    top, left = (height - size) // 2, (width - size) // 2
    resized = _resize(image, height, width)
    return normalise(np.float32(resized[top : top + size, left : left + size]) / 255)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize, averaging when pixels are lost and interpolating when they are made."""
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
