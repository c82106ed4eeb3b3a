"""Rankings that a reader will ask to see beside the path filter's: other regressions, a measure of the network alone, and
what the true order itself would reach.

Losses are validation losses: lower is better. Scores: higher is better.
"""

from __future__ import annotations

import numpy as np

from ..space.geometry import Geometry
from ..space.paths import PathBatch
from .metrics import one_hot
from .model import Tokenizer
from .ranking import centered

PAIRWISE, TREES, GAUSSIAN, ENTROPY = "ridge with pairs", "boosted trees", "Gaussian process", "entropy"
PENALTIES = np.logspace(-4, 2, 25)
"""Among which the pairwise ridge's is chosen, times the mean of its kernel's diagonal."""


def rival_scores(
    tokenizer: Tokenizer, train: PathBatch, train_losses: np.ndarray, batch: PathBatch, seed: int = 0
) -> dict[str, np.ndarray]:
    """Name -> (n,) scores of `batch`, by what was fitted to evaluated paths.

    All but the entropy are regressions of the negative loss on one-hot tokens: ridge on all tokens and all pairs of tokens;
    gradient-boosted trees; and a Gaussian process with a squared-exponential kernel and noise, whose length, height and
    noise maximize the likelihood.

    Args:
        train, train_losses: evaluated paths.
        batch: the paths to score.
        seed: of the trees.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    known, asked = (one_hot(tokenizer(paths), len(tokenizer.vocabulary)) for paths in (train, batch))
    goodness = -np.asarray(train_losses, float)
    goodness = (goodness - goodness.mean()) / (goodness.std() or 1.0)
    trees = GradientBoostingRegressor(n_estimators=300, learning_rate=0.05, max_depth=3, subsample=0.5, random_state=seed)
    return {
        PAIRWISE: pairwise_ridge(known, goodness, asked, tokenizer.length),
        TREES: trees.fit(known, goodness).predict(asked),
        GAUSSIAN: gaussian_process(known, goodness, asked, tokenizer.length),
        ENTROPY: entropy(batch),
    }


def pairwise_ridge(known: np.ndarray, goodness: np.ndarray, asked: np.ndarray, length: int) -> np.ndarray:
    """Ridge regression on one-hot columns and on all their products, as kernel ridge; (n,) predictions.

    Two paths with s equal tokens have s columns and s * (s + 1) / 2 products in common. The penalty is the one with the
    least error when each path is left out in turn.
    """

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        same = one @ other.T / length
        return same + same**2

    inner = kernel(known, known)
    values, vectors = np.linalg.eigh(inner)
    turned = vectors.T @ goodness
    best, weights = np.inf, np.zeros_like(goodness)
    for penalty in PENALTIES * np.mean(np.diag(inner)):
        shrunk = 1 / (np.maximum(values, 0) + penalty)
        dual = vectors @ (shrunk * turned)
        error = np.mean((dual / np.einsum("ij,j,ij->i", vectors, shrunk, vectors)) ** 2)
        if error < best:
            best, weights = error, dual
    return kernel(asked, known) @ weights


def gaussian_process(known: np.ndarray, goodness: np.ndarray, asked: np.ndarray, length: int) -> np.ndarray:
    """The mean of a Gaussian process that was fitted to one-hot columns; (n,)."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * RBF(float(np.sqrt(length)), (0.5, 100.0)) + WhiteKernel(0.2, (1e-4, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an optimum at a bound is one, too
        return GaussianProcessRegressor(kernel, normalize_y=True).fit(known, goodness).predict(asked)


def entropy(batch: PathBatch) -> np.ndarray:
    """(n,) the log variance of the backbone's last feature map, without any training.

    This is the entropy of a random network, up to constants, by which MAE-DET and DAMO-YOLO's search rank backbones:
    without normalization and shortcuts, with standard normal weights and input, each convolution multiplies the variance
    by its inputs k * k * c, and a ReLU halves it.
    """
    geometry = batch.geometry
    middle, out = (np.array([of(w) for w in geometry.widths]) for of in (geometry.stem_mid, geometry.stem_out))
    first, last = middle[batch.widths[:, 0]], out[batch.widths[:, 1]]
    residual = batch.depths[:, 0] == max(geometry.depths)
    total = _gain(3, 3) + np.where(residual, _gain(3, first), 0.0) + _gain(3, first)
    channels, start = last, 0
    for stage, layers in enumerate(geometry.layers_per_stage):
        widths = batch.widths[:, stage + 2]
        outs = np.array([geometry.stage_out(stage, width) for width in geometry.widths])[widths]
        middles = _middles(geometry, stage)
        for layer in range(start, start + layers):
            ratios = batch.ratios[:, layer]
            inner = middles[widths, np.maximum(ratios, 0)]
            gain = _gain(1, channels) + _gain(3, inner) + _gain(1, inner)
            total = total + np.where(ratios >= 0, gain, 0.0)
            channels = np.where(ratios >= 0, outs, channels)
        start += layers
    return total


def _gain(kernel: int, inputs: np.ndarray | int) -> np.ndarray:
    """By how much a convolution and its ReLU raise the log variance."""
    return np.log(kernel * kernel * np.asarray(inputs) / 2)


def _middles(geometry: Geometry, stage: int) -> np.ndarray:
    """(widths, ratios) middle channels of a stage's bottlenecks."""
    return np.array(
        [[geometry.middle(geometry.stage_out(stage, width), ratio) for ratio in geometry.ratios] for width in geometry.widths]
    )


def true_orders(losses: np.ndarray, buckets: np.ndarray, noise: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, n) scores: what the paths may be worth in truth, given their measured losses.

    Where the truth inside a bucket and the error of the measurement are normal and the error has the share `noise` of the
    measured variance, the truth is normal around the shrunk loss. Ranked against the measured losses these scores
    show what the true order would reach: the ceiling for every ranking.
    """
    inside = centered(losses, buckets)
    spread = np.sqrt(np.bincount(buckets, inside**2) / np.maximum(1, np.bincount(buckets)))[buckets]
    errors = rng.normal(size=(draws, len(losses)))
    return -((1 - noise) * inside + np.sqrt(noise * (1 - noise)) * spread * errors)
