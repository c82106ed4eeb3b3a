"""Object detection in images with a detector of a run: as a function, as pictures with boxes, and as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Protocol

import numpy as np
from PIL import Image

from ..common.drawing import Detection, draw, in_pixels
from ..common.errors import UserError
from ..common.files import real, write_bytes
from ..data.images import check_whole, read_image
from ..evaluation.detections import BoxDetector, detect_images
from .evaluate import OpenDetector, default_detector, open_detector

WRITTEN = (".jpg", ".jpeg", ".png")
"""Suffixes of images whose pictures keep the name of the image; other pictures become .png files."""
SKIPPED = "skipped: "
"""Prefix of messages about skipped files."""


def check_image(image: np.ndarray) -> None:
    """Raise UserError if an array is not an image (H, W, 3) of uint8 with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        got += ", which cv2.imread returns for a file that it cannot read" if image is None else ""
        raise UserError(f"an image must be an array (height, width, 3) of uint8, channels blue, green, red, got {got}")
    if not image.size:
        raise UserError(f"an image must have at least one pixel, got {image.shape}")


@dataclass(frozen=True)
class ImageDetector:
    """A detector of a run as a function of one image; see `nnabla_detofa.load_detector`.

    Attributes:
        name: "fullnet", "subnet_1", ... or the file with the detector's path.
        opened: the detector with its weights.
        boxes: the detector with its re-estimated BatchNorm statistics.
    """

    name: str
    opened: OpenDetector = field(repr=False)
    boxes: BoxDetector = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.opened.sets.classes

    def __call__(self, image: np.ndarray, threshold: float = 0.3) -> list[Detection]:
        """Detect the objects in an image.

        Args:
            image: (H, W, 3) uint8, channels blue, green, red, as `cv2.imread` reads it.
            threshold: lowest score in [0, 1] of a returned object.

        Returns:
            The objects in descending order of score: boxes x1 y1 x2 y2 in image pixels, clipped to the image, class names
            and scores.

        Raises:
            UserError: the array is not such an image or is empty, or the threshold is not in [0, 1].
        """
        check_image(image)
        opened, (height, width) = self.opened, image.shape[:2]
        (found,) = detect_images(self.boxes, [image], opened.image_size, **opened.scaling())
        return in_pixels(found, self.classes, height, width, threshold)


def load_detector(run: FilePath, name: str | None = None, overrides: Sequence[str] = ()) -> ImageDetector:
    """Load a detector of a run; for arguments, return value and errors see `nnabla_detofa.load_detector`."""
    run = FilePath(run)
    name = name or default_detector(run)
    opened = open_detector(run, name, overrides)
    return ImageDetector(name, opened, opened.boxes())


# --- Files ------------------------------------------------------------------------------------------------------------


def find_images(given: Iterable[FilePath], note: Callable[[str], None]) -> list[FilePath]:
    """List the given files and the files directly inside the given folders, each once; they need not be images.

    Args:
        given: files and folders.
        note: called with a message for each folder without a file, and for each folder inside a given one.

    Raises:
        UserError: a file or folder does not exist, or there is no file at all.
    """
    given, empty = list(given), []
    files: dict[FilePath, None] = {}
    for place in given:
        if not place.exists():
            raise UserError(f"images must be existing files or folders, got {place}")
        inside = sorted(file for file in place.iterdir() if not file.is_dir()) if place.is_dir() else [place]
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if folder.is_dir() and folder not in given and any(folder.iterdir()) and not folder.name.startswith("."):
                note(f"{folder} is skipped: folders inside a folder are not searched; name it to include its images")
        if not inside:
            empty.append(place)
        files.update(dict.fromkeys(inside))
    if not files:
        raise UserError(
            f"no file found in {', '.join(map(str, given)) or 'the given folders'}; JPEG or PNG images are expected"
        )
    for place in empty:
        note(f"{place} is skipped: the folder contains no file")
    return list(files)


def read_images(files: Iterable[FilePath], note: Callable[[str], None]) -> Iterator[tuple[FilePath, np.ndarray]]:
    """Yield each file that is an image and its pixels (H, W, 3) uint8; `note` is called with a message for other files."""
    for file in files:
        try:
            image = read_image(file)
        except UserError as error:
            note(f"{SKIPPED}{error}")
            continue
        yield file, image


class AnyDetector(Protocol):
    """What `detect` needs of a detector: `ImageDetector`, or `exported.ExportedDetector`."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __call__(self, image: np.ndarray, threshold: float) -> list[Detection]: ...


def detect(
    detector: AnyDetector,
    files: Sequence[FilePath],
    folder: FilePath,
    threshold: float = 0.3,
    note: Callable[[str], None] = print,
    on_image: Callable[[FilePath, list[Detection]], None] = lambda file, found: None,
) -> FilePath:
    """Detect the objects in images, and write a picture with boxes for each image and detections.json for all.

    If the detection is interrupted, detections.json contains the images finished so far.

    Args:
        detector: the detector.
        files: files, as `find_images` returns them; files that are not JPEG or PNG images are skipped.
        folder: the output folder; it is created if it does not exist. Pictures have the names of their images, with a
            number if two names are equal.
        threshold: lowest score in [0, 1] of an object.
        note: called with a message for each skipped file.
        on_image: called with each image's file and objects.

    Returns:
        The file detections.json. It has the keys "detector", "threshold", "classes" and "images", a list of {"image",
        "picture", "width", "height", "objects": [{"box": [x1, y1, x2, y2], "class", "score"}]} with boxes in image pixels.

    Raises:
        UserError: no file is a JPEG or PNG image, `folder` contains one of the images, or `folder` cannot be created.
    """
    check_files(files, folder)
    entries: list[dict] = []
    taken: set[str] = set()
    skipped: list[str] = []  # reported with the first image; without any image, only the error is reported

    def keep_note(text: str) -> None:
        note(text) if entries else skipped.append(text)

    try:
        for file, image in read_images(files, keep_note):
            picture = free_name(file, taken)
            found = detector(image, threshold)
            if not entries:
                make_folder(folder)
                for text in skipped:
                    note(text)
            # write_bytes renames a temporary file, because an existing file of this name may be a link to an image.
            write_bytes(folder / picture, encoded(draw(image, found, detector.classes), picture))
            entries.append(entry(file, picture, image, found))
            on_image(file, found)
    finally:
        if entries:
            head = json.dumps({"detector": detector.name, "threshold": threshold, "classes": detector.classes})
            lines = ",\n ".join(map(json.dumps, entries))  # one image per line; one number per line is hard to read
            write_bytes(folder / "detections.json", f'{head[:-1]}, "images": [\n {lines}\n]}}\n'.encode())
    if not entries:
        raise _no_image(files, skipped[0].removeprefix(SKIPPED))
    return folder / "detections.json"


def check_files(files: Sequence[FilePath], folder: FilePath) -> None:
    """Check the arguments of `detect` before a detector is opened.

    Raises:
        UserError: no file is a JPEG or PNG image, or `folder` contains one of the files.
    """
    if any(real(folder) in (real(file).parent, real(file.parent)) for file in files):
        raise UserError(f"--output must not be a folder of the images, which would be overwritten, got {folder}")
    reasons = []
    for file in files:
        try:
            check_whole(file)
            return
        except UserError as error:
            reasons.append(str(error))
    raise _no_image(files, *reasons[:1])


def _no_image(files: Sequence[FilePath], *reasons: str) -> UserError:
    """Make the error for files without any image."""
    what = f"at least one file must be a JPEG or PNG image, but none of the {len(files)} given files is"
    return UserError(": ".join((what, *reasons)))


def entry(file: FilePath, picture: str, image: np.ndarray, found: Sequence[Detection]) -> dict:
    """Return the item of one image for detections.json."""
    objects = [{"box": [round(x, 2) for x in box], "class": name, "score": round(score, 4)} for box, name, score in found]
    return {"image": str(file), "picture": picture, "width": image.shape[1], "height": image.shape[0], "objects": objects}


def encoded(picture: Image.Image, name: str) -> bytes:
    """Encode a picture as PNG or JPEG, depending on the suffix of `name`."""
    content = io.BytesIO()
    picture.save(content, "PNG" if name.lower().endswith(".png") else "JPEG", quality=92)
    return content.getvalue()


def make_folder(folder: FilePath) -> None:
    """Create the output folder if it does not exist.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output must be a folder that can be created, got {folder} ({error.strerror})") from error


def free_name(file: FilePath, taken: set[str]) -> str:
    """Choose a name for the picture of an image that is not in `taken`, and add it to `taken`."""
    suffix = file.suffix if file.suffix.lower() in WRITTEN else ".png"
    name, number = f"{file.stem}{suffix}", 1
    while name in taken:
        number += 1
        name = f"{file.stem}_{number}{suffix}"
    taken.add(name)
    return name
