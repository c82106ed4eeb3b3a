"""Translation of out-of-memory errors of the device into a UserError that names the config key to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..common.errors import UserError

SIGNS = ("allocation failed", "out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")
"""Parts of the messages of failed allocations of NNabla, CUDA and cuDNN."""


@contextmanager
def bounded_by(entry: str, images: int) -> Iterator[None]:
    """Raise a UserError if the block runs out of device memory.

    Args:
        entry: the config key that sets how many images are in memory at once.
        images: that number.

    Raises:
        UserError: an allocation on the device failed; other errors are raised unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in SIGNS):
            raise
        if images == 1:
            raise UserError(
                "the device has too little memory for one image: use a device with more, or lower the image_size of the data"
            ) from error
        fewer = max(count for count in range(1, images // 2 + 1) if images % count == 0)  # divides a batch as `images` does
        raise UserError(
            f"the device has too little memory for {images} images at once: lower {entry}, such as {entry}={fewer}; "
            "results depend on it, so start over with --restart"
        ) from error
