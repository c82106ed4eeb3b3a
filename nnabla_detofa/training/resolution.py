"""Input resolution of a training step: that of its path, if paths choose it as in OFA, and otherwise that of the dataset.

A batch holds images at the largest resolution, and the targets at every resolution one after the other
(`DetectionSets.train_item`), since its path is sampled after the batch was prepared. The graph of a path resizes the images on
the device and reads the targets of its own resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..backend.compat import F, nn

Array = TypeVar("Array")


def resolutions_of(net: Any) -> tuple[int | None, ...]:
    """Return the resolutions that the paths of a network choose from; (None,) if they do not choose."""
    space = getattr(net, "space", None)
    return (space.geometry.resolutions if space else ()) or (None,)


def at_resolution(net: Any, batch: Sequence[Array], side: int | None) -> list[Array]:
    """Return the images and the targets at the resolution `side` from a batch's images and its targets at all resolutions."""
    images, *targets = batch
    resolutions = resolutions_of(net)
    count = len(targets) // len(resolutions)
    start = count * resolutions.index(side)
    return [images, *targets[start : start + count]]


def resized(images: nn.Variable, side: int | None) -> nn.Variable:
    """Resize images (B, 3, H, W) to `side` pixels by bilinear interpolation; None returns them as they are.

    Pixel x of the result is read at x * W / side, the same affine map as `augment.letterbox` applies, so that scaled boxes fit.
    """
    if side is None or images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, output_size=(side, side), mode="linear", align_corners=False, half_pixel=False)
