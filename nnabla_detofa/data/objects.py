"""Validation of annotated boxes against their image, shared by all dataset formats, the data check and training."""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

import numpy as np

from ..common.checked import counted
from .images import ImageHeader

log = logging.getLogger("nnabla_detofa")

NUMBER = re.compile(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*")
"""Numbers in the text of annotations. Python's `float` accepts others, such as 1_0."""


class CheckedBoxes(NamedTuple):
    """Result of `check_boxes` for n boxes.

    Attributes:
        boxes: (n, 4), clipped to the image.
        kept: (n,) bool, true for boxes that lie at least partly inside the image.
        clipped: (n,) bool, true for kept boxes that extend outside the image.
        normalized: (n,) bool, true for boxes given as fractions of the image sides instead of pixels; these are not kept.
    """

    boxes: np.ndarray
    kept: np.ndarray
    clipped: np.ndarray
    normalized: np.ndarray


def check_boxes(boxes: np.ndarray, size: tuple[int, int], inclusive: bool, in_pixels: bool = True) -> CheckedBoxes:
    """Clip boxes to an image, and decide which of them are valid objects.

    Args:
        boxes: (n, 4) x1 y1 x2 y2 in pixels, 0-based.
        size: (height, width) of the image.
        inclusive: if true (VOC), x2 and y2 are the last pixel of the box: a box with x1 = x2 is one pixel wide, and the
            coordinates in the file are 1-based. If false (COCO, YOLO), they are the far edge, and a box with x1 = x2 has no
            area.
        in_pixels: whether the file gives pixels; if false (YOLO, whose files give fractions), no box counts as normalized.
    """
    boxes = np.asarray(boxes, np.float32 if inclusive else float).reshape(-1, 4)
    one = int(inclusive)
    most = np.array([size[1] - one, size[0] - one] * 2, boxes.dtype)
    inside = np.clip(boxes, 0, most)
    written = boxes + one
    normalized = in_pixels & ((written >= 0) & (written <= 1)).all(1) & (written[:, 2:] > written[:, :2]).all(1)
    if inclusive:
        kept = (boxes[:, 2:] >= boxes[:, :2]).all(1) & (boxes[:, 2:] >= 0).all(1) & (boxes[:, :2] <= most[:2]).all(1)
    else:
        kept = (inside[:, 2:] > inside[:, :2]).all(1)
    kept &= ~normalized
    return CheckedBoxes(inside, kept, kept & (np.abs(inside - boxes) > 1e-3).any(1), normalized)


NORMALIZED = "boxes must be in pixels: multiply by the image's width and height"
"""Advice for boxes given as fractions of the image sides, for warnings."""


class BoxSummary:
    """Counts the clipped and dropped boxes of a dataset, to log one warning per kind instead of one per box."""

    def __init__(self) -> None:
        self.clipped = self.without_area = self.normalized = self.normalized_images = 0

    def add(self, checked: CheckedBoxes) -> None:
        """Count the boxes of one image."""
        self.clipped += int(checked.clipped.sum())
        self.without_area += int((~checked.kept & ~checked.normalized).sum())
        self.normalized += int(checked.normalized.sum())
        self.normalized_images += bool(checked.normalized.any())

    def warn(self, source: object) -> None:
        """Log the warnings; `source` names the dataset."""
        if self.clipped:
            log.warning("%s: clipped boxes that extend outside their images: %d", source, self.clipped)
        if self.without_area:
            log.warning("%s: dropped boxes without area: %d", source, self.without_area)
        if self.normalized:
            text = "%s: dropped boxes with corners in 0..1 (%s): %d, in %s"
            log.warning(text, source, NORMALIZED, self.normalized, counted(self.normalized_images, "image"))


def upright_boxes(
    boxes: np.ndarray, written: tuple[int, int] | None, header: ImageHeader, inclusive: bool
) -> tuple[np.ndarray, tuple[int, int] | None, str]:
    """Transform boxes to the image as `read_image` returns it, whose Exif orientation may rotate or mirror the stored pixels.

    If the annotation gives the size of the stored pixels, its boxes were made on them and are transformed. If the stored and
    the rotated size are equal, or the annotation gives neither, the case is ambiguous and the boxes are left unchanged.

    Args:
        boxes: (n, 4), as in `check_boxes`.
        written: (height, width) in the annotation; None if it gives no size.
        header: the image's header.
        inclusive: as in `check_boxes`.

    Returns:
        the boxes, the annotation's size converted to the rotated image, and a warning for the user (empty if there is none).
    """
    if header.orientation == 1 or written == header.size != header.stored:
        return boxes, written, ""
    tag = f"has the Exif tag Orientation {header.orientation}"
    if written == header.stored != header.size:
        height, width = header.stored
        rotated = orient(boxes, header, (width - inclusive, height - inclusive))
        note = f"{tag}, and its annotation gives the size of the stored pixels; the boxes are rotated with the image"
        return rotated, header.size, note
    text = f"{tag}, and its annotation does not say whether its boxes refer to the stored or to the rotated pixels; "
    return boxes, written, text + "rotated is assumed; store the image upright, without the tag, and compare the boxes"


def orient(boxes: np.ndarray, header: ImageHeader, far: tuple[int, int]) -> np.ndarray:
    """Transform boxes (n, 4) on the stored pixels to the image as `read_image` returns it.

    Args:
        far: the x and y of the stored pixels that mirroring maps to 0.
    """
    x1, y1, x2, y2 = np.asarray(boxes).reshape(-1, 4).T
    if header.orientation in (2, 3, 7, 8):
        x1, x2 = far[0] - x2, far[0] - x1
    if header.orientation in (3, 4, 6, 7):
        y1, y2 = far[1] - y2, far[1] - y1
    corners = (y1, x1, y2, x2) if header.orientation > 4 else (x1, y1, x2, y2)
    return np.stack(corners, axis=1)
