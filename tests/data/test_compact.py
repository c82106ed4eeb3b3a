"""Compact arrays are the arrays that they stand for, to the last bit on the CPU, and are cut and stacked as those."""

import numpy as np
import pytest

from nnabla_detofa.backend import kernels
from nnabla_detofa.backend.compat import nn
from nnabla_detofa.common.normalization import COCO
from nnabla_detofa.data.augment import letterbox
from nnabla_detofa.data.compact import Pixels, Sparse, nonzero, put, stacked

RNG = np.random.default_rng(0)


def sparse(*shape: int) -> tuple[Sparse, np.ndarray]:
    """An array with a fifth of its elements not 0, in both forms."""
    dense = np.where(RNG.random(shape) < 0.2, RNG.random(shape), 0).astype(np.float32)
    places = np.flatnonzero(dense)
    return Sparse(places, dense.reshape(-1)[places], shape), dense


def pixels(*shape: int) -> tuple[Pixels, np.ndarray]:
    """Random images in both forms; the second by the arithmetic of `Normalization`."""
    levels = RNG.integers(0, 256, shape, np.uint8)
    images = [COCO(np.float32(image.transpose(1, 2, 0)) / 255) for image in levels.reshape(-1, *shape[-3:])]
    return Pixels(levels, COCO), np.stack(images).reshape(shape)


CASES = {"sparse": (sparse, (5, 2, 4, 3)), "pixels": (pixels, (5, 3, 4, 7))}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_array(name):
    make, shape = CASES[name]
    compact, dense = make(*shape)
    np.testing.assert_array_equal(compact, dense)
    assert (compact.shape, len(compact), np.asarray(compact).dtype) == (shape, 5, np.float32)
    for key in (None, slice(1, 3), slice(4, 9), slice(-2, None), slice(3, 1)):
        assert type(compact[key]) is type(compact)
        np.testing.assert_array_equal(compact[key], dense[key])
    for key in (0, -1, np.int64(2), slice(None, None, 2), [3, 1], (slice(None), 1)):
        np.testing.assert_array_equal(compact[key], dense[key])
    np.testing.assert_array_equal(np.stack(list(compact)), dense)
    with pytest.raises(IndexError):
        compact[5]


@pytest.mark.parametrize("name", CASES)
def test_stacked_rows_are_the_array(name):
    make, shape = CASES[name]
    several = [make(*shape[1:]) for _ in range(3)]
    whole = stacked([compact for compact, _ in several])
    np.testing.assert_array_equal(whole, np.stack([dense for _, dense in several]))
    assert type(whole) is type(several[0][0])


@pytest.mark.parametrize("name", CASES)
def test_a_variable_is_filled_with_the_array_on_each_device(name, monkeypatch):
    """NNabla's functions, which a GPU runs, round a normalized image in another order."""
    make, shape = CASES[name]
    compact, dense = make(*shape)
    variable = nn.Variable(shape)
    put(variable, compact)
    np.testing.assert_array_equal(variable.d, dense)
    variable.d = -1
    monkeypatch.setattr(kernels, "on_cpu", lambda: False)
    put(variable, compact)
    assert variable.d.shape == shape and variable.d.dtype == np.float32
    np.testing.assert_allclose(variable.d, dense, rtol=0, atol=0 if name == "sparse" else 1e-6)


def test_nothing_but_zeros_fills_a_variable_with_them(monkeypatch):
    compact, variable = Sparse(np.zeros(0, np.int64), np.zeros(0, np.float32), (2, 3)), nn.Variable((2, 3))
    for on_cpu in (True, False):
        monkeypatch.setattr(kernels, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        variable.d = 1
        put(variable, compact)
        assert not variable.d.any()
    assert nonzero(compact).size == 0 and nonzero(np.zeros(3)).size == 3


def test_an_image_is_that_of_letterbox():
    image = RNG.integers(0, 256, (9, 12, 3), np.uint8)
    fitted, _ = letterbox(image, (9, 12), COCO)
    np.testing.assert_array_equal(Pixels.of(image, COCO), fitted)
