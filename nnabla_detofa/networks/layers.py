"""Elastic convolution with batch normalization, and the sources of its mean and variance ("statistics")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import numpy as np

from ..backend import kernels
from ..backend.compat import F, Mo, Parameter, nn
from ..backend.cpu_functions import EPSILON
from ..common.errors import UserError

Convolve = Callable[..., nn.Variable]
"""The convolution of a layer's input, as a function of the weight and optionally a bias."""


class StatisticsSource(Protocol):
    """Source of the mean and variance of every batch normalization of a network, with the other functions of its graph.

    Attributes:
        joins_heads: whether a detector merges the convolutions of its heads (see `centernet.run_heads`).
    """

    joins_heads: bool

    def deconvolution(self, x: nn.Variable, weight: nn.Variable, bias: nn.Variable | None = None, /) -> nn.Variable: ...

    def relu(self, x: nn.Variable, /) -> nn.Variable: ...

    def add_relu(self, x: nn.Variable, y: nn.Variable, /) -> nn.Variable: ...

    def __call__(
        self,
        layer: ConvBN,
        convolve: Convolve,
        weight: nn.Variable,
        gamma: nn.Variable,
        beta: nn.Variable,
        relu: bool = False,
    ) -> nn.Variable:
        """Apply the convolution, batch normalization and optionally ReLU of a layer.

        Args:
            layer: the layer.
            convolve: convolution of the layer's input.
            weight: weight of the convolution.
            gamma, beta: (1, C, 1, 1) with at least as many channels as the convolution's output.
            relu: whether to append a ReLU.
        """


class Plain:
    """NNabla's standard functions on every device, one per layer, for graphs that are counted, timed or exported."""

    joins_heads = False
    deconvolution = staticmethod(kernels.deconvolution)

    @staticmethod
    def relu(x: nn.Variable) -> nn.Variable:
        """Compute max(x, 0) in place."""
        return F.relu(x, inplace=True)

    @classmethod
    def add_relu(cls, x: nn.Variable, y: nn.Variable) -> nn.Variable:
        """Compute max(x + y, 0)."""
        return cls.relu(F.add2(x, y))


class Quick:
    """The fastest functions on each device, for graphs that train or evaluate paths."""

    joins_heads = True
    deconvolution = staticmethod(kernels.deconvolution)
    relu = staticmethod(kernels.relu)
    add_relu = staticmethod(kernels.add_relu)


class StoredStatistics(Plain):
    """Inference with the running mean and variance that are stored with the weights, sliced to the active channels."""

    def __call__(
        self,
        layer: ConvBN,
        convolve: Convolve,
        weight: nn.Variable,
        gamma: nn.Variable,
        beta: nn.Variable,
        relu: bool = False,
    ) -> nn.Variable:
        x = convolve(weight)
        gamma, beta, mean, var = (slice_channels(p, x.shape[1]) for p in (gamma, beta, layer.mean, layer.var))
        y = F.batch_normalization(x, beta, gamma, mean, var, eps=EPSILON, batch_stat=False)
        return self.relu(y) if relu else y


class BatchStatistics(Quick):
    """Training: each mini-batch is normalized with its own mean and variance, and no running averages are kept.

    Running averages would mix the statistics of different paths. Instead, the statistics of a path are re-estimated for
    inference (`reestimation.reestimate`), as in OFA.
    """

    def __call__(
        self,
        layer: ConvBN,
        convolve: Convolve,
        weight: nn.Variable,
        gamma: nn.Variable,
        beta: nn.Variable,
        relu: bool = False,
    ) -> nn.Variable:
        return kernels.batch_normalization(convolve(weight), gamma, beta, relu)


class CollectedStatistics(BatchStatistics):
    """Batch statistics that are also recorded: after a forward pass, `read` returns the mean and variance of each layer.

    Its graphs have no gradient.
    """

    deconvolution = staticmethod(kernels.forward_deconvolution)

    def __init__(self) -> None:
        self._found: dict[str, kernels.Measurement] = {}

    def __call__(
        self,
        layer: ConvBN,
        convolve: Convolve,
        weight: nn.Variable,
        gamma: nn.Variable,
        beta: nn.Variable,
        relu: bool = False,
    ) -> nn.Variable:
        y, self._found[layer.name] = kernels.measured_batch_normalization(convolve(weight), gamma, beta, relu)
        return y

    def read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return layer name -> (mean, variance) of the last batch, (1, C, 1, 1) each."""
        return {name: measured.read() for name, measured in self._found.items()}

    def sum(self) -> kernels.StatisticsSum:
        """Return a sum of the statistics of several batches, in the order of `names`; only on a GPU."""
        return kernels.StatisticsSum([found for found in self._found.values() if isinstance(found, kernels.RunningStatistics)])

    @property
    def names(self) -> list[str]:
        """The layers, in the order of their calls."""
        return list(self._found)


class GivenStatistics(Quick):
    """Inference with given statistics, folded into the convolutions.

    The graph uses a copy of the current weights, so later training does not change it, and has no gradient.

    Args:
        statistics: layer name -> (mean, variance), (1, C, 1, 1) each.
    """

    deconvolution = staticmethod(kernels.forward_deconvolution)

    def __init__(self, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        self.statistics = statistics

    def __call__(
        self,
        layer: ConvBN,
        convolve: Convolve,
        weight: nn.Variable,
        gamma: nn.Variable,
        beta: nn.Variable,
        relu: bool = False,
    ) -> nn.Variable:
        y = convolve(*kernels.fold(weight, gamma, beta, *self.statistics[layer.name], layer.output_axis))
        return self.relu(y) if relu else y


STORED = StoredStatistics()
BATCH = BatchStatistics()


def slice_channels(p: nn.Variable, channels: int) -> nn.Variable:
    """Return the first `channels` channels of a (1, C, 1, 1) parameter."""
    return kernels.leading(p, 1, channels)


def center(weight: nn.Variable, kernel: int) -> nn.Variable:
    """Return the middle (O, I, kernel, kernel) of the weight of a convolution (O, I, K, K); K - kernel is even."""
    outputs, inputs, side, _ = weight.shape
    edge = (side - kernel) // 2
    if not edge:
        return weight
    # Two slices of arrays with two axes: NNabla slices a 4-D array element by element.
    maps = outputs * inputs
    rows = F.slice(F.reshape(weight, (maps, side * side)), (0, edge * side), (maps, (edge + kernel) * side))
    columns = F.slice(F.reshape(rows, (maps * kernel, side)), (0, edge), (maps * kernel, edge + kernel))
    return F.reshape(columns, (outputs, inputs, kernel, kernel))


def he_normal(rng: np.random.Generator, shape: tuple[int, ...], fan: int) -> np.ndarray:
    """Sample normally distributed float32 weights with variance 2 / fan (He initialization)."""
    return rng.normal(0.0, np.sqrt(2.0 / fan), shape).astype(np.float32)


class ConvBN(Mo.Module):
    """Convolution without bias, batch normalization and optionally ReLU, with elastic numbers of channels and kernel.

    Args:
        name: unique name in the network, the key of the layer's statistics.
        inputs, outputs: largest numbers of channels.
        kernel: largest side of the square convolution, which is padded to keep the size at stride 1.
        stride: its stride.
        rng: random generator of the initial weights (He normal by fan-out, as in OFA).
        relu: whether to apply ReLU at the end.
        gamma: initial scale of the batch normalization.
        depthwise: whether each output channel reads the input channel of the same number alone.

    Raises:
        UserError: the kernel of a convolution is even.
    """

    output_axis = 0  # axis of the output channels in the convolution's weight

    def __init__(
        self,
        name: str,
        inputs: int,
        outputs: int,
        kernel: int,
        rng: np.random.Generator,
        stride: int = 1,
        relu: bool = True,
        gamma: float = 1.0,
        depthwise: bool = False,
    ):
        super().__init__(name=name)
        if kernel % 2 == 0 and not self.output_axis:
            raise UserError(f"the kernel of the layer {name} must be odd, so that padding keeps the size, got {kernel}")
        self._stride, self._relu, self.depthwise = (stride, stride), relu, depthwise
        shape = (1, outputs, 1, 1)
        fan = kernel * kernel * (1 if depthwise else outputs)
        weight = he_normal(rng, (outputs, 1 if depthwise else inputs, kernel, kernel), fan)
        # The slashes give the parameters the names of NNablaNAS' nested modules without nesting.
        self.parameters["conv/conv/_W"] = Parameter(weight.shape, initializer=weight)
        for key, value in {"_beta": 0.0, "_gamma": gamma, "_mean": 0.0, "_var": 1.0}.items():
            self.parameters[f"bn/bn/{key}"] = Parameter(
                shape, need_grad=key in ("_beta", "_gamma"), initializer=np.full(shape, value, np.float32)
            )

    @property
    def mean(self) -> nn.Variable:
        return self.parameters["bn/bn/_mean"]

    @property
    def var(self) -> nn.Variable:
        return self.parameters["bn/bn/_var"]

    def __call__(self, x: nn.Variable, outputs: int, statistics: StatisticsSource, kernel: int | None = None) -> nn.Variable:
        """Apply the layer to x (B, C, H, W), for any C up to `inputs`; returns (B, outputs, H', W').

        With `kernel`, only the middle of the largest kernel is used, as in OFA's elastic kernels.
        """
        weight = kernels.leading(self.parameters["conv/conv/_W"], outputs, 1 if self.depthwise else x.shape[1])
        return self.run(x, center(weight, kernel or weight.shape[2]), statistics)

    def run(self, x: nn.Variable, weight: nn.Variable, statistics: StatisticsSource) -> nn.Variable:
        """Apply the layer to x with a given weight (outputs, C, k, k), such as a slice of the layer's weight."""
        gamma, beta = (self.parameters[f"bn/bn/{key}"] for key in ("_gamma", "_beta"))
        pad = tuple(side // 2 for side in weight.shape[2:])
        groups = weight.shape[0] if self.depthwise else 1
        convolve = partial(F.convolution, x, pad=pad, stride=self._stride, group=groups)
        return statistics(self, convolve, weight, gamma, beta, relu=self._relu)
