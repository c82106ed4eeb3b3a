"""Measures of a ranking against hand-worked values, and what their intervals must hold."""

import math

import numpy as np
import pytest

from nnabla_detofa.path_filter.metrics import (
    baseline_scores,
    bootstrap_interval,
    kendall_tau,
    over_buckets,
    per_bucket,
    spearman_rho,
    taus_of,
    weakest,
)
from nnabla_detofa.path_filter.tokens import Tokenizer
from nnabla_detofa.space.search_space import ofa_resnet50


def test_measures_by_hand():
    losses, scores = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.9, 0.8, 0.1, 0.2])
    assert kendall_tau(scores, losses) == pytest.approx((5 - 1) / 6)
    found = weakest(scores, losses, 0.25)  # the worst is the fourth; the filter says the third
    assert (found.accuracy, found.precision, found.recall, found.share_of_right) == (0.5, 0.0, 0.0, 0.0)
    found = weakest(scores, losses, 0.5)
    assert (found.accuracy, found.precision, found.recall, found.share_of_right) == (1.0, 1.0, 1.0, 0.5)
    assert np.isnan(kendall_tau(scores[:1], losses[:1]))


def test_an_undefined_tau_is_none_in_a_file():
    losses, buckets = np.array([1.0, 2.0, 3.0, 4.0, 4.0]), np.array([0, 0, 2, 3, 3])
    assert taus_of(np.arange(5.0), losses, buckets) == {0: -1.0, 2: None, 3: None}


def test_the_weakest_by_hand_with_thresholds():
    """Of five paths two are weak, three fall below the threshold, one of them rightly: TP 1, FP 2, FN 1, TN 1."""
    losses, scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([0.1, 0.2, 0.9, 0.8, 0.3])
    found = weakest(scores, losses, 0.4, thresholds=np.array([0.5]))
    assert found == pytest.approx((2 / 5, 1 / 3, 1 / 2, 1 / 2))
    found = weakest(np.array([0.9, 0.8, 0.1, 0.2]), np.array([1.0, 2.0, 3.0, 4.0]), 0.25)
    assert found.share_of_right == 0 and found.accuracy == 0.5  # TN alone is right
    assert np.isnan(weakest(np.array([0.1, 0.2]), np.array([1.0, 2.0]), 0.5).share_of_right)  # nothing is right


def test_spearman_by_hand():
    losses = np.array([1.0, 2.0, 3.0, 4.0])
    # Ranks of the scores 4, 2, 1, 3 against 4, 3, 2, 1: differences 0, 1, 1, 2, so 1 - 6 * 6 / (4 * 15).
    assert spearman_rho(np.array([0.9, 0.2, 0.1, 0.8]), losses) == pytest.approx(0.4)
    assert spearman_rho(-losses, losses) == pytest.approx(1)
    # Equal scores share the mean of their ranks, 1.5, 1.5, 3.5, 3.5: a covariance of 4 over sqrt(5 * 4).
    assert spearman_rho(np.array([1.0, 1.0, 0.0, 0.0]), losses) == pytest.approx(4 / math.sqrt(20))
    assert math.isnan(spearman_rho(np.ones(4), losses)) and math.isnan(spearman_rho(losses[:1], losses[:1]))


def test_the_mean_over_buckets_leaves_small_buckets_out():
    losses, buckets = np.array([1.0, 2, 3, 1, 2, 3, 9]), np.array([0, 0, 0, 1, 1, 1, 2])
    scores = np.array([3.0, 2, 1, 1, 2, 3, 0])
    assert per_bucket(kendall_tau, scores, losses, buckets) == pytest.approx({0: 1, 1: -1, 2: math.nan}, nan_ok=True)
    assert over_buckets(kendall_tau, scores, losses, buckets, min_paths=3) == pytest.approx(0)
    assert math.isnan(over_buckets(kendall_tau, scores, losses, buckets, min_paths=4))


def test_the_weakest_of_each_bucket_and_of_all_differ():
    losses, buckets = np.array([1.0, 2, 11, 12]), np.array([0, 0, 1, 1])
    scores = np.array([0.9, 0.8, 0.6, 0.7])  # right in the first bucket, wrong in the second
    assert weakest(scores, losses, 0.5, buckets) == (0.5, 0.5, 0.5, 0.5)  # of two right ones one is weak
    assert weakest(scores, losses, 0.5) == (1.0, 1.0, 1.0, 0.5)


def test_a_bootstrap_interval_is_that_of_the_mean_and_repeats_itself():
    """Of a mean of n values with spread s it must be about 1.96 s / sqrt(n) on each side."""
    values, buckets = np.random.default_rng(0).normal(5, 2, 400), np.zeros(400, int)
    found = [bootstrap_interval(lambda rows: values[rows].mean(), buckets, np.random.default_rng(1)) for _ in range(2)]
    assert found[0] == found[1]
    low, high = found[0]
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.03)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_a_bootstrap_resamples_inside_buckets():
    buckets, seen = np.array([0, 1, 1, 1]), []
    bootstrap_interval(lambda rows: seen.append(buckets[rows].tolist()) or 0.0, buckets, np.random.default_rng(0), 20)
    assert len(seen) == 20 and all(row == [0, 1, 1, 1] for row in seen)
    assert all(map(math.isnan, bootstrap_interval(lambda rows: math.nan, buckets, np.random.default_rng(0), 5)))


def test_ridge_learns_an_additive_loss_and_flops_are_themselves():
    rng = np.random.default_rng(0)
    batch = ofa_resnet50().sample_many(rng, 600)
    losses = batch.depths @ [0.5, 0.2, 0.3, 0.5, 0.8] - batch.widths[:, 5]
    flops = np.arange(600)
    scores = baseline_scores(Tokenizer(), batch[:500], losses[:500], batch[500:], flops[500:], rng)
    assert kendall_tau(scores["ridge"], losses[500:]) > 0.9
    assert scores["FLOPs"].tolist() == flops[500:].tolist()
    assert abs(kendall_tau(scores["random"], losses[500:])) < 0.25
