"""Detection datasets in COCO format: the annotation file is checked when a dataset is opened, images are read on demand."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from ..common.errors import UserError
from ..common.files import naming, real
from ..common.progress import ProgressBar
from ..common.reading import read_bytes, short, shown
from ..config.files import without_duplicates
from .dataset import MAX_NOTES, DetectionDataset, Objects, ignored_classes, unknown_class
from .images import ImageHeader, inspect_image
from .names import Listing, composed, is_below
from .objects import BoxSummary, check_boxes, upright_boxes
from .voc import VOCDataset, VOCReader

log = logging.getLogger("nnabla_detofa")

MAX_BYTES = 1 << 31  # bytes of an annotation file; the largest file of COCO has 470 MB
ORIGIN = "COCO is available at cocodataset.org; unpack annotations_trainval2017.zip, train2017.zip and val2017.zip side by side"


class COCODataset(DetectionDataset):
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
        content = read_annotations(file)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; it must contain the images that {file} lists; {ORIGIN}")
        names = read_categories(content, file)
        classes = tuple(names.values()) if classes is None else tuple(classes)
        label_of = {composed(name): label for label, name in enumerate(classes)}
        for name in names.values():
            if name not in label_of and not ignore_others:
                raise UserError(f"{file} has the category {unknown_class(name, label_of)}")
        images_by_id = _read_images(content["images"], file, folder)
        rows = _read_rows(content["annotations"], file, names, label_of, images_by_id)
        summary, notes = BoxSummary(), 0
        objects: list[Objects] = []
        self._areas: list[np.ndarray] = []
        for image, listed in images_by_id.items():
            of_image = [row for row in rows[image] if keep_crowds or not row.crowd]
            boxes, note = _placed(of_image, listed)
            if note and of_image and (notes := notes + 1) <= MAX_NOTES:
                log.warning("%s %s", listed.path, note)
            checked = check_boxes(boxes, listed.header.size, inclusive=False)
            summary.add(checked)
            kept = [row for row, keep in zip(of_image, checked.kept) if keep]
            boxes = checked.boxes[checked.kept]
            labels = np.array([row.label for row in kept], np.int64)
            objects.append((boxes.astype(np.float32), labels, np.array([row.crowd for row in kept], bool)))
            own = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
            self._areas.append(np.array([area if row.area is None else row.area for row, area in zip(kept, own)], float))
        summary.warn(file)
        files = [listed.path for listed in images_by_id.values()]
        image_ids = [path.relative_to(folder).as_posix() for path in files]
        super().__init__(classes, files, image_ids, [listed.header.size for listed in images_by_id.values()], objects)

    def areas(self, index: int) -> np.ndarray:
        """Return the area (n,) in pixels of each object of image `index`, by which COCO defines small, medium and large.

        It is the `area` of the annotation (the area of the mask), or the area of the box if the annotation has none.
        """
        return self._areas[index]


class Row(NamedTuple):
    """One annotation: unclipped box (4,) x1 y1 x2 y2, label, crowd flag, and area of the mask (None if missing)."""

    box: np.ndarray
    label: int
    crowd: bool
    area: float | None


class ListedImage(NamedTuple):
    """One listed image: its file, its (height, width) according to the annotations, and its header."""

    path: Path
    size: tuple[int, int]
    header: ImageHeader


class Annotation(NamedTuple):
    """One element of `annotations`: box (4,) x1 y1 x2 y2, category id, crowd flag, image id, and its id (None if missing)."""

    box: np.ndarray
    category: int
    crowd: bool
    image: int
    id: int | None


def read_annotations(file: Path) -> Mapping[str, list]:
    """Read an annotation file and check that it contains the lists `images`, `annotations` and `categories`.

    Raises:
        UserError: the file is missing, is not JSON, or lacks one of the lists.
    """
    try:
        data = read_bytes(file, "the annotations", MAX_BYTES)
    except UserError as error:
        raise UserError(f"{error}; {ORIGIN}") from error
    try:
        content = json.loads(data, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the annotations {file} are not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"the annotations {file} must contain a list {key!r}, as in COCO format")
    return content


def read_categories(content: Mapping[str, list], file: Path) -> dict[int, str]:
    """Check the elements of `categories`, and map ids to names, sorted by id; raises UserError if one is invalid.

    Of two categories with the same name, one without annotations is left out: Roboflow exports a single class also as its own
    supercategory.
    """
    ids = (entry.get("category_id") for entry in content["annotations"] if isinstance(entry, dict))
    used = {key for key in ids if is_integer(key)}
    found: dict[int, str] = {}
    seen: set[int] = set()
    for number, entry in enumerate(content["categories"]):
        key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        name = composed(name) if isinstance(name, str) else None
        twin = next((other for other, known in found.items() if known == name), None)
        alone = twin is None or not (is_integer(key) and key in used and twin in used)
        if not is_integer(key) or not (name and name.strip()) or key in seen or not alone:
            raise UserError(f"categories[{number}] of {file} must have a unique id and a unique name, got {shown(entry)}")
        seen.add(key)
        if twin is not None and key not in used:
            continue
        if twin is not None:
            del found[twin]
        found[key] = name
    if not found:
        raise UserError(f"{file} must have at least one category")
    return dict(sorted(found.items()))


def _read_images(entries: list, file: Path, folder: Path) -> dict[int, ListedImage]:
    """Check the elements of `images` and their files, and map each id to its image; raises UserError at the first problem."""
    found: dict[int, ListedImage] = {}
    used: set[Path] = set()
    on_disk = Listing(folder)  # lists each folder once instead of looking up each file
    for number, entry in enumerate(entries):
        where = f"images[{number}] of {file}"
        key, path, size = read_image_entry(entry, where, on_disk)
        if key in found:
            raise UserError(f"{where} must have a unique integer id, got {shown(entry)}")
        if path is None:
            raise UserError(missing_image(entry, file, folder))
        if path in used:
            raise UserError(f"{where}: file_name {shown(entry['file_name'])} is already used by another image")
        used.add(path)
        found[key] = ListedImage(path, size, inspect_image(path))
        if other := other_size(*found[key]):
            raise UserError(other)
    if not found:
        raise UserError(f"{file} must list at least one image")
    return found


def _read_rows(
    entries: list, file: Path, names: Mapping[int, str], label_of: Mapping[str, int], images: Collection[int]
) -> dict[int, list[Row]]:
    """Check the elements of `annotations`, and map each image id to its objects; raises UserError at the first problem."""
    rows: dict[int, list[Row]] = {image: [] for image in images}
    others: Counter[str] = Counter()
    ids: set[int] = set()
    for number, entry in enumerate(entries):
        where = f"annotations[{number}] of {file}"
        found = read_annotation(entry, where)
        if found.id in ids:
            raise UserError(f"{where} must have a unique integer id, got {shown(found.id)}")
        if found.id is not None:
            ids.add(found.id)
        if found.image not in rows:
            raise UserError(f"{where}: image_id must be the id of a listed image, got {shown(found.image)}")
        if found.category not in names:
            raise UserError(f"{where}: category_id must be the id of a listed category, got {shown(found.category)}")
        if (name := names[found.category]) not in label_of:
            others[name] += 1
        else:
            rows[found.image].append(Row(found.box, label_of[name], found.crowd, entry.get("area")))
    if others:
        log.warning("%s: objects of other classes are ignored: %s", file, ignored_classes(others))
    return rows


def read_image_entry(entry: Any, where: str, on_disk: Listing) -> tuple[int, Path | None, tuple[int, int]]:
    """Check one element of `images`; return its id, file (None if it does not exist) and (height, width).

    Raises:
        UserError: the element is invalid; `where` names it.
    """
    if not isinstance(entry, dict) or not is_integer(entry.get("id")):
        raise UserError(f"{where} must have a unique integer id, got {shown(entry)}")
    name, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
    if not isinstance(name, str) or not is_below(name):
        raise UserError(f"{where}: file_name must be a path below {on_disk.folder}, got {shown(name)}")
    if not (is_integer(height) and is_integer(width) and 0 < height < 1 << 20 and 0 < width < 1 << 20):
        raise UserError(f"{where}: height and width must be integers above 0, got {shown(height)} and {shown(width)}")
    return entry["id"], on_disk.find(name), (height, width)


def read_annotation(entry: Any, where: str) -> Annotation:
    """Check one element of `annotations`.

    Raises:
        UserError: the element is invalid; `where` names it.
    """
    box = entry.get("bbox") if isinstance(entry, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise UserError(f"{where}: bbox must be four finite numbers (x, y, width, height), got {shown(box)}")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise UserError(f"{where}: iscrowd must be 0 or 1, got {shown(entry['iscrowd'])}")
    if not _is_number(entry.get("area", 0.0)) or entry.get("area", 0.0) < 0:
        raise UserError(f"{where}: area must be a number from 0 to 1e9, got {shown(entry['area'])}")
    if "id" in entry and not is_integer(entry["id"]):
        raise UserError(f"{where} must have a unique integer id, got {shown(entry['id'])}")
    category, image = entry.get("category_id"), entry.get("image_id")
    if not is_integer(category) or not is_integer(image):
        raise UserError(f"{where}: category_id and image_id must be integers, got {shown(category)} and {shown(image)}")
    x, y, width, height = map(float, box)
    if width < 0 or height < 0:
        raise UserError(f"{where}: width and height of bbox must not be negative, got {shown(box)}")
    return Annotation(np.array([x, y, x + width, y + height]), category, bool(entry.get("iscrowd", 0)), image, entry.get("id"))


def _placed(rows: Sequence[Row], image: ListedImage) -> tuple[np.ndarray, str]:
    """Return the unclipped boxes (n, 4) of an image as `read_image` returns it, and the note of `objects.upright_boxes`."""
    boxes, _, note = upright_boxes(np.array([row.box for row in rows], float), image.size, image.header, inclusive=False)
    return boxes.reshape(-1, 4), note


def other_size(path: Path, size: tuple[int, int], header: ImageHeader) -> str:
    """Return an error message if an image does not have the (height, width) of its annotation; otherwise an empty string."""
    if upright_boxes(np.zeros((0, 4)), size, header, inclusive=False)[1] == header.size:
        return ""
    tag = f" (with its Exif tag Orientation {header.orientation})" if header.orientation != 1 else ""
    return (
        f"{path} is {header.size[0]} x {header.size[1]} pixels (height x width){tag}, but its annotations say "
        f"{size[0]} x {size[1]}: one of them belongs to another image"
    )


def missing_image(entry: Mapping, file: Path, folder: Path) -> str:
    """Return the error message for a listed image that does not exist."""
    return f"{folder / short(entry['file_name'])} is missing, but {file} lists it; {ORIGIN}"


def is_integer(value: Any) -> TypeGuard[int]:
    """Return whether a JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
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
            raise UserError(f"--splits must have distinct folders in {root}, but {split} would be written to {folder}; omit it")
    if root.exists() and any(root.iterdir() if root.is_dir() else [root]):
        raise UserError(f"--root must be a new or empty folder, but {root} is not")
    reader = VOCReader()
    classes = VOCDataset(voc, splits, reader=reader).classes
    datasets = {split: VOCDataset(voc, split, classes, reader=reader) for split in splits}
    place = real(root)  # follow a link to an empty folder
    place.parent.mkdir(parents=True, exist_ok=True)
    total = sum(map(len, datasets.values()))
    with (
        tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch,
        ProgressBar(total=total, desc="to COCO", unit="image") as bar,
    ):
        made = Path(scratch) / "made"
        for folder, dataset in zip(folders, datasets.values()):
            _write_split(made, folder, dataset, bar)
        with naming(root):
            made.rename(place)
    return root


def _write_split(root: Path, name: str, dataset: VOCDataset, bar: ProgressBar) -> None:
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
