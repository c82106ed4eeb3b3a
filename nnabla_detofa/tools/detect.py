"""Objects in photographs: a run's detector as a function, its boxes on the photographs, and all of them as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
from PIL import Image

from ..common.drawing import Detection, draw, in_pixels
from ..common.errors import UserError
from ..common.files import write_bytes
from ..data.images import check_whole, read_image
from ..evaluation.validation import BoxDetector, detect_images
from .evaluate import OpenDetector, default_detector, open_detector

WRITTEN = (".jpg", ".jpeg", ".png")
"""Pictures keep the name of their photograph where it ends so; others become .png."""
SKIPPED = "skipped: "


@dataclass(frozen=True)
class ImageDetector:
    """A run's detector as a function of a photograph; see `nnabla_detofa.load_detector`.

    Attributes:
        name: "fullnet", "subnet_1", ... or the file of its path.
        opened: the detector with its weights.
        boxes: it with its statistics.
    """

    name: str
    opened: OpenDetector
    boxes: BoxDetector

    @property
    def classes(self) -> tuple[str, ...]:
        return self.opened.sets.classes

    def __call__(self, image: np.ndarray, threshold: float = 0.3) -> list[Detection]:
        """The objects with a score of at least `threshold`, best first; boxes are cut at the photograph's edges.

        Args:
            image: (H, W, 3) uint8, blue, green, red, as `cv2.imread` reads it.

        Raises:
            UserError: the array is no such image.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"an image must be an array (height, width, 3) of uint8 in the order blue, green, red, got {got}")
        if not image.size:
            raise UserError(f"an image must have at least one pixel, got {image.shape}")
        opened, (height, width) = self.opened, image.shape[:2]
        (found,) = detect_images(self.boxes, [image], opened.sets.image_size, **opened.scaling())
        return in_pixels(found, self.classes, height, width, threshold)


def load_detector(run: FilePath, name: str | None = None, overrides: Sequence[str] = ()) -> ImageDetector:
    """See `nnabla_detofa.load_detector`."""
    run = FilePath(run)
    name = name or default_detector(run)
    opened = open_detector(run, name, overrides)
    return ImageDetector(name, opened, opened.boxes())


# --- Files ------------------------------------------------------------------------------------------------------------


def find_images(given: Iterable[FilePath], note: Callable[[str], None]) -> list[FilePath]:
    """The files that `given` names and those directly in its folders, each once; which of them are images shows later.

    Args:
        note: hears of folders without a file.

    Raises:
        UserError: there is no such file or folder, or no file at all.
    """
    given, empty = list(given), []
    files: dict[FilePath, None] = {}
    for place in given:
        if not place.exists():
            raise UserError(f"images must be files or folders that are there, got {place}")
        inside = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]
        if not inside:
            empty.append(place)
        files.update(dict.fromkeys(inside))
    if not files:
        raise UserError(f"there is no file in {', '.join(map(str, given)) or 'no folder'}: JPEG or PNG images are looked for")
    for place in empty:
        note(f"{place} is skipped: the folder holds no file")
    return list(files)


def read_images(files: Iterable[FilePath], note: Callable[[str], None]) -> Iterator[tuple[FilePath, np.ndarray]]:
    """The files that are images, read one by one; `note` hears of the others."""
    for file in files:
        try:
            image = read_image(file)
        except UserError as error:
            note(f"{SKIPPED}{error}")
            continue
        yield file, image


def detect(
    detector: ImageDetector,
    files: Sequence[FilePath],
    folder: FilePath,
    threshold: float = 0.3,
    note: Callable[[str], None] = print,
    on_image: Callable[[FilePath, list[Detection]], None] = lambda file, found: None,
) -> FilePath:
    """Write a picture of each photograph with what was found in it, and detections.json, which has what was found till then
    whatever stops it.

    Args:
        files: as `find_images` gives them; those that are not JPEG or PNG images are skipped.
        folder: made if it is not there. Pictures are named after their photographs, two of one name are numbered.
        note: hears of what is skipped. on_image: hears what was found in each photograph.

    Returns:
        detections.json: "detector", "threshold", "classes" and "images", a list of {"image", "picture", "width", "height",
        "objects": [{"box": [x1, y1, x2, y2], "class", "score"}]}; boxes are in pixels of the photograph.

    Raises:
        UserError: no file is a JPEG or PNG image, the folder is that of a photograph, or the folder cannot be made.
    """
    check_files(files, folder)
    entries: list[dict] = []
    taken: set[str] = set()
    skipped: list[str] = []  # told with the first image: where there is none, the error is all that is said

    def hear(text: str) -> None:
        note(text) if entries else skipped.append(text)

    try:
        for file, image in read_images(files, hear):
            picture = free_name(file, taken)
            found = detector(image, threshold)
            if not entries:
                make_folder(folder)
                for text in skipped:
                    note(text)
            # Beside and renamed: what has this name may be a link to a photograph.
            write_bytes(folder / picture, encoded(draw(image, found, detector.classes), picture))
            entries.append(entry(file, picture, image, found))
            on_image(file, found)
    finally:
        if entries:
            head = json.dumps({"detector": detector.name, "threshold": threshold, "classes": detector.classes})
            lines = ",\n ".join(map(json.dumps, entries))  # an image a line: a line for each number is hard to read
            write_bytes(folder / "detections.json", f'{head[:-1]}, "images": [\n {lines}\n]}}\n'.encode())
    if not entries:
        raise _no_image(files, skipped[0].removeprefix(SKIPPED))
    return folder / "detections.json"


def check_files(files: Sequence[FilePath], folder: FilePath) -> None:
    """Raise UserError, before a detector is opened, if no file is an image, or the folder is that of a photograph."""
    if any(folder.resolve() in (file.resolve().parent, file.parent.resolve()) for file in files):
        raise UserError(f"--output must be another folder than that of the images, which would be replaced, got {folder}")
    reasons = []
    for file in files:
        try:
            check_whole(file)
            return
        except UserError as error:
            reasons.append(str(error))
    raise _no_image(files, *reasons[:1])


def _no_image(files: Sequence[FilePath], *reasons: str) -> UserError:
    what = f"at least one file must be a JPEG or PNG image; none of the {len(files)} given is"
    return UserError(": ".join((what, *reasons)))


def entry(file: FilePath, picture: str, image: np.ndarray, found: Sequence[Detection]) -> dict:
    """What detections.json says of a photograph."""
    objects = [{"box": [round(x, 2) for x in box], "class": name, "score": round(score, 4)} for box, name, score in found]
    return {"image": str(file), "picture": picture, "width": image.shape[1], "height": image.shape[0], "objects": objects}


def encoded(picture: Image.Image, name: str) -> bytes:
    """A picture as a file of this name has it."""
    content = io.BytesIO()
    picture.save(content, "PNG" if name.lower().endswith(".png") else "JPEG", quality=92)
    return content.getvalue()


def make_folder(folder: FilePath) -> None:
    """Make the folder that results go to.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output must be a folder that can be made, got {folder} ({error.strerror})") from error


def free_name(file: FilePath, taken: set[str]) -> str:
    """The name of a photograph's picture, which is added to `taken`."""
    suffix = file.suffix if file.suffix.lower() in WRITTEN else ".png"
    name, number = f"{file.stem}{suffix}", 1
    while name in taken:
        number += 1
        name = f"{file.stem}_{number}{suffix}"
    taken.add(name)
    return name
