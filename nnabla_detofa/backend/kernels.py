"""Functions with two implementations: NumPy on the CPU, NNabla on a GPU; the default context selects one.

On a GPU these are cuDNN's batch normalization, in-place ReLU and a slice. NNabla's CPU versions spend an integer division or a
mispredicted branch on each element, so on the CPU NumPy's element-wise functions and sums replace them: they are several times
as fast and, unlike a BLAS, give the same bits on every x86 machine. Convolutions always use NNabla.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .compat import F, nn

Variables = Sequence[nn.Variable]
EPSILON = 1e-5
"""Constant that every batch normalization adds to the variance, as in OFA."""


def on_cpu() -> bool:
    """Return whether NNabla's default context computes on the CPU."""
    return nn.get_current_context().backend[0].startswith("cpu")


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


# --- Element-wise functions -------------------------------------------------------------------------------------------


def relu(x: nn.Variable) -> nn.Variable:
    """Return max(x, 0) element-wise, in the shape of x. On a GPU the result overwrites x."""
    return Relu()(x) if on_cpu() else F.relu(x, inplace=True)


def add_relu(x: nn.Variable, y: nn.Variable) -> nn.Variable:
    """Return max(x + y, 0) element-wise; x and y have equal shapes."""
    return AddRelu()(x, y) if on_cpu() else F.relu(F.add2(x, y), inplace=True)


def multiply(x: nn.Variable, y: nn.Variable) -> nn.Variable:
    """Return x * y element-wise; x and y have equal shapes."""
    return Multiply()(x, y) if on_cpu() else F.mul2(x, y)


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


# --- Inputs in a compact form -----------------------------------------------------------------------------------------


def scatter(variable: nn.Variable, places: np.ndarray, values: np.ndarray) -> None:
    """Set elements of a variable's array, and all others to 0; on a GPU only the elements are copied to it.

    Args:
        variable: the variable, with k axes.
        places: (k, n) int32, indices of the elements, each once.
        values: (n,) float32.
    """
    if not values.size:
        variable.data.zero()
        return
    indices = nn.NdArray.from_numpy_array(places)
    variable.data = F.scatter_nd(nn.NdArray.from_numpy_array(values), indices, shape=variable.shape)


def scale_and_shift(variable: nn.Variable, levels: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    """Set a variable's array to levels * scale + shift; on a GPU the levels are copied to it with 8 bits.

    Args:
        variable: the variable.
        levels: (..., C, H, W) uint8, of its shape.
        scale, shift: (C, 1, 1) float32.
    """
    scale, shift = (
        nn.NdArray.from_numpy_array(values.reshape((1,) * (levels.ndim - 3) + values.shape)) for values in (scale, shift)
    )
    variable.data = F.add2(F.mul2(nn.NdArray.from_numpy_array(levels), scale), shift)


# --- Losses -----------------------------------------------------------------------------------------------------------


class ScalarLog:
    """Collects the scalars of several forward passes. On a GPU they stay there until they are read, all at once.

    Reading a scalar waits for the GPU. A scalar must be added before its variable is computed again.
    """

    def __init__(self) -> None:
        self._rows: list = []

    def add(self, variables: Sequence[nn.Variable]) -> None:
        """Add the values of computed scalar variables as a row; every row has the same length."""
        if on_cpu():
            self._rows.append([float(variable.d) for variable in variables])
        else:
            self._rows.append(F.stack(*(variable.data for variable in variables)))

    def read(self) -> np.ndarray:
        """Return the rows, (rows, length) float64."""
        if not self._rows or on_cpu():
            return np.array(self._rows, float)
        return F.stack(*self._rows).data.astype(float)


# --- Slices of parameters ---------------------------------------------------------------------------------------------


def leading(p: nn.Variable, rows: int, columns: int) -> nn.Variable:
    """Return `p[:rows, :columns]` of an array with two or more axes, or `p` itself if the slice covers all of it."""
    if p.shape[:2] == (rows, columns):
        return p
    if on_cpu():
        return Leading(rows, columns)(p)
    # Reshape to two dimensions first: NNabla slices a 4-D array element by element.
    size = int(np.prod(p.shape[2:]))
    flat = F.reshape(p, (p.shape[0], p.shape[1] * size))
    return F.reshape(F.slice(flat, (0, 0), (rows, columns * size)), (rows, columns, *p.shape[2:]))


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
            gradient = inputs[0].g
            if not accum[0]:
                gradient[...] = 0
            gradient[self._part] += outputs[0].g


# --- Batch normalization ----------------------------------------------------------------------------------------------


class Measurement(Protocol):
    """Source of the batch statistics of a batch normalization."""

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and variance, (1, C, 1, 1) each, of the last forward pass."""
        ...


def batch_normalization(x: nn.Variable, gamma: nn.Variable, beta: nn.Variable, relu: bool = False) -> nn.Variable:
    """Normalize a batch with its own mean and variance per channel, and optionally apply ReLU.

    Args:
        x: (B, C, H, W).
        gamma, beta: (1, C or more, 1, 1); the first C channels are used.
        relu: apply ReLU to the result.

    Returns:
        (B, C, H, W).
    """
    return measured_batch_normalization(x, gamma, beta, relu)[0]


def measured_batch_normalization(
    x: nn.Variable, gamma: nn.Variable, beta: nn.Variable, relu: bool = False
) -> tuple[nn.Variable, Measurement]:
    """Apply `batch_normalization`; also return the source of its batch statistics."""
    if on_cpu():
        function = BatchNormalization(relu)
        return function(x, gamma, beta), function
    channels = x.shape[1]
    gamma, beta, running = leading(gamma, 1, channels), leading(beta, 1, channels), RunningStatistics(channels, x.size)
    # Do not use output_stat: it makes NNabla replace cuDNN by two kernel launches per channel forward and four backward.
    y = F.batch_normalization(x, beta, gamma, running.mean, running.var, decay_rate=0.0, eps=EPSILON, batch_stat=True)
    return F.relu(y, inplace=True) if relu else y, running


class RunningStatistics:
    """Running statistics of a batch normalization on a GPU, with a decay rate of 0.

    They equal the statistics of the last batch, but with the variance times n / (n - 1).

    Args:
        channels: number of channels.
        size: number of elements of the input.

    Attributes:
        mean, var: (1, channels, 1, 1), which NNabla updates. They are zeroed, since NaN in unset memory times 0 stays NaN.
    """

    def __init__(self, channels: int, size: int):
        self.mean, self.var = (nn.Variable((1, channels, 1, 1)) for _ in range(2))
        for variable in (self.mean, self.var):
            variable.data.zero()
            variable.persistent = True
        count = size // channels
        self._share = np.float32((count - 1) / count)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and variance, (1, channels, 1, 1) each, of the last forward pass."""
        return self.unpacked(self.mean.d, self.var.d)

    def unpacked(self, mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance from values of `mean` and `var`, in shape (1, channels, 1, 1)."""
        shape = self.mean.shape
        # The variance of one element is 0, and NNabla's is a division by 0.
        return mean.reshape(shape).copy(), var.reshape(shape) * self._share if self._share else np.zeros(shape, np.float32)


class StatisticsSum:
    """Sum of the batch statistics of several forward passes on a GPU, which the host reads once.

    Args:
        layers: running statistics of each batch normalization.
    """

    def __init__(self, layers: Sequence[RunningStatistics]):
        self._layers, self._count = layers, 0
        self._sum: nn.NdArray | None = None

    def add(self) -> None:
        """Add the statistics of the last forward pass."""
        arrays = [variable.data for layer in self._layers for variable in (layer.mean, layer.var)]
        found = F.concatenate(*arrays, axis=1)
        if self._sum is None:
            self._sum = found
        else:
            self._sum += found
        self._count += 1

    def mean(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the mean over the forward passes: for each layer its mean and variance."""
        assert self._sum is not None
        values = self._sum.data / np.float32(self._count)
        ends = np.cumsum([variable.size for layer in self._layers for variable in (layer.mean, layer.var)])
        parts = np.split(values, ends[:-1], axis=1)
        return [layer.unpacked(*pair) for layer, *pair in zip(self._layers, parts[::2], parts[1::2])]


def fold(
    weight: nn.Variable, gamma: nn.Variable, beta: nn.Variable, mean: np.ndarray, var: np.ndarray, axis: int
) -> tuple[nn.Variable, nn.Variable]:
    """Fold a batch normalization with given statistics into the convolution before it.

    The results are copies, on which later changes of the weights have no effect.

    Args:
        weight: weight of the convolution, with C output channels on `axis`.
        gamma, beta: (1, C or more, 1, 1); the first C channels are used.
        mean, var: (1, C, 1, 1).

    Returns:
        the weight, in the same shape, and the bias (C,).
    """
    channels = mean.shape[1]
    if on_cpu():
        weights, gammas, betas = (_computed(variable).data for variable in (weight, gamma, beta))
        gammas, betas = gammas[:, :channels], betas[:, :channels]
        scale = gammas / np.sqrt(var + EPSILON)
        folded = weights * np.moveaxis(scale, 1, axis), (betas - mean * scale).ravel()
        return tuple(map(nn.Variable.from_numpy_array, folded))
    gammas, betas = (_computed(leading(variable, 1, channels)) for variable in (gamma, beta))
    means, variances = map(nn.NdArray.from_numpy_array, (mean, var))
    scale = F.mul2(gammas, F.pow_scalar(F.add_scalar(variances, EPSILON), -0.5))
    shape = [1] * weight.ndim
    shape[axis] = channels
    folded = F.mul2(_computed(weight), F.reshape(scale, shape, inplace=False))
    bias = F.reshape(F.sub2(betas, F.mul2(means, scale)), (channels,), inplace=False)
    return _variable(folded), _variable(bias)


def _computed(variable: nn.Variable) -> nn.NdArray:
    """Return the array of a parameter, or of a slice of one, which is computed."""
    if variable.parent is not None:
        variable.forward()
    return variable.data


def _variable(array: nn.NdArray) -> nn.Variable:
    variable = nn.Variable(array.shape)
    variable.data = array
    return variable


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
            mean, values = _channel_sums(x[:, part]) / count, y[:, part]
            np.subtract(x[:, part], mean, out=values)
            var = _channel_sums(values, values) / count
            values *= gamma[part] / np.sqrt(var + np.float32(EPSILON))
            values += beta[part]
            if self._relu:
                np.maximum(values, 0, out=values)
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
            dx = np.subtract(x[:, part], self._mean[part], out=None if given is None or accum[0] else given[:, part])
            dgamma[part], dbeta[part] = _channel_sums(dx, above) * scale[part], _channel_sums(above)
            if given is not None:
                dx *= scale[part] * dgamma[part] / -count
                dx += above
                dx -= dbeta[part] / count
                dx *= scale[part] * gamma[part]
                if accum[0]:
                    given[:, part] += dx
        for which, gradient in ((1, dgamma), (2, dbeta)):
            if propagate_down[which]:
                whole = inputs[which].g.reshape(-1, 1)
                if not accum[which]:
                    whole[...] = 0
                whole[:channels] += gradient


BLOCK = 1 << 18
"""Bytes of a feature map that are normalized at once: as much as stays in a core's cache over several passes."""


def _blocks(x: np.ndarray) -> list[slice]:
    """Split the channels of an array (B, C, n) into slices of about `BLOCK` bytes."""
    size = max(1, BLOCK * x.shape[1] // x.nbytes)
    return [slice(start, start + size) for start in range(0, x.shape[1], size)]


def _channel_sums(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Sum x, or x * y, (B, C, n) over batch and pixels to (C, 1); the result does not depend on the machine's SIMD width."""
    sums = np.add.reduce(x, axis=(0, 2)) if y is None else np.einsum("bcn,bcn->c", x, y)
    return sums.reshape(-1, 1)
