"""Measures of the rankings in a filter study: how well they find weak paths and order the paths of a FLOPs bucket.

A path is weak if it is among those with the largest measured losses of its FLOPs bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import numpy as np

from ..path_filter.fitting import centered
from ..path_filter.metrics import Measure, Weakest, bootstrap_interval, over_buckets, per_bucket, weakest
from ..path_filter.rankers import ENTROPY, GAUSSIAN, PAIRWISE, SKIP, TREES
from .filter_study import (
    BASELINES,
    CEILING,
    CONFIGURED,
    CONFIGURED_FRESH,
    EVERYTHING,
    FLOPS,
    PRUNED_BY,
    RANDOM,
    RIDGE,
    SETTINGS,
    StudyResults,
)

RATIO = 0.25
"""Share of weak paths in Table 3."""
MEASURES = Weakest._fields
PRECISION = MEASURES.index("precision")
TITLES = {
    RANDOM: "random order",
    FLOPS: "FLOPs alone",
    ENTROPY: "entropy of a random network",
    RIDGE: "ridge on one-hot tokens",
    SKIP: "the filter's linear skip alone",
    PAIRWISE: "ridge on tokens and pairs of tokens",
    GAUSSIAN: "Gaussian process on one-hot tokens",
    TREES: "gradient-boosted trees",
    CEILING: "true order, given the noise of the losses",
    PRUNED_BY: "the run's own filter, which pruned",
    CONFIGURED: "all three and the config's options",
    CONFIGURED_FRESH: "config's options, not pre-trained",
}
"""Titles of rows whose key is not their title."""


def title(name: str) -> str:
    """Return the title of a row."""
    return TITLES.get(name, name)


def row_names(results: StudyResults) -> list[str]:
    """Return the rows of Table 3: baselines, settings, the run's own filter, and the ceiling."""
    given = [name for name in (PRUNED_BY, CEILING) if name in results.scores]
    return [*BASELINES, *(setting.name for setting in results.inputs.settings), *given]


def fullest(results: StudyResults) -> str:
    """Return the setting of Table 3 with the most parts: all three, or without pre-training paths the other two."""
    return EVERYTHING.name if EVERYTHING in results.inputs.settings else SETTINGS[2].name


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean; NaN if one of the values is NaN."""
    return float(np.mean(values))


def stem_groups(results: StudyResults) -> np.ndarray:
    """Return (n,) group numbers that are equal for test paths of one FLOPs bucket with the same stem depth."""
    test = results.inputs.test
    return 2 * test.buckets + (test.batch.depths[:, 0] == max(test.geometry.depths))


def stem_share(results: StudyResults) -> float:
    """Return the share of the variance of losses inside a FLOPs bucket that the stem depth alone explains."""
    test = results.inputs.test
    inside, left = (np.sum(centered(test.losses, groups) ** 2) for groups in (test.buckets, stem_groups(results)))
    return 1 - left / inside if inside else math.nan


def weakest_of(results: StudyResults, name: str, ratio: float, groups: np.ndarray | None = None) -> np.ndarray:
    """Return (seeds, 4) measures (`Weakest`) of how well each seed's scores find the weakest paths.

    Args:
        results: results of the study.
        name: name of the row.
        ratio: share of the paths that is weak.
        groups: (n,) groups in which paths are compared; None: the FLOPs buckets.
    """
    losses, inside = results.inputs.test.losses, results.inputs.test.buckets if groups is None else groups
    return np.array([weakest(scores, losses, ratio, inside) for scores in results.scores[name]])


def precision_interval(results: StudyResults, name: str, rng: np.random.Generator, ratio: float = RATIO) -> tuple[float, float]:
    """Return the bootstrap interval of the precision, averaged over the seeds (or three draws of the true order)."""
    losses, buckets = results.inputs.test.losses, results.inputs.test.buckets
    draws = results.scores[name][:3] if name == CEILING else results.scores[name]

    def precision(rows: np.ndarray) -> float:
        return mean([weakest(scores[rows], losses[rows], ratio, buckets[rows]).precision for scores in draws])

    return bootstrap_interval(precision, buckets, deepcopy(rng))


def precision_gain(results: StudyResults, name: str, rival: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the difference in precision of two rows, averaged over the seeds, and its bootstrap interval."""
    losses, buckets = results.inputs.test.losses, results.inputs.test.buckets

    def precision(which: str, rows: np.ndarray) -> float:
        return mean([weakest(scores[rows], losses[rows], RATIO, buckets[rows]).precision for scores in results.scores[which]])

    def gain(rows: np.ndarray) -> float:
        return precision(name, rows) - precision(rival, rows)

    return gain(np.arange(len(losses))), *bootstrap_interval(gain, buckets, deepcopy(rng))


def order_in_bucket(results: StudyResults, name: str, measure: Measure, bucket: int) -> list[float]:
    """Return a measure of the order of a bucket's test paths for each seed; NaN if there are none."""
    losses, buckets = results.inputs.test.losses, results.inputs.test.buckets
    return [per_bucket(measure, scores, losses, buckets).get(bucket, math.nan) for scores in results.scores[name]]


def order_over_buckets(results: StudyResults, name: str, measure: Measure, groups: np.ndarray | None = None) -> list[float]:
    """Return a measure of the order for each seed, averaged over the FLOPs buckets or other groups (n,)."""
    losses, inside = results.inputs.test.losses, results.inputs.test.buckets if groups is None else groups
    return [over_buckets(measure, scores, losses, inside) for scores in results.scores[name]]
