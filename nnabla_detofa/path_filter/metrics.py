"""Metrics of a ranking, their confidence intervals, and simple baseline rankings for the path filter.

Losses are validation losses, lower is better. Scores are those of the path filter, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..space.paths import PathBatch
from .tokens import Tokenizer, one_hot

Measure = Callable[[np.ndarray, np.ndarray], float]
"""Function of (n,) scores and (n,) losses that returns a number."""
MIN_PATHS = 5
"""Smallest number of paths of a bucket that is included in a mean over buckets."""


def kendall_tau(scores: np.ndarray, losses: np.ndarray) -> float:
    """Return Kendall's tau of scores and negative losses: 1 for the correct order, NaN for fewer than two paths."""
    return float(stats.kendalltau(scores, -np.asarray(losses)).statistic) if len(scores) > 1 else math.nan


def spearman_rho(scores: np.ndarray, losses: np.ndarray) -> float:
    """Return Spearman's rho of scores and negative losses, the correlation of their ranks.

    It is NaN for fewer than two paths, and, like Kendall's tau, if all scores or all losses are equal.
    """
    if len(scores) < 2:
        return math.nan
    ranks = stats.rankdata(scores), stats.rankdata(-np.asarray(losses))
    if not all(np.ptp(rank) for rank in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def per_bucket(measure: Measure, scores: np.ndarray, losses: np.ndarray, buckets: np.ndarray) -> dict[int, float]:
    """Return `measure(scores, losses)` of the paths of each bucket, by bucket."""
    return {int(b): measure(scores[buckets == b], losses[buckets == b]) for b in np.unique(buckets)}


def taus_of(scores: np.ndarray, losses: np.ndarray, buckets: np.ndarray) -> dict[int, float | None]:
    """Return Kendall's tau of each bucket for a JSON file: None if it is undefined (fewer than two paths, or equal values)."""
    found = per_bucket(kendall_tau, scores, losses, buckets)
    return {bucket: None if math.isnan(tau) else tau for bucket, tau in found.items()}


def over_buckets(
    measure: Measure, scores: np.ndarray, losses: np.ndarray, buckets: np.ndarray, min_paths: int = MIN_PATHS
) -> float:
    """Return the mean of `measure` over the buckets that contain at least `min_paths` paths; NaN if there is none.

    This is the relevant metric for a filter trained with Eq. 6, which never compares paths of two buckets; the measure over
    all paths also depends on whether larger paths have higher scores.
    """
    found = per_bucket(measure, scores, losses, buckets)
    enough = [value for bucket, value in found.items() if np.sum(buckets == bucket) >= min_paths]
    return float(np.mean(enough)) if enough else math.nan


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    buckets: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute a percentile bootstrap interval of a statistic; paths are resampled with replacement inside each bucket.

    Args:
        statistic: function of the indices (n,) of the resampled paths that returns a number; NaN is ignored.
        buckets: (n,) FLOPs buckets of the paths.
        rng: random generator.
        resamples: number of resamples.
        level: share of the resamples inside the interval.

    Returns:
        The interval (low, high); NaN if the statistic of all resamples is NaN.
    """
    groups = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
    resampled = (np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(resamples))
    values = np.array([statistic(indices) for indices in resampled])
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Weakest(NamedTuple):
    """Metrics of the detection of the weakest paths; positive means among the weakest.

    Attributes:
        accuracy: (TP + TN) / N.
        precision: TP / (TP + FP); NaN without predicted positives.
        recall: TP / (TP + FN); NaN without positives.
        share_of_right: TP / (TP + TN), the share of weak paths among the correct predictions; NaN without any. The columns
            "recall" of Tables 3 and A3 are closest to this: an accuracy of 0.89 and a precision of 0.79 at 25% positives imply
            a recall of 0.76, and a TP of 0.19 of all paths, which is 0.214 of the correct predictions; the column has 0.212.
    """

    accuracy: float
    precision: float
    recall: float
    share_of_right: float


def weakest(
    scores: np.ndarray,
    losses: np.ndarray,
    ratio: float,
    buckets: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
) -> Weakest:
    """Measure how well scores detect the weakest `ratio` of the paths (Tables 3 and A3).

    Positives are the worst paths by loss. Predicted positives are as many of the worst paths by score, so that precision and
    recall are equal; or, with `thresholds`, the paths that training would reject.

    Args:
        scores, losses: (n,).
        ratio: share of positives, in (0, 1).
        buckets: (n,) FLOPs buckets, inside which the weakest are determined; None: among all paths.
        thresholds: (buckets,) lowest kept score of each bucket; one value without `buckets`.
    """
    groups = np.zeros(len(scores), int) if buckets is None else np.asarray(buckets)
    actual = _worst(-np.asarray(losses), ratio, groups)
    predicted = _worst(scores, ratio, groups) if thresholds is None else scores < np.asarray(thresholds)[groups]
    hits, right = int(np.sum(actual & predicted)), int(np.sum(actual == predicted))
    return Weakest(
        accuracy=right / len(scores),
        precision=hits / predicted.sum() if predicted.any() else math.nan,
        recall=hits / actual.sum() if actual.any() else math.nan,
        share_of_right=hits / right if right else math.nan,
    )


def _worst(goodness: np.ndarray, ratio: float, groups: np.ndarray) -> np.ndarray:
    """Return which paths are among the `ratio` of their group with the lowest goodness, (n,) bool; ties keep their order."""
    chosen = np.zeros(len(goodness), bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        order = np.argsort(goodness[members], kind="stable")
        chosen[members[order[: int(ratio * len(members) + 0.5)]]] = True
    return chosen


def baseline_scores(
    tokenizer: Tokenizer,
    train: PathBatch,
    train_losses: np.ndarray,
    batch: PathBatch,
    flops: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Compute the scores of simple baselines of the path filter.

    "FLOPs" prefers larger paths; "ridge" is a ridge regression of the training losses on one-hot tokens; "random" is random.

    Args:
        tokenizer: tokenizer of the paths.
        train, train_losses: evaluated paths to which the filter was fitted, and their losses (n,).
        batch, flops: paths to score, and their FLOPs (m,).
        rng: random generator of "random".

    Returns:
        The (m,) scores of each baseline by name.
    """
    from sklearn.linear_model import Ridge

    known, new = (one_hot(tokenizer(paths), len(tokenizer.vocabulary)) for paths in (train, batch))
    ridge = Ridge(alpha=1.0).fit(known, -np.asarray(train_losses))
    return {"FLOPs": np.asarray(flops, float), "ridge": ridge.predict(new), "random": rng.random(len(batch))}
