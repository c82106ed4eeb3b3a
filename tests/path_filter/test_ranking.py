"""The pairwise loss, and fitting."""

from functools import partial

import nnabla as nn
import numpy as np
import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evaluation.forked import map_forked
from nnabla_detofa.path_filter.fitting import FitOptions, by_block, centered, fit, split, standardized, transfer
from nnabla_detofa.path_filter.metrics import kendall_tau, per_bucket, weakest
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.path_filter.ranking import has_pairs, pair_loss, pair_loss_variable, pair_weights, pairs
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
    few = np.repeat([0, 2, 3], [7, 5, 4])
    train, validation = split(few, np.random.default_rng(0))
    assert np.bincount(few[validation], minlength=4).tolist() == [2, 0, 2, 1], "one path of a bucket makes no pair"


def test_members_fitted_at_the_same_time_are_those_fitted_in_turn():
    batch, buckets = SPACE.sample_many(np.random.default_rng(0), 40), np.arange(40) % 2
    losses, options, found = np.random.default_rng(1).random(40), FitOptions(epochs=3, lr=1e-3), []
    for processes in (1, 2):
        path_filter = PathFilter(
            buckets=2, dim=16, layers=1, feed_forward=16, linear_skip=True, ensemble=3, rng=np.random.default_rng(1)
        )
        parallel = partial(map_forked, processes=processes)
        results = fit(path_filter, batch, buckets, losses, np.random.default_rng(2), options, map_members=parallel)
        found.append((path_filter.get_weights(), [result.validation_losses for result in results]))
    assert len({tuple(curve) for curve in found[0][1]}) == 3, "the members differ"
    np.testing.assert_equal(*found)


def test_a_fit_learns_a_known_ranking_and_repeats_itself():
    """An additive performance with a bonus for depth and noise: the filter must order fresh paths."""
    rng = np.random.default_rng(0)
    batch = SPACE.sample_many(rng, 300)
    worth = 2.0 * (batch.depths[:, 0] == 2) + batch.depths[:, 1:] @ [0.2, 0.3, 0.5, 0.8] - 0.3 * batch.widths[:, 5]
    losses, buckets = -worth + rng.normal(0, 0.05, 300), np.arange(300) % 2
    scores = []
    for _ in range(2):
        path_filter = PathFilter(buckets=2, dim=32, layers=1, feed_forward=32, rng=np.random.default_rng(1))
        rng, options = np.random.default_rng(2), FitOptions(epochs=40, lr=2e-3)
        (result,) = fit(path_filter, batch[:200], buckets[:200], losses[:200], rng, options)
        scores.append(path_filter.score(batch[200:], buckets[200:]))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert result.validation_losses[result.best_epoch] == result.validation_losses.min()
    taus = per_bucket(kendall_tau, scores[0], losses[200:], buckets[200:])
    assert min(taus.values()) > 0.7
    assert weakest(scores[0], losses[200:], 0.25, buckets[200:]).precision >= 0.7


@pytest.mark.parametrize(
    "parts, options",
    [
        ({"block_encoding": False}, {"pairs": "all"}),
        ({}, {"weight_decay": 1e-4, "dropout": 0.2}),
        ({"encoding": "transformer"}, {"margin": "logit", "pairs": "both"}),
        ({"linear_skip": True, "ensemble": 2}, {"margin": "logit", "pairs": "both", "regression": 1.0}),
    ],
)
def test_a_fit_of_every_kind_repeats_itself_bit_by_bit(parts, options):
    batch, weights = SPACE.sample_many(np.random.default_rng(0), 60), []
    for _ in range(2):
        settings = {"dim": 16, "layers": 1, "feed_forward": 16} | parts
        path_filter = PathFilter(**settings, rng=np.random.default_rng(1))
        before = path_filter.get_weights()
        losses = -2.0 * batch.depths[:, 0] - batch.depths[:, 4]
        fit(path_filter, batch, np.arange(60) % 5, losses, np.random.default_rng(2), FitOptions(epochs=20, lr=1e-2, **options))
        weights.append(path_filter.get_weights())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])
    assert any(not np.array_equal(array, before[name]) for name, array in weights[0].items())


@pytest.mark.parametrize("options", [{"lr": 1e300}, {"lr": 1e-3, "regression": 1e300}, {"lr": 1e300, "pairs": "all"}], ids=str)
def test_a_fit_that_diverges_is_an_error_and_no_filter(options):
    rng = np.random.default_rng(0)
    path_filter = PathFilter(buckets=2, dim=8, heads=1, layers=1, feed_forward=8, rng=np.random.default_rng(1))
    batch, losses, buckets = SPACE.sample_many(rng, 20), rng.random(20), np.arange(20) % 2
    with np.errstate(over="ignore"), pytest.raises(UserError, match="the loss of the path filter became (nan|inf) in epoch"):
        fit(path_filter, batch, buckets, losses, rng, FitOptions(epochs=5, **options))


def test_fitting_noise_stops_early_and_keeps_the_best_weights():
    rng = np.random.default_rng(0)
    batch, losses, buckets = SPACE.sample_many(rng, 80), rng.random(80), np.arange(80) % 2
    path_filter = PathFilter(buckets=2, dim=16, layers=1, feed_forward=16, rng=np.random.default_rng(1))
    options = FitOptions(epochs=60, lr=1e-2, patience=3)
    (result,) = fit(path_filter, batch, buckets, losses, np.random.default_rng(2), options)
    assert len(result.validation_losses) - 1 == result.best_epoch + 3 < 60
    held = result.validation
    scores = 1 / (1 + np.exp(-path_filter.score(batch[held], buckets[held]).astype(float)))
    kept = pair_loss(scores, pairs(losses[held], buckets[held]))
    assert kept == pytest.approx(result.validation_losses.min(), rel=1e-9)
    assert result.validation_losses.min() == result.validation_losses[result.best_epoch]


def test_too_few_paths_are_rejected():
    batch = SPACE.sample_many(np.random.default_rng(0), 5)
    path_filter = PathFilter(dim=16, layers=1, feed_forward=16, rng=np.random.default_rng(1))
    with pytest.raises(UserError, match="needs two training paths in a FLOPs bucket; got 5 paths"):
        fit(path_filter, batch, np.arange(5), np.arange(5.0), np.random.default_rng(0))


def test_weights_of_pairs_by_hand():
    """Of three paths, two in bucket 0: one bounded pair, three pairs in all; "both" gives each kind half of the weight."""
    losses, buckets = np.array([1.0, 2.0, 3.0]), np.array([0, 1, 0])
    bounded, every = np.zeros((3, 3)), np.zeros((3, 3))
    bounded[0, 2], every[[0, 0, 1], [1, 2, 2]] = 1, 1 / 3
    np.testing.assert_allclose(pair_weights(losses, buckets, "bounded"), bounded)
    np.testing.assert_allclose(pair_weights(losses, buckets, "all"), every)
    np.testing.assert_allclose(pair_weights(losses, buckets, "both"), (bounded + every) / 2)
    assert pair_weights(losses, np.arange(3), "both") is None and pair_weights(losses, np.arange(3), "all") is not None


@pytest.mark.parametrize("which", ["bounded", "all", "both"])
@pytest.mark.parametrize("buckets", [[0], [0, 1], [0, 0], [0, 1, 2], [2, 1, 2]])
def test_whether_there_are_pairs_is_known_without_their_weights(which, buckets):
    losses = np.arange(len(buckets), dtype=float)
    assert has_pairs(np.array(buckets), which) == (pair_weights(losses, np.array(buckets), which) is not None)


def test_goodness_by_hand():
    """Inside the buckets the losses differ by 1 and by 3 from their mean: a variance of 5."""
    losses, buckets = np.array([1.0, 3.0, 10.0, 16.0]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(standardized(losses, buckets), (7.5 - losses) / np.sqrt(5))
    np.testing.assert_allclose(centered(losses, buckets), [-1, 1, -3, 3])
    np.testing.assert_array_equal(standardized(np.ones(4), buckets), np.zeros(4))


def known_paths(n=120):
    batch = SPACE.sample_many(np.random.default_rng(3), n)
    losses = -2.0 * (batch.depths[:, 0] == 2) - batch.depths[:, 1:] @ [0.2, 0.3, 0.5, 0.8]
    return batch, np.arange(n) % 2, losses


def test_a_transferred_filter_is_no_more_saturated_and_ranks_as_before():
    batch, buckets, losses = known_paths()
    path_filter = PathFilter(buckets=2, dim=16, layers=1, feed_forward=16, linear_skip=True, rng=np.random.default_rng(1))
    fit(path_filter, batch, buckets, losses, np.random.default_rng(2), FitOptions(epochs=2, lr=1e-3))
    path_filter.members[0].scale(40.0)
    before = path_filter.score(batch, buckets)
    text = transfer(path_filter, batch, buckets, losses, np.random.default_rng(4))
    after = path_filter.score(batch, buckets)
    assert text.startswith("transferred, logits times 0.0") and before.std() > 20
    assert centered(after, buckets).std() <= 1  # a slope explains no more than there is
    assert kendall_tau(before, -after) == pytest.approx(1, abs=1e-3)


def test_a_fresh_filter_takes_the_place_of_one_that_ranks_the_wrong_way_round():
    batch, buckets, losses = known_paths()
    path_filter = PathFilter(buckets=2, dim=16, layers=1, feed_forward=16, ensemble=2, rng=np.random.default_rng(1))
    fit(path_filter, batch, buckets, losses, np.random.default_rng(2), FitOptions(epochs=15, lr=1e-2))
    kept = path_filter.get_weights()["member_2/token_embedding"]
    path_filter.members[0].scale(-1.0)
    text = transfer(path_filter, batch, buckets, losses, np.random.default_rng(4))
    assert text.startswith("member 1: re-initialized, since") and "member 2: transferred, logits times" in text
    assert np.abs(path_filter.logits(batch, buckets)[0]).max() < 1
    np.testing.assert_array_equal(path_filter.get_weights()["member_2/token_embedding"], kept)


def test_what_a_transferred_filter_adds_to_its_skip_is_fitted_too():
    """One that knows the order keeps a part of it; one that knows the reverse is replaced by a fresh one."""
    batch, buckets, losses = known_paths()
    kept = {}
    for sign in (1, -1):
        path_filter = PathFilter(buckets=2, dim=16, layers=1, feed_forward=16, rng=np.random.default_rng(1))
        fit(path_filter, batch, buckets, losses, np.random.default_rng(2), FitOptions(epochs=15, lr=1e-2))
        path_filter.members[0].scale(sign)
        extended = path_filter.extended(2, linear_skip=True)
        options = FitOptions(epochs=1, lr=1e-6)
        results = fit(extended, batch, buckets, losses, np.random.default_rng(2), options, transferred=True)
        kept[sign] = [result.kept for result in results]
        assert min(per_bucket(kendall_tau, extended.score(batch, buckets), losses, buckets).values()) > 0.8
    assert min(kept[1]) > 0 and kept[-1] == [0, 0]


def test_columns_of_blocks_by_hand():
    """Two places of one block and one of another, two words: a block of one place has no columns of its own."""
    parts = by_block(np.array([0, 0, 1]), 2)
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(parts[:, 6:], [[half, 0], [0, half], [half, 0], [0, half], [0, 0], [0, 0]])
    np.testing.assert_array_equal(parts[:, :6], np.eye(6))


def test_the_skip_learns_what_adds_up_from_few_paths_and_no_epoch():
    """Sums over layers are a ridge regression's business: it needs no training of the transformer."""
    batch, buckets, losses = known_paths(200)
    taus = {}
    for linear_skip in (False, True):
        path_filter = PathFilter(
            buckets=2, dim=16, layers=1, feed_forward=16, linear_skip=linear_skip, rng=np.random.default_rng(1)
        )
        fit(path_filter, batch[:60], buckets[:60], losses[:60], np.random.default_rng(2), FitOptions(epochs=1, lr=1e-5))
        taus[linear_skip] = kendall_tau(path_filter.score(batch[60:], buckets[60:]), losses[60:])
    assert taus[True] > 0.75 > taus[False] + 0.3


def test_members_see_other_splits_and_rank_better_together():
    batch, buckets, losses = known_paths(200)
    noisy = losses + np.random.default_rng(5).normal(0, 0.7, 200)
    path_filter = PathFilter(buckets=2, dim=16, layers=1, feed_forward=16, ensemble=4, rng=np.random.default_rng(1))
    heard = []
    options = FitOptions(epochs=12, lr=5e-3, margin="logit", pairs="both", regression=1.0)
    results = fit(
        path_filter, batch[:60], buckets[:60], noisy[:60], np.random.default_rng(2), options, lambda *news: heard.append(news)
    )
    assert len(results) == 4 and len({tuple(result.validation) for result in results}) == 4
    assert [member for member, epoch, *_ in heard if epoch == 1] == [0, 1, 2, 3]
    fresh = batch[60:], buckets[60:]
    alone = [kendall_tau(logits, losses[60:]) for logits in path_filter.logits(*fresh)]
    together = np.mean(list(per_bucket(kendall_tau, path_filter.score(*fresh), losses[60:], buckets[60:]).values()))
    assert together > np.mean(alone) and together > 0.4
