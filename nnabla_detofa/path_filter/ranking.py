"""Ranking paths: the FLOPs-bounded pairwise loss (Eq. 5, 6), and fitting g.

Losses are validation losses: lower is better. Scores are g's: higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import UserError
from ..space.paths import PathBatch
from .metrics import kendall_tau, per_bucket

if TYPE_CHECKING:
    import nnabla as nn

    from .model import PathFilter

# --- The pairwise loss ------------------------------------------------------------------------------------------------


def pairs(losses: np.ndarray, buckets: np.ndarray | None = None) -> np.ndarray:
    """(n, n) bool, the ordered pairs with t = 1 of Eq. 5: [a, a'] where a is at least as good as a', and is not a'.

    Two equal losses make a pair in both orders, as the <= of Eq. 5 says; their least common loss is at equal scores.

    Args:
        losses: (n,) validation losses.
        buckets: (n,) FLOPs buckets; then only paths of one bucket make pairs, "FLOPs-bounded". None: all paths do.
    """
    better = losses[:, None] <= losses[None, :]
    np.fill_diagonal(better, False)
    return better if buckets is None else better & (buckets[:, None] == buckets[None, :])


def pair_loss(scores: np.ndarray, paired: np.ndarray) -> float:
    """Mean squared hinge of g(a) - g(a') over the pairs (Eq. 6).

    Pairs with t = 0 would add a constant 1 each and are left out.
    """
    first, second = np.nonzero(paired)
    gaps = np.asarray(scores, float)[first] - np.asarray(scores, float)[second]
    return float(np.mean(np.maximum(0.0, 1.0 - gaps) ** 2))


def pair_loss_variable(scores: nn.Variable, pair_weights: nn.Variable) -> nn.Variable:
    """`pair_loss` in NNabla.

    Args:
        scores: (n,).
        pair_weights: (n, n), `pairs` divided by their number.
    """
    import nnabla.functions as F

    n = scores.shape[0]
    gaps = F.reshape(scores, (n, 1)) - F.reshape(scores, (1, n))
    return F.sum(pair_weights * F.pow_scalar(F.relu(1.0 - gaps), 2.0))


# --- Fitting ----------------------------------------------------------------------------------------------------------


def split(buckets: np.ndarray, rng: np.random.Generator, validation: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation paths: the same share of each bucket, drawn at random (section 3.1.2)."""
    train, held = [], []
    for bucket in np.unique(buckets):
        members = rng.permutation(np.flatnonzero(buckets == bucket))
        n_held = round(validation * len(members))
        held.append(members[:n_held])
        train.append(members[n_held:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held))


@dataclass(frozen=True, eq=False)
class FitResult:
    """How a fit went. Curves start with the state before the first epoch.

    Attributes:
        train, validation: indices of the paths of each part.
        train_losses: pair loss of each epoch's minibatches; NaN at first.
        validation_losses: pair loss of all validation pairs after each epoch.
        best_epoch: the epoch whose weights the filter has now; 0 is what it had before.
        validation_taus: bucket -> Kendall's tau of its validation paths (NaN for fewer than two).
    """

    train: np.ndarray
    validation: np.ndarray
    train_losses: np.ndarray
    validation_losses: np.ndarray
    best_epoch: int
    validation_taus: dict[int, float]


def fit(
    path_filter: PathFilter,
    batch: PathBatch,
    buckets: np.ndarray,
    losses: np.ndarray,
    rng: np.random.Generator,
    *,
    epochs: int = 200,
    lr: float = 3e-4,
    batch_size: int = 32,
    patience: int = 30,
    weight_decay: float = 0.0,
    flops_bounded: bool = True,
    progress: Callable[[int, float, float], None] | None = None,
) -> FitResult:
    """Fit the filter to evaluated paths with the pairwise loss; it ends with the weights of the best validation loss.

    The split and the loss are the paper's (section 3.1.2); optimiser and epochs are not given: Adam, until the validation
    loss has not improved for `patience` epochs.

    Args:
        path_filter: is changed.
        batch, buckets, losses: n evaluated paths, their FLOPs buckets and validation losses.
        rng: draws the split and the minibatches.
        batch_size: the most paths in a minibatch; each holds the same share of every bucket.
        weight_decay: of NNabla's AdamW: the share of every weight that each update takes away, whatever `lr` is.
        flops_bounded: compare only paths of one FLOPs bucket.
        progress: called after each epoch with its number, its training and its validation loss.

    Raises:
        UserError: there are too few paths for pairs in both parts.
    """
    import nnabla as nn
    import nnabla.solvers as S

    train, validation = split(buckets, rng)
    bounds = buckets if flops_bounded else np.zeros(len(batch), int)
    paired = {"training": pairs(losses[train], bounds[train]), "validation": pairs(losses[validation], bounds[validation])}
    for part, mask in paired.items():
        if not mask.any():
            raise UserError(f"fitting the path filter needs two {part} paths in a FLOPs bucket; got {len(batch)} paths in all")

    tokens = path_filter.tokenizer(batch)
    n_batches = -(-len(train) // batch_size)
    size = -(-len(train) // n_batches)
    inputs = nn.Variable((size, tokens.shape[1])), nn.Variable((size,))
    pair_weights = nn.Variable((size, size))
    loss = pair_loss_variable(path_filter(*inputs), pair_weights)
    solver = S.AdamW(lr, wd=weight_decay)
    solver.set_parameters(path_filter.get_parameters())

    def step(members: np.ndarray) -> float:
        """One update from these training paths (positions in `train`), padded with copies that are in no pair."""
        chosen = paired["training"][np.ix_(members, members)]
        if not chosen.any():
            return math.nan
        rows = train[np.resize(members, size)]
        inputs[0].d, inputs[1].d = tokens[rows], buckets[rows]
        padding = (0, size - len(members))
        pair_weights.d = np.pad(chosen / chosen.sum(), (padding, padding))
        loss.forward(clear_no_need_grad=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.update()
        return float(loss.d)

    def validation_loss() -> float:
        return pair_loss(path_filter.score(batch[validation], buckets[validation]), paired["validation"])

    train_losses, validation_losses = [math.nan], [validation_loss()]
    best, best_weights = 0, path_filter.get_weights()
    for epoch in range(1, epochs + 1):
        shuffled = rng.permutation(len(train))
        by_bucket = shuffled[np.argsort(buckets[train][shuffled], kind="stable")]
        steps = [step(by_bucket[number::n_batches]) for number in range(n_batches)]
        train_losses.append(float(np.mean([value for value in steps if not math.isnan(value)] or math.nan)))
        validation_losses.append(validation_loss())
        if progress:
            progress(epoch, train_losses[-1], validation_losses[-1])
        if validation_losses[-1] < validation_losses[best]:
            best, best_weights = epoch, path_filter.get_weights()
        elif epoch - best >= patience:
            break
    path_filter.set_weights(best_weights)
    scores = path_filter.score(batch[validation], buckets[validation])
    taus = per_bucket(kendall_tau, scores, losses[validation], buckets[validation])
    return FitResult(train, validation, np.array(train_losses), np.array(validation_losses), best, taus)
