"""Which boxes of an annotation are objects of its image: VOC's and COCO's are judged here, for the check and for training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .images import ImageHeader


class Judged(NamedTuple):
    """Boxes (n, 4), judged one by one.

    Attributes:
        boxes: (n, 4) clipped to the image.
        kept: (n,) bool, those that have a part inside the image.
        clipped: (n,) bool, those of `kept` that reach outside.
        normalized: (n,) bool, those that are not in pixels but in shares of the image's sides; not kept.
    """

    boxes: np.ndarray
    kept: np.ndarray
    clipped: np.ndarray
    normalized: np.ndarray


def judge(boxes: np.ndarray, size: tuple[int, int], inclusive: bool) -> Judged:
    """Which boxes are in an image of `size` (height, width), and in pixels.

    Args:
        boxes: (n, 4) x1 y1 x2 y2 from 0.
        inclusive: x2 and y2 are the last pixel (VOC), so a box with x1 = x2 is one pixel wide, and corners were written 1
            larger; else they are the far edge (COCO), and a box with x1 = x2 has no area.
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
"""What to do about boxes in shares of the image's sides."""


def place(
    boxes: np.ndarray, written: tuple[int, int] | None, header: ImageHeader, inclusive: bool
) -> tuple[np.ndarray, tuple[int, int] | None, str]:
    """Boxes on an image as it is read, where its Exif orientation turns or mirrors it.

    An annotation with the size of the stored pixels was made on these, so its boxes are turned with them. Where both sizes are
    the same, or neither is the annotation's, nobody can tell.

    Args:
        boxes: as `judge`'s. written: (height, width) in the annotation; None without.

    Returns:
        the boxes, the size that the annotation gives of the image as it is read, and what a user should know; empty if nothing.
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
    """Boxes on the stored pixels -> on the image as it is read.

    Args:
        far: x and y that become 0 where the image is mirrored.
    """
    x1, y1, x2, y2 = np.asarray(boxes).reshape(-1, 4).T
    if header.orientation in (2, 3, 7, 8):
        x1, x2 = far[0] - x2, far[0] - x1
    if header.orientation in (3, 4, 6, 7):
        y1, y2 = far[1] - y2, far[1] - y1
    corners = (y1, x1, y2, x2) if header.orientation > 4 else (x1, y1, x2, y2)
    return np.stack(corners, axis=1)
