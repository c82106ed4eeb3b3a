"""Classification datasets with one folder per class, and the image transforms of pre-training."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..common.checked import listed
from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from .images import EXTENSIONS, MAX_PIXELS, OTHER_FORMATS, check_whole, read_image
from .names import composed

log = logging.getLogger("nnabla_detofa")

CHECKED = 20000
"""Largest number of images that are checked before training; ImageNet's 1.3 million would take minutes each time."""


class LabeledImage(NamedTuple):
    """An image, (H, W, 3) uint8, channels blue, green, red, and the index of its class."""

    image: np.ndarray
    label: int


class ImageFolder:
    """Classification dataset of the images in `folder`/<class>/. Classes and files are sorted by name.

    Args:
        folder: usually the folder of a split, such as `imagenet/train`.
        classes: the expected class names, such as `classes` of the training split; None uses the names of the subfolders.

    Raises:
        UserError: the folder is missing or has other classes, or a class has no image.
    """

    def __init__(self, folder: str | os.PathLike, classes: Sequence[str] | None = None):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; it must contain one subfolder of JPEG or PNG images per class")
        found = list_classes(folder)
        self.classes = tuple(found)
        if (text := too_few_classes(folder, found)) and not (classes and found):
            raise UserError(text)
        if classes is not None and self.classes != tuple(classes):
            raise UserError(f"{folder} must contain the classes {', '.join(classes)}, got {', '.join(self.classes)}")
        self._items: list[tuple[Path, int]] = []
        for label, (place, files) in enumerate(found.values()):
            if not files:
                raise UserError(f"{place} must contain at least one JPEG or PNG image")
            self._items += [(file, label) for file in files]
        ignored = [outside_classes(folder), *(other_files(place, len(files)) for place, files in found.values())]
        for text in filter(None, ignored):
            log.warning("%s", text)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def files(self) -> list[Path]:
        """Paths of the images, by index."""
        return [file for file, _ in self._items]

    def check_images(self) -> None:
        """Check the first `CHECKED` image files for truncation, without decoding them, so that errors occur before training.

        Raises:
            UserError: an image is truncated or unreadable.
        """
        for file in self.files[:CHECKED]:
            check_whole(file)

    def load(self, index: int) -> LabeledImage:
        """Read image `index`.

        Raises:
            UserError: the image is truncated or unreadable.
        """
        file, label = self._items[index]
        return LabeledImage(read_image(file), label)


def list_classes(folder: Path) -> dict[str, tuple[Path, list[Path]]]:
    """Map each class name to its folder and the images in it, both sorted by name. Hidden folders and files are skipped.

    Names are in Unicode's composed form, unless two folders share it. A link to a missing folder is a class without images.
    """
    places = [place for place in folder.iterdir() if place.name[0] != "." and (place.is_dir() or not place.exists())]
    several = Counter(composed(place.name) for place in places)
    names = {place: name if several[name := composed(place.name)] == 1 else place.name for place in places}
    return {name: (place, _images(place)) for place, name in sorted(names.items(), key=lambda item: (item[1], item[0]))}


def too_few_classes(folder: Path, classes: Collection[str]) -> str:
    """Return an error message if a split has not the two classes that a classifier needs at least, otherwise ""."""
    if len(classes) > 1:
        return ""
    found = f"only {listed(classes, 'and')}" if classes else "no subfolder"
    return f"{folder} must contain one subfolder of JPEG or PNG images for each of two or more classes, but has {found}"


def _images(place: Path) -> list[Path]:
    """Return the images in the folder of a class, sorted by name, without hidden files; none if the folder is missing."""
    files = sorted(place.iterdir()) if place.is_dir() else []
    return [file for file in files if file.suffix.lower() in EXTENSIONS and file.name[0] != "."]


def outside_classes(folder: Path) -> str:
    """Return a warning about images of a split outside the folders of its classes, or an empty string."""
    formats = {*EXTENSIONS, *OTHER_FORMATS}
    number = sum(file.suffix.lower() in formats and file.name[0] != "." and file.is_file() for file in folder.iterdir())
    return f"{folder}: images outside the subfolders of the classes are ignored: {number}" if number else ""


def other_files(place: Path, used: int) -> str:
    """Return a warning about unused images (unsupported formats, or in subfolders) of a class folder, or an empty string.

    Args:
        place: the folder of a class.
        used: the number of its images that are used.
    """
    entries = list(place.iterdir()) if place.is_dir() else []
    formats = sorted({file.suffix.lower() for file in entries} & OTHER_FORMATS)
    others = sum(file.suffix.lower() in OTHER_FORMATS for file in entries)
    deeper = sum(file.suffix.lower() in EXTENSIONS and file.name[0] != "." for file in place.rglob("*")) - used
    texts = []
    if others:
        texts.append(f"{others} images in other formats ({', '.join(formats)})")
    if deeper > 0:
        texts.append(f"{deeper} images in subfolders")
    if not texts:
        return ""
    return f"{place}: {' and '.join(texts)} are ignored; only JPEG and PNG files directly in this folder are used"


def random_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.35, 1.0),
    flip: float = 0.5,
    normalization: Normalization = IMAGENET,
) -> np.ndarray:
    """Crop a random part of an image and resize it to a square, for training.

    The area of the crop is a fraction of the image area, sampled uniformly from `area`, and its aspect ratio is sampled from
    3/4 to 4/3. After ten samples that do not fit into the image, the central square is used. (The paper pre-trains with OFA's
    recipe, whose smallest fraction is 0.08; our default is larger.)

    Args:
        image: (H, W, 3) uint8, channels blue, green, red.
        size: side of the result in pixels.
        area: smallest and largest fraction of the image area.
        flip: probability of mirroring; use 0 if left and right matter, as for digits.

    Returns:
        (3, size, size) float32, normalized.
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
    return normalization((crop[:, ::-1] if rng.random() < flip else crop).astype(np.float32) / 255)


def center_crop(image: np.ndarray, size: int, share: float = 0.875, normalization: Normalization = IMAGENET) -> np.ndarray:
    """Crop the central square with `share` of the shorter side of an image (H, W, 3) uint8, for evaluation.

    Returns:
        (3, size, size) float32, normalized.
    """
    return normalization(center_pixels(image, size, share).astype(np.float32) / 255)


def center_pixels(image: np.ndarray, size: int, share: float = 0.875) -> np.ndarray:
    """Return the image of `center_crop` before normalization, (size, size, 3) uint8."""
    shorter = round(size / share)
    factor = shorter / min(image.shape[:2])
    height, width = (max(size, round(side * factor)) for side in image.shape[:2])
    if height * width > MAX_PIXELS:  # of a long image or a small share: the rest of the image is not worth the memory
        side = max(1, round(min(image.shape[:2]) * share))
        return _resize(_center(image, side), size, size)
    return _center(_resize(image, height, width), size)


def _center(image: np.ndarray, side: int) -> np.ndarray:
    """Return the central square of an image."""
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image, by area averaging if it gets smaller and by linear interpolation otherwise."""
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
