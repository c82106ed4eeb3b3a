"""A convolution with batch normalization, and where that takes its mean and variance from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from ..backend import kernels
from ..backend.compat import F, Mo, Parameter, nn
from ..backend.kernels import EPSILON

Convolve = Callable[..., nn.Variable]
"""A layer's convolution of its input: call it with a weight, and a bias where there is one."""


class Plain:
    """NNabla's usual functions, one for each layer, whatever the device: for graphs that are counted, timed and exported."""

    joins_heads = False
    """Whether a detector runs the first convolutions of its heads as one."""

    @staticmethod
    def relu(x: nn.Variable) -> nn.Variable:
        """max(x, 0), in the place of x."""
        return F.relu(x, inplace=True)

    @classmethod
    def add_relu(cls, x: nn.Variable, y: nn.Variable) -> nn.Variable:
        """max(x + y, 0)."""
        return cls.relu(F.add2(x, y))


class Quick:
    """The functions that are quick on the device, for graphs that train and evaluate paths."""

    joins_heads = True
    relu = staticmethod(kernels.relu)
    add_relu = staticmethod(kernels.add_relu)


class StoredStatistics(Plain):
    """Inference with the running mean and variance stored beside the weights, sliced like them.

    As every kind of statistics it is called with a layer, its convolution, the convolution's weight, and gamma and beta of at
    least as many channels as that gives; with `relu` it ends in a ReLU. `Plain` or `Quick` are the network's other functions.
    """

    def __call__(
        self, layer: ConvBN, convolve: Convolve, weight, gamma: nn.Variable, beta: nn.Variable, relu: bool = False
    ) -> nn.Variable:
        x = convolve(weight)
        gamma, beta, mean, var = (slice_channels(p, x.shape[1]) for p in (gamma, beta, layer.mean, layer.var))
        y = F.batch_normalization(x, beta, gamma, mean, var, eps=EPSILON, batch_stat=False)
        return self.relu(y) if relu else y


class BatchStatistics(Quick):
    """Training: every mini-batch is normalised with its own mean and variance; nothing is remembered.

    Running averages would mix the statistics of different paths; what a path needs at inference is re-estimated for
    that path (`reestimation.reestimate`), as OFA does.
    """

    def __call__(
        self, layer: ConvBN, convolve: Convolve, weight, gamma: nn.Variable, beta: nn.Variable, relu: bool = False
    ) -> nn.Variable:
        return kernels.batch_normalization(convolve(weight), gamma, beta, relu)


class CollectedStatistics(BatchStatistics):
    """Batch statistics that are also kept: after a forward pass `read` gives each layer's mean and variance."""

    def __init__(self):
        self._found: dict[str, kernels.Read] = {}

    def __call__(
        self, layer: ConvBN, convolve: Convolve, weight, gamma: nn.Variable, beta: nn.Variable, relu: bool = False
    ) -> nn.Variable:
        y, self._found[layer.name] = kernels.measured_batch_normalization(convolve(weight), gamma, beta, relu)
        return y

    def read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Layer name -> mean and variance of the last batch, (1, C, 1, 1) each."""
        return {name: read() for name, read in self._found.items()}


class GivenStatistics(Quick):
    """Inference with the mean and variance of a mapping: layer name -> two arrays (1, C, 1, 1).

    They are folded into the convolutions, whose weights are copied as they are now: later training does not reach the graph.
    """

    def __init__(self, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        self.statistics = statistics

    def __call__(
        self, layer: ConvBN, convolve: Convolve, weight, gamma: nn.Variable, beta: nn.Variable, relu: bool = False
    ) -> nn.Variable:
        mean, var = self.statistics[layer.name]
        weight, gamma, beta = map(_value, (weight, gamma, beta))
        gamma, beta = gamma[:, : mean.shape[1]], beta[:, : mean.shape[1]]
        scale = gamma / np.sqrt(var + EPSILON)
        folded = weight * np.moveaxis(scale, 1, layer.output_axis), (beta - mean * scale).ravel()
        y = convolve(*map(nn.Variable.from_numpy_array, folded))
        return self.relu(y) if relu else y


def _value(variable: nn.Variable) -> np.ndarray:
    if variable.parent is not None:  # a slice of a parameter, which nothing has computed yet
        variable.forward()
    return variable.d


STORED = StoredStatistics()
BATCH = BatchStatistics()


def slice_channels(p: nn.Variable, channels: int) -> nn.Variable:
    """The first `channels` of a (1, C, 1, 1) parameter."""
    return kernels.leading(p, 1, channels)


def he_normal(rng: np.random.Generator, shape: tuple[int, ...], fan: int) -> np.ndarray:
    """Normal weights with variance 2 / fan."""
    return rng.normal(0.0, np.sqrt(2.0 / fan), shape).astype(np.float32)


class ConvBN(Mo.Module):
    """Convolution without bias, batch normalisation and (optionally) ReLU, run on the leading channels asked for.

    Args:
        name: unique name in the network; statistics are filed under it.
        inputs, outputs: the largest numbers of channels.
        kernel, stride: of the square convolution, padded to keep the size at stride 1.
        relu: apply ReLU at the end.
        gamma: initial scale of the batch normalisation.
        rng: draws the weights (He normal by fan-out, as OFA initialises).
    """

    output_axis = 0  # of the convolution's weight

    def __init__(self, name, inputs, outputs, kernel, rng, stride=1, relu=True, gamma=1.0):
        super().__init__(name=name)
        self._stride, self._relu = (stride, stride), relu
        shape = (1, outputs, 1, 1)
        weight = he_normal(rng, (outputs, inputs, kernel, kernel), outputs * kernel * kernel)
        # The slashes give the parameter names of NNablaNAS' nested modules without the nesting.
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

    def __call__(self, x: nn.Variable, outputs: int, statistics) -> nn.Variable:
        """(B, C, H, W) with any C up to `inputs` -> (B, outputs, H', W')."""
        return self.run(x, kernels.leading(self.parameters["conv/conv/_W"], outputs, x.shape[1]), statistics)

    def run(self, x: nn.Variable, weight: nn.Variable, statistics) -> nn.Variable:
        """The layer with this weight (outputs, C, k, k), however it was made of the layer's own."""
        gamma, beta = (self.parameters[f"bn/bn/{key}"] for key in ("_gamma", "_beta"))
        pad = tuple(side // 2 for side in weight.shape[2:])
        convolve = partial(F.convolution, x, pad=pad, stride=self._stride)
        return statistics(self, convolve, weight, gamma, beta, relu=self._relu)
