"""Fitting of the path filter to evaluated paths (section 3.1.2), and its transfer to another supernet.

Losses are validation losses, lower is better. Goodness is a standardized negative loss, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..common.errors import UserError
from ..space.paths import PathBatch
from .metrics import kendall_tau, per_bucket
from .ranking import has_pairs, pair_loss_variable, pair_weights
from .tokens import one_hot

if TYPE_CHECKING:
    from ..backend.compat import nn
    from .model import PathFilter

RIDGE_PENALTIES = tuple(np.logspace(-1, 2, 10))
"""Penalties from which that of the linear skip is chosen."""


@dataclass(frozen=True)
class FitOptions:
    """Loss and optimizer of a fit. The defaults are the paper's where it states them.

    Attributes:
        margin: the margin of the squared hinge in Eq. 6 is 1 between two "score"s, which are sigmoids, as in the paper; or
            between two "logit"s (ours), since sigmoids never differ by a margin of 1.
        pairs: see `ranking.pair_weights`.
        regression: weight of the mean squared error between logit and standardized negative loss (ours); 0 disables it.
        epochs, lr, batch_size: number of epochs, learning rate and batch size of Adam (paper is silent).
        patience: number of epochs without a better validation loss after which a fit stops (paper is silent).
        weight_decay: share of each weight that every update of NNabla's AdamW subtracts, independent of `lr`.
        dropout: dropout rate of the pooled vector.
    """

    margin: str = "score"
    pairs: str = "bounded"
    regression: float = 0.0
    epochs: int = 200
    lr: float = 3e-4
    batch_size: int = 32
    patience: int = 30
    weight_decay: float = 0.0
    dropout: float = 0.0


def fit_options(options: object) -> FitOptions:
    """Return the options of a config's section `hparams.filter`, or of any object with attributes of these names."""
    return FitOptions(**{field.name: getattr(options, field.name) for field in fields(FitOptions)})


@dataclass(frozen=True, eq=False)
class FitResult:
    """Result of fitting one member. Curves start with the state before the first epoch.

    Attributes:
        train, validation: indices of the paths of each split.
        train_losses: mean loss of the mini-batches of each epoch; the first is NaN.
        validation_losses: loss over all validation paths after each epoch.
        best_epoch: epoch whose weights the member has now; 0: its initial weights.
        validation_taus: Kendall's tau of the validation paths by bucket; NaN for fewer than two paths.
        kept: factor of a transferred member's logits beside its linear skip; 0: the member was re-initialized.
    """

    train: np.ndarray
    validation: np.ndarray
    train_losses: np.ndarray
    validation_losses: np.ndarray
    best_epoch: int
    validation_taus: dict[int, float]
    kept: float = 1.0


MIN_SPLIT = 4
"""Paths of a bucket from which none is taken to make a pair for validation."""


def split(buckets: np.ndarray, rng: np.random.Generator, validation: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Split paths randomly into training and validation paths, with the same share of each bucket (section 3.1.2).

    The paper is silent on few paths: if no bucket would give two, which make a pair, those of more than `MIN_SPLIT` paths do.

    Args:
        buckets: (n,) FLOPs buckets of the paths.
        rng: random generator.
        validation: share of validation paths.

    Returns:
        Indices of the training and of the validation paths, in ascending order.
    """
    train, held = [], []
    sizes = {bucket: round(validation * np.sum(buckets == bucket)) for bucket in np.unique(buckets)}
    pairs = max(sizes.values()) > 1
    for bucket, size in sizes.items():
        members = rng.permutation(np.flatnonzero(buckets == bucket))
        n_held = size if pairs or len(members) <= MIN_SPLIT else 2
        held.append(members[:n_held])
        train.append(members[n_held:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held))


def standardized(losses: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Return the goodness of paths, (n,): the negative loss, with mean 0 over all and variance 1 inside the buckets."""
    goodness = -np.asarray(losses, float)
    spread = np.sqrt(np.mean(centered(goodness, buckets) ** 2))
    return (goodness - goodness.mean()) / (spread or 1.0)


def centered(values: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Subtract from each of (n,) values the mean of its bucket."""
    values = np.asarray(values, float)
    means = np.bincount(buckets, values) / np.maximum(1, np.bincount(buckets))
    return values - means[buckets]


def transfer(
    path_filter: PathFilter, batch: PathBatch, buckets: np.ndarray, losses: np.ndarray, rng: np.random.Generator
) -> str:
    """Prepare a filter that was fitted to paths of another supernet for fitting.

    The spread of a transferred filter's logits is far larger than what they explain on the new paths, and a sigmoid has no
    gradient there. So the last layer of each member is scaled by the least-squares slope of the new paths' standardized
    goodness on its logits inside the FLOPs buckets: the ranking is unchanged, and the spread becomes what the logits explain.
    If the slope is not positive, the member ranks these paths no better than chance and is re-initialized.

    Args:
        path_filter: the filter, modified in place.
        batch, buckets, losses: evaluated paths of the new supernet, their FLOPs buckets (n,) and validation losses (n,).
        rng: random generator of the weights of re-initialized members.

    Returns:
        A description of the changes, for the log.
    """
    goodness = centered(standardized(losses, buckets), buckets)
    found = []
    for number, values in enumerate(path_filter.logits(batch, buckets)):
        inside = centered(values, buckets)
        power = float(inside @ inside)
        slope = float(inside @ goodness) / power if power > 0 else 0.0
        if slope > 0:
            path_filter.members[number].scale(slope)
            found.append(f"transferred, logits times {slope:.3g}")
        else:
            path_filter.renew(number, rng)
            found.append("re-initialized, since the transferred one ranks these paths no better than chance")
    return "; ".join(f"member {number}: {text}" if len(found) > 1 else text for number, text in enumerate(found, 1))


def fit(
    path_filter: PathFilter,
    batch: PathBatch,
    buckets: np.ndarray,
    losses: np.ndarray,
    rng: np.random.Generator,
    options: FitOptions | None = None,
    progress: Callable[[int, int, float, float], None] | None = None,
    transferred: bool = False,
    map_members: Callable[[Callable, Iterable], Iterable] = map,
) -> tuple[FitResult, ...]:
    """Fit each member of the filter to evaluated paths; each keeps the weights of its best validation loss.

    The split and the loss are the paper's (section 3.1.2). The paper is silent on optimizer and epochs: we use Adam until the
    validation loss has not improved for `patience` epochs. Members differ in their splits and mini-batches, each with a random
    generator of its own, so that they can be fitted at the same time.

    Args:
        path_filter: the filter, modified in place.
        batch, buckets, losses: n evaluated paths, their FLOPs buckets (n,) and validation losses (n,).
        rng: random generator of splits and mini-batches.
        options: loss and optimizer; None: the paper's.
        progress: called after each epoch, in the process that fits the member, with the numbers of the member, from 0, and of
            the epoch, and the training and the validation loss.
        transferred: whether `transfer` was called before: a linear skip is then fitted together with a factor of the member's
            logits, which may explain little beyond the tokens of the new paths.
        map_members: parallel `map`, such as `Communicator.map`, that distributes the members among processes.

    Raises:
        UserError: there are too few paths for a pair in both splits, or the loss is no longer finite.
    """
    paths = _Paths(path_filter.tokenizer(batch), np.asarray(buckets), losses, standardized(losses, buckets))
    seeds = rng.integers(1 << 63, size=len(path_filter.members))

    def fit_member(number: int) -> tuple[FitResult, dict[str, np.ndarray]]:
        def report(epoch: int, train_loss: float, validation_loss: float) -> None:
            if progress:
                progress(number, epoch, train_loss, validation_loss)

        own = np.random.default_rng(seeds[number])
        member = _MemberFit(path_filter, number, paths, own, options or FitOptions(), transferred)
        return member.run(report), member.weights()

    results = []
    for member, (result, weights) in zip(path_filter.members, map_members(fit_member, range(len(path_filter.members)))):
        results.append(result)
        for name, parameter in member.get_parameters().items():
            parameter.d = weights[name]
    path_filter.standardize(batch, paths.buckets)
    return tuple(results)


class _Paths(NamedTuple):
    """Evaluated paths: (n, L) tokens, and (n,) buckets, losses and goodness."""

    tokens: np.ndarray
    buckets: np.ndarray
    losses: np.ndarray
    goodness: np.ndarray

    def of(self, rows: np.ndarray) -> _Paths:
        """Return the paths of these indices."""
        return _Paths(*(values[rows] for values in self))


class _MemberFit:
    """Fit of one member: its split of the paths, its training graph, and its epochs."""

    def __init__(
        self,
        path_filter: PathFilter,
        number: int,
        paths: _Paths,
        rng: np.random.Generator,
        options: FitOptions,
        transferred: bool,
    ) -> None:
        from ..backend.compat import S

        self.filter, self.number, self.member = path_filter, number, path_filter.members[number]
        self.paths, self.rng, self.options, self.kept = paths, rng, options, 1.0
        self.train, self.validation = split(paths.buckets, rng)
        self.splits = {"training": paths.of(self.train), "validation": paths.of(self.validation)}
        for name, held in self.splits.items():
            if not has_pairs(held.buckets, options.pairs):
                raise UserError(
                    f"fitting the path filter needs two {name} paths in a FLOPs bucket; got {len(paths.losses)} paths in all"
                )
        if path_filter.settings["linear_skip"]:
            self.kept = self.fit_skip(self.splits["training"], transferred)
        self.n_batches = -(-len(self.train) // options.batch_size)
        self.size = -(-len(self.train) // self.n_batches)
        self.graph = self.make_graph()
        self.solver = S.AdamW(options.lr, wd=options.weight_decay)
        self.solver.set_parameters(self.member.get_parameters())

    def run(self, progress: Callable[[int, float, float], None]) -> FitResult:
        """Train until the validation loss has not improved for `patience` epochs; raise UserError if it is not finite."""
        held, options = self.splits["validation"], self.options
        train_losses, validation_losses = [math.nan], [self.validation_loss()]
        best, best_weights = 0, self.weights()
        for epoch in range(1, options.epochs + 1):
            train_losses.append(self.epoch())
            validation_losses.append(self.validation_loss())
            if not math.isfinite(validation_losses[-1]):
                raise UserError(
                    f"the loss of the path filter became {validation_losses[-1]} in epoch {epoch}: lower hparams.filter.lr, "
                    f"which is {options.lr:g}, or hparams.filter.regression, which is {options.regression:g}"
                )
            progress(epoch, train_losses[-1], validation_losses[-1])
            if validation_losses[-1] < validation_losses[best]:
                best, best_weights = epoch, self.weights()
            elif epoch - best >= options.patience:
                break
        for name, parameter in self.member.get_parameters().items():
            parameter.d = best_weights[name]
        if self.filter.settings["linear_skip"]:
            self.fit_skip(self.paths)
        taus = per_bucket(kendall_tau, self.logits(held), held.losses, held.buckets)
        return FitResult(
            self.train, self.validation, np.array(train_losses), np.array(validation_losses), best, taus, self.kept
        )

    def weights(self) -> dict[str, np.ndarray]:
        """Return a copy of the member's weights, by name."""
        return {name: parameter.d.copy() for name, parameter in self.member.get_parameters().items()}

    def logits(self, paths: _Paths) -> np.ndarray:
        """Return the member's logits, (n,)."""
        return self.filter.member_logits(self.number, paths.tokens, paths.buckets)

    def fit_skip(self, paths: _Paths, transferred: bool = False) -> float:
        """Add a ridge regression of the goodness that the member does not explain to its linear skip.

        It is fitted to the training paths before the first epoch, and to all paths after the best epoch is chosen, since its
        closed-form weights need no validation. The penalty is chosen by leave-one-out error. The effect of a token is the sum
        of an effect at its position and an effect in its block, see `by_block`.

        Args:
            paths: the paths to fit.
            transferred: also fit a factor of the member's logits, as an additional column with variance 1 inside the buckets.

        Returns:
            The factor; 0 if it was not positive and the member was re-initialized; 1 if it was not fitted.
        """
        from sklearn.linear_model import RidgeCV

        tokenizer, logits, kept = self.filter.tokenizer, self.logits(paths).astype(float), 1.0
        parts = by_block(tokenizer.blocks, len(tokenizer.vocabulary))
        columns = one_hot(paths.tokens, len(tokenizer.vocabulary)) @ parts
        if transferred:
            spread = centered(logits, paths.buckets).std() or 1.0
            ridge = RidgeCV(alphas=RIDGE_PENALTIES).fit(np.column_stack([columns, logits / spread]), paths.goodness)
            kept = float(ridge.coef_[-1]) / spread
            if kept <= 0:
                self.filter.renew(self.number, self.rng)
                self.fit_skip(paths)
                return 0.0
            self.member.scale(kept)
        else:
            ridge = RidgeCV(alphas=RIDGE_PENALTIES).fit(columns, paths.goodness - logits)
        n_buckets = self.filter.settings["buckets"]
        self.member.skip.d[n_buckets:, 0] += parts @ ridge.coef_[: columns.shape[1]]
        self.member.skip.d[:n_buckets, 0] += ridge.intercept_
        return kept

    def make_graph(self) -> dict[str, nn.Variable]:
        """Build the graph of a mini-batch; return its inputs and its loss by name."""
        from ..backend.compat import F, nn

        size, length = self.size, self.splits["training"].tokens.shape[1]
        shapes = {"tokens": (size, length), "buckets": (size,), "pairs": (size, size), "goodness": (size,), "share": (size,)}
        graph = {name: nn.Variable(shape) for name, shape in shapes.items()}
        seed = int(self.rng.integers(1 << 31)) if self.options.dropout else -1
        logits = self.member(graph["tokens"], graph["buckets"], self.options.dropout, seed)
        scores = F.sigmoid(logits) if self.options.margin == "score" else logits
        graph["loss"] = pair_loss_variable(scores, graph["pairs"])
        if self.options.regression:
            errors = F.pow_scalar(logits - graph["goodness"], 2.0)
            graph["loss"] = graph["loss"] + self.options.regression * F.sum(graph["share"] * errors)
        return graph

    def epoch(self) -> float:
        """Train one epoch, and return the mean loss of its mini-batches."""
        buckets = self.splits["training"].buckets
        shuffled = self.rng.permutation(len(buckets))
        by_bucket = shuffled[np.argsort(buckets[shuffled], kind="stable")]
        steps = [self.step(by_bucket[number :: self.n_batches]) for number in range(self.n_batches)]
        return float(np.mean([value for value in steps if not math.isnan(value)] or math.nan))

    def step(self, members: np.ndarray) -> float:
        """Update the weights with these training paths, padded by copies of weight 0; return the loss, NaN without pairs."""
        graph, paths = self.graph, self.splits["training"]
        chosen = paths.of(members)
        weights = pair_weights(chosen.losses, chosen.buckets, self.options.pairs)
        if weights is None:
            return math.nan
        padding = (0, self.size - len(members))
        padded = paths.of(np.resize(members, self.size))
        graph["tokens"].d, graph["buckets"].d, graph["goodness"].d = padded.tokens, padded.buckets, padded.goodness
        graph["pairs"].d = np.pad(weights, (padding, padding))
        graph["share"].d = np.pad(np.full(len(members), 1 / len(members)), padding)
        graph["loss"].forward(clear_no_need_grad=True)
        self.solver.zero_grad()
        graph["loss"].backward(clear_buffer=True)
        self.solver.update()
        return float(graph["loss"].d)

    def validation_loss(self) -> float:
        """Return the loss over all validation paths."""
        paths, options = self.splits["validation"], self.options
        logits = self.logits(paths).astype(float)
        scores = 1 / (1 + np.exp(-logits)) if options.margin == "score" else logits
        hinges = np.maximum(0.0, 1.0 - (scores[:, None] - scores[None, :])) ** 2
        weights = pair_weights(paths.losses, paths.buckets, options.pairs)
        assert weights is not None, "checked before the first epoch"
        ranking = float(np.sum(weights * hinges))
        return ranking + options.regression * float(np.mean((logits - paths.goodness) ** 2))


def by_block(blocks: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return the matrix that extends one-hot columns of positions by columns of blocks.

    A block's column of a token is the sum over its k positions, divided by the square root of k. So with one ridge penalty,
    the common effect of the layers of a block is penalized less than their differences.

    Args:
        blocks: (L,) block index of each position.
        vocabulary: size of the vocabulary.

    Returns:
        (L * vocabulary, columns).
    """
    places = np.eye(len(blocks) * vocabulary)
    of_block = []
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        if len(members) > 1:
            columns = np.zeros((len(blocks), vocabulary, vocabulary))
            columns[members] = np.eye(vocabulary) / math.sqrt(len(members))
            of_block.append(columns.reshape(len(places), vocabulary))
    return np.concatenate([places, *of_block], axis=1)
