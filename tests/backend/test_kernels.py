"""The CPU's own functions against NNabla's, values and gradients; and that they give the same bits without wide SIMD."""

import os
import subprocess
import sys

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nnabla_detofa.backend import kernels
from nnabla_detofa.networks.centernet import Head, run_heads
from nnabla_detofa.networks.layers import BATCH, STORED, CollectedStatistics

RNG = np.random.default_rng(0)


def original_batch_normalization(x, gamma, beta, relu=False):
    gamma, beta = (p[:, : x.shape[1]] for p in (gamma, beta))
    mean, var = nn.Variable(beta.shape), nn.Variable(beta.shape)
    y = F.batch_normalization(x, beta, gamma, mean, var, eps=kernels.EPSILON, batch_stat=True)
    return F.relu(y) if relu else y


def sums(function, arrays, twice: bool) -> list[np.ndarray]:
    """The output of function(*arrays) and the gradients of a weighted sum of it; with `twice` arrays are used elsewhere too."""
    leaves = [nn.Variable.from_numpy_array(array.copy()).apply(need_grad=True) for array in arrays]
    for leaf in leaves:
        leaf.grad.fill(0.5)  # to which gradients are added
    inputs = [leaf * 1.0 for leaf in leaves]
    y = function(*inputs)
    y.persistent = True
    weights = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    total = F.sum(y * nn.Variable.from_numpy_array(weights))
    if twice:
        total = sum((F.sum(x * x) for x in inputs), total)
    total.forward(clear_no_need_grad=True)
    total.backward(clear_buffer=True)
    return [y.d.copy(), *(leaf.g.copy() for leaf in leaves)]


def normal(*shape) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


CASES = {
    "ReLU": (kernels.relu, F.relu, [np.array([[-1.0, -0.0, 0.0, 1e-30, 2.0]], np.float32)]),
    "ReLU of a map": (kernels.relu, F.relu, [normal(2, 3, 5, 4)]),
    "sum and ReLU": (kernels.add_relu, lambda x, y: F.relu(x + y), [normal(2, 3, 5, 4), normal(2, 3, 5, 4)]),
    "product": (kernels.multiply, lambda x, y: x * y, [normal(2, 3, 5), normal(2, 3, 5)]),
    "square": (lambda x: kernels.multiply(x, x), lambda x: x * x, [normal(3, 4)]),
    "leading part": (lambda w: kernels.leading(w, 4, 2), lambda w: w[:4, :2], [normal(6, 5, 3, 3)]),
    "leading rows": (lambda w: kernels.leading(w, 1, 5), lambda w: w[:1], [normal(6, 5)]),
    "all of it": (lambda w: kernels.leading(w, 6, 5), lambda w: w, [normal(6, 5)]),
}
MAPS = {"map": normal(4, 3, 6, 5) * 3 + 2, "odd map": normal(3, 7, 1, 3), "blocks": normal(8, 20, 30, 20) - 1}


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_an_element_wise_function_is_the_original(name, twice):
    ours, original, arrays = CASES[name]
    for got, wanted in zip(sums(ours, arrays, twice), sums(original, arrays, twice)):
        assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_relu_keeps_nan_so_that_the_loss_shows_it(on_cpu, monkeypatch):
    """NNabla's own makes 0 of it: after the weights became NaN, the loss would be finite."""
    monkeypatch.setattr(kernels, "on_cpu", lambda: on_cpu)
    x = np.array([[-1.0, np.nan, 0.0, 2.0]], np.float32).reshape(1, 1, 2, 2)
    for function in (kernels.relu, lambda x: kernels.add_relu(x, x * 0)):
        y, *_ = sums(function, [x], False)
        assert_array_equal(y, np.where(x < 0, 0, x))
    y, *_ = sums(
        lambda x: kernels.batch_normalization(x, F.constant(1, (1, 1, 1, 1)), F.constant(0, (1, 1, 1, 1)), True), [x], False
    )
    assert np.isnan(y).all()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("name", MAPS)
def test_batch_normalization_is_the_original(name, extra, twice, relu):
    x = MAPS[name]
    arrays = [x, *(normal(1, x.shape[1] + extra, 1, 1) for _ in range(2))]

    def run(function):
        return sums(lambda *inputs: function(*inputs, relu), arrays, twice)

    exact = in_double(*arrays, relu, twice)
    for got, original, wanted in zip(run(kernels.batch_normalization), run(original_batch_normalization), exact):
        scale = max(1, np.abs(wanted).max())
        assert_allclose(got, wanted, rtol=0, atol=1e-6 * scale)
        assert_allclose(got, original, rtol=0, atol=5e-6 * scale)  # NNabla adds up a channel's numbers one by one


def in_double(x, gamma, beta, relu: bool, twice: bool) -> list[np.ndarray]:
    """What `sums` gives for batch normalization, from the formulas."""
    x, gamma, beta = (array.astype(float) for array in (x, gamma, beta))
    channels, axes, more = x.shape[1], (0, 2, 3), [2 * array if twice else 0 for array in (x, gamma, beta)]
    sigma = np.sqrt(x.var(axes, keepdims=True) + kernels.EPSILON)
    normal = (x - x.mean(axes, keepdims=True)) / sigma
    y = normal * gamma[:, :channels] + beta[:, :channels]
    dy = np.random.default_rng(1).normal(size=x.shape).astype(np.float32) * ((y > 0) if relu else 1.0)
    y = np.maximum(y, 0) if relu else y
    dnormal = dy * gamma[:, :channels]
    dx = dnormal - dnormal.mean(axes, keepdims=True) - normal * (dnormal * normal).mean(axes, keepdims=True)
    gradients = [dx / sigma]
    for whole, values in ((gamma, dy * normal), (beta, dy)):
        gradients.append(np.zeros_like(whole))
        gradients[-1][:, :channels] = values.sum(axes, keepdims=True)
    return [y, *(0.5 + gradient + other for gradient, other in zip(gradients, more))]


def test_gradients_that_nobody_wants_are_left_alone():
    x, gamma, beta = (nn.Variable.from_numpy_array(normal(*shape)) for shape in ((2, 3, 4, 4), (1, 3, 1, 1), (1, 3, 1, 1)))
    gamma.need_grad = True
    for variable in (x, gamma, beta):
        variable.grad.fill(7)
    total = F.sum(kernels.batch_normalization(x, gamma, beta) ** 2)
    total.forward()
    total.backward()
    assert (x.g == 7).all() and (beta.g == 7).all() and not (gamma.g == 7).any()


def test_measured_statistics_by_hand():
    """Channel 0 holds 1, 2, 3, 4 twice, channel 1 one number; the second pass sees another batch."""
    x = nn.Variable((2, 2, 2, 2))
    ones = nn.Variable.from_numpy_array(np.ones((1, 2, 1, 1)))
    y, measured = kernels.measured_batch_normalization(x, ones, ones)
    for shift in (0, 10):
        x.d = np.stack([np.stack([np.arange(1, 5).reshape(2, 2), np.full((2, 2), 5)])] * 2) + shift
        y.forward(clear_buffer=True)
        mean, var = measured.read()
        assert_allclose(mean.ravel(), [2.5 + shift, 5 + shift])
        assert_allclose(var.ravel(), [1.25, 0], atol=1e-6)


def test_a_gpu_gets_nnablas_functions(monkeypatch):
    """With two inputs and outputs as cuDNN takes them: the statistics come out of the running averages."""
    monkeypatch.setattr(kernels, "on_cpu", lambda: False)
    x, gamma, beta = (nn.Variable.from_numpy_array(v) for v in (MAPS["map"], normal(1, 5, 1, 1), normal(1, 5, 1, 1)))
    y, measured = kernels.measured_batch_normalization(x, gamma, beta, relu=True)
    total = kernels.StatisticsSum([measured, measured])
    kinds = []
    kernels.add_relu(y, kernels.multiply(y, y)).visit(
        lambda function: kinds.append((function.info.type_name, len(function.outputs)))
    )
    assert ("BatchNormalization", 1) in kinds and "Callback" not in {kind for kind, _ in kinds}
    for scale in (1, 3):
        x.d = MAPS["map"] * scale
        y.forward(clear_buffer=True)
        total.add()
        mean, var = measured.read()
        assert_allclose(mean.ravel(), x.d.mean((0, 2, 3)), rtol=1e-5)
        assert_allclose(var.ravel(), x.d.var((0, 2, 3)), rtol=1e-5)
    for mean, var in total.mean():  # of the maps times 1 and times 3
        assert mean.shape == var.shape == (1, 3, 1, 1)
        assert_allclose(mean.ravel(), MAPS["map"].mean((0, 2, 3)) * 2, rtol=1e-5)
        assert_allclose(var.ravel(), MAPS["map"].var((0, 2, 3)) * 5, rtol=1e-5)
    one = nn.Variable.from_numpy_array(normal(1, 2, 1, 1))
    y, measured = kernels.measured_batch_normalization(one, gamma, beta)
    y.forward()
    assert_array_equal(measured.read()[1].ravel(), [0, 0])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_folded_batch_normalization_is_the_original(axis, on_cpu, monkeypatch):
    """The output channels are on axis 0 of a weight, on axis 1 of a transposed convolution's; later changes do not count."""
    monkeypatch.setattr(kernels, "on_cpu", lambda: on_cpu)
    shape = (4, 3, 2, 2) if axis == 0 else (3, 4, 2, 2)
    whole = nn.Variable.from_numpy_array(normal(6, 6, 2, 2))
    weight = kernels.leading(whole, *shape[:2])
    gamma, beta = (nn.Variable.from_numpy_array(normal(1, 6, 1, 1)) for _ in range(2))
    mean, var = normal(1, 4, 1, 1), normal(1, 4, 1, 1) ** 2
    x = nn.Variable.from_numpy_array(normal(2, 3, 5, 5))
    convolve = F.convolution if axis == 0 else F.deconvolution
    y = convolve(x, *kernels.fold(weight, gamma, beta, mean, var, axis))
    plain = convolve(x, nn.Variable.from_numpy_array(whole.d[: shape[0], : shape[1]].copy()))
    plain.forward()
    scale = gamma.d[:, :4] / np.sqrt(var + kernels.EPSILON)
    wanted = (plain.d - mean) * scale + beta.d[:, :4]
    for variable in (whole, gamma, beta):
        variable.d = 7
    y.forward()
    assert_allclose(y.d, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_scalars_are_those_of_their_forward_passes(on_cpu, monkeypatch):
    monkeypatch.setattr(kernels, "on_cpu", lambda: on_cpu)
    x, log = nn.Variable((2,)), kernels.ScalarLog()
    y, z = F.sum(x), F.sum(x * x)
    for first in (1, 3):
        x.d = [first, 2]
        nn.forward_all([y, z])
        log.add([y, z])
    found = log.read()
    assert found.dtype == np.float64 and found.tolist() == [[3, 5], [5, 13]]
    alone = kernels.ScalarLog()
    alone.add([y])
    assert alone.read().tolist() == [[5]] and kernels.ScalarLog().read().size == 0


@pytest.mark.parametrize("inputs, outputs, size", [(3, 5, (4, 7)), (5, 5, (1, 1)), (6, 4, (3, 3))])
@pytest.mark.parametrize("biased", [False, True])
def test_a_deconvolution_without_gradient_is_the_one_with(inputs, outputs, size, biased):
    x, w, b = (
        nn.Variable.from_numpy_array(normal(*shape)) for shape in ((2, inputs, *size), (inputs, outputs, 4, 4), (outputs,))
    )
    ys = [function(x, w, b if biased else None) for function in (kernels.deconvolution, kernels.forward_deconvolution)]
    assert (ys[0].parent.name == ys[1].parent.name) == (inputs > outputs)
    nn.forward_all(ys)
    assert_allclose(ys[1].d, ys[0].d, rtol=1e-5, atol=1e-5)


def test_patches_are_cut_around_cells_and_padded_with_zeros():
    x = normal(2, 3, 4, 5)
    cells, mask = np.array([[0, 7, 9], [19, 12, 0]]), np.array([[1, 1, 0], [1, 1, 0]])
    found = kernels.patches(*map(nn.Variable.from_numpy_array, (x, cells, mask)), 3)
    found.forward()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for row, (image, cell, there) in enumerate(zip(np.repeat([0, 1], 3), cells.ravel(), mask.ravel())):
        top, left = divmod(cell, 5)
        assert_array_equal(found.d[row].reshape(3, 3, 3), there * padded[image, :, top : top + 3, left : left + 3])


@pytest.mark.parametrize("outputs", [(3, 2, 2), (1,), (4, 5)])
def test_joined_heads_are_the_heads(outputs):
    heads = [Head(6, 4, count, np.random.default_rng(count), std=0.5, bias=0.1) for count in outputs]
    found = []
    for statistics in (STORED, BATCH, CollectedStatistics()):
        x = nn.Variable.from_numpy_array(normal(2, 6, 5, 7) if not found else found[0][0]).apply(need_grad=True)
        parameters = [p for head in heads for p in head.get_parameters().values()]
        for variable in (x, *parameters):
            variable.grad.zero()
        ys = run_heads(heads, x, statistics)
        assert [y.shape for y in ys] == [(2, count, 5, 7) for count in outputs]
        total = sum((F.sum(y * y) for y in ys[1:]), F.sum(ys[0] * ys[0]))
        for y in ys:
            y.persistent = True
        total.forward()
        total.backward()
        found.append([x.d.copy(), *(y.d.copy() for y in ys), x.g.copy(), *(p.g.copy() for p in parameters)])
    for others in found[1:]:
        for got, wanted in zip(others, found[0]):
            assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


PROGRAM = """
import hashlib, numpy as np, nnabla as nn
from nnabla_detofa.backend import kernels
rng, total = np.random.default_rng(0), hashlib.sha256()
for shape in ((4, 33, 28, 28), (3, 5, 7, 9), (2, 8, 1, 3)):
    x, gamma, beta = (nn.Variable.from_numpy_array(rng.normal(size=s).astype("f")).apply(need_grad=True)
                      for s in (shape, (1, shape[1], 1, 1), (1, shape[1], 1, 1)))
    for v in (x, gamma, beta):
        v.grad.zero()
    y = kernels.multiply(kernels.batch_normalization(x, gamma, beta, True), kernels.relu(x))
    y.forward(); y.backward(1)
    for array in (y.d, x.g, gamma.g, beta.g):
        total.update(array.tobytes())
print(total.hexdigest())
"""


@pytest.mark.thorough
def test_bits_do_not_depend_on_the_processor():
    """Without AVX and FMA NumPy's sums and products are the same, bit by bit."""
    features = "AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
    found = set()
    for disabled in ("", features):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, env=environment)
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop().strip()) == 64
