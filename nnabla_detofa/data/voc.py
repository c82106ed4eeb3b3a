"""Detection data sets in the layout of Pascal VOC: annotations checked at once, photographs read one by one."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..common.errors import UserError
from ..common.reading import read_bytes, short, shown
from .images import EXTENSIONS, check_whole, read_image

log = logging.getLogger("nnabla_detofa")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes of Pascal VOC, in the order of its development kit."""

LAYOUT = "ImageSets/Main/<split>.txt, Annotations/<image>.xml and JPEGImages/<image>.jpg"

Objects = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes (n, 4), labels (n,) and difficult (n,), as in `Sample`."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One photograph and its objects.

    Attributes:
        image: (H, W, 3) uint8, blue, green, red.
        boxes: (n, 4) float32, x1 y1 x2 y2 in image pixels: VOC's corners less 1, so x2 and y2 are the last column and row.
        labels: (n,) int64, positions in the data set's `classes`.
        difficult: (n,) bool; evaluation neither counts nor punishes these.
        image_id: the name in the split file.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    image_id: str


class VOCDataset:
    """The images of one or more splits of a VOC tree.

    Every annotation is read and checked here, so that a broken file is found before training and not in its tenth hour;
    photographs are only looked up, and read by `load`. Boxes that reach outside the image are clipped to it and those
    without area left out, both with a warning. Where the size in an annotation is not the photograph's, the photograph
    is right.

    Training may leave out the objects marked difficult, as many VOC detectors do: `keep_difficult=False` (the paper is
    silent; CenterNet's own sampler does not look at the flag). Evaluation needs them, so as not to punish their
    detection.

    Args:
        root: folder with `ImageSets`, `Annotations` and `JPEGImages`, or with one such folder per year (`VOCdevkit`).
        splits: "trainval" for a tree directly under `root`, "VOC2007/trainval" for one in a subfolder; several are
            merged in order, an image that is listed twice counts once.
        classes: the names that become labels 0, 1, ...; None takes every name in the annotations, sorted.
        keep_difficult: whether objects marked difficult are in the samples.

    Raises:
        UserError: a file or folder is missing or broken, or an object's class is not in `classes`.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        splits: str | Sequence[str],
        classes: Sequence[str] | None = None,
        keep_difficult: bool = True,
    ):
        root = Path(root)
        if not root.is_dir():
            raise UserError(
                f"{root} is not a folder: a data set in VOC layout ({LAYOUT}) must be there; Pascal VOC itself is at "
                "host.robots.ox.ac.uk/pascal/VOC, and its archives unpack to the folders VOC2007 and VOC2012"
            )
        self.files = find_images(root, [splits] if isinstance(splits, str) else splits)
        if not self.files:
            raise UserError(f"splits of {root} must name at least one image, got {splits!r}")
        annotations = [_read_annotation(image) for image in self.files]
        names = {name for annotation in annotations for name in annotation.names}
        self.classes = tuple(sorted(names) if classes is None else classes)
        self.image_ids = tuple(image.stem for image in self.files)
        label_of = {name: label for label, name in enumerate(self.classes)}
        for annotation in annotations:
            unknown = [name for name in annotation.names if name not in label_of]
            if unknown:
                raise UserError(
                    f"{annotation.path} has an object of class {shown(unknown[0])}; known are {', '.join(label_of)}"
                )
        self._annotations = annotations if keep_difficult else [_without_difficult(a) for a in annotations]
        self._labels = [np.array([label_of[name] for name in a.names], np.int64) for a in self._annotations]
        self._objects = [self._clip(i) for i in range(len(self))]
        flat = [a.path.name for a, objects in zip(self._annotations, self._objects) if len(objects[0]) < len(a.boxes)]
        if flat:
            log.warning("%s: boxes without area are left out, in %d files: %s", root, len(flat), ", ".join(flat[:5]))

    def __len__(self) -> int:
        return len(self.files)

    def objects(self, index: int) -> Objects:
        """Boxes, labels and difficult flags of image `index`, as in its sample, without reading the photograph."""
        return self._objects[index]

    def check_images(self) -> None:
        """Look at the end of every photograph: a truncated one is found now, not when it is read.

        Raises:
            UserError: a photograph is truncated or not readable.
        """
        for image in self.files:
            check_whole(image)

    def load(self, index: int) -> Sample:
        """Read image `index`.

        Raises:
            UserError: the photograph is truncated or not readable.
        """
        image = read_image(self.files[index])
        annotation, size = self._annotations[index], image.shape[:2]
        if annotation.size != size:
            message = "%s is %d x %d pixels (height x width), its annotation says %d x %d: the image is right"
            log.warning(message, self.files[index], *size, *annotation.size)
            self._annotations[index] = replace(annotation, size=size)  # so that the next epoch does not warn again
            self._objects[index] = self._clip(index)
        return Sample(image, *self._objects[index], self.image_ids[index])

    def _clip(self, index: int) -> Objects:
        """The objects of image `index`, clipped to its size; those without area are left out."""
        annotation = self._annotations[index]
        height, width = annotation.size
        boxes = np.clip(annotation.boxes, 0, np.array([width - 1, height - 1] * 2, np.float32))
        for box in annotation.boxes[(boxes != annotation.boxes).any(1)]:
            corners = ", ".join(f"{corner:g}" for corner in box + 1)
            log.warning("%s: the box (%s) reaches outside %d x %d pixels: clipped", annotation.path, corners, width, height)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[keep], self._labels[index][keep], annotation.difficult[keep]


@dataclass(frozen=True, eq=False)
class _Annotation:
    """An XML file: boxes (n, 4) float32, 0-based but as wide as they are written; `size` is (height, width)."""

    path: Path
    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: np.ndarray
    size: tuple[int, int]


def _without_difficult(annotation: _Annotation) -> _Annotation:
    easy = ~annotation.difficult
    names = tuple(name for name, keep in zip(annotation.names, easy) if keep)
    return replace(annotation, boxes=annotation.boxes[easy], names=names, difficult=annotation.difficult[easy])


def find_images(root: Path, splits: Sequence[str], warn: bool = True) -> list[Path]:
    """The photographs that `splits` list, in order, each once; with `warn` it is said where one is listed again."""
    images: dict[Path, None] = {}
    for split in splits:
        *folders, name = split.split("/")
        tree = root.joinpath(*folders)
        list_file = tree / "ImageSets" / "Main" / f"{name}.txt"
        if ".." in folders or not list_file.is_file():
            raise UserError(f"split {split!r} of {root} must be one of: {', '.join(_splits(root)) or f'none found ({LAYOUT})'}")
        on_disk = _list_images(tree / "JPEGImages")
        repeated = 0
        for image_id in _read_split(list_file):
            if image_id not in on_disk:
                raise UserError(
                    f"{tree / 'JPEGImages' / short(image_id)}.jpg is missing (no .jpeg or .png either): {list_file} lists it"
                )
            repeated += on_disk[image_id] in images
            images[on_disk[image_id]] = None
        if repeated and warn:
            log.warning("%s lists %d images again: each is used once", list_file, repeated)
    return list(images)


def _splits(root: Path) -> list[str]:
    """The splits below `root`, as they are written in a config; VOC's per-class lists (`cat_train`) are left out."""
    files = sorted([*root.glob("ImageSets/Main/*.txt"), *root.glob("*/ImageSets/Main/*.txt")])
    files = [file for file in files if file.is_file()]
    names = [(file.parents[2].relative_to(root) / file.stem).as_posix() for file in files]
    plain = {file.stem for file in files}
    return [name for name, file in zip(names, files) if file.stem.rpartition("_")[2] not in plain - {file.stem}]


def _list_images(folder: Path) -> dict[str, Path]:
    """The image files of `folder` by their name without extension."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: the photographs of a data set in VOC layout must be there ({LAYOUT})")
    ranked = {extension: rank for rank, extension in enumerate(reversed(EXTENSIONS))}
    files = [folder / name for name in sorted(os.listdir(folder)) if os.path.splitext(name)[1].lower() in ranked]
    return {file.stem: file for file in sorted(files, key=lambda file: ranked[file.suffix.lower()])}


MOST_SPLIT = 1 << 26
"""Bytes of a split file."""
MOST_PIXELS = 1 << 20
"""Of a side of an image, and of a coordinate on either side of 0."""


def _read_split(file: Path) -> list[str]:
    """The image names in a split file: the first column, since per-class splits have -1, 0 or 1 in a second one."""
    try:
        lines = read_bytes(file, "the split", MOST_SPLIT).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} must be a text file in UTF-8 with one image name per line: {error}") from error
    return [line.split()[0] for line in lines if line.strip()]


def annotation_of(image: Path) -> Path:
    """The file that belongs to a photograph."""
    return image.parents[1] / "Annotations" / f"{image.stem}.xml"


def _read_annotation(image: Path) -> _Annotation:
    """Read the annotation that belongs to `image`.

    Its <filename> is not looked at: real files disagree with their own name there, and a path must not lead out of the
    data set. Entities are refused (defusedxml), so a small file cannot grow to fill the memory or read another one.
    """
    path = annotation_of(image)
    content = read_bytes(path, "the annotation")
    try:
        root = fromstring(content)
    except DefusedXmlException as error:
        raise UserError(f"{path} declares XML entities, which an annotation must not: {error}") from error
    except (ParseError, LookupError, ValueError) as error:
        raise UserError(f"{path} is not well-formed XML: {error}") from error
    if root.tag != "annotation":
        raise UserError(f"{path} must hold an <annotation>, as VOC's do, got <{short(root.tag)}>")
    objects = root.findall("object")
    corners = [[_number(o, f"bndbox/{corner}", path) for corner in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    names = tuple((o.findtext("name") or "").strip() for o in objects)
    if not all(names):
        raise UserError(f"{path}: <name> of <object> must be the name of a class, got nothing in object {names.index('') + 1}")
    difficult = np.array([(o.findtext("difficult") or "0").strip().lower() in ("1", "true") for o in objects], bool)
    # A few tools leave the size out or write 0; then only the photograph can tell.
    height, width = (int(_number(root, f"size/{side}", path, missing=0)) for side in ("height", "width"))
    for side, pixels in (("height", height), ("width", width)):
        if pixels < 0:
            raise UserError(f"{path}: <size/{side}> of <annotation> must be a number of 0 or more, got '{pixels}'")
    size = (height, width) if height > 0 and width > 0 else read_image(image).shape[:2]
    return _Annotation(path, np.array(corners, np.float32).reshape(-1, 4) - 1, names, difficult, size)


def _number(element: Element, tag: str, path: Path, missing: float | None = None) -> float:
    text = element.findtext(tag)
    if text is None and missing is not None:
        return missing
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_PIXELS:
        wanted = f"a number from -{MOST_PIXELS} to {MOST_PIXELS}"
        raise UserError(f"{path}: <{tag}> of <{element.tag}> must be {wanted}, got {shown(text)}")
    return number
