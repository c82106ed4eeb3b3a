"""The digits dataset: handwritten digits on darkened photos, generated from data that scikit-learn ships.

It is a small detection task that needs no download (the paper is silent; we add it for small experiments). `write_digits`
writes a VOC tree of images with 1 to 6 digits, and images of single digits on the same backgrounds for pre-training:

    JPEGImages/, Annotations/, ImageSets/Main/{train,val,trainval,test}.txt       ten classes, "0" to "9"
    classification/{train,val}/{0..9}/00000.jpg
    settings.json                                                                  the arguments of `write_digits`

scikit-learn's 1797 digits come from forms filled in by different people, in the order of the forms. Each form begins with
the digits 0 to 9 three times, which shows where it starts. The splits consist of whole forms (`FORMS`), so most writers are
in one split only. Training backgrounds come from the left three fifths of two photos, all other backgrounds from the rest.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np

from ..common.errors import UserError

DIGIT_CLASSES = tuple("0123456789")

FORMS = {"train": slice(0, 1029), "val": slice(1029, 1415), "test": slice(1415, 1797)}
"""The digits of each split in scikit-learn's order: eight, three and three forms."""

VERSION = 1  # increase with every change to the generated images
DIGIT_SIDE = (20, 60)
"""Smallest and largest side, in pixels, of the square around a digit; the digit itself is about 16 to 48 pixels high."""

PHOTOS = ("china.jpg", "flower.jpg")
TRAIN_WIDTH = 0.6
INK = 0.3  # smallest coverage of a pixel that counts as ink
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


class _Source(NamedTuple):
    """The data that one split samples from.

    Attributes:
        digits: (n, 10, 10) float32 in [0, 1].
        labels: (n,).
        backgrounds: each (H, W, 3) uint8.
    """

    digits: np.ndarray
    labels: np.ndarray
    backgrounds: list[np.ndarray]


def write_digits(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    train: int = 400,
    val: int = 128,
    test: int = 150,
    image_size: int = 128,
    crops_train: int = 4000,
    crops_val: int = 1000,
    crop_size: int = 64,
    overwrite: bool = False,
) -> Path:
    """Write the dataset to the folder `root` atomically.

    The same arguments give the same bytes (with the same version of OpenCV), and a larger split begins with the same
    images. A tree that was written with the same arguments is left unchanged.

    Args:
        root: a new or empty folder, or one that this function wrote.
        seed: random seed.
        train, val, test: numbers of images with 1 to 6 digits, `image_size` pixels square.
        crops_train, crops_val: numbers of images with one digit, `crop_size` pixels square; 0 omits them.
        overwrite: whether to replace a tree that was written with other arguments; other content is never replaced.

    Returns:
        `root`.

    Raises:
        UserError: a size or number is too small, or `root` contains something else.
    """
    settings: dict[str, Any] = {
        "data set": "digits", "version": VERSION, "seed": seed, "train": train, "val": val, "test": test,
        "image_size": image_size, "crops_train": crops_train, "crops_val": crops_val, "crop_size": crop_size,
    }  # fmt: skip
    least = {"image_size": DIGIT_SIDE[1], "crop_size": DIGIT_SIDE[1]} | dict.fromkeys(FORMS, 1)
    least |= {"crops_train": 0, "crops_val": 0}
    for name, smallest in least.items():
        if settings[name] < smallest:
            reason = ", the side of the largest digit" if smallest == DIGIT_SIDE[1] else ""
            raise UserError(f"{name} must be at least {smallest}{reason}, got {settings[name]}")
    root = Path(root)
    if _is_made(root, settings, overwrite):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        made = Path(scratch) / "made"
        _write_tree(made, settings)
        _move(made, root, Path(scratch) / "replaced", settings, overwrite)
    return root


def _move(made: Path, root: Path, replaced: Path, settings: dict, overwrite: bool) -> None:
    """Rename the new tree `made` to `root`; an existing one moves to `replaced`, and back if the new one cannot be moved.

    Raises:
        UserError: the tree cannot be moved, and no other process has written the same one.
    """
    try:
        if overwrite:
            with contextlib.suppress(FileNotFoundError):
                root.rename(replaced)
        made.rename(root)
    except BaseException as error:
        restored = False
        with contextlib.suppress(OSError):
            replaced.rename(root)
            restored = True
        if not isinstance(error, OSError):
            raise
        # Another process may have been faster, and have written the same tree.
        if restored or not _is_made(root, settings, overwrite=False):
            raise UserError(f"{root} cannot be written: {error.strerror}") from error


def _write_tree(root: Path, settings: dict) -> None:
    """Write all images, annotations and lists of the dataset to a new folder, and the settings to settings.json."""
    seed = settings["seed"]
    for number, split in enumerate(FORMS):
        source = _source(split)
        names = [f"{split}_{i:05d}" for i in range(settings[split])]
        for i, name in enumerate(names):
            _write_scene(root, name, source, settings["image_size"], np.random.default_rng((seed, number, 0, i)))
        _write_split(root, split, names)
        for i in range(settings.get(f"crops_{split}", 0)):
            rng = np.random.default_rng((seed, number, 1, i))
            _write_crop(root / "classification" / split, i, source, settings["crop_size"], rng)
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text("utf-8") + (lists / "val.txt").read_text("utf-8"))
    (root / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")


def _is_made(root: Path, settings: dict, overwrite: bool) -> bool:
    """Return whether `root` already contains the tree with these settings; False if the tree can be written.

    Raises:
        UserError: `root` contains something that must not be replaced.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "settings.json").read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("data set") != settings["data set"]:
        raise UserError(f"{root} must be a new or empty folder, or one that this command wrote, but contains something else")
    differing = [key for key in settings if found.get(key) != settings[key]]
    if differing and not overwrite:
        changes = ", ".join(f"{key} {found.get(key)} instead of {settings[key]}" for key in differing)
        raise UserError(f"{root} was written with {changes}; choose another folder, or overwrite it")
    return not differing


def _source(split: str) -> _Source:
    from sklearn.datasets import load_digits, load_sample_image  # only generating the dataset needs scikit-learn

    digits = load_digits()
    backgrounds = []
    for name in PHOTOS:
        image = cv2.cvtColor(load_sample_image(name), cv2.COLOR_RGB2BGR)
        border = int(image.shape[1] * TRAIN_WIDTH)
        backgrounds.append(image[:, :border] if split == "train" else image[:, border:])
    chosen = FORMS[split]
    # A margin of one empty cell lets strokes fade out at the edges of their square.
    framed = np.pad(np.float32(digits.images[chosen] / 16), ((0, 0), (1, 1), (1, 1)))
    return _Source(framed, digits.target[chosen], backgrounds)


def _background(source: _Source, side: int, rng: np.random.Generator) -> np.ndarray:
    """Sample a darkened square piece of a photo: (side, side, 3) float32 in [0, 255]."""
    image = source.backgrounds[rng.integers(len(source.backgrounds))]
    # The piece is one to two times as wide as the result, so that scenes and crops show the same textures.
    piece = min(rng.integers(side, 2 * side + 1), *image.shape[:2])
    top, left = (rng.integers(length - piece + 1) for length in image.shape[:2])
    square = cv2.resize(image[top : top + piece, left : left + piece], (side, side), interpolation=cv2.INTER_AREA)
    mirrored = square[:, ::-1] if rng.random() < 0.5 else square
    return mirrored.astype(np.float32) * np.float32(rng.uniform(0.2, 0.45))


def _draw(canvas: np.ndarray, digit: np.ndarray, side: int, top: int, left: int, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of the canvas with `digit` drawn in near-white in the square of `side` pixels at (top, left)."""
    cover = cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
    drawn = canvas.copy()
    square = drawn[top : top + side, left : left + side]
    square += cover * (np.float32(rng.uniform(215, 255)) - square)
    return drawn


def _ink_box(digit: np.ndarray, side: int, top: int, left: int) -> np.ndarray:
    """Return the box x1 y1 x2 y2 of a digit's ink: first and last column and row, 0-based and inclusive."""
    ink = cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC) >= INK
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return np.array([left + columns[0], top + rows[0], left + columns[-1], top + rows[-1]])


def _write_scene(root: Path, name: str, source: _Source, side: int, rng: np.random.Generator) -> None:
    """Write one image with 1 to 6 digits and its annotation."""
    canvas = _background(source, side, rng)
    boxes = np.zeros((0, 4), int)
    labels: list[int] = []
    for _ in range(rng.integers(1, 7)):
        for _ in range(20):  # a digit without a free place after 20 tries is skipped
            chosen = rng.integers(len(source.digits))
            extent = int(rng.integers(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1))
            top, left = rng.integers(side - extent + 1, size=2)
            box = _ink_box(source.digits[chosen], extent, top, left)
            if (_covered(box, boxes) <= 0.05).all():
                canvas = _draw(canvas, source.digits[chosen], extent, top, left, rng)
                boxes, labels = np.vstack([boxes, box]), [*labels, int(source.labels[chosen])]
                break
    _write_image(root / "JPEGImages" / f"{name}.jpg", canvas)
    _write_annotation(root / "Annotations" / f"{name}.xml", name, side, boxes + 1, labels)


def _covered(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection of a box (4,) with each box (n, 4), as a fraction of the smaller area: (n,)."""
    shared = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + 1).clip(0).prod(1)
    return shared / np.minimum((box[2:] - box[:2] + 1).prod(), (others[:, 2:] - others[:, :2] + 1).prod(1))


def _write_crop(folder: Path, number: int, source: _Source, side: int, rng: np.random.Generator) -> None:
    """Write one image with one digit; the class is `number` modulo 10."""
    label = number % len(DIGIT_CLASSES)
    digit = source.digits[rng.choice(np.flatnonzero(source.labels == label))]
    extent = int(rng.integers(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1))
    top, left = rng.integers(side - extent + 1, size=2)
    canvas = _draw(_background(source, side, rng), digit, extent, top, left, rng)
    _write_image(folder / DIGIT_CLASSES[label] / f"{number:05d}.jpg", canvas)


def _write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", image.round().astype(np.uint8), JPEG)[1].tobytes())


def _write_split(root: Path, split: str, names: list[str]) -> None:
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{name}\n" for name in names))


def _write_annotation(path: Path, name: str, side: int, boxes: np.ndarray, labels: list[int]) -> None:
    """Write an annotation in VOC's XML format; `boxes` (n, 4) are 1-based, with both corners inside."""
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = f"{name}.jpg"
    _add(tree, "size", {"width": side, "height": side, "depth": 3})
    for box, label in zip(boxes, labels):
        entry = _add(tree, "object", {"name": DIGIT_CLASSES[label], "truncated": 0, "difficult": 0})
        _add(entry, "bndbox", dict(zip(("xmin", "ymin", "xmax", "ymax"), box)))
    ElementTree.indent(tree)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ElementTree.tostring(tree) + b"\n")


def _add(parent: ElementTree.Element, tag: str, values: dict[str, object]) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    for key, value in values.items():
        ElementTree.SubElement(element, key).text = str(value)
    return element
