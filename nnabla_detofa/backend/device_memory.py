"""A full device is the user's to fix: NNabla's error of it becomes a sentence that names the entry to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..common.errors import UserError

SIGNS = ("allocation failed", "out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")
"""Any of these is in the message of a failed allocation, whether NNabla's, CUDA's or cuDNN's."""


@contextmanager
def bounded_by(entry: str, images: int) -> Iterator[None]:
    """What is computed meanwhile needs memory for `images` images at once, the number that the config's `entry` sets.

    Raises:
        UserError: the memory was not enough.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in SIGNS):
            raise
        lower = f", such as {entry}={images // 2}" if images > 1 else ""
        raise UserError(
            f"the device's memory is not enough for {images} images at once: lower {entry}{lower}; results depend on it, so "
            "the run starts over (--restart)"
        ) from error
