"""Measures of a ranking, their uncertainty, and the simple rankings that the path filter has to beat.

Losses are validation losses: lower is better. Scores are g's: higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from ..space.paths import PathBatch

if TYPE_CHECKING:
    from .model import Tokenizer

Measure = Callable[[np.ndarray, np.ndarray], float]
"""(n,) scores and (n,) losses -> a number."""
LEAST_PATHS = 5
"""A bucket of fewer paths does not count in a mean over buckets."""


def kendall_tau(scores: np.ndarray, losses: np.ndarray) -> float:
    """Kendall's tau between score and negated loss: 1 where the order is right; NaN for fewer than two paths."""
    return float(stats.kendalltau(scores, -np.asarray(losses)).statistic) if len(scores) > 1 else math.nan


def spearman_rho(scores: np.ndarray, losses: np.ndarray) -> float:
    """Spearman's rho between score and negated loss: the correlation of their ranks; NaN for fewer than two paths.

    NaN too where all scores or all losses are equal, as for Kendall's tau: then there is no order.
    """
    if len(scores) < 2:
        return math.nan
    ranks = stats.rankdata(scores), stats.rankdata(-np.asarray(losses))
    if not all(np.ptp(rank) for rank in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def per_bucket(measure: Measure, scores: np.ndarray, losses: np.ndarray, buckets: np.ndarray) -> dict[int, float]:
    """Bucket -> `measure(scores, losses)` of its paths."""
    return {int(b): measure(scores[buckets == b], losses[buckets == b]) for b in np.unique(buckets)}


def over_buckets(
    measure: Measure, scores: np.ndarray, losses: np.ndarray, buckets: np.ndarray, least: int = LEAST_PATHS
) -> float:
    """Mean of `measure` over the buckets that hold at least `least` paths; NaN where none does.

    This is what counts for a filter of Eq. 6, which never compares paths of two buckets; the measure of all paths
    together also says whether larger paths get higher scores.
    """
    found = per_bucket(measure, scores, losses, buckets)
    enough = [value for bucket, value in found.items() if np.sum(buckets == bucket) >= least]
    return float(np.mean(enough)) if enough else math.nan


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    buckets: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic of paths that are drawn again, with replacement, inside each bucket.

    Args:
        statistic: indices (n,) of the drawn paths -> a number; a NaN is left out.
        buckets: (n,) FLOPs buckets of the paths.
        level: share of the resamples that the interval holds.

    Returns:
        low, high; NaN where no resample gave a number.
    """
    groups = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
    drawn = (np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(resamples))
    values = np.array([statistic(indices) for indices in drawn])
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Weakest(NamedTuple):
    """How well the weakest paths were found; positive means among the weakest.

    Attributes:
        accuracy: (TP + TN) / N.
        precision: TP / (TP + FP); NaN where nothing was predicted.
        recall: TP / (TP + FN).
        share_of_right: TP / (TP + TN), the weak paths' share of those judged rightly; NaN where none is. The columns "recall"
            of Tables 3 and A3 are nearest to this: accuracy 0.89 and precision 0.79 at 25% positives leave a recall of 0.76
            and a TP of 0.19 of all paths, 0.214 of those judged rightly, and the column has 0.212.
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
    """How well scores find the weakest `ratio` of the paths (Tables 3 and A3).

    Positive are the worst paths by loss, predicted the worst by score, the same number of both, so that precision and
    recall agree; or those with a score below `thresholds`, as training drops them.

    Args:
        scores, losses: (n,).
        ratio: share of positives, in (0, 1).
        buckets: (n,) FLOPs buckets; then the weakest are taken inside each. None: among all.
        thresholds: least kept score of each bucket, or of all paths together: one value.
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
    """(n,) bool: the `ratio` of each group with the least goodness; of equal ones the first."""
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
    """Scores that the filter has to beat: name -> (n,) scores of `batch`.

    "FLOPs" takes the larger path for the better; "ridge" regresses the training losses on one-hot tokens; "random" knows
    nothing.

    Args:
        train, train_losses: the evaluated paths that the filter was fitted to.
        batch, flops: the paths to score and their FLOPs.
    """
    from sklearn.linear_model import Ridge

    known, asked = (one_hot(tokenizer(paths), len(tokenizer.vocabulary)) for paths in (train, batch))
    ridge = Ridge(alpha=1.0).fit(known, -np.asarray(train_losses))
    return {"FLOPs": np.asarray(flops, float), "ridge": ridge.predict(asked), "random": rng.random(len(batch))}


def one_hot(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """(n, L) tokens -> (n, L * vocabulary) one column for each token at each place."""
    return (tokens[:, :, None] == np.arange(vocabulary)).reshape(len(tokens), -1).astype(float)
