"""Elastic kernels and depthwise convolutions of `ConvBN` are those of NNabla with the slice that they mean."""

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.networks.layers import BATCH, STORED, ConvBN, GivenStatistics


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_small_kernel_is_the_middle_of_the_large_one(depthwise):
    conv = ConvBN("conv", 6, 6, 5, np.random.default_rng(0), stride=2, relu=False, depthwise=depthwise)
    weight = conv.parameters["conv/conv/_W"]
    assert weight.shape == (6, 1 if depthwise else 6, 5, 5)
    x = nn.Variable.from_numpy_array(np.random.default_rng(1).normal(size=(2, 4, 8, 8)))
    by_hand = nn.Variable.from_numpy_array(weight.d[:4, : 1 if depthwise else 4, 1:4, 1:4])
    expected = F.convolution(x, by_hand, pad=(1, 1), stride=(2, 2), group=4 if depthwise else 1)
    folded = GivenStatistics({"conv": (np.zeros((1, 4, 1, 1)), np.ones((1, 4, 1, 1)))})
    found = [conv(x, 4, statistics, 3) for statistics in (STORED, folded)]
    nn.forward_all([expected, *found])
    for y in found:
        np.testing.assert_allclose(y.d, expected.d / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)


def test_only_the_middle_of_the_kernel_gets_a_gradient():
    conv = ConvBN("conv", 3, 4, 5, np.random.default_rng(0))
    weight = conv.parameters["conv/conv/_W"]
    x = nn.Variable.from_numpy_array(np.random.default_rng(1).normal(size=(2, 3, 8, 8)))
    loss = F.sum(conv(x, 4, BATCH, 3) ** 2)
    weight.g = 0
    loss.forward()
    loss.backward()
    middle = np.zeros((5, 5), bool)
    middle[1:4, 1:4] = True
    assert not weight.g[..., ~middle].any() and np.count_nonzero(weight.g[..., middle]) > 90


def test_an_even_kernel_is_refused():
    with pytest.raises(UserError, match="the kernel of the layer conv must be odd, so that padding keeps the size, got 4"):
        ConvBN("conv", 3, 4, 4, np.random.default_rng(0))
