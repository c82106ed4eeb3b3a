"""CenterNet's loss on logits: penalty-reduced focal loss of the heatmap, and L1 losses of offset and size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..backend import kernels
from ..backend.compat import F, nn

OFFSET_WEIGHT, SIZE_WEIGHT = 1.0, 0.1  # loss weights (Objects as Points, section 3)


class Outputs(NamedTuple):
    """Outputs of the detector for a batch, at output stride 4: (B, channels, H/4, W/4) each."""

    heatmap: nn.Variable  # logits, one channel per class
    offset: nn.Variable  # x, y of the center inside its cell, in cells
    size: nn.Variable  # width, height, in cells


class TargetVariables(NamedTuple):
    """Targets of the loss for a batch of B images with at most M objects each (see `data.targets`)."""

    heatmap: nn.Variable  # (B, K, h, w), 1 at centers with Gaussians around them
    size: nn.Variable  # (B, M, 2), width and height in cells
    offset: nn.Variable  # (B, M, 2), x and y in cells
    index: nn.Variable  # (B, M), cell of each center, y * w + x
    mask: nn.Variable  # (B, M), 1 for rows that hold an object


class Losses(NamedTuple):
    """CenterNet's total loss and its unweighted parts, each a scalar."""

    total: nn.Variable
    heatmap: nn.Variable
    offset: nn.Variable
    size: nn.Variable


def detection_loss(
    outputs: Outputs, targets: TargetVariables, centers: nn.Variable | None = None, objects: nn.Variable | None = None
) -> Losses:
    """Compute CenterNet's loss: penalty-reduced focal + 1.0 * offset L1 + 0.1 * size L1 (Objects as Points, section 3).

    Args:
        outputs: outputs of the network.
        targets: targets of the same images.
        centers, objects: scalars that the losses are divided by, see `Detector.counts`; None counts them in `targets`.
    """
    heatmap = focal_loss(outputs.heatmap, targets.heatmap, centers)
    offset = masked_l1(outputs.offset, targets.offset, targets.index, targets.mask, objects)
    size = masked_l1(outputs.size, targets.size, targets.index, targets.mask, objects)
    return Losses(total(heatmap, offset, size), heatmap, offset, size)


def total(heatmap: nn.Variable, offset: nn.Variable, size: nn.Variable, unit: float = 1.0) -> nn.Variable:
    """Return the weighted sum of the parts of the loss; `unit` is the factor of sizes, see `Detector.size_unit`."""
    return heatmap + OFFSET_WEIGHT * offset + SIZE_WEIGHT * unit * size


def focal_loss(logits: nn.Variable, target: nn.Variable, centers: nn.Variable | None = None) -> nn.Variable:
    """Compute the penalty-reduced focal loss (Objects as Points, Eq. 1), divided by the number of centers.

    With p = sigmoid(logit), it is the negative sum of (1 - p)^2 log p at centers and (1 - target)^4 p^2 log(1 - p) elsewhere.
    Both logarithms are computed as softplus of the logit, so that no clamping is needed. CenterNet clamps p to
    [1e-4, 1 - 1e-4] and has no gradient outside; inside that range the two losses are equal. Without any center the sum is
    not divided, as in CenterNet.

    Args:
        logits: (B, K, h, w).
        target: heatmap (B, K, h, w) in [0, 1], 1 at centers.
        centers: scalar that the sum is divided by; None counts the centers in `target`.

    Returns:
        the loss, a scalar.
    """
    times = kernels.multiply
    p, far = F.sigmoid(logits), 1.0 - target
    q, far = 1.0 - p, times(far, far)
    center = F.greater_equal_scalar(target, 1.0)
    positive = times(times(center, times(q, q)), F.softplus(-1.0 * logits))
    negative = times(times(times(far, far), times(p, p)), F.softplus(logits))  # zero at centers, where target is 1
    return F.sum(positive + negative) / F.maximum_scalar(F.sum(center) if centers is None else centers, 1.0)


def masked_l1(
    output: nn.Variable, target: nn.Variable, index: nn.Variable, mask: nn.Variable, objects: nn.Variable | None = None
) -> nn.Variable:
    """Compute the mean absolute error of a map at the cells of the objects.

    Args:
        output: (B, C, h, w).
        target: (B, M, C).
        index: (B, M), cell of each object, y * w + x.
        mask: (B, M), 1 for rows that hold an object.
        objects: number of objects to average over, a scalar; None counts them in `mask`.

    Returns:
        the loss, a scalar, averaged over objects and channels.
    """
    batch, channels, height, width = output.shape
    most = index.shape[1]
    rows = F.reshape(F.transpose(output, (0, 2, 3, 1)), (batch * height * width, channels))
    start = nn.Variable.from_numpy_array(np.arange(batch, dtype=np.float32)[:, None] * (height * width))
    return l1_at_objects(F.embed(F.reshape(index + start, (batch * most,)), rows), target, mask, objects)


def l1_at_objects(
    found: nn.Variable, target: nn.Variable, mask: nn.Variable, objects: nn.Variable | None = None
) -> nn.Variable:
    """Compute `masked_l1` from the values `found` (B * M, C) of the map at the cells of the objects."""
    rows, channels = found.shape
    error = F.abs(found - F.reshape(target, (rows, channels))) * F.reshape(mask, (rows, 1))
    return F.sum(error) / (channels * (F.sum(mask) if objects is None else objects) + 1e-4)
