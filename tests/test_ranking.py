"""The pairwise loss, and fitting."""

import nnabla as nn
import numpy as np
import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.path_filter.metrics import kendall_tau, per_bucket, weakest
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.path_filter.ranking import fit, pair_loss, pair_loss_variable, pairs, split
from nnabla_detofa.space.search_space import ofa_resnet50

SPACE = ofa_resnet50()


def test_pairs_and_their_loss_by_hand():
    losses, scores = np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.5, 0.6])
    # t = 1 for (0, 1), (0, 2), (1, 2): gaps 0.4, 0.3, -0.1.
    assert pairs(losses).tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert pair_loss(scores, pairs(losses)) == pytest.approx((0.6**2 + 0.7**2 + 1.1**2) / 3)


def test_flops_bounded_pairs_stay_in_their_bucket():
    losses, buckets = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 0, 1])
    found = np.argwhere(pairs(losses, buckets)).tolist()
    assert found == [[0, 2], [1, 3]]


def test_equal_losses_make_both_pairs():
    assert pairs(np.array([1.0, 1.0])).tolist() == [[False, True], [True, False]]


def test_the_symbolic_loss_is_the_numpy_one():
    rng = np.random.default_rng(0)
    scores, losses, buckets = rng.random(12), rng.random(12), np.arange(12) % 3
    paired = pairs(losses, buckets)
    found = pair_loss_variable(*map(nn.Variable.from_numpy_array, (scores, paired / paired.sum())))
    found.forward()
    assert float(found.d) == pytest.approx(pair_loss(scores, paired), rel=1e-5)


def test_the_split_is_80_to_20_in_each_bucket():
    buckets = np.repeat([0, 1, 4], [10, 20, 5])
    train, validation = split(buckets, np.random.default_rng(0))
    assert np.bincount(buckets[validation], minlength=5).tolist() == [2, 4, 0, 0, 1]
    assert sorted([*train, *validation]) == list(range(35))


def test_a_fit_learns_a_known_ranking_and_repeats_itself():
    """An additive performance with a bonus for depth and noise: the filter must order fresh paths."""
    rng = np.random.default_rng(0)
    batch = SPACE.sample_many(rng, 300)
    worth = 2.0 * (batch.depths[:, 0] == 2) + batch.depths[:, 1:] @ [0.2, 0.3, 0.5, 0.8] - 0.3 * batch.widths[:, 5]
    losses, buckets = -worth + rng.normal(0, 0.05, 300), np.arange(300) % 2
    scores = []
    for _ in range(2):
        path_filter = PathFilter(buckets=2, dim=32, layers=1, feed_forward=32, rng=np.random.default_rng(1))
        result = fit(path_filter, batch[:200], buckets[:200], losses[:200], np.random.default_rng(2), epochs=40, lr=2e-3)
        scores.append(path_filter.score(batch[200:], buckets[200:]))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert result.validation_losses[result.best_epoch] == result.validation_losses.min()
    taus = per_bucket(kendall_tau, scores[0], losses[200:], buckets[200:])
    assert min(taus.values()) > 0.7
    assert weakest(scores[0], losses[200:], 0.25, buckets[200:]).precision >= 0.7


@pytest.mark.parametrize(
    "bounded, block, encoding", [(False, False, "paper"), (True, True, "paper"), (True, True, "transformer")]
)
def test_a_fit_of_every_kind_repeats_itself_bit_by_bit(bounded, block, encoding):
    batch, weights = SPACE.sample_many(np.random.default_rng(0), 60), []
    for _ in range(2):
        settings = {"dim": 16, "layers": 1, "feed_forward": 16, "block_encoding": block, "encoding": encoding}
        path_filter = PathFilter(**settings, rng=np.random.default_rng(1))
        before = path_filter.get_weights()
        losses = -2.0 * batch.depths[:, 0] - batch.depths[:, 4]
        fit(path_filter, batch, np.arange(60) % 5, losses, np.random.default_rng(2), epochs=20, lr=1e-2, flops_bounded=bounded)
        weights.append(path_filter.get_weights())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])
    assert any(not np.array_equal(array, before[name]) for name, array in weights[0].items())


def test_fitting_noise_stops_early_and_keeps_the_best_weights():
    rng = np.random.default_rng(0)
    batch, losses, buckets = SPACE.sample_many(rng, 80), rng.random(80), np.arange(80) % 2
    path_filter = PathFilter(buckets=2, dim=16, layers=1, feed_forward=16, rng=np.random.default_rng(1))
    result = fit(path_filter, batch, buckets, losses, np.random.default_rng(2), epochs=60, lr=1e-2, patience=3)
    assert len(result.validation_losses) - 1 == result.best_epoch + 3 < 60
    held = result.validation
    kept = pair_loss(path_filter.score(batch[held], buckets[held]), pairs(losses[held], buckets[held]))
    assert kept == result.validation_losses.min() == result.validation_losses[result.best_epoch]


def test_too_few_paths_are_refused():
    batch = SPACE.sample_many(np.random.default_rng(0), 5)
    path_filter = PathFilter(dim=16, layers=1, feed_forward=16, rng=np.random.default_rng(1))
    with pytest.raises(UserError, match="needs two training paths in a FLOPs bucket; got 5 paths"):
        fit(path_filter, batch, np.arange(5), np.arange(5.0), np.random.default_rng(0))
