"""Detection datasets in Pascal VOC layout: all annotations are checked when a dataset is opened, images are read on demand."""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..common.checked import counted
from ..common.errors import UserError
from ..common.reading import read_bytes, short, shown
from .dataset import MAX_NOTES, DetectionDataset, Objects, ignored_classes, unknown_class
from .images import EXTENSIONS, ImageHeader, inspect_image
from .names import Listing, composed, is_below, listed_names
from .objects import NORMALIZED, NUMBER, check_boxes, upright_boxes

log = logging.getLogger("nnabla_detofa")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes of Pascal VOC, in the order of its development kit."""

LAYOUT = "ImageSets/Main/<split>.txt, Annotations/<image>.xml and JPEGImages/<image>.jpg"


class VOCDataset(DetectionDataset):
    """Dataset of the images of one or more splits of a VOC tree.

    The constructor reads and checks every annotation and every image header, so that broken files are found before training
    starts; `load` reads the pixels. Boxes that extend outside the image are clipped and boxes without area are dropped, both
    with a warning. If an annotation and its image disagree about the image size, the size of the image is used.

    Training may exclude objects marked difficult with `keep_difficult=False`, as many VOC detectors do (the paper is silent;
    CenterNet's data sampling ignores the flag). Evaluation needs them, so that their detections are not counted as errors.

    Args:
        root: folder with `ImageSets`, `Annotations` and `JPEGImages`, or with one such folder per year (`VOCdevkit`).
        splits: "trainval" for a tree directly under `root`, "VOC2007/trainval" for a tree in a subfolder. Several splits are
            merged in order, and an image that is listed twice is used once.
        classes: class names of the labels 0, 1, ...; None uses all names in the annotations, sorted.
        keep_difficult: whether samples include the objects marked difficult.
        ignore_others: whether to drop objects whose class is not in `classes`; otherwise they are an error.
        reader: a reader to share with other datasets, so that each file is read once.

    Raises:
        UserError: a file or folder is missing or broken, or an object's class is not in `classes`.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        splits: str | Sequence[str],
        classes: Sequence[str] | None = None,
        keep_difficult: bool = True,
        ignore_others: bool = False,
        reader: VOCReader | None = None,
    ):
        root, reader = Path(root), reader or VOCReader()
        if not root.is_dir():
            raise UserError(
                f"{root} is not a folder; it must contain a dataset in VOC layout ({LAYOUT}). Pascal VOC is available at "
                "host.robots.ox.ac.uk/pascal/VOC; its archives unpack to the folders VOC2007 and VOC2012"
            )
        listed = find_images(root, [splits] if isinstance(splits, str) else splits)
        if not listed:
            raise UserError(f"splits of {root} must list at least one image, got {splits!r}")
        read = [reader.read(file) for file in listed]
        reader.warn(root)
        found = {name for annotation, _ in read for name in annotation.names}
        classes = tuple(sorted(found) if classes is None else classes)
        label_of = {composed(name): label for label, name in enumerate(classes)}
        others: Counter[str] = Counter()
        objects: list[Objects] = []
        for annotation, (boxes, names, difficult) in read:
            unknown = [name for name in annotation.names if name not in label_of]
            if unknown and not ignore_others:
                raise UserError(f"{annotation.path} has an object of class {unknown_class(unknown[0], label_of)}")
            others.update(unknown)
            used = [name in label_of and (keep_difficult or not hard) for name, hard in zip(names, difficult)]
            kept = np.array(used, bool)
            labels = np.array([label_of[name] for name, keep in zip(names, used) if keep], np.int64)
            objects.append((boxes[kept], labels, difficult[kept]))
        if others:
            log.warning("%s: objects of other classes in %s are ignored: %s", root, splits, ignored_classes(others))
        sizes = [annotation.size for annotation, _ in read]
        super().__init__(classes, [file.image for file in listed], [file.name for file in listed], sizes, objects)


class VOCReader:
    """Reads annotations and image headers and caches them, so that datasets which share files read and warn about them once."""

    def __init__(self) -> None:
        self._read: dict[VOCFile, tuple[Annotation, tuple[np.ndarray, list[str], np.ndarray]]] = {}
        self._boxes: dict[str, list[tuple[str, int]]] = {}  # reason for dropping boxes -> (annotation, number of boxes)
        self._notes: dict[str, list[str]] = {}

    def read(self, file: VOCFile) -> tuple[Annotation, tuple[np.ndarray, list[str], np.ndarray]]:
        """Return an annotation, and the clipped boxes (n, 4), class names and difficult flags (n,) of its valid objects.

        Raises:
            UserError: a file is missing or broken.
        """
        if file not in self._read:
            self._read[file] = self._new(file)
        return self._read[file]

    def warn(self, root: Path) -> None:
        """Log the warnings about the annotations that were read since the last call."""
        for texts in self._notes.values():
            for text in texts[:MAX_NOTES]:
                log.warning("%s", text)
            if more := texts[MAX_NOTES:]:
                log.warning("%s: %d more warnings like the last one; run data check to list all", root, len(more))
        for reason, found in self._boxes.items():
            names = ", ".join(name for name, _ in found[:5])
            files, number = counted(len(found), "file"), sum(n for _, n in found)
            log.warning("%s: dropped boxes %s: %d, in %s: %s", root, reason, number, files, names)
        self._notes, self._boxes = {}, {}

    def _new(self, file: VOCFile) -> tuple[Annotation, tuple[np.ndarray, list[str], np.ndarray]]:
        annotation = read_annotation(file, inspect_image(file.image))
        height, width = annotation.size
        if annotation.written and annotation.written != annotation.size:
            written = f"its annotation says {annotation.written[0]} x {annotation.written[1]}"
            text = f"{file.image} is {height} x {width} pixels (height x width), but {written}; the size of the image is used"
            self._note("size", text)
        if annotation.note:
            self._note("orientation", f"{file.image} {annotation.note}")
        found = check_boxes(annotation.boxes, annotation.size, inclusive=True)
        for box in annotation.boxes[found.clipped]:
            corners = ", ".join(f"{corner:g}" for corner in box + 1)
            outside = f"extends outside the {width} x {height} pixels of the image and is clipped"
            self._note("clipped", f"{annotation.path}: the box ({corners}) {outside}")
        for reason, boxes in (
            ("without area", ~found.kept & ~found.normalized),
            (f"with corners in 0..1 ({NORMALIZED})", found.normalized),
        ):
            if boxes.any():
                self._boxes.setdefault(reason, []).append((annotation.path.name, int(boxes.sum())))
        names = [name for name, keep in zip(annotation.names, found.kept) if keep]
        return annotation, (found.boxes[found.kept], names, annotation.difficult[found.kept])

    def _note(self, kind: str, text: str) -> None:
        self._notes.setdefault(kind, []).append(text)


@dataclass(frozen=True, eq=False)
class Annotation:
    """Content of an annotation file.

    Attributes:
        path: the XML file.
        boxes: (n, 4) float32 x1 y1 x2 y2 on the image as `read_image` returns it, 0-based and not clipped.
        names: class names of the objects.
        difficult: (n,) bool.
        size: (height, width) of the image.
        written: (height, width) according to the annotation; None if it gives none.
        note: warning about the orientation of the image; empty if there is none.
    """

    path: Path
    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: np.ndarray
    size: tuple[int, int]
    written: tuple[int, int] | None
    note: str


class VOCFile(NamedTuple):
    """An image listed by a split: its files, and its name, the path below JPEGImages without extension."""

    image: Path
    annotation: Path
    name: str


class ListedSplit(NamedTuple):
    """Content of a split file.

    Attributes:
        file: the split file.
        found: the listed images, in order and without repetition.
        repeated: number of occurrences of each image that is listed more than once.
        problems: an error message for each name without an image.
    """

    file: Path
    found: list[VOCFile]
    repeated: dict[VOCFile, int]
    problems: list[str]


def list_split(root: Path, split: str) -> ListedSplit:
    """Find the images that a split lists.

    Each line is the name of an image and may contain any characters. If there is no such image, a last column of -1, 0 or 1,
    as in VOC's per-class lists, is removed.

    Args:
        root: folder of the dataset.
        split: name of the split, as in `VOCDataset`.

    Raises:
        UserError: the split does not exist or cannot be read.
    """
    *folders, name = split.split("/")
    tree = root.joinpath(*folders)
    list_file = tree / "ImageSets" / "Main" / f"{name}.txt"
    if ".." in folders or not list_file.is_file():
        if not (known := split_names(root)):
            raise UserError(f"{root} must contain a dataset in VOC layout ({LAYOUT}), but has no split, and so no {split!r}")
        raise UserError(f"split {split!r} of {root} must be one of: {', '.join(known)}")
    folder = tree / "JPEGImages"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; it must contain the images of a dataset in VOC layout ({LAYOUT})")
    images, annotations = Listing(folder, EXTENSIONS), Listing(tree / "Annotations", (".xml",))
    counts: dict[VOCFile, int] = {}
    problems = []
    for line in listed_names(list_file):
        texts = (line, line.strip(), COLUMN.sub("", line.strip()))
        image = next(filter(None, map(images.find, texts)), None)
        if image is None:
            problems.append(_missing(texts[-1], folder, list_file))
            continue
        own = image.relative_to(folder).with_suffix("").as_posix()
        file = VOCFile(image, annotations.find(own) or tree / "Annotations" / f"{own}.xml", own)
        counts[file] = counts.get(file, 0) + 1
    return ListedSplit(list_file, list(counts), {file: count for file, count in counts.items() if count > 1}, problems)


def _missing(name: str, folder: Path, list_file: Path) -> str:
    """Return the error message for a listed name without an image."""
    if is_below(name):
        return f"{folder / short(name)}.jpg is missing (no .jpeg or .png either), but {list_file} lists it"
    return f"{short(name)} is missing: {list_file} lists it, but names must be paths below {folder}, without .. or a leading /"


def find_images(root: Path, splits: Sequence[str], warn: bool = True) -> list[VOCFile]:
    """Return the images that `splits` list, in order and without repetition; `warn` logs a warning about repetitions.

    Raises:
        UserError: a split or a listed image is missing, or a split cannot be read.
    """
    images: dict[VOCFile, None] = {}
    for split in splits:
        listed = list_split(root, split)
        if listed.problems:
            raise UserError(listed.problems[0])
        repeated = sum(count - 1 for count in listed.repeated.values()) + sum(file in images for file in listed.found)
        images.update(dict.fromkeys(listed.found))
        if repeated and warn:
            log.warning("%s lists %d images again; each is used once", listed.file, repeated)
    return list(images)


def split_names(root: Path) -> list[str]:
    """Return the names of the splits below `root`, as in a config, without VOC's per-class lists (`cat_train`)."""
    files = sorted([*root.glob("ImageSets/Main/*.txt"), *root.glob("*/ImageSets/Main/*.txt")])
    files = [file for file in files if file.is_file()]
    names = [(file.parents[2].relative_to(root) / file.stem).as_posix() for file in files]
    plain = {file.stem for file in files}
    return [name for name, file in zip(names, files) if file.stem.rpartition("_")[2] not in plain - {file.stem}]


COLUMN = re.compile(r"\s+(-1|0|1)$")
"""The column after the name in VOC's per-class lists."""
DECLARED = re.compile(rb"""(?:\xef\xbb\xbf)?<\?xml\s[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
"""The encoding that an XML file declares."""
PARSED = {"utf-8", "utf8", "utf-16", "us-ascii", "iso-8859-1"}
"""Encodings that the XML parser supports."""
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949", "ks_c_5601-1987": "cp949"}
"""Declared encoding -> the larger encoding that files with this declaration often use."""
MAX_PIXELS = 1 << 20
"""Largest side of an image, and largest absolute value of a coordinate."""


def read_annotation(file: VOCFile, header: ImageHeader) -> Annotation:
    """Read and check the annotation of an image with this header.

    The <filename> element is ignored, because in real files it often differs from the name of the file, and a path must not
    lead out of the dataset. XML entities are rejected (defusedxml), so that a small file can neither fill the memory nor read
    another file.

    Raises:
        UserError: the annotation is missing, is not well-formed XML or has an invalid value.
    """
    path = file.annotation
    root = _parse(path)
    if root.tag != "annotation":
        raise UserError(f"{path} must contain an <annotation> element in VOC format, got <{short(root.tag)}>")
    objects = _objects(root, path)
    corners = [[_number(o, f"bndbox/{corner}", path) for corner in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    names = tuple(composed((_text(o, "name", path) or "").strip()) for o in objects)
    if not all(names):
        raise UserError(f"{path}: <name> of <object> must be the name of a class, but is empty in object {names.index('') + 1}")
    difficult = np.array([_flag(o, "difficult", path) for o in objects], bool)
    # A few tools omit the size or write 0; then only the size of the image is known.
    height, width = (int(_number(root, f"size/{side}", path, missing=0)) for side in ("height", "width"))
    for side, pixels in (("height", height), ("width", width)):
        if pixels < 0:
            raise UserError(f"{path}: <size/{side}> of <annotation> must be a number of 0 or more, got '{pixels}'")
    written = (height, width) if height > 0 and width > 0 else None
    boxes = np.array(corners, np.float32).reshape(-1, 4) - 1
    boxes, written, note = upright_boxes(boxes, written, header, inclusive=True)
    return Annotation(path, boxes, names, difficult, header.size, written, note if len(boxes) else "")


def _parse(path: Path) -> Element:
    """Parse an XML file in its declared encoding, and return the root element."""
    try:
        content = read_bytes(path, "the annotation")
    except UserError as error:
        if path.exists():
            raise
        hint = "an image without objects needs a file with <annotation></annotation>, which LabelImg does not write"
        raise UserError(f"{error}; {hint}") from error
    try:
        declared = DECLARED.match(content)
        encoding = declared and declared[1].decode().lower()
        if encoding and encoding not in PARSED:
            return fromstring(content.decode(SUPERSETS.get(encoding, encoding)))
        return fromstring(content)
    except DefusedXmlException as error:
        raise UserError(f"{path} declares XML entities, which are not allowed in annotations: {error}") from error
    except (ParseError, LookupError, ValueError) as error:
        raise UserError(f"{path} is not well-formed XML: {error}") from error


def _objects(root: Element, path: Path) -> list[Element]:
    """Return the <object> elements.

    Raises:
        UserError: objects are in another place or spelled in another way, and would be ignored.
    """
    for parent in root.iter():
        for child in parent:
            if child.tag.rpartition("}")[2].lower() == "object" and not (parent is root and child.tag == "object"):
                place = f"<{short(child.tag)}> in <{short(parent.tag)}>"
                raise UserError(f"{path}: objects must be <object> elements directly in <annotation>, got {place}")
    return root.findall("object")


def _text(element: Element, tag: str, path: Path) -> str | None:
    """Return the text of the element `tag` below `element`, or None if there is none.

    Raises:
        UserError: there are several, of which only one would be read, or it contains elements, whose text would be ignored.
    """
    found = element.findall(tag)
    if len(found) > 1:
        raise UserError(f"{path}: <{element.tag}> must have only one <{tag}>, got {len(found)}")
    if found and len(found[0]):
        raise UserError(f"{path}: <{tag}> of <{element.tag}> must contain only text, got <{short(found[0][0].tag)}> in it")
    return (found[0].text or "") if found else None


def _flag(element: Element, tag: str, path: Path) -> bool:
    """Return whether a flag is set: a number other than 0, or true. Some tools write Unspecified for an unset flag."""
    text = (_text(element, tag, path) or "").strip().lower()
    if text in ("", "false", "unspecified"):
        return False
    return text == "true" or _number(element, tag, path) != 0


def _number(element: Element, tag: str, path: Path, missing: float | None = None) -> float:
    text = _text(element, tag, path)
    if text is None and missing is not None:
        return missing
    number = float(text) if text and NUMBER.fullmatch(text) else math.nan
    if not abs(number) <= MAX_PIXELS:
        wanted = f"a number from -{MAX_PIXELS} to {MAX_PIXELS}"
        raise UserError(f"{path}: <{tag}> of <{element.tag}> must be {wanted}, got {shown(text)}")
    return number
