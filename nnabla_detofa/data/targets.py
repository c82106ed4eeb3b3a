"""CenterNet's training targets: heatmap, size and offset for the boxes of one image."""

import math
from typing import NamedTuple

import numpy as np

from .compact import Sparse

MAX_DETECTIONS = 100
"""Largest number of detections per image that are evaluated, as in CenterNet and COCO."""


class Targets(NamedTuple):
    """Targets of one image on an output map of (h, w) cells, with room for M objects. The loader stacks each field.

    Attributes:
        heatmap: (classes, h, w) float32 in [0, 1], sparse; 1 at the cell of each object's center, with a Gaussian around it.
        size: (M, 2) float32, width and height of each object in cells.
        offset: (M, 2) float32 in [0, 1), the fractional part of each object's center (x, y) in cells.
        cell: (M,) int64, the cell of each center, y * w + x.
        mask: (M,) float32, 1 for rows that hold an object. These rows come first; all other rows of every field are 0.
    """

    heatmap: Sparse
    size: np.ndarray
    offset: np.ndarray
    cell: np.ndarray
    mask: np.ndarray


def gaussian_radius(height: float, width: float, min_overlap: float = 0.7) -> float:
    """Return how far (in cells) the corners of a box may move while its IoU with the true box stays at least `min_overlap`.

    This is CenterNet's formula, taken from CornerNet: the smallest of three roots, one for each way in which the corners can
    move. The published formulas divide by 2 instead of 2a and take the larger root in the first two cases, so the roots are
    too large. We keep them because every published CenterNet was trained with them.

    Args:
        height, width: of the box, in cells.
    """
    around, area = height + width, height * width

    def root(a: float, b: float, c: float) -> float:
        return (b + math.sqrt(b * b - 4 * a * c)) / 2

    return min(
        root(1, around, area * (1 - min_overlap) / (1 + min_overlap)),
        root(4, 2 * around, area * (1 - min_overlap)),
        root(4 * min_overlap, -2 * min_overlap * around, area * (min_overlap - 1)),
    )


def make_targets(
    boxes: np.ndarray, labels: np.ndarray, num_classes: int, map_size: tuple[int, int], max_objects: int = 128
) -> Targets:
    """Compute the targets of one image.

    Boxes are clipped to the map ([0, w - 1] and [0, h - 1]), and boxes without any remaining area are dropped. If more than
    `max_objects` remain, the first `max_objects` are kept, as in CenterNet.

    Args:
        boxes: (n, 4) x1 y1 x2 y2 in output-map cells (input pixels / output stride), clipped or not.
        labels: (n,) integers in [0, num_classes).
        map_size: (h, w) of the output map.
        max_objects: M, the number of rows of the per-object targets.

    Raises:
        ValueError: a label is out of range, or the numbers of labels and boxes differ.
    """
    boxes, labels = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int64)
    if labels.shape != (len(boxes),) or ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels must be one integer in [0, {num_classes}) for each of {len(boxes)} boxes, got {labels}")
    height, width = map_size
    boxes, seen = clip_to_map(boxes, map_size)
    keep = np.flatnonzero(seen)[:max_objects]
    boxes, labels, count = boxes[keep], labels[keep], len(keep)

    size, offset = np.zeros((2, max_objects, 2), np.float32)
    cell, mask = np.zeros(max_objects, np.int64), np.zeros(max_objects, np.float32)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centers.astype(np.int64)
    size[:count] = boxes[:, 2:] - boxes[:, :2]
    offset[:count] = centers - cells
    cell[:count] = cells[:, 1] * width + cells[:, 0]
    mask[:count] = 1
    return Targets(_heatmap(labels, cells, size, (num_classes, height, width)), size, offset, cell, mask)


def _heatmap(labels: np.ndarray, cells: np.ndarray, sizes: np.ndarray, shape: tuple[int, int, int]) -> Sparse:
    """Draw the heatmap of the objects: labels (n,), cells (n, 2) as x y, sizes (n or more, 2) as width height in cells."""
    _, height, width = shape
    classes = np.unique(labels)
    maps = np.zeros((len(classes), height, width), np.float32)
    for label, (x, y), (box_width, box_height) in zip(np.searchsorted(classes, labels), cells, sizes):
        radius = max(0, int(gaussian_radius(math.ceil(box_height), math.ceil(box_width))))
        draw_gaussian(maps[label], int(x), int(y), radius)
    places = np.flatnonzero(maps)
    label, cell = np.divmod(places, height * width)
    return Sparse(classes[label] * (height * width) + cell, maps.reshape(-1)[places], shape)


def clip_to_map(boxes: np.ndarray, map_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes (n, 4) in cells to the map; also return (n,) bool, true for boxes that keep an area and become targets."""
    height, width = map_size
    boxes = np.clip(boxes, 0, np.array([width - 1, height - 1] * 2, np.float32))
    return boxes, (boxes[:, 2:] > boxes[:, :2]).all(1)


def draw_gaussian(heatmap: np.ndarray, x: int, y: int, radius: int) -> None:
    """Draw a Gaussian with peak 1 at cell (x, y) into `heatmap` (h, w), in place, by the element-wise maximum.

    The Gaussian is cut off at `radius` cells, and its standard deviation is a sixth of the diameter 2 * radius + 1.
    """
    diameter = 2 * radius + 1
    profile = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * (diameter / 6) ** 2))
    top, left = max(0, y - radius), max(0, x - radius)
    window = heatmap[top : y + radius + 1, left : x + radius + 1]
    rows, columns = (profile[start : start + n] for start, n in zip((top - y + radius, left - x + radius), window.shape))
    np.maximum(window, np.outer(rows, columns), out=window, casting="same_kind")
