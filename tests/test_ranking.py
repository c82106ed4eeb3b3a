"""The pairwise loss, and fitting."""

import nnabla as nn
import numpy as np
import pytest

from nnabla_detofa.errors import UserError
from nnabla_detofa.path_filter import PathFilter
from nnabla_detofa.ranking import (
    fit,
    pair_loss,
    pair_loss_variable,
    pairs,
    split,
)
from nnabla_detofa.ranking_metrics import kendall_tau, per_bucket, weakest
from nnabla_detofa.search_space import ofa_resnet50

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


def test_too_few_paths_are_refused():
    batch = SPACE.sample_many(np.random.default_rng(0), 5)
    path_filter = PathFilter(dim=16, layers=1, feed_forward=16, rng=np.random.default_rng(1))
    with pytest.raises(UserError, match="needs two training paths in a FLOPs bucket; got 5 paths"):
        fit(path_filter, batch, np.arange(5), np.arange(5.0), np.random.default_rng(0))
