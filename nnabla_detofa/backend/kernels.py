"""Functions with two implementations: NumPy on the CPU, NNabla on a GPU; the default context selects one.

On a GPU these are cuDNN's batch normalization, in-place ReLU and a slice. NNabla's CPU versions spend an integer division or a
mispredicted branch on each element, so on the CPU NumPy's element-wise functions and sums replace them: they are several times
as fast and, unlike a BLAS, give the same bits on every x86 machine. Convolutions always use NNabla.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .compat import F, nn
from .cpu_functions import EPSILON, AddRelu, BatchNormalization, Interleave, Leading, Multiply, Patches, Relu


def on_cpu() -> bool:
    """Return whether NNabla's default context computes on the CPU."""
    return nn.get_current_context().backend[0].startswith("cpu")


# --- Element-wise functions -------------------------------------------------------------------------------------------


def relu(x: nn.Variable) -> nn.Variable:
    """Return max(x, 0) element-wise, in the shape of x. On a GPU the result overwrites x."""
    return Relu()(x) if on_cpu() else _relu_on_device(x)


def add_relu(x: nn.Variable, y: nn.Variable) -> nn.Variable:
    """Return max(x + y, 0) element-wise; x and y have equal shapes."""
    return AddRelu()(x, y) if on_cpu() else _relu_on_device(F.add2(x, y))


def _relu_on_device(x: nn.Variable) -> nn.Variable:
    """Compute max(x, 0) in place. NNabla's ReLU makes 0 of NaN, so a loss could stay finite after the weights became NaN."""
    return F.leaky_relu(x, alpha=0.0, inplace=True)


def multiply(x: nn.Variable, y: nn.Variable) -> nn.Variable:
    """Return x * y element-wise; x and y have equal shapes."""
    return Multiply()(x, y) if on_cpu() else F.mul2(x, y)


# --- Forward passes without a gradient, which evaluate paths ----------------------------------------------------------


def deconvolution(x: nn.Variable, weight: nn.Variable, bias: nn.Variable | None = None) -> nn.Variable:
    """Apply a transposed convolution of kernel 4 and stride 2, x (B, I, h, w) and weight (I, O, 4, 4) to (B, O, 2h, 2w)."""
    return F.deconvolution(x, weight, bias, pad=(1, 1), stride=(2, 2))


def forward_deconvolution(x: nn.Variable, weight: nn.Variable, bias: nn.Variable | None = None) -> nn.Variable:
    """Apply `deconvolution`, up to rounding, to a copy of the weight and without a gradient.

    Each output pixel uses 2x2 of the kernel's elements. On the CPU, with at most as many inputs as outputs, one convolution of
    kernel 2 that computes all four kinds of output pixels as maps of their own is faster than NNabla's transposed convolution.
    """
    inputs, outputs = weight.shape[:2]
    if not on_cpu() or inputs > outputs:
        return deconvolution(x, weight, bias)
    split = _computed(weight).data[:, :, ::-1, ::-1].reshape(inputs, outputs, 2, 2, 2, 2)
    kernels = np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4)).reshape(4 * outputs, inputs, 2, 2)
    biases = None if bias is None else nn.Variable.from_numpy_array(np.tile(bias.d, 4))
    return Interleave()(F.convolution(x, nn.Variable.from_numpy_array(kernels), biases, pad=(1, 1)))


def patches(x: nn.Variable, cells: nn.Variable, mask: nn.Variable, side: int) -> nn.Variable:
    """Cut patches around the objects' cells out of a feature map, see `cpu_functions.Patches`; only on the CPU."""
    return Patches(side)(x, cells, mask)


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
    return _relu_on_device(y) if relu else y, running


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
