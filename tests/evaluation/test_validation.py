"""Re-estimated statistics, validation losses and detections of a path."""

import signal

import nnabla as nn
import numpy as np
import pytest

from nnabla_detofa.evaluation.detections import BoxDetector
from nnabla_detofa.evaluation.forked import map_forked
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.evaluation.validation import PathEvaluator, validation_loss
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.detection_loss import Outputs
from nnabla_detofa.networks.layers import BATCH, STORED, GivenStatistics
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.search_space import ofa_resnet50

SMALL, HEAD = Geometry(width_scale=0.125, strides=(1, 2, 2, 1)), HeadGeometry(3, (16, 16), 8)


@pytest.fixture(scope="module")
def net():
    return Detector(HEAD, SMALL, heatmap_std=0.1)


def images(seed: int, n: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 64, 64)).astype(np.float32)


def batch(seed: int, n: int = 4) -> list[np.ndarray]:
    """Images and targets with one object in each."""
    heatmap = np.zeros((n, 3, 16, 16), np.float32)
    heatmap[:, 1, 5, 6] = 1
    index, mask = np.zeros((n, 2)), np.zeros((n, 2))
    index[:, 0], mask[:, 0] = 5 * 16 + 6, 1
    return [images(seed, n), heatmap, np.ones((n, 2, 2)), np.full((n, 2, 2), 0.5), index, mask]


def test_the_loss_of_heads_at_the_objects_is_that_of_their_maps():
    """With an object at a corner, one inside, and rows without an object; a subclass' own heads are computed everywhere."""

    class OwnHeads(Detector):
        def heads(self, y, path, statistics=STORED):
            return Outputs(*(3 * output for output in super().heads(y, path, statistics)))

    path, arrays, losses = ofa_resnet50(SMALL).sample(np.random.default_rng(1)), batch(0), []
    arrays[4][:2, 1], arrays[5][:2, 1] = 15, 1
    for kind in (Detector, OwnHeads):
        net, rng = kind(HEAD, SMALL, heatmap_std=0.1), np.random.default_rng(4)
        for parameter in (*net.offset.get_parameters().values(), *net.size.get_parameters().values()):
            parameter.d = rng.normal(0, 0.3, parameter.shape)
        statistics = reestimate(net, path, [images(1)])
        for keep in (None, lambda maps: None):
            losses.append(validation_loss(net, path, statistics, [arrays], on_maps=keep))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] == losses[3] != pytest.approx(losses[0], rel=1e-2)


def test_statistics_of_one_batch_reproduce_batch_normalization(net):
    path, x = ofa_resnet50(SMALL).sample(np.random.default_rng(1)), images(0)
    statistics = reestimate(net, path, [x])
    by_batch, given = (net(nn.Variable.from_numpy_array(x), path, s) for s in (BATCH, GivenStatistics(statistics)))
    nn.forward_all([*by_batch, *given])
    for left, right in zip(by_batch, given):
        np.testing.assert_allclose(left.d, right.d, rtol=1e-3, atol=1e-4)


def test_statistics_use_every_batch_and_average_them(net):
    path = ofa_resnet50(SMALL).largest
    alone = [reestimate(net, path, [images(seed)]) for seed in range(3)]
    together = reestimate(net, path, [images(seed) for seed in range(3)])
    for name, (mean, var) in together.items():
        np.testing.assert_allclose(mean, np.mean([s[name][0] for s in alone], axis=0), atol=1e-5)
        np.testing.assert_allclose(var, np.mean([s[name][1] for s in alone], axis=0), rtol=1e-4, atol=1e-6)


def test_re_estimating_changes_no_parameter(net):
    before = {name: p.d.copy() for name, p in net.get_parameters().items()}
    reestimate(net, ofa_resnet50(SMALL).largest, [images(0)])
    for name, parameter in net.get_parameters().items():
        np.testing.assert_array_equal(parameter.d, before[name])


def test_a_smaller_last_batch_counts_by_its_images(net):
    path = ofa_resnet50(SMALL).largest
    statistics = reestimate(net, path, [images(0)])
    first, last = batch(1, 4), batch(2, 2)
    apart = [validation_loss(net, path, statistics, [b]) for b in (first, last)]
    assert validation_loss(net, path, statistics, [first, last]) == pytest.approx((4 * apart[0] + 2 * apart[1]) / 6, rel=1e-6)


def test_processes_give_the_losses_of_one(net):
    paths = ofa_resnet50(SMALL).sample_many(np.random.default_rng(3), 4)
    alone = PathEvaluator(net, [images(0)], [batch(1)])
    shared = PathEvaluator(net, [images(0)], [batch(1)], processes=2)
    expected = alone.losses(paths)
    np.testing.assert_array_equal(shared.losses(paths), expected)
    assert len(set(expected)) == 4


def test_a_pool_ends_however_early_and_whatever_the_handlers():
    """A forked process that only took note of SIGTERM made the pool wait for ever."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        for _ in range(20):
            assert list(map_forked(abs, [-1], 3)) == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_box_detector_sorts_and_bounds_its_detections(net):
    path = ofa_resnet50(SMALL).largest
    detector = BoxDetector(net, path, reestimate(net, path, [images(0)]), top=7)
    found = detector(images(1), np.tile([[1.0, 0, 0], [0, 1, 0]], (4, 1, 1)))
    assert len(found) == 4
    for boxes, scores, labels in found:
        assert boxes.shape == (7, 4) and labels.max() < 3
        assert np.all(np.diff(scores) <= 0) and 0 <= scores.min() <= scores.max() <= 1


def test_the_flip_test_and_several_scales(net):
    """A mirrored image gives the mirrored detections; several scales and the mirror image change what is found."""
    path = ofa_resnet50(SMALL).largest
    statistics = reestimate(net, path, [images(0)])
    matrices, x = np.tile([[1.0, 0, 0], [0, 1, 0]], (4, 1, 1)), images(1)
    plain, flipped = (BoxDetector(net, path, statistics, top=5, flip=flip) for flip in (False, True))
    heat = [detector._outputs(x)[0] for detector in (plain, flipped)]
    np.testing.assert_array_equal(*heat)
    mean = (heat[0] + plain._outputs(x[..., ::-1])[0][..., ::-1]) / 2
    best = np.sort(mean.reshape(4, -1), axis=1)[:, -1]
    assert [scores[0] for _, scores, _ in flipped(x, matrices)] == pytest.approx(best, rel=1e-6)
