"""Detection datasets in COCO format: the annotation file is checked when a dataset is opened, images are read on demand."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..common.errors import UserError
from ..common.files import naming
from ..common.reading import read_bytes, short, shown
from .images import ImageHeader, check_whole, inspect_image, read_image
from .names import Listing, composed, is_below
from .objects import NORMALIZED, judge, place
from .voc import Objects, Sample, VOCDataset, VOCReader, changed_size, other_class

log = logging.getLogger("nnabla_detofa")

MAX_BYTES = 1 << 31  # bytes of an annotation file; the largest file of COCO has 470 MB
MAX_NOTES = 20  # largest number of warnings of one kind that are logged individually
ORIGIN = "COCO itself is at cocodataset.org: annotations_trainval2017.zip, train2017.zip and val2017.zip unpack side by side"


class COCODataset:
    """Dataset of the images of one annotation file.

    Categories may have any ids; sorted by id, they become labels 0, 1, ... (COCO uses 80 of its 90 ids). A box in the file is
    x, y, width and height in pixels, so x2 and y2 are its far edges, not its last pixels. Boxes that extend outside the image
    are clipped and boxes without area are dropped, with a single warning for each case (COCO has hundreds of them).

    A crowd is one box around many objects. `Sample.difficult` marks it, evaluation ignores detections inside it, and training
    drops it (`keep_crowds=False`).

    Args:
        annotations: the JSON file.
        images: the folder that `file_name` is relative to.
        classes: category names of the labels 0, 1, ...; None uses the categories of the file, sorted by id.
        keep_crowds: whether samples include crowds.
        ignore_others: whether to drop objects whose category is not in `classes`; otherwise such a category is an error.

    Raises:
        UserError: a file or folder is missing, the JSON is not in COCO format, an image is broken or its size differs from
            the size in the JSON, or a category is not in `classes`.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        classes: Sequence[str] | None = None,
        keep_crowds: bool = True,
        ignore_others: bool = False,
    ):
        file, folder = Path(annotations), Path(images)
        content = _read(file)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: the images that {file} lists must be there; {ORIGIN}")
        names = _categories(content["categories"], file)
        self.classes = tuple(names.values()) if classes is None else tuple(classes)
        label_of = {composed(name): label for label, name in enumerate(self.classes)}
        for name in names.values():
            if name not in label_of and not ignore_others:
                raise UserError(f"{file} has the category {other_class(name, label_of)}")
        entries = _images(content["images"], file, folder)
        self.files = [path for path, *_ in entries.values()]
        self.image_ids = tuple(path.relative_to(folder).as_posix() for path in self.files)
        rows: dict[Any, list[Row]] = {image: [] for image in entries}
        others: Counter[str] = Counter()
        known: set[int] = set()
        for number, entry in enumerate(content["annotations"]):
            where = f"annotations[{number}] of {file}"
            box, label, crowd, image = _annotation(entry, where)
            if "id" in entry:
                if not _integer(entry["id"]) or entry["id"] in known:
                    raise UserError(f"{where} must have an integer id of its own, got {shown(entry['id'])}")
                known.add(entry["id"])
            if image not in entries:
                raise UserError(f"{where}: image_id must be the id of one of its images, got {shown(image)}")
            if label not in names:
                raise UserError(f"{where}: category_id must be the id of one of its categories, got {shown(label)}")
            if names[label] not in label_of:
                others[names[label]] += 1
            elif keep_crowds or not crowd:
                rows[image].append(Row(box, label_of[names[label]], crowd, entry.get("area")))
        self._sizes = [header.size for _, _, header in entries.values()]
        self._objects: list[Objects] = []
        self._areas: list[np.ndarray] = []
        found: Counter[str] = Counter()
        for of_image, (path, size, header) in zip(rows.values(), entries.values()):
            self._add(of_image, path, size, header, found)
        if others:
            ignored = ", ".join(f"{count} {name}" for name, count in others.most_common(20))
            log.warning("%s: objects of other classes are ignored: %s", file, ignored)
        if found["clipped"]:
            log.warning("%s: %d boxes reach outside their images: clipped", file, found["clipped"])
        if found["flat"]:
            log.warning("%s: %d boxes without area are left out", file, found["flat"])
        if found["normalized"]:
            text = "%s: %d boxes in %d images with corners in 0..1 are left out (%s)"
            log.warning(text, file, found["normalized"], found["normalized images"], NORMALIZED)

    def _add(self, rows: list[Row], path: Path, size: tuple[int, int], header: ImageHeader, found: Counter[str]) -> None:
        """Append the objects of the next image, and count clipped and dropped boxes in `found`."""
        boxes = np.array([row.box for row in rows], float).reshape(-1, 4)
        boxes, written, note = place(boxes, size, header, inclusive=False)
        if written != header.size:
            raise _other_size(path, size, header)
        if note and rows and (found.update(["turned"]) or found["turned"] <= MAX_NOTES):
            log.warning("%s %s", path, note)
        judged = judge(boxes, header.size, inclusive=False)
        found["clipped"] += int(judged.clipped.sum())
        found["flat"] += int((~judged.kept & ~judged.normalized).sum())
        found["normalized"] += int(judged.normalized.sum())
        found["normalized images"] += bool(judged.normalized.any())
        kept = [row for row, keep in zip(rows, judged.kept) if keep]
        boxes = judged.boxes[judged.kept]
        labels = np.array([row.label for row in kept], np.int64)
        self._objects.append((boxes.astype(np.float32), labels, np.array([row.crowd for row in kept], bool)))
        own = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        self._areas.append(np.array([area if row.area is None else row.area for row, area in zip(kept, own)], float))

    def __len__(self) -> int:
        return len(self.files)

    def objects(self, index: int) -> Objects:
        """Return boxes (n, 4), labels (n,) and crowd flags (n,) of image `index`, without reading the image."""
        return self._objects[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of image `index`, without decoding it."""
        return self._sizes[index]

    def areas(self, index: int) -> np.ndarray:
        """Return the area (n,) in pixels of each object of image `index`, by which COCO defines small, medium and large.

        It is the `area` of the annotation (the area of the mask), or the area of the box if the annotation has none.
        """
        return self._areas[index]

    def check_images(self) -> None:
        """Check all image files for truncation and changed sizes, without decoding them, so that errors occur before training.

        Raises:
            UserError: an image is truncated or unreadable, or its size changed since the dataset was opened.
        """
        for file, before in zip(self.files, self._sizes):
            if (size := check_whole(file)) != before:
                raise changed_size(file, size, before)

    def load(self, index: int) -> Sample:
        """Read image `index`.

        Raises:
            UserError: the image is truncated or unreadable, or its size changed since the dataset was opened.
        """
        image = read_image(self.files[index])
        if image.shape[:2] != self._sizes[index]:
            raise changed_size(self.files[index], image.shape[:2], self._sizes[index])
        return Sample(image, *self._objects[index], self.image_ids[index])


class Row(NamedTuple):
    """One annotation: unclipped box (4,) x1 y1 x2 y2, label, crowd flag, and area of the mask (None if missing)."""

    box: np.ndarray
    label: int
    crowd: bool
    area: float | None


def _other_size(path: Path, size: tuple[int, int], header: ImageHeader) -> UserError:
    tag = f" (with its Exif tag Orientation {header.orientation})" if header.orientation != 1 else ""
    return UserError(
        f"{path} is {header.size[0]} x {header.size[1]} pixels (height x width){tag}, its annotations say "
        f"{size[0]} x {size[1]}: one of the two is of another image"
    )


def _read(file: Path) -> Mapping[str, list]:
    try:
        data = read_bytes(file, "the annotations", MAX_BYTES)
    except UserError as error:
        raise UserError(f"{error}; {ORIGIN}") from error
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the annotations {file} are not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"the annotations {file} must hold a list {key!r}, as COCO's do")
    return content


def _categories(entries: list, file: Path) -> dict[int, str]:
    """Check the categories, and map ids to names, sorted by id."""
    found: dict[int, str] = {}
    for number, entry in enumerate(entries):
        key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        name = composed(name) if isinstance(name, str) else None
        if not _integer(key) or not name or key in found or name in found.values():
            raise UserError(f"categories[{number}] of {file} must have an id and a name of its own, got {shown(entry)}")
        found[key] = name
    if not found:
        raise UserError(f"{file} must have at least one category")
    return dict(sorted(found.items()))


def _images(entries: list, file: Path, folder: Path) -> dict[Any, tuple[Path, tuple[int, int], ImageHeader]]:
    """Check the images, and map each image id to the file, the (height, width) in the annotations, and the image header."""
    found: dict[Any, tuple[Path, tuple[int, int], ImageHeader]] = {}
    listed: set[Path] = set()
    on_disk = Listing(folder)  # lists each folder once instead of looking up each file
    for number, entry in enumerate(entries):
        where = f"images[{number}] of {file}"
        key, path, size = _image(entry, where, on_disk)
        if key in found:
            raise UserError(f"{where} must have an integer id of its own, got {shown(entry)}")
        if path is None:
            raise UserError(_missing(entry, file, folder))
        if path in listed:
            raise UserError(f"{where}: file_name {shown(entry['file_name'])} is that of another image too")
        listed.add(path)
        found[key] = path, size, inspect_image(path)
        if place(np.zeros((0, 4)), size, found[key][2], inclusive=False)[1] != found[key][2].size:
            raise _other_size(path, size, found[key][2])
    if not found:
        raise UserError(f"{file} must list at least one image")
    return found


def _missing(entry: Mapping, file: Path, folder: Path) -> str:
    """Return the error message for a listed image that does not exist."""
    return f"{folder / short(entry['file_name'])} is missing: {file} lists it; {ORIGIN}"


def _image(entry: Any, where: str, on_disk: Listing) -> tuple[int, Path | None, tuple[int, int]]:
    """Check one element of `images`; return its id, file (None if it does not exist) and (height, width)."""
    if not isinstance(entry, dict) or not _integer(entry.get("id")):
        raise UserError(f"{where} must have an integer id of its own, got {shown(entry)}")
    name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
    if not isinstance(name, str) or not is_below(name):
        raise UserError(f"{where}: file_name must be a path below {on_disk.folder}, got {shown(name)}")
    if not all(_integer(side) and 0 < side < 1 << 20 for side in size):
        raise UserError(f"{where}: height and width must be integers above 0, got {shown(size[0])} and {shown(size[1])}")
    return entry["id"], on_disk.find(name), size


def _annotation(entry: Any, where: str) -> tuple[np.ndarray, Any, bool, Any]:
    """Check one element of `annotations`; return its box (4,) x1 y1 x2 y2, category id, crowd flag and image id."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
        raise UserError(f"{where}: bbox must be four finite numbers (x, y, width, height), got {shown(box)}")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise UserError(f"{where}: iscrowd must be 0 or 1, got {shown(entry['iscrowd'])}")
    if not _number(entry.get("area", 0.0)) or entry.get("area", 0.0) < 0:
        raise UserError(f"{where}: area must be a number of 0 or more, got {shown(entry['area'])}")
    ids = entry.get("category_id"), entry.get("image_id")
    if not all(map(_integer, ids)):
        raise UserError(f"{where}: category_id and image_id must be integers, got {shown(ids[0])} and {shown(ids[1])}")
    x, y, width, height = map(float, box)
    if width < 0 or height < 0:
        raise UserError(f"{where}: width and height of bbox must not be negative, got {shown(box)}")
    return np.array([x, y, x + width, y + height]), ids[0], bool(entry.get("iscrowd", 0)), ids[1]


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def write_coco(voc: Path, root: Path, splits: Sequence[str]) -> Path:
    """Convert splits of a VOC tree to COCO format, atomically: annotations/instances_<split>.json and <split>/<image>.

    A VOC box ends with its last pixel and a COCO box at the far edge of that pixel, so the width is xmax - xmin + 1. Objects
    marked difficult become crowds: evaluation counts neither, and detections of either are not errors.

    Args:
        voc: folder of the VOC tree.
        root: new or empty folder for the result.
        splits: names of splits, as in `VOCDataset`.

    Returns:
        `root`.

    Raises:
        UserError: the tree is broken, two splits have the same folder name, or `root` is not empty.
    """
    folders = [split.replace("/", "_") for split in splits]
    for folder, split in zip(folders, splits):
        if folders.count(folder) > 1 or folder == "annotations":
            raise UserError(f"--splits must have folders of their own in {root}, and {split} would have {folder}: leave it out")
    if root.exists() and any(root.iterdir() if root.is_dir() else [root]):
        raise UserError(f"--root must be a new or an empty folder, and {root} is not")
    reader = VOCReader()
    classes = VOCDataset(voc, splits, reader=reader).classes
    datasets = {split: VOCDataset(voc, split, classes, reader=reader) for split in splits}
    place = root.resolve()  # follow a link to an empty folder
    place.parent.mkdir(parents=True, exist_ok=True)
    total = sum(map(len, datasets.values()))
    with (
        tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch,
        tqdm(total=total, desc="to COCO", unit="image", dynamic_ncols=True) as bar,
    ):
        made = Path(scratch) / "made"
        for folder, dataset in zip(folders, datasets.values()):
            _write_split(made, folder, dataset, bar)
        with naming(root):
            made.rename(place)
    return root


def _write_split(root: Path, name: str, dataset: VOCDataset, bar: tqdm) -> None:
    """Write annotations/instances_<name>.json, and the images to <name>/."""
    (root / name).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index, file in enumerate(dataset.files):
        sample = dataset.load(index)
        copied = sample.image_id + file.suffix
        (root / name / copied).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / name / copied)
        height, width = sample.image.shape[:2]
        images.append({"id": index + 1, "file_name": copied, "height": height, "width": width})
        for (x1, y1, x2, y2), label, difficult in zip(sample.boxes.tolist(), sample.labels, sample.difficult):
            sides = x2 - x1 + 1, y2 - y1 + 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, *sides],
                    "area": sides[0] * sides[1],
                    "iscrowd": int(difficult),
                }
            )
        bar.update()
    categories = [{"id": label, "name": cls} for label, cls in enumerate(dataset.classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
