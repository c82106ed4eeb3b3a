"""CenterNet's targets, against the original implementation's figures (tests/golden) and against small cases."""

import os

import cv2
import numpy as np
import pytest
from parity import IMAGES, MAX_OBJECTS, failed, golden, made_target_checks, radius_checks, target_checks

from nnabla_detofa.data.augment import eval_transform
from nnabla_detofa.data.targets import make_targets
from nnabla_detofa.data.voc import VOCDataset

BCCD = os.environ.get("DETOFA_BCCD")


def test_gaussian_radius_is_the_originals():
    assert failed(radius_checks()) == []


@pytest.mark.parametrize("image", IMAGES)
def test_matrices_and_targets_are_the_originals(image):
    assert failed(target_checks(image)) == []


@pytest.mark.skipif(not BCCD, reason="DETOFA_BCCD names no folder with the BCCD photographs")
@pytest.mark.parametrize("image", IMAGES)
def test_whole_chain_is_the_originals_on_photographs(image):
    dataset = VOCDataset(BCCD, ["trainval", "test"], ("RBC", "WBC", "Platelets"))
    sample = dataset.load(dataset.image_ids.index(image))
    pixels, boxes, matrix = eval_transform(sample, (256, 256))
    np.testing.assert_allclose(matrix, golden(image, "affine_input"), atol=1e-5)
    assert failed(made_target_checks(make_targets(boxes / 4, sample.labels, 3, (64, 64), MAX_OBJECTS), image)) == []
    warped = cv2.warpAffine(sample.image, matrix, (256, 256))
    small = cv2.resize(warped, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - golden(image, "input_small")).max() <= 2
    assert pixels.shape == (3, 256, 256)


def test_one_object_by_hand():
    targets = make_targets(np.array([[2, 1, 7.5, 4]]), np.array([1]), 2, (8, 10), max_objects=3)
    assert targets.size.tolist() == [[5.5, 3], [0, 0], [0, 0]]
    assert targets.offset.tolist() == [[0.75, 0.5], [0, 0], [0, 0]]
    assert targets.cell.tolist() == [2 * 10 + 4, 0, 0]
    assert targets.mask.tolist() == [1, 0, 0]
    assert targets.heatmap[0].max() == 0
    # ceil(3) x ceil(5.5): radius 1, so sigma is 3 / 6, and the Gaussian covers 3 x 3 cells.
    near, corner = np.exp(-1 / (2 * 0.25)), np.exp(-2 / (2 * 0.25))
    expected = [[corner, near, corner], [near, 1, near], [corner, near, corner]]
    np.testing.assert_allclose(targets.heatmap[1, 1:4, 3:6], expected, rtol=1e-6)
    assert np.count_nonzero(targets.heatmap) == 9


def test_boxes_are_clipped_to_the_map_and_dropped_without_area():
    boxes = np.array([[-5, -5, -1, 3], [3, 3, 3, 5], [7, 2, 99, 99], [20, 20, 30, 30]])
    targets = make_targets(boxes, np.zeros(4, int), 1, (8, 10), max_objects=2)
    assert targets.mask.tolist() == [1, 0]
    assert targets.size[0].tolist() == [2, 5]  # x 7 to 9, y 2 to 7: the map's last column and row


def test_no_more_than_max_objects_and_overlapping_gaussians_keep_the_larger_value():
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [20, 20, 30, 30]])
    targets = make_targets(boxes, np.zeros(3, int), 1, (32, 32), max_objects=2)
    alone = [make_targets(boxes[i : i + 1], np.zeros(1, int), 1, (32, 32)).heatmap for i in range(2)]
    np.testing.assert_array_equal(targets.heatmap, np.maximum(*alone))
    assert (targets.heatmap.values == 1).sum() == 2


def test_no_objects_and_bad_labels():
    targets = make_targets(np.zeros((0, 4)), np.zeros(0, int), 2, (4, 4), 5)
    assert not any(np.asarray(field).any() for field in targets)
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        make_targets(np.array([[0, 0, 1, 1]]), np.array([2]), 2, (4, 4))
    with pytest.raises(ValueError, match="for each of 2 boxes"):
        make_targets(np.zeros((2, 4)), np.array([0]), 2, (4, 4))
