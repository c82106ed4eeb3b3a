"""The FLOPs-bounded ranking loss of the path filter (Eq. 5 and 6).

Losses are validation losses, lower is better. Scores are those of the path filter, higher is better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..backend.compat import nn


def pairs(losses: np.ndarray, buckets: np.ndarray | None = None) -> np.ndarray:
    """Return the ordered pairs with t = 1 in Eq. 5: [a, a'] is True if a is at least as good as a', and is not a'.

    Two equal losses form a pair in both orders, as the <= of Eq. 5 states; their total loss is lowest at equal scores.

    Args:
        losses: (n,) validation losses.
        buckets: (n,) FLOPs buckets: only paths of one bucket form pairs ("FLOPs-bounded"). None: all paths form pairs.

    Returns:
        (n, n) bool.
    """
    better = losses[:, None] <= losses[None, :]
    np.fill_diagonal(better, False)
    return better if buckets is None else better & (buckets[:, None] == buckets[None, :])


def pair_loss(scores: np.ndarray, paired: np.ndarray) -> float:
    """Compute the mean squared hinge loss of g(a) - g(a') over the pairs (Eq. 6).

    Pairs with t = 0 would add a constant of 1 each and are omitted.

    Args:
        scores: (n,) scores.
        paired: (n, n) bool, the result of `pairs`.
    """
    first, second = np.nonzero(paired)
    gaps = np.asarray(scores, float)[first] - np.asarray(scores, float)[second]
    return float(np.mean(np.maximum(0.0, 1.0 - gaps) ** 2))


def pair_weights(losses: np.ndarray, buckets: np.ndarray, which: str = "bounded") -> np.ndarray | None:
    """Return the weight of each ordered pair in the loss.

    Args:
        losses, buckets: (n,).
        which: "bounded": pairs of one FLOPs bucket (Eq. 6); "all": all pairs; "both": half the weight for each (ours).

    Returns:
        (n, n) weights with sum 1; None if there is no pair of one of the kinds.
    """
    masks = [pairs(losses, buckets)] if which != "all" else []
    if which != "bounded":
        masks.append(pairs(losses))
    found = [mask / mask.sum() for mask in masks if mask.any()]
    return np.mean(found, axis=0) if len(found) == len(masks) else None


def has_pairs(buckets: np.ndarray, which: str = "bounded") -> bool:
    """Return whether paths of these FLOPs buckets (n,) form pairs, so that `pair_weights` is not None.

    This needs no (n, n) matrix, which takes gigabytes for ten thousand paths.
    """
    return len(buckets) > 1 if which == "all" else len(np.unique(buckets)) < len(buckets)


def pair_loss_variable(scores: nn.Variable, pair_weights: nn.Variable) -> nn.Variable:
    """Build the NNabla graph of `pair_loss`.

    Args:
        scores: (n,).
        pair_weights: (n, n), see `pair_weights`; the mask of `pairs` divided by the number of pairs gives `pair_loss`.
    """
    from ..backend.compat import F

    n = scores.shape[0]
    gaps = F.reshape(scores, (n, 1)) - F.reshape(scores, (1, n))
    return F.sum(pair_weights * F.pow_scalar(F.relu(1.0 - gaps), 2.0))
