"""Detection datasets in YOLO's layout: data.yaml, images, and a text file of labels per image.

`data.yaml` names the classes and the images of each split:

    path: .                          # optional: folder of the paths below, relative to the file
    train: images/train              # a folder, a text file that lists images, or a list of these
    val: images/val
    test: images/test                # optional
    names: {0: cat, 1: dog}          # or a list

The labels of images/train/a.jpg are in labels/train/a.txt: one line per object with its class and its box, center x, center y,
width and height, as fractions of the width and the height of the image. A line with the class and the corners of a polygon,
as segmentation datasets have it, stands for the box around the polygon. An image without a label file has no objects.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from ..common.errors import UserError
from ..common.reading import read_text, short, shown
from ..config.files import parse_yaml
from .dataset import MAX_NOTES, DetectionDataset, Objects, ignored_classes, unknown_class
from .images import EXTENSIONS, OTHER_FORMATS, inspect_image
from .names import Listing, below, composed, is_below, listed_names
from .objects import BoxSummary, check_boxes
from .yolo_labels import in_pixels, read_labels

log = logging.getLogger("nnabla_detofa")

DESCRIPTION = "data.yaml"
"""Usual name of the file that describes a dataset."""
LAYOUT = f"{DESCRIPTION}, images/<split>/<image>.jpg and labels/<split>/<image>.txt"
SPLITS = ("train", "val", "test")
"""Usual keys of the splits; other keys name a split if their value is an existing folder or file."""
NOT_SPLITS = ("names", "nc", "path", "download")
"""Keys that never name a split."""


class YOLODataset(DetectionDataset):
    """Dataset of the images of one split of a dataset in YOLO's layout.

    The constructor reads and checks every label file and every image header; `load` reads the pixels. Boxes that extend
    outside the image are clipped, boxes without area and repeated lines are dropped, with a single warning for each case.

    Args:
        root: folder of the dataset.
        split: key of the description that names the images, such as "train".
        classes: class names of the labels 0, 1, ...; None uses the names of the description.
        ignore_others: whether to drop objects whose class is not in `classes`; otherwise such a class is an error.
        description: name of the description, relative to `root`.

    Raises:
        UserError: a file or folder is missing or broken, a label is invalid, or a class is not in `classes`.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        classes: Sequence[str] | None = None,
        ignore_others: bool = False,
        description: str = DESCRIPTION,
    ):
        about = read_description(Path(root), description)
        classes = about.names if classes is None else tuple(classes)
        label_of = {composed(name): label for label, name in enumerate(classes)}
        for name in about.names:
            if name not in label_of and not ignore_others:
                raise UserError(f"{about.file} has the class {unknown_class(name, label_of)}")
        files = find_images(about, split)
        others: Counter[str] = Counter()
        summary, notes, repeated = BoxSummary(), 0, 0
        objects: list[Objects] = []
        headers = [inspect_image(file.image) for file in files]
        for file, header in zip(files, headers):
            labels = read_labels(file.labels, len(about.names))
            repeated += labels.repeated
            others.update(about.names[index] for index in labels.classes if about.names[index] not in label_of)
            used = np.array([about.names[index] in label_of for index in labels.classes], bool)
            boxes, note = in_pixels(labels.boxes[used], header)
            if note and len(boxes) and (notes := notes + 1) <= MAX_NOTES:
                log.warning("%s %s", file.image, note)
            checked = check_boxes(boxes, header.size, inclusive=False, in_pixels=False)
            summary.add(checked)
            indices = [label_of[about.names[index]] for index in labels.classes[used][checked.kept]]
            kept = checked.boxes[checked.kept].astype(np.float32)
            objects.append((kept, np.array(indices, np.int64), np.zeros(len(kept), bool)))
        if others:
            log.warning("%s: objects of other classes are ignored: %s", about.file, ignored_classes(others))
        if repeated:
            log.warning("%s: labels that are repeated in their files, each of which is used once: %d", about.file, repeated)
        summary.warn(about.file)
        names = [file.name for file in files]
        super().__init__(classes, [file.image for file in files], names, [header.size for header in headers], objects)

    def areas(self, index: int) -> np.ndarray:
        """Return the area (n,) in pixels of the box of each object of image `index`, for COCO's metrics."""
        boxes, *_ = self._objects[index]
        return (boxes[:, 2:] - boxes[:, :2]).prod(-1).astype(float)


# --- The description --------------------------------------------------------------------------------------------------


class Description(NamedTuple):
    """Content of data.yaml.

    Attributes:
        file: the file.
        folder: the folder that the paths of `splits` are relative to.
        names: class names, in the order of their indices.
        splits: key of each split -> its folders and files.
    """

    file: Path
    folder: Path
    names: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]


def read_description(root: Path, name: str = DESCRIPTION) -> Description:
    """Read and check the description of a dataset.

    Raises:
        UserError: `root` is not a folder, or the description is missing or invalid.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; it must contain a dataset in YOLO's layout ({LAYOUT})")
    file = root / name
    if not file.exists():
        raise UserError(f"{root} must contain a dataset in YOLO's layout ({LAYOUT}), but has no {name}")
    text = read_text(file, "the description of the dataset")
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{file} cannot be parsed: {short(' '.join(str(error).split()), 400)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must contain the keys train, val and names, got {shown(content)}")
    if "kpt_shape" in content:
        raise UserError(f"{file}: key points (kpt_shape) are not supported: keep only the first five columns of the labels")
    names = _class_names(content.get("names"), file)
    if "nc" in content and content["nc"] != len(names):
        raise UserError(f"{file}: nc must be the number of names, {len(names)}, got {shown(content['nc'])}")
    folder = file.parent
    inner = content.get("path")
    if isinstance(inner, str) and is_below(inner) and os.path.isdir(folder / inner):
        folder /= inner  # other values are relative to a folder of the tool that wrote them, and `root` says where it is
    splits = {
        (name := key if isinstance(key, str) else shown(key)): _paths(value, f"{name} in {file}")
        for key, value in content.items()
        if value and (key in SPLITS or (key not in NOT_SPLITS and _names_images(folder, value)))
    }
    return Description(file, folder, names, splits)


def _names_images(folder: Path, value: Any) -> bool:
    """Return whether the value of an unusual key is a path, or a list of paths, of folders or of lists of images."""
    paths = value if isinstance(value, list) else [value]
    places = [_found(folder, path) if isinstance(path, str) else None for path in paths]
    return all(place not in (None, folder) and (place.is_dir() or _lists_images(place, folder)) for place in places)


def _lists_images(file: Path, folder: Path) -> bool:
    """Return whether a line of a file names an existing image."""
    try:
        lines = listed_names(file)
    except UserError:  # not a text file
        return False
    return any(_listed_image(line, file.parent, folder) for line in lines)


def _listed_image(line: str, *folders: Path) -> bool:
    """Return whether a line names an image, relative to one of `folders` or absolute."""
    places = [folder / name for folder in folders for name in (line, line.strip())]
    return Path(line.strip()).suffix.lower() in EXTENSIONS and any(map(os.path.isfile, places))


def _class_names(names: Any, file: Path) -> tuple[str, ...]:
    """Check the class names, a list or a mapping from 0, 1, ... to names."""
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"{file}: the keys of names must be 0 to {len(names) - 1}, each once, got {shown(list(names))}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names must be a list of class names, or a mapping from 0, 1, ... to them, got {shown(names)}")
    numbers = [isinstance(name, int) and not isinstance(name, bool) and abs(name) <= sys.maxsize for name in names]
    texts = [composed(str(name)) if number or isinstance(name, str) else "" for name, number in zip(names, numbers)]
    for index, text in enumerate(texts):
        if not text.strip() or text in texts[:index]:
            raise UserError(f"{file}: names must be unique strings, got {shown(names[index])} for class {index}")
    return tuple(texts)


def _paths(value: Any, where: str) -> tuple[str, ...]:
    """Check the paths of a split, one or a list."""
    paths = value if isinstance(value, list) else [value]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise UserError(f"{where} must be a path or a list of paths, got {shown(path)}")
    return tuple(paths)


# --- Images -----------------------------------------------------------------------------------------------------------


class YOLOFile(NamedTuple):
    """An image of a split: its file, its label file (which need not exist), and its path below the folder of the dataset."""

    image: Path
    labels: Path
    name: str


class ListedSplit(NamedTuple):
    """Images of a split.

    Attributes:
        found: the images, in order and without repetition.
        notes: warnings about images that are listed again, and about files in formats that are not supported.
        problems: an error message for each listed image that does not exist.
    """

    found: list[YOLOFile]
    notes: list[str]
    problems: list[str]


def list_split(about: Description, split: str) -> ListedSplit:
    """Find the images of a split: all images in a folder and its subfolders, sorted by name, or those that a file lists.

    Raises:
        UserError: the description has no such split, or one of its folders and files does not exist or cannot be read.
    """
    if split not in about.splits:
        known = ", ".join(about.splits) or "none"
        hint = "; set test to the split to test on, and val to null with holdout=N to hold out training images"
        raise UserError(f"split {split!r} not found in {about.file} (found: {known}){hint}")
    found: dict[YOLOFile, None] = {}
    repeated, notes, problems = 0, [], []
    labels = Listing(about.folder, (".txt",))
    for text in about.splits[split]:
        place = _found(about.folder, text)
        if place is None:
            raise UserError(
                f"{split} in {about.file} must be an existing folder or file inside {about.folder}, got {shown(text)}"
            )
        images: list[Path] = []
        if place.is_dir():
            files = files_below(place)
            images = [file for file in files if file.suffix.lower() in EXTENSIONS]
            if formats := Counter(file.suffix.lower() for file in files if file.suffix.lower() in OTHER_FORMATS):
                others = f"{formats.total()} images in other formats ({', '.join(sorted(formats))})"
                notes.append(f"{place} has {others}, which are ignored; only JPEG and PNG files are used")
        else:
            beside, absolute = Listing(place.parent), Listing(about.folder)
            for line in listed_names(place):
                on_disk = absolute if line.lstrip().startswith("/") else beside
                image = on_disk.find(line) or on_disk.find(line.strip())
                if image is None:
                    problems.append(_missing(line.strip(), place, about.folder))
                else:
                    images.append(image)
        for image in images:
            name = image.relative_to(about.folder).as_posix()
            file = YOLOFile(image, _labels_on_disk(image, labels), name)
            repeated += file in found
            found[file] = None
    if repeated:
        notes.append(f"split {split} of {about.file} lists {repeated} images again; each is used once")
    return ListedSplit(list(found), notes, problems)


def _missing(name: str, list_file: Path, folder: Path) -> str:
    """Return the error message for a listed name without an image."""
    if name.startswith("/"):
        return f"{short(name)} is missing from the images below {folder}, but {list_file} lists it"
    return f"{list_file.parent / short(name)} is missing, but {list_file} lists it (paths are relative to it)"


def find_images(about: Description, split: str, warn: bool = True) -> list[YOLOFile]:
    """Return the images of a split, in order and without repetition; `warn` logs the warnings.

    Raises:
        UserError: the split or a listed image is missing, there is no image, or no image has a label file.
    """
    listed = list_split(about, split)
    problems = [*listed.problems, *filter(None, [without_labels(listed.found, f"split {split} of {about.file}")])]
    if problems:
        raise UserError(problems[0])
    for note in listed.notes if warn else ():
        log.warning("%s", note)
    return listed.found


def without_labels(files: Sequence[YOLOFile], where: str) -> str:
    """Return an error message if a split has no images, or if none of its images has a label file; otherwise ""."""
    if not files:
        return f"{where} must contain at least one JPEG or PNG image"
    if any(file.labels.is_file() for file in files):
        return ""
    return f"{where} has no label file for any image; the labels of {files[0].image} must be in {files[0].labels}"


def label_file(image: Path, folder: Path) -> Path:
    """Return the label file of an image of the dataset in `folder`: the last folder named images below it becomes labels.

    Without a folder named images, the label file is next to the image.
    """
    parts = list(image.relative_to(folder).with_suffix(".txt").parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return folder.joinpath(*parts)


def _labels_on_disk(image: Path, labels: Listing) -> Path:
    """Return the label file of an image, whose name may be composed otherwise, or end in .TXT; it need not exist."""
    usual = label_file(image, labels.folder)
    if os.path.lexists(usual):
        return usual
    return labels.find(usual.relative_to(labels.folder).with_suffix("").as_posix()) or usual


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, also in linked ones, sorted by path, without hidden files."""
    found: list[Path] = []
    entered = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        found += [Path(place, name) for name in files if name[0] != "."]
        folders.sort()
        for name in tuple(folders):
            inner = os.path.join(place, name)
            real = os.path.realpath(inner)
            if os.path.islink(inner) and (real in entered or Path(real).is_relative_to(os.path.realpath(folder))):
                folders.remove(name)  # it is also listed without the link, or the links form a loop
            entered.add(real)
    return sorted(found)


def _found(folder: Path, path: str) -> Path | None:
    """Return the folder or file that a path of the description names; None if it does not exist."""
    for tried in (below(path, folder), path.removeprefix("../")):  # Roboflow writes ../train/images for train/images
        inside = is_below(tried) or (PurePath(path) == PurePath(tried) == PurePath("."))
        if inside and os.path.exists(folder / tried):  # False for a text that is too long for a name
            return folder / tried
    return None
