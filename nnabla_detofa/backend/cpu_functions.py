"""CPU implementations of the functions of `kernels`, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .compat import nn

Variables = Sequence[nn.Variable]
EPSILON = 1e-5
"""Constant that every batch normalization adds to the variance, as in OFA."""


class CpuFunction(nn.function.PythonFunction):
    """Base class of functions with one output, which has the shape of the first input."""

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def name(self) -> str:
        return type(self).__name__

    def min_outputs(self) -> int:
        return 1

    def setup_impl(self, inputs: Variables, outputs: Variables) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return False

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return False


def _give(variable: nn.Variable, add: bool, function: Callable, *args: Any) -> None:
    """Store `function(*args)` as the gradient of a variable, or with `add` add it to the gradient."""
    if add:
        variable.g += function(*args)
    else:
        function(*args, out=variable.g)


class Relu(CpuFunction):
    """CPU implementation of `relu`."""

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return True

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        np.maximum(inputs[0].d, 0, out=outputs[0].d)

    def backward_impl(
        self, inputs: Variables, outputs: Variables, propagate_down: Sequence[bool], accum: Sequence[bool]
    ) -> None:
        for variable, wanted, add in zip(inputs, propagate_down, accum):
            if wanted:
                _give(variable, add, np.multiply, outputs[0].g, outputs[0].d > 0)


class AddRelu(Relu):
    """CPU implementation of `add_relu`: both inputs receive the gradient of the ReLU."""

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        y = outputs[0].d
        np.add(inputs[0].d, inputs[1].d, out=y)
        np.maximum(y, 0, out=y)


class Multiply(CpuFunction):
    """CPU implementation of `multiply`."""

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return i != j

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        np.multiply(inputs[0].d, inputs[1].d, out=outputs[0].d)

    def backward_impl(
        self, inputs: Variables, outputs: Variables, propagate_down: Sequence[bool], accum: Sequence[bool]
    ) -> None:
        for variable, other, wanted, add in zip(inputs, reversed(inputs), propagate_down, accum):
            if wanted:
                _give(variable, add, np.multiply, outputs[0].g, other.d)


class Leading(CpuFunction):
    """CPU implementation of `leading`; the gradient is zero outside the slice."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self._part = (slice(rows), slice(columns))

    def setup_impl(self, inputs: Variables, outputs: Variables) -> None:
        shape = inputs[0].shape
        outputs[0].reset_shape((self._part[0].stop, self._part[1].stop, *shape[2:]), True)

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        outputs[0].d[...] = inputs[0].d[self._part]

    def backward_impl(
        self, inputs: Variables, outputs: Variables, propagate_down: Sequence[bool], accum: Sequence[bool]
    ) -> None:
        if propagate_down[0]:
            gradient, (rows, columns) = inputs[0].g, self._part
            if accum[0]:
                gradient[rows, columns] += outputs[0].g
            else:
                gradient[rows, columns] = outputs[0].g
                gradient[rows, columns.stop :] = gradient[rows.stop :] = 0


class Patches(CpuFunction):
    """Square patches of a feature map around the objects' cells, 0 outside the map and for rows without an object.

    Only for the CPU, and without a gradient. Maps x (B, C, h, w), cells (B, M), y * w + x of the centers, and a mask (B, M) to
    (B * M, C * side * side), in the order of a convolution's weight.

    Args:
        side: side of a patch, odd.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self._side = side

    def setup_impl(self, inputs: Variables, outputs: Variables) -> None:
        outputs[0].reset_shape((inputs[1].size, inputs[0].shape[1] * self._side**2), True)

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        x, found = inputs[0].d, np.flatnonzero(inputs[2].d)
        height, width = x.shape[2:]
        image, cell = found[:, None] // inputs[1].shape[1], inputs[1].d.reshape(-1)[found, None].astype(int)
        down, right = np.divmod(np.arange(self._side**2), self._side)
        rows, columns = cell // width + down - self._side // 2, cell % width + right - self._side // 2
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        patches = x[image, :, rows.clip(0, height - 1), columns.clip(0, width - 1)] * inside[..., None]
        outputs[0].d[...] = 0
        outputs[0].d[found] = patches.transpose(0, 2, 1).reshape(len(found), outputs[0].shape[1])


class Interleave(CpuFunction):
    """Four maps (B, 4 * C, h + 1, w + 1) to one of twice the size, (B, C, 2h, 2w), for `kernels.forward_deconvolution`."""

    def setup_impl(self, inputs: Variables, outputs: Variables) -> None:
        batch, channels, height, width = inputs[0].shape
        outputs[0].reset_shape((batch, channels // 4, 2 * height - 2, 2 * width - 2), True)

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        x, y = inputs[0].d, outputs[0].d
        channels, height, width = y.shape[1], x.shape[2] - 1, x.shape[3] - 1
        for number in range(4):
            down, right = divmod(number, 2)
            part = x[:, number * channels : (number + 1) * channels]
            y[:, :, down::2, right::2] = part[:, :, down : down + height, right : right + width]


class BatchNormalization(CpuFunction):
    """CPU implementation of `batch_normalization`."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self._relu = relu

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return j < 2 and i != 2

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return self._relu

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and variance, (1, C, 1, 1) each, of the last forward pass."""
        return self._mean.reshape(1, -1, 1, 1), self._var.reshape(1, -1, 1, 1)

    def forward_impl(self, inputs: Variables, outputs: Variables) -> None:
        x, gamma, beta = (variable.d for variable in inputs)
        batch, channels = x.shape[:2]
        x, y = x.reshape(batch, channels, -1), outputs[0].d.reshape(batch, channels, -1)
        gamma, beta = (p.reshape(-1, 1)[:channels] for p in (gamma, beta))
        count = np.float32(x.size // channels)
        self._mean, self._var = np.empty((2, channels, 1), np.float32)
        for part in _blocks(x):
            mean, result = _channel_sums(x[:, part]) / count, y[:, part]
            values = np.subtract(x[:, part], mean)  # contiguous, unlike a part of y, and in the cache
            var = _channel_sums(values, values) / count
            values *= gamma[part] / np.sqrt(var + np.float32(EPSILON))
            if self._relu:
                values += beta[part]
                np.maximum(values, 0, out=result)
            else:
                np.add(values, beta[part], out=result)
            self._mean[part], self._var[part] = mean, var

    def backward_impl(
        self, inputs: Variables, outputs: Variables, propagate_down: Sequence[bool], accum: Sequence[bool]
    ) -> None:
        x, gamma = (variable.d for variable in inputs[:2])
        batch, channels = x.shape[:2]
        x, dy = x.reshape(batch, channels, -1), outputs[0].g.reshape(batch, channels, -1)
        y = outputs[0].d.reshape(x.shape) if self._relu else None
        given = inputs[0].g.reshape(x.shape) if propagate_down[0] else None
        gamma, count = gamma.reshape(-1, 1)[:channels], np.float32(x.size // channels)
        scale = 1 / np.sqrt(self._var + np.float32(EPSILON))
        dgamma, dbeta = np.empty((2, channels, 1), np.float32)
        for part in _blocks(x):
            above = dy[:, part] if y is None else dy[:, part] * (y[:, part] > 0)
            dx = np.subtract(x[:, part], self._mean[part])
            dgamma[part], dbeta[part] = _channel_sums(dx, above) * scale[part], _channel_sums(above)
            if given is not None:
                dx *= scale[part] * dgamma[part] / -count
                dx += above
                dx -= dbeta[part] / count
                factor = scale[part] * gamma[part]
                if accum[0]:
                    dx *= factor
                    given[:, part] += dx
                else:
                    np.multiply(dx, factor, out=given[:, part])
        for which, gradient in ((1, dgamma), (2, dbeta)):
            if propagate_down[which]:
                whole = inputs[which].g.reshape(-1, 1)
                if not accum[which]:
                    whole[...] = 0
                whole[:channels] += gradient


BLOCK = 1 << 19
"""Bytes of a feature map that are normalized at once: as much as stays in a core's cache over several passes."""


def _blocks(x: np.ndarray) -> list[slice]:
    """Split the channels of an array (B, C, n) into slices of about `BLOCK` bytes."""
    size = max(1, BLOCK * x.shape[1] // x.nbytes)
    return [slice(start, start + size) for start in range(0, x.shape[1], size)]


def _channel_sums(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Sum x, or x * y, (B, C, n) over batch and pixels to (C, 1); the result does not depend on the machine's SIMD width."""
    sums = np.add.reduce(x, axis=(0, 2)) if y is None else np.einsum("bcn,bcn->c", x, y)
    return sums.reshape(-1, 1)
