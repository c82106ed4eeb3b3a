"""Validation of annotated boxes against their image, shared by VOC and COCO, the data check and training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .images import ImageHeader


class Judged(NamedTuple):
    """Result of `judge` for n boxes.

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


def judge(boxes: np.ndarray, size: tuple[int, int], inclusive: bool) -> Judged:
    """Clip boxes to an image, and decide which of them are valid objects.

    Args:
        boxes: (n, 4) x1 y1 x2 y2 in pixels, 0-based.
        size: (height, width) of the image.
        inclusive: if true (VOC), x2 and y2 are the last pixel of the box: a box with x1 = x2 is one pixel wide, and the
            coordinates in the file are 1-based. If false (COCO), they are the far edge, and a box with x1 = x2 has no area.
    """
    boxes = np.asarray(boxes, np.float32 if inclusive else float).reshape(-1, 4)
    one = int(inclusive)
    most = np.array([size[1] - one, size[0] - one] * 2, boxes.dtype)
    inside = np.clip(boxes, 0, most)
    written = boxes + one
    normalized = ((written >= 0) & (written <= 1)).all(1) & (written[:, 2:] > written[:, :2]).all(1)
    if inclusive:
        kept = (boxes[:, 2:] >= boxes[:, :2]).all(1) & (boxes[:, 2:] >= 0).all(1) & (boxes[:, :2] <= most[:2]).all(1)
    else:
        kept = (inside[:, 2:] > inside[:, :2]).all(1)
    kept &= ~normalized
    return Judged(inside, kept, kept & (np.abs(inside - boxes) > 1e-3).any(1), normalized)


NORMALIZED = "boxes must be in pixels: multiply by the image's width and height"
"""Advice for boxes given as fractions of the image sides, for warnings."""


def place(
    boxes: np.ndarray, written: tuple[int, int] | None, header: ImageHeader, inclusive: bool
) -> tuple[np.ndarray, tuple[int, int] | None, str]:
    """Transform boxes to the image as `read_image` returns it, whose Exif orientation may rotate or mirror the stored pixels.

    If the annotation gives the size of the stored pixels, its boxes were made on them and are transformed. If the stored and
    the rotated size are equal, or the annotation gives neither, the case is ambiguous and the boxes are left unchanged.

    Args:
        boxes: (n, 4), as in `judge`.
        written: (height, width) in the annotation; None if it gives no size.
        header: the image's header.
        inclusive: as in `judge`.

    Returns:
        the boxes, the annotation's size converted to the rotated image, and a warning for the user (empty if there is none).
    """
    if header.orientation == 1 or written == header.size != header.stored:
        return boxes, written, ""
    tag = f"has the Exif tag Orientation {header.orientation}"
    if written == header.stored != header.size:
        height, width = header.stored
        turned = orient(boxes, header, (width - inclusive, height - inclusive))
        return turned, header.size, f"{tag}, and its annotation the size of the stored pixels: the boxes are turned with them"
    text = f"{tag}, and its annotation does not say whether its boxes are on the stored or on the turned pixels: the turned "
    return boxes, written, text + "ones are assumed; store the image upright, without the tag, and compare"


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
