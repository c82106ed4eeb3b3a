"""Geometry of boxes."""

import numpy as np


def box_iou(boxes: np.ndarray, others: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """Compute the intersection over union of all pairs of boxes.

    Args:
        boxes, others: (n, 4) and (m, 4) boxes x1 y1 x2 y2 in pixels.
        inclusive: whether x2 and y2 are the last pixel of a box (VOC) or the first beyond it.

    Returns:
        (n, m) float64; 0 where the union is empty.
    """
    boxes, others = np.asarray(boxes, float).reshape(-1, 4), np.asarray(others, float).reshape(-1, 4)
    one = int(inclusive)
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low + one).clip(0).prod(-1)
    area, other_area = ((b[:, 2:] - b[:, :2] + one).prod(-1) for b in (boxes, others))
    union = area[:, None] + other_area - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
