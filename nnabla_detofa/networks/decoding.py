"""Decoding of CenterNet's output maps to boxes, and merging of detections from several scales, in NumPy."""

from __future__ import annotations

import numpy as np

from ..common.boxes import box_iou


def decode(
    heatmap: np.ndarray, offset: np.ndarray, size: np.ndarray, top: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode the `top` highest peaks of each image, over all classes, to boxes sorted by score.

    A peak is a cell that equals the maximum of its 3x3 neighborhood in the heatmap of its class.

    Args:
        heatmap: (B, K, h, w), probabilities.
        offset, size: (B, 2, h, w), in cells.
        top: number of detections per image.

    Returns:
        boxes (B, top, 4) as x1 y1 x2 y2 in cells of the output map, scores (B, top), labels (B, top) int.
    """
    batch, _, height, width = heatmap.shape
    found = [_best_peaks(values, top) for values in heatmap]
    order, scores = (np.stack(arrays) for arrays in zip(*found))
    label, cell = np.divmod(order, height * width)

    def at_cells(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values.reshape(batch, 2, -1), cell[:, None, :], axis=2)

    y, x = np.divmod(cell, width)
    center = np.stack([x, y], axis=1) + at_cells(offset)
    half = at_cells(size) / 2
    boxes = np.concatenate([center - half, center + half], axis=1).transpose(0, 2, 1)
    return boxes.astype(np.float32), scores.astype(np.float32), label


def _best_peaks(heatmap: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions in the flattened heatmap (K, h, w) and values of its `top` highest peaks; ties keep their order."""
    is_peak = heatmap == _max_of_3x3(heatmap)
    positions = np.flatnonzero(is_peak & (heatmap > 0))
    if len(positions) < top:  # fill up with other cells of value 0
        values = np.where(is_peak, heatmap, 0.0).ravel()
        positions = np.argsort(-values, kind="stable")[:top]
        return positions, values[positions]
    values = heatmap.ravel()[positions]
    least = np.partition(values, len(values) - top)[len(values) - top]
    positions, values = positions[values >= least], values[values >= least]
    best = np.argsort(-values, kind="stable")[:top]
    return positions[best], values[best]


def _max_of_3x3(values: np.ndarray) -> np.ndarray:
    """Compute the maximum of each cell's 3x3 neighborhood in maps (..., h, w), first along rows and then along columns."""
    rows = values.copy()
    np.maximum(rows[..., 1:], values[..., :-1], out=rows[..., 1:])
    np.maximum(rows[..., :-1], values[..., 1:], out=rows[..., :-1])
    found = rows.copy()
    np.maximum(found[..., 1:, :], rows[..., :-1, :], out=found[..., 1:, :])
    np.maximum(found[..., :-1, :], rows[..., 1:, :], out=found[..., :-1, :])
    return found


def soft_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, sigma: float = 0.5, least: float = 1e-3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge detections of one image, for example from several scales, by Soft-NMS within each class.

    The algorithm repeatedly selects the best remaining detection and multiplies the scores of the others of its class by
    exp(-IoU^2 / sigma) (Bodla et al. 2017, with the sigma of CenterNet's multi-scale test).

    Args:
        boxes: (n, 4) x1 y1 x2 y2.
        scores, labels: (n,).
        sigma: width of the Gaussian penalty.
        least: detections with a lower score are dropped.

    Returns:
        boxes (m, 4), scores (m,) and labels (m,), best first.
    """
    overlaps = np.where(labels[:, None] == labels, box_iou(boxes, boxes), 0.0)
    left, scores, order = np.ones(len(scores), bool), scores.astype(np.float64), []
    for _ in range(len(scores)):
        best = int(np.argmax(np.where(left, scores, -1.0)))
        if scores[best] < least:
            break
        order.append(best)
        left[best] = False
        scores[left] *= np.exp(-(overlaps[best, left] ** 2) / sigma)
    return boxes[order], scores[order].astype(np.float32), labels[order]
