"""Ranking paths: the FLOPs-bounded pairwise loss (Eq. 5, 6), and fitting g.

Losses are validation losses: lower is better. Scores are g's: higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..common.errors import UserError
from ..space.paths import PathBatch
from .metrics import kendall_tau, one_hot, per_bucket

if TYPE_CHECKING:
    from ..backend.compat import nn
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


PAIRS = ("bounded", "all", "both")
MARGINS = ("score", "logit")
RIDGE_PENALTIES = tuple(np.logspace(-1, 2, 10))
"""Among which the linear skip's is chosen."""


def pair_weights(losses: np.ndarray, buckets: np.ndarray, which: str = "bounded") -> np.ndarray | None:
    """(n, n) the weight of each ordered pair in the loss, 1 in all; None where there is no pair to compare.

    Args:
        losses, buckets: (n,).
        which: "bounded", pairs of one FLOPs bucket (Eq. 6); "all" pairs; "both" means, each counting half (ours).
    """
    masks = [pairs(losses, buckets)] if which != "all" else []
    if which != "bounded":
        masks.append(pairs(losses))
    found = [mask / mask.sum() for mask in masks if mask.any()]
    return np.mean(found, axis=0) if len(found) == len(masks) else None


def pair_loss_variable(scores: nn.Variable, pair_weights: nn.Variable) -> nn.Variable:
    """`pair_loss` in NNabla.

    Args:
        scores: (n,).
        pair_weights: (n, n), see `pair_weights`; those of `pairs` divided by their number give `pair_loss`.
    """
    from ..backend.compat import F

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
    """How the fit of one member went. Curves start with the state before the first epoch.

    Attributes:
        train, validation: indices of the paths of each part.
        train_losses: loss of each epoch's minibatches; NaN at first.
        validation_losses: loss of all validation paths after each epoch.
        best_epoch: the epoch whose weights the member has now; 0 is what it had before.
        validation_taus: bucket -> Kendall's tau of its validation paths (NaN for fewer than two).
        kept: factor of a transferred member's logits beside its linear skip; 0: a fresh member took its place.
    """

    train: np.ndarray
    validation: np.ndarray
    train_losses: np.ndarray
    validation_losses: np.ndarray
    best_epoch: int
    validation_taus: dict[int, float]
    kept: float = 1.0


@dataclass(frozen=True)
class FitOptions:
    """What a fit minimizes, and how; the defaults are the paper's letter where it says something.

    Attributes:
        margin: of the squared hinge of Eq. 6: 1 between two "score"s, which are sigmoids, as the paper says, or between two
            "logit"s (ours): a sigmoid never reaches a margin of 1.
        pairs: see `pair_weights`.
        regression: weight of the mean squared error between logit and standardized negative loss (ours); 0 leaves it out.
        epochs, lr, batch_size, patience: of Adam (paper is silent); see `fit`.
        weight_decay: of NNabla's AdamW: the share of every weight that each update takes away, whatever `lr` is.
        dropout: share of the pooled vector's entries that training sets to 0.
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
    """Those of a config's section `hparams.filter`, or of whatever else has attributes of these names."""
    return FitOptions(**{field.name: getattr(options, field.name) for field in fields(FitOptions)})


def standardized(losses: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """(n,) how good each path is: its negative loss, with mean 0 over all and variance 1 inside the buckets."""
    goodness = -np.asarray(losses, float)
    spread = np.sqrt(np.mean(centered(goodness, buckets) ** 2))
    return (goodness - goodness.mean()) / (spread or 1.0)


def centered(values: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """(n,) values without the mean of their bucket."""
    values = np.asarray(values, float)
    means = np.bincount(buckets, values) / np.maximum(1, np.bincount(buckets))
    return values - means[buckets]


def transfer(
    path_filter: PathFilter, batch: PathBatch, buckets: np.ndarray, losses: np.ndarray, rng: np.random.Generator
) -> str:
    """Bring a filter that was fitted to another supernet's paths into a state from which it learns.

    A filter arrives with logits that spread far beyond what it knows about the new paths, where a sigmoid has no gradient.
    Each member's last layer is multiplied by one number, the least-squares slope of the new paths' standardized goodness
    on its logits inside the FLOPs buckets: their order stays, and their spread is what they explain. Where the slope is not
    positive, the member ranks these paths no better than a fresh one, and a fresh one takes its place.

    Args:
        path_filter: is changed. batch, buckets, losses: of the new supernet. rng: draws the weights of fresh members.

    Returns:
        what was done, for the log.
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
            found.append("fresh, as the transferred one ranks these paths no better than by chance")
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
) -> tuple[FitResult, ...]:
    """Fit each member of the filter to evaluated paths; it ends with the weights of its best validation loss.

    The split and the loss are the paper's (section 3.1.2); optimizer and epochs are not given: Adam, until the validation
    loss has not improved for `patience` epochs. Members differ by their split and their minibatches.

    Args:
        path_filter: is changed.
        batch, buckets, losses: n evaluated paths, their FLOPs buckets and validation losses.
        rng: draws the splits and the minibatches.
        options: by default the paper's letter.
        progress: called after each epoch with the number of the member, from 0, and of the epoch, the training and the
            validation loss.
        transferred: `transfer` was called before: a linear skip is fitted together with the factor of what a member knows
            already, which may add little to what the tokens alone say of the new paths.

    Raises:
        UserError: there are too few paths for pairs in both parts.
    """
    paths = _Paths(path_filter.tokenizer(batch), np.asarray(buckets), losses, standardized(losses, buckets))
    results = []
    for number in range(len(path_filter.members)):

        def heard(*news, number: int = number) -> None:
            if progress:
                progress(number, *news)

        results.append(_MemberFit(path_filter, number, paths, rng, options or FitOptions(), transferred).run(heard))
    path_filter.standardize(batch, paths.buckets)
    return tuple(results)


class _Paths(NamedTuple):
    """What a fit sees of n paths: (n, L) tokens, and (n,) of each other."""

    tokens: np.ndarray
    buckets: np.ndarray
    losses: np.ndarray
    goodness: np.ndarray

    def of(self, rows: np.ndarray) -> _Paths:
        return _Paths(*(values[rows] for values in self))


class _MemberFit:
    """The fit of one member: its parts of the paths, its training graph, and its epochs."""

    def __init__(
        self,
        path_filter: PathFilter,
        number: int,
        paths: _Paths,
        rng: np.random.Generator,
        options: FitOptions,
        transferred: bool,
    ):
        from ..backend.compat import S

        self.filter, self.number, self.member = path_filter, number, path_filter.members[number]
        self.paths, self.rng, self.options, self.kept = paths, rng, options, 1.0
        self.train, self.validation = split(paths.buckets, rng)
        self.parts = {"training": paths.of(self.train), "validation": paths.of(self.validation)}
        for part, held in self.parts.items():
            if pair_weights(held.losses, held.buckets, options.pairs) is None:
                raise UserError(
                    f"fitting the path filter needs two {part} paths in a FLOPs bucket; got {len(paths.losses)} paths in all"
                )
        if path_filter.settings["linear_skip"]:
            self.kept = self.fit_skip(self.parts["training"], transferred)
        self.n_batches = -(-len(self.train) // options.batch_size)
        self.size = -(-len(self.train) // self.n_batches)
        self.graph = self.make_graph()
        self.solver = S.AdamW(options.lr, wd=options.weight_decay)
        self.solver.set_parameters(self.member.get_parameters())

    def run(self, progress: Callable[[int, float, float], None]) -> FitResult:
        """All epochs, until the validation loss has not improved for `patience` of them."""
        held, options = self.parts["validation"], self.options
        train_losses, validation_losses = [math.nan], [self.validation_loss()]
        best, best_weights = 0, self.weights()
        for epoch in range(1, options.epochs + 1):
            train_losses.append(self.epoch())
            validation_losses.append(self.validation_loss())
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
        return {name: parameter.d.copy() for name, parameter in self.member.get_parameters().items()}

    def logits(self, paths: _Paths) -> np.ndarray:
        """(n,) the member's logits."""
        return self.filter.member_logits(self.number, paths.tokens, paths.buckets)

    def fit_skip(self, paths: _Paths, transferred: bool = False) -> float:
        """Add to the linear skip the ridge regression of what the member leaves of the paths' goodness.

        Training begins with the regression of the training paths. When the best epoch is known, the validation paths are
        used too: the skip has closed-form weights, which no epoch has to be chosen for. The penalty is chosen by leaving each
        path out in turn. What a token is worth is the sum of a part for its place and a part for its block, see `by_block`.

        Args:
            transferred: fit the factor of the member's own logits, too, as one more column of variance 1 inside the buckets.

        Returns:
            that factor; 0 where it was not positive, so that a fresh member took its place; 1 where it was not fitted.
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
        """Inputs and loss of a minibatch."""
        from ..backend.compat import F, nn

        size, length = self.size, self.parts["training"].tokens.shape[1]
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
        """One pass over the training paths; the mean loss of its minibatches."""
        buckets = self.parts["training"].buckets
        shuffled = self.rng.permutation(len(buckets))
        by_bucket = shuffled[np.argsort(buckets[shuffled], kind="stable")]
        steps = [self.step(by_bucket[number :: self.n_batches]) for number in range(self.n_batches)]
        return float(np.mean([value for value in steps if not math.isnan(value)] or math.nan))

    def step(self, members: np.ndarray) -> float:
        """One update from these training paths, padded with copies that count nothing; NaN where they make no pair."""
        graph, paths = self.graph, self.parts["training"]
        chosen = paths.of(members)
        compared = pair_weights(chosen.losses, chosen.buckets, self.options.pairs)
        if compared is None:
            return math.nan
        padding = (0, self.size - len(members))
        padded = paths.of(np.resize(members, self.size))
        graph["tokens"].d, graph["buckets"].d, graph["goodness"].d = padded.tokens, padded.buckets, padded.goodness
        graph["pairs"].d = np.pad(compared, (padding, padding))
        graph["share"].d = np.pad(np.full(len(members), 1 / len(members)), padding)
        graph["loss"].forward(clear_no_need_grad=True)
        self.solver.zero_grad()
        graph["loss"].backward(clear_buffer=True)
        self.solver.update()
        return float(graph["loss"].d)

    def validation_loss(self) -> float:
        """The loss of all validation paths together."""
        paths, options = self.parts["validation"], self.options
        logits = self.logits(paths).astype(float)
        scores = 1 / (1 + np.exp(-logits)) if options.margin == "score" else logits
        hinges = np.maximum(0.0, 1.0 - (scores[:, None] - scores[None, :])) ** 2
        ranking = float(np.sum(pair_weights(paths.losses, paths.buckets, options.pairs) * hinges))
        return ranking + options.regression * float(np.mean((logits - paths.goodness) ** 2))


def by_block(blocks: np.ndarray, vocabulary: int) -> np.ndarray:
    """(L * vocabulary, columns) by which one-hot columns of places become columns of places and, beside them, of blocks.

    A block's column of a word is the sum over its k places, divided by the root of k. Under one penalty, what layers of a
    block have in common is cheaper than what sets them apart.
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
