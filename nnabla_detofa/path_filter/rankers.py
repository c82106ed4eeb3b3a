"""Rankings for comparison with the path filter: other regressions, a training-free score, and the ceiling that noise sets.

Losses are validation losses, lower is better. For scores, higher is better.
"""

from __future__ import annotations

import numpy as np

from ..space.geometry import Geometry
from ..space.paths import PathBatch
from .fitting import RIDGE_PENALTIES, by_block, centered
from .tokens import Tokenizer, one_hot

PAIRWISE, TREES, GAUSSIAN, ENTROPY = "ridge with pairs", "boosted trees", "Gaussian process", "entropy"
SKIP = "linear skip"
PENALTIES = np.logspace(-4, 2, 25)
"""Penalties from which that of `pairwise_ridge` is chosen, relative to the mean of the kernel's diagonal."""


def rival_scores(
    tokenizer: Tokenizer, train: PathBatch, train_losses: np.ndarray, batch: PathBatch, seed: int = 0
) -> dict[str, np.ndarray]:
    """Compute the scores of other rankings, fitted to evaluated paths.

    All except the entropy are regressions of the negative loss on one-hot tokens: the path filter's linear skip, without its
    transformer; ridge regression on tokens and pairs of tokens; gradient-boosted trees; and a Gaussian process with a
    squared-exponential kernel and noise, whose length scale, amplitude and noise maximize the likelihood.

    Args:
        tokenizer: tokenizer of the paths.
        train, train_losses: evaluated paths and their losses (n,).
        batch: m paths to score.
        seed: seed of the trees.

    Returns:
        The (m,) scores of each ranking by name.
    """
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import RidgeCV

    known, new = (one_hot(tokenizer(paths), len(tokenizer.vocabulary)) for paths in (train, batch))
    goodness = -np.asarray(train_losses, float)
    goodness = (goodness - goodness.mean()) / (goodness.std() or 1.0)
    trees = GradientBoostingRegressor(n_estimators=300, learning_rate=0.05, max_depth=3, subsample=0.5, random_state=seed)
    parts = by_block(tokenizer.blocks, len(tokenizer.vocabulary))
    return {
        SKIP: RidgeCV(alphas=RIDGE_PENALTIES).fit(known @ parts, goodness).predict(new @ parts),
        PAIRWISE: pairwise_ridge(known, goodness, new, tokenizer.length),
        TREES: trees.fit(known, goodness).predict(new),
        GAUSSIAN: gaussian_process(known, goodness, new, tokenizer.length),
        ENTROPY: entropy(batch),
    }


def pairwise_ridge(known: np.ndarray, goodness: np.ndarray, new: np.ndarray, length: int) -> np.ndarray:
    """Predict by kernel ridge regression on one-hot columns and all their products.

    Two paths with s equal tokens share s columns and s * (s + 1) / 2 products. The penalty minimizes the leave-one-out error.

    Args:
        known, new: one-hot columns of the evaluated and of the new paths, as `tokens.one_hot` returns them.
        goodness: (n,) goodness of the evaluated paths.
        length: number of tokens of a path.

    Returns:
        (m,) predicted goodness of the new paths.
    """

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        same = one @ other.T / length
        return same + same**2

    inner = kernel(known, known)
    values, vectors = np.linalg.eigh(inner)
    rotated = vectors.T @ goodness
    best, weights = np.inf, np.zeros_like(goodness)
    for penalty in PENALTIES * np.mean(np.diag(inner)):
        shrunk = 1 / (np.maximum(values, 0) + penalty)
        dual = vectors @ (shrunk * rotated)
        error = np.mean((dual / np.einsum("ij,j,ij->i", vectors, shrunk, vectors)) ** 2)
        if error < best:
            best, weights = error, dual
    return kernel(new, known) @ weights


def gaussian_process(known: np.ndarray, goodness: np.ndarray, new: np.ndarray, length: int) -> np.ndarray:
    """Predict by the mean of a Gaussian process on one-hot columns; arguments and result are as in `pairwise_ridge`."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * RBF(float(np.sqrt(length)), (0.5, 100.0)) + WhiteKernel(0.2, (1e-4, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an optimum at a bound is accepted
        return GaussianProcessRegressor(kernel, normalize_y=True).fit(known, goodness).predict(new)


def entropy(batch: PathBatch) -> np.ndarray:
    """Compute the log variance of the last feature map of each path's untrained backbone, (n,).

    Up to constants, this is the entropy by which MAE-DET and the search of DAMO-YOLO rank backbones: without normalization and
    shortcuts, and with standard normal weights and inputs, each convolution multiplies the variance by its number of inputs
    k * k * c, and each ReLU halves it.
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
    """Return the increase of the log variance by a convolution and its ReLU."""
    return np.log(kernel * kernel * np.asarray(inputs) / 2)


def _middles(geometry: Geometry, stage: int) -> np.ndarray:
    """Return the middle channels of a stage's bottlenecks, (widths, ratios)."""
    return np.array(
        [[geometry.middle(geometry.stage_out(stage, width), ratio) for ratio in geometry.ratios] for width in geometry.widths]
    )


def true_orders(losses: np.ndarray, buckets: np.ndarray, noise: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Sample scores from the distribution of the true losses, given the measured losses.

    If the true losses inside a bucket and the measurement errors are normally distributed, and the errors account for the
    share `noise` of the measured variance, the true losses are normally distributed around shrunken measured losses. The
    agreement of these scores with the measured losses is what the true order would reach: the ceiling of every ranking.

    Args:
        losses, buckets: (n,) measured losses and FLOPs buckets.
        noise: share of the measured variance due to errors, in [0, 1].
        draws: number of samples.
        rng: random generator.

    Returns:
        (draws, n) scores.
    """
    inside = centered(losses, buckets)
    spread = np.sqrt(np.bincount(buckets, inside**2) / np.maximum(1, np.bincount(buckets)))[buckets]
    errors = rng.normal(size=(draws, len(losses)))
    return -((1 - noise) * inside + np.sqrt(noise * (1 - noise)) * spread * errors)
