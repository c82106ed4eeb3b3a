import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.common.normalization import IMAGENET
from nnabla_detofa.data import augment
from nnabla_detofa.data.augment import Augmentation, crop_border, eval_transform, letterbox, train_transform, transform_boxes
from nnabla_detofa.data.dataset import Sample

STILL = Augmentation(scale=(1, 1), crop=False, flip=0, jitter=0, lighting=0)


def make_sample(height: int = 90, width: int = 120, seed: int = 0) -> Sample:
    """A smooth photograph with two bright rectangles, which are its objects."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 90, (4, 5, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    boxes = np.array([[10, 20, 39, 59], [60, 30, 99, 69]], np.float32)
    for x1, y1, x2, y2 in boxes.astype(int):
        image[y1 : y2 + 1, x1 : x2 + 1] = 250
    return Sample(image, boxes, np.array([0, 1]), np.zeros(2, bool), "test")


def denormalize(image: np.ndarray) -> np.ndarray:
    return image.transpose(1, 2, 0) * IMAGENET.std + IMAGENET.mean


def test_scales_are_centernets_and_configurable():
    np.testing.assert_allclose(Augmentation().scales, [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    np.testing.assert_allclose(Augmentation(scale=(0.9, 1.1)).scales, [0.9, 1.0, 1.1])
    np.testing.assert_allclose(Augmentation(scale=(1, 1)).scales, [1.0])


@pytest.mark.parametrize(
    "side, border", [(640, 128), (257, 128), (256, 64), (128, 32), (64, 16), (100, 32), (1, 0), (2, 0), (3, 1)]
)
def test_border_shrinks_with_the_image(side, border):
    assert crop_border(side) == border


@pytest.mark.parametrize(
    "values, key",
    [
        ({"scale": (1.3, 0.6)}, "scale"),
        ({"scale": (0, 1)}, "scale"),
        ({"flip": 1.5}, "flip"),
        ({"jitter": 1.0}, "jitter"),
        ({"border": -1}, "border"),
        ({"lighting": -0.1}, "lighting"),
    ],
)
def test_bad_settings_are_named(values, key):
    with pytest.raises(UserError, match=f"augmentation.{key} must"):
        Augmentation(**values)


def test_evaluation_fits_the_whole_image():
    sample = make_sample()
    image, boxes, matrix = eval_transform(sample, (64, 64))
    np.testing.assert_allclose(matrix, [[64 / 120, 0, 0], [0, 64 / 120, 8]])
    np.testing.assert_allclose(boxes[0], np.array([10, 20, 39, 59]) * 64 / 120 + [0, 8, 0, 8], rtol=1e-6)
    assert image.shape == (3, 64, 64) and image.dtype == np.float32 and image.flags.c_contiguous
    np.testing.assert_allclose(denormalize(image)[:7], 0, atol=1e-6)  # black above
    with_map, same = letterbox(sample.image, (64, 64))
    np.testing.assert_array_equal(with_map, image)
    np.testing.assert_array_equal(same, matrix)
    np.testing.assert_allclose(transform_boxes(boxes, augment.invert(matrix)), sample.boxes, atol=1e-4)


def test_all_off_is_the_evaluation_transform():
    sample = make_sample()
    for still, whole in zip(
        train_transform(sample, (64, 64), np.random.default_rng(0), STILL), eval_transform(sample, (64, 64))
    ):
        np.testing.assert_array_equal(still, whole)


def test_oblong_inputs_hold_the_whole_image():
    _, boxes, _ = eval_transform(make_sample(), (32, 128))
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 128).all() and (boxes[:, [1, 3]] <= 32).all()


def test_mirroring_is_mirroring_the_image_first():
    """As CenterNet does it: image, boxes and center are mirrored, then warped."""
    sample = make_sample()
    mirrored = Sample(
        sample.image[:, ::-1], 119 - sample.boxes[:, [2, 1, 0, 3]] * [1, -1, 1, -1] - [0, 119, 0, 119], *[None] * 3
    )
    _, boxes, matrix = train_transform(sample, (64, 64), np.random.default_rng(0), Augmentation((1, 1), False, 128, 1.0, 0, 0))
    center = np.array([120 - 60 - 1, 45])
    reference = augment.affine(center, 64 / 120, (64, 64))
    np.testing.assert_allclose(boxes, transform_boxes(mirrored.boxes, reference), atol=1e-4)
    warped = cv2.warpAffine(sample.image, matrix, (64, 64))
    first = cv2.warpAffine(np.ascontiguousarray(mirrored.image), reference, (64, 64))
    assert np.abs(warped.astype(int) - first).max() <= 8  # OpenCV rounds coordinates to 1/32 pixel


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(90, 120), (128, 128), (64, 100), (300, 400)]))
def test_boxes_follow_the_pixels(seed, size):
    """Wherever the crop goes, what is bright lies in a box, and well inside a box it is bright."""
    sample = make_sample(*size, seed=seed) if min(size) >= 70 else None
    sample = sample or Sample(*[np.ascontiguousarray(make_sample().image[:64, :100]), make_sample().boxes], *[None] * 3)
    image, boxes, matrix = train_transform(sample, (96, 96), np.random.default_rng(seed), Augmentation(jitter=0, lighting=0))
    bright = denormalize(image).mean(2) > 0.7
    outside, ys, xs = bright.copy(), *np.mgrid[:96, :96]
    for x1, y1, x2, y2 in boxes:
        margin = 1.5 * abs(matrix[0, 0]) + 1
        outside[(xs >= x1 - margin) & (xs <= x2 + margin) & (ys >= y1 - margin) & (ys <= y2 + margin)] = False
        inside = bright[(xs >= x1 + margin) & (xs <= x2 - margin) & (ys >= y1 + margin) & (ys <= y2 - margin)]
        assert inside.all() or size == (64, 100)
    assert not outside.any()


def test_same_generator_same_result_and_arguments_are_left_alone():
    sample = make_sample()
    before = sample.image.copy(), sample.boxes.copy()
    one, two, other = (train_transform(sample, (64, 64), np.random.default_rng(seed)) for seed in (1, 1, 2))
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[0], other[0])
    np.testing.assert_array_equal(sample.image, before[0])
    np.testing.assert_array_equal(sample.boxes, before[1])


def test_flip_happens_half_of_the_time_and_never_when_off():
    sample = make_sample(8, 8)
    mirrored = [train_transform(sample, (8, 8), np.random.default_rng(i))[2][0, 0] < 0 for i in range(400)]
    assert 160 < sum(mirrored) < 240
    still = Augmentation(flip=0)
    assert all(train_transform(sample, (8, 8), np.random.default_rng(i), still)[2][0, 0] > 0 for i in range(50))


def test_colors_stay_gray_and_near():
    """On a gray image contrast and saturation blend with the image itself, so only brightness acts: one factor."""
    image = np.full((4, 4, 3), 0.5, np.float32)
    factors = [augment.jitter_colors(image, np.random.default_rng(i), 0.4) for i in range(50)]
    assert all(np.ptp(f) < 1e-5 for f in factors)
    # Brightness comes before or after the blends with the gray of the untouched image, so factors may compound a little.
    assert 0.25 < min(f.min() for f in factors) < 0.4 and 0.6 < max(f.max() for f in factors) < 0.8
    shifted = augment.shift_lighting(image, np.random.default_rng(0), 0.1) - image
    assert 0 < np.abs(shifted).max() < 0.1 and np.ptp(shifted.reshape(-1, 3), axis=0).max() < 1e-6


def test_gray_is_opencvs():
    image = np.random.default_rng(0).random((5, 6, 3), np.float32)
    np.testing.assert_allclose(image @ augment.GRAY_SHARES, cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), atol=1e-6)


ANOTHER_PROCESSOR = {
    "OPENBLAS_CORETYPE": "Nehalem",
    "OPENCV_IPP": "disabled",
    "OPENCV_CPU_DISABLE": "AVX,AVX2,FMA3",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
}
SAMPLES = """
import hashlib
import numpy as np
from nnabla_detofa.data.augment import train_transform
from nnabla_detofa.data.dataset import Sample

rng, digest = np.random.default_rng(0), hashlib.sha256()
for seed in range(20):
    image = rng.integers(0, 256, (70, 90, 3), np.uint8)
    boxes = rng.uniform(0, 60, (6, 4)).astype(np.float32)
    sample = Sample(image, boxes, np.zeros(6, int), np.zeros(6, bool), "image")
    for array in train_transform(sample, (64, 64), np.random.default_rng(seed)):
        digest.update(np.ascontiguousarray(array).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("name", ANOTHER_PROCESSOR)
def test_bits_do_not_depend_on_the_processor(name):
    """Libraries choose their instructions by the processor; these variables make them choose as on an older one."""
    found = []
    for extra in ({}, {name: ANOTHER_PROCESSOR[name]}):
        done = subprocess.run([sys.executable, "-c", SAMPLES], env={**os.environ, **extra}, capture_output=True, text=True)
        found.append(done.stdout)
    assert len(found[0]) == 65 and found[0] == found[1]
