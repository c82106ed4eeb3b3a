"""Arrays of a batch in a compact form, which is expanded where the network reads it: in NumPy or on the GPU.

Both classes stand for a float32 array, which `np.asarray` returns. A slice of consecutive rows, or `None`, as index returns
the same class, another index the elements. `fill` writes the array into an input of a graph, and sends only the compact form
to a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..common.normalization import Normalization

if TYPE_CHECKING:
    import nnabla as nn

# The functions of a GPU are imported where they are called: reading data does without NNabla.


class CompactArray:
    """Base class of the compact arrays.

    Args:
        shape: shape of the array that this one stands for.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)

    @classmethod
    def stack(cls, items: Sequence[Any]) -> CompactArray:
        """Stack arrays of this class and of equal shapes along a new first axis."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> CompactArray | np.ndarray:
        if key is None:
            return self.rows(None)
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            return self.rows(slice(start, max(start, stop)))
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                raise IndexError(f"index {key} is out of range for {len(self)} rows")
            return np.asarray(self.rows(slice(key % len(self), key % len(self) + 1)))[0]
        return np.asarray(self)[key]

    def rows(self, key: slice | None) -> CompactArray:
        """Return the rows in a slice with start and stop inside the array; None adds a first axis."""
        raise NotImplementedError

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        dense = np.empty(self.shape, self.dtype)
        self.write(dense)
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def write(self, dense: np.ndarray) -> None:
        """Write the elements into a float32 array of this shape."""
        raise NotImplementedError

    def fill(self, variable: nn.Variable) -> None:
        """Write the elements into a variable of this shape, on the device of NNabla's default context."""
        from ..backend import kernels

        if kernels.on_cpu():
            self.write(variable.data.data)
        else:
            self.fill_on_device(variable)

    def fill_on_device(self, variable: nn.Variable) -> None:
        """Write the elements into a variable with NNabla's functions."""
        raise NotImplementedError


class Sparse(CompactArray):
    """Array of which most elements are 0, as heatmaps are.

    Args:
        places: (n,) int64, ascending positions of the other elements in the flattened array.
        values: (n,) float32, these elements.
        shape: shape of the whole array.
    """

    def __init__(self, places: np.ndarray, values: np.ndarray, shape: Sequence[int]):
        super().__init__(shape)
        self.places, self.values = places, values

    @classmethod
    def stack(cls, items: Sequence[Sparse]) -> Sparse:
        (shape,) = {item.shape for item in items}
        size = int(np.prod(shape))
        places = [item.places + number * size for number, item in enumerate(items)]
        return cls(np.concatenate(places), np.concatenate([item.values for item in items]), (len(items), *shape))

    def rows(self, key: slice | None) -> Sparse:
        if key is None:
            return Sparse(self.places, self.values, (1, *self.shape))
        size = int(np.prod(self.shape[1:]))
        inside = slice(*np.searchsorted(self.places, (key.start * size, key.stop * size)))
        return Sparse(self.places[inside] - key.start * size, self.values[inside], (key.stop - key.start, *self.shape[1:]))

    def write(self, dense: np.ndarray) -> None:
        dense[...] = 0
        dense.reshape(-1)[self.places] = self.values

    def fill_on_device(self, variable: nn.Variable) -> None:
        from ..backend import kernels

        kernels.scatter(variable, np.stack(np.unravel_index(self.places, self.shape)).astype(np.int32), self.values)


class Pixels(CompactArray):
    """Images with 8 bits per channel that stand for normalized images.

    Args:
        levels: (..., 3, H, W) uint8, channels blue, green, red; C-contiguous.
        normalization: normalization of the images.
    """

    def __init__(self, levels: np.ndarray, normalization: Normalization):
        super().__init__(levels.shape)
        self.levels, self.normalization = levels, normalization

    @classmethod
    def of(cls, image: np.ndarray, normalization: Normalization) -> Pixels:
        """Create it from one image (H, W, 3) uint8."""
        return cls(np.ascontiguousarray(image.transpose(2, 0, 1)), normalization)

    @classmethod
    def stack(cls, items: Sequence[Pixels]) -> Pixels:
        return cls(np.stack([item.levels for item in items]), items[0].normalization)

    def rows(self, key: slice | None) -> Pixels:
        return Pixels(self.levels[key], self.normalization)

    def write(self, dense: np.ndarray) -> None:
        # A table of the 256 levels of each channel gives the bits of the arithmetic, faster.
        gray = np.repeat(np.arange(256, dtype=np.float32)[:, None, None] / 255, 3, axis=2)
        tables, size = self.normalization(gray), self.shape[-2:]
        for number, (levels, out) in enumerate(zip(self.levels.reshape(-1, *size), dense.reshape(-1, *size))):
            cv2.LUT(levels, tables[number % 3], dst=out)

    def fill_on_device(self, variable: nn.Variable) -> None:
        from ..backend import kernels

        mean, std = (
            np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.normalization.mean, self.normalization.std)
        )
        kernels.scale_and_shift(variable, self.levels, 1 / (255 * std), -mean / std)


AnyArray = np.ndarray | CompactArray
"""An array of a batch."""


def stacked(items: Sequence[AnyArray]) -> AnyArray:
    """Stack arrays of one kind along a new first axis."""
    first = items[0]
    return first.stack(items) if isinstance(first, CompactArray) else np.stack(items)


def nonzero(array: AnyArray) -> np.ndarray:
    """Return an array, or of a sparse one only the elements that are not 0, for counts of elements above 0."""
    return array.values if isinstance(array, Sparse) else np.asarray(array)


def put(variable: nn.Variable, array: AnyArray) -> None:
    """Copy an array of a batch into an input variable of the same shape."""
    if isinstance(array, CompactArray):
        array.fill(variable)
    else:
        variable.d = array
