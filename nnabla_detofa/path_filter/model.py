"""The path filter g(a): a transformer encoder that predicts one score per path; higher is better (section 3.1)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.compat import F, Mo, Parameter, nn
from ..backend.graphs import CachedGraphs
from ..common.errors import UserError
from ..common.reading import parse_json
from ..networks import weights
from ..space.geometry import OFA_RESNET50, Geometry, is_count
from ..space.paths import PathBatch
from .encoder import Affine, EncoderLayer, constant, embedding, relu, swapped
from .tokens import Tokenizer, positional_encoding

ENCODINGS = ("paper", "transformer")
POOLINGS = ("mean", "concat")
OLDER = {"pooling": "mean", "linear_skip": False, "ensemble": 1}
"""Settings that files of older versions lack."""
CHUNKS = (256, 64, 16, 4)
"""Numbers of paths of the scoring graphs. Paths are split into as many of the largest chunks as fit, then of the next; the
last chunk is padded to the smallest size."""


class Member(Mo.Module):
    """One network of the path filter (Figure 2), from tokens to a logit per path.

    Args:
        tokenizer: tokenizer of the paths.
        settings: arguments of `PathFilter`.
        rng: random generator of the initial weights.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any], rng: np.random.Generator) -> None:
        super().__init__(name="path_filter")
        dim, encoding = settings["dim"], settings["encoding"]
        self._settings, self._tokenizer = settings, tokenizer
        self._positions = positional_encoding(tokenizer.layers, dim, encoding)
        if settings["block_encoding"]:
            self._positions = self._positions + positional_encoding(tokenizer.blocks, dim, encoding)
        vocabulary, length, buckets = len(tokenizer.vocabulary), tokenizer.length, settings["buckets"]
        self.token_embedding = embedding(vocabulary, dim, rng)
        self.bucket_embedding = embedding(buckets, dim, rng)
        sizes = dim, settings["heads"], settings["feed_forward"]
        self.encoder = Mo.ModuleList([EncoderLayer(*sizes, rng) for _ in range(settings["layers"])])
        self.fc1 = Affine(dim * (length + 1 if settings["pooling"] == "concat" else 1), dim, rng)
        # Initial scores are almost equal: before anything is learned, the pair loss only grows with their spread. With a wide
        # initial spread, some seeds never recovered from scores at one end of the sigmoid, where the gradient is 0.
        self.fc2 = Affine(dim, 1, rng, scale=0.1)
        if settings["linear_skip"]:
            self.skip = Parameter((buckets + length * vocabulary, 1), initializer=np.zeros((buckets + length * vocabulary, 1)))

    def call(self, tokens: nn.Variable, buckets: nn.Variable, dropout: float = 0.0, seed: int = -1) -> nn.Variable:
        """Compute the logits of n paths.

        Args:
            tokens: (n, L).
            buckets: (n,) indices of FLOPs buckets.
            dropout: dropout rate of the pooled vector, for training.
            seed: seed of the dropout.

        Returns:
            (n,).
        """
        n, length = tokens.shape[0], tokens.shape[1] + 1
        vocabulary, dim = self.token_embedding.shape
        n_buckets, heads = self._settings["buckets"], self._settings["heads"]
        # A token at a position is one of few vectors. A lookup in the table of all these vectors avoids a slow broadcast; and
        # if the table is smaller than the batch, the first layer projects the table instead of every path.
        positions = constant(self._positions[:, None])
        placed = F.reshape(F.reshape(self.token_embedding, (1, vocabulary, dim)) + positions, (-1, dim))
        table = F.concatenate(self.bucket_embedding, placed, axis=0)
        first_rows = constant(n_buckets + vocabulary * np.arange(length - 1)[None])
        rows = F.reshape(F.concatenate(F.reshape(buckets, (n, 1)), tokens + first_rows, axis=1), (n * length,))
        x = F.embed(rows, table)
        for number, layer in enumerate(self.encoder):
            if number == 0 and table.shape[0] < rows.shape[0]:
                per_head = F.reshape(heads * rows, (n, 1, length)) + constant(np.arange(heads).reshape(1, heads, 1))
                x = layer(x, layer.project(table), per_head)
            else:
                x = layer(x, layer.project(x), constant(swapped(n, length, heads)))
        concat = self._settings["pooling"] == "concat"
        pooled = F.reshape(x, (n, length * dim)) if concat else F.mean(F.reshape(x, (n, length, dim)), axis=1)
        if dropout:
            pooled = F.dropout(pooled, dropout, seed=seed)
        logits = F.reshape(self.fc2(relu(self.fc1(pooled))), (n,))
        if self._settings["linear_skip"]:
            logits = logits + F.sum(F.reshape(F.embed(rows, self.skip), (n, length)), axis=1)
        return logits

    def __call__(self, tokens: nn.Variable, buckets: nn.Variable, dropout: float = 0.0, seed: int = -1) -> nn.Variable:
        return self.call(tokens, buckets, dropout, seed)

    def scale(self, factor: float) -> None:
        """Multiply all logits by `factor`."""
        last = list(self.fc2.get_parameters().values())
        for parameter in (*last, self.skip) if self._settings["linear_skip"] else last:
            parameter.d = parameter.d * factor


class PathFilter:
    """The path filter g(a) of Figure 2, which predicts a score for each path; scores rank only paths of one FLOPs bucket.

    The first token is the index of the path's FLOPs bucket. The other tokens carry the encodings of their layer and of their
    block; the bucket carries none. We read "two final FC layers with 128 dimensions" as pooled tokens -> dim, ReLU, dim -> 1.
    The paper is silent on pooling: we offer the mean over all tokens, and their concatenation, with which the first FC layer
    has separate weights for each layer of the supernet. In small experiments with a few hundred paths, concatenation ranked
    better.

    The paper's score is the sigmoid of a logit. We rank by the logit: the order is the same, and logits still differ where
    sigmoids in float32 are all 1.

    Two options are ours. With `linear_skip`, a logit also contains one weight for each token at each position, so that
    additive effects of single layers need not be learned by attention. With an `ensemble`, a score is the mean of the
    members' logits, each standardized to mean 0 and variance 1 inside the FLOPs bucket (over the training paths).

    Args:
        geometry: geometry of the supernet.
        buckets: number of FLOPs buckets.
        dim, heads, layers, feed_forward: size of the transformer (section 4.1).
        stem_tokens: see `Tokenizer`.
        block_encoding: add the encoding of the block index.
        encoding: see `positional_encoding`.
        pooling: "mean" or "concat".
        linear_skip: add a linear function of the one-hot tokens and of the one-hot bucket, initially 0.
        ensemble: number of members, which differ in their initial weights.
        rng: random generator of the initial weights.

    Attributes:
        settings: all arguments except `rng`.
        tokenizer: tokenizer of the paths.
        members: the networks.

    Raises:
        UserError: `dim` is not a multiple of `heads`, `ensemble` is below 1, or the encoding or the pooling is unknown.
    """

    def __init__(
        self,
        geometry: Geometry = OFA_RESNET50,
        buckets: int = 5,
        dim: int = 128,
        heads: int = 4,
        layers: int = 3,
        feed_forward: int = 128,
        stem_tokens: bool = True,
        block_encoding: bool = True,
        encoding: str = "paper",
        pooling: str = "mean",
        linear_skip: bool = False,
        ensemble: int = 1,
        *,
        rng: np.random.Generator,
    ) -> None:
        if dim % heads:
            raise UserError(f"dim of the path filter must be a multiple of its {heads} heads, got {dim}")
        if encoding not in ENCODINGS:
            raise UserError(f"encoding of the path filter must be {' or '.join(ENCODINGS)}, got {encoding!r}")
        if pooling not in POOLINGS:
            raise UserError(f"pooling of the path filter must be {' or '.join(POOLINGS)}, got {pooling!r}")
        if ensemble < 1:
            raise UserError(f"ensemble of the path filter must be 1 or more, got {ensemble}")
        self.settings: dict[str, Any] = {
            "geometry": geometry,
            "buckets": buckets,
            "dim": dim,
            "heads": heads,
            "layers": layers,
            "feed_forward": feed_forward,
            "stem_tokens": stem_tokens,
            "block_encoding": block_encoding,
            "encoding": encoding,
            "pooling": pooling,
            "linear_skip": linear_skip,
            "ensemble": ensemble,
        }
        self.tokenizer = Tokenizer(geometry, stem_tokens)
        self.members = [Member(self.tokenizer, self.settings, rng) for _ in range(ensemble)]
        self._means, self._spreads = (nn.Variable((ensemble, buckets)) for _ in range(2))
        self._means.d, self._spreads.d = 0.0, 1.0
        self._graphs: CachedGraphs = CachedGraphs()

    def __call__(self, tokens: nn.Variable, buckets: nn.Variable) -> nn.Variable:
        """Build the graph of the scores, (n,), from tokens (n, L) and bucket indices (n,), with all members in one graph."""
        logits = [member(tokens, buckets) for member in self.members]
        if len(logits) == 1:
            return logits[0]
        n = tokens.shape[0]
        columns = [F.reshape(values, (n, 1)) for values in logits]
        means, spreads = (F.embed(buckets, F.transpose(values, (1, 0))) for values in (self._means, self._spreads))
        return F.mean((F.concatenate(*columns, axis=1) - means) / spreads, axis=1)

    # --- Scores ---------------------------------------------------------------------------------------------------------

    def score(self, batch: PathBatch, buckets: np.ndarray) -> np.ndarray:
        """Return the scores of n paths in these FLOPs buckets, (n,) float32."""
        return self._in_chunks(self.tokenizer(batch), np.asarray(buckets), None)

    def logits(self, batch: PathBatch, buckets: np.ndarray) -> np.ndarray:
        """Return the logits of each member, (members, n) float32."""
        tokens = self.tokenizer(batch)
        return np.stack([self.member_logits(number, tokens, buckets) for number in range(len(self.members))])

    def member_logits(self, number: int, tokens: np.ndarray, buckets: np.ndarray) -> np.ndarray:
        """Return the logits of one member, (n,) float32, for paths given as (n, L) tokens."""
        return self._in_chunks(tokens, np.asarray(buckets), number)

    def _in_chunks(self, tokens: np.ndarray, buckets: np.ndarray, member: int | None) -> np.ndarray:
        """Compute scores, or the logits of one member, (n,), in chunks of the sizes `CHUNKS`, whose graphs are cached."""
        found = np.empty(len(tokens), np.float32)
        start = 0
        while start < len(tokens):
            size = next((size for size in CHUNKS if size <= len(tokens) - start), CHUNKS[-1])
            here = slice(start, start + size)
            found[here] = self._chunk(tokens[here], buckets[here], size, member)
            start += size
        return found

    def _chunk(self, tokens: np.ndarray, buckets: np.ndarray, size: int, member: int | None) -> np.ndarray:
        """Compute one chunk of `_in_chunks`, of at most `size` paths."""
        padding = size - len(tokens)
        with self._graphs.held((size, member), self._graph) as (token_input, bucket_input, output):
            token_input.d = np.pad(tokens, ((0, padding), (0, 0)))
            bucket_input.d = np.pad(buckets, (0, padding))
            output.forward(clear_buffer=True)
            return output.d[: len(tokens)].copy()

    def _graph(self, key: tuple[int, int | None]) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
        """Build the graph for a number of paths and a member, or None for scores; return tokens, buckets and output."""
        size, member = key
        tokens, buckets = nn.Variable((size, self.tokenizer.length)), nn.Variable((size,))
        net = self if member is None else self.members[member]
        return tokens, buckets, net(tokens, buckets)

    # --- Members --------------------------------------------------------------------------------------------------------

    def renew(self, number: int, rng: np.random.Generator) -> None:
        """Re-initialize the weights of one member."""
        fresh = Member(self.tokenizer, self.settings, rng).get_parameters()
        for name, parameter in self.members[number].get_parameters().items():
            parameter.d = fresh[name].d

    def standardize(self, batch: PathBatch, buckets: np.ndarray) -> None:
        """Set the mean and spread of each member's logits in each FLOPs bucket from these paths.

        A bucket with fewer than two paths, or with equal logits, gets the mean spread of the others. A filter with one member
        is not changed.
        """
        if len(self.members) == 1:
            return
        for row, logits in enumerate(self.logits(batch, buckets)):
            inside = [logits[buckets == bucket] for bucket in range(self.settings["buckets"])]
            spreads = np.array([values.std() if len(values) and np.ptp(values) else 0.0 for values in inside])
            usual = spreads[spreads > 0].mean() if (spreads > 0).any() else 1.0
            self._means.d[row] = [values.mean() if len(values) else logits.mean() for values in inside]
            self._spreads.d[row] = np.where(spreads > 0, spreads, usual)

    def copy(self) -> PathFilter:
        """Return another filter with the same settings and weights."""
        return self.extended(self.settings["ensemble"], self.settings["linear_skip"])

    def extended(self, ensemble: int, linear_skip: bool) -> PathFilter:
        """Return a filter of `ensemble` members, initialized with the weights of this filter's members in turn.

        Args:
            ensemble: number of members.
            linear_skip: whether the new filter has a linear skip; it is 0 if this filter has none.
        """
        other = PathFilter(**self.settings | {"ensemble": ensemble, "linear_skip": linear_skip}, rng=np.random.default_rng(0))
        for number, member in enumerate(other.members):
            given = self.members[number % len(self.members)].get_parameters()
            for name, parameter in member.get_parameters().items():
                if name in given:
                    parameter.d = given[name].d
        if ensemble > 1 and len(self.members) > 1:
            rows = np.arange(ensemble) % len(self.members)
            other._means.d, other._spreads.d = self._means.d[rows], self._spreads.d[rows]
        return other

    # --- Weights --------------------------------------------------------------------------------------------------------

    def get_parameters(self) -> dict[str, nn.Variable]:
        """Return all parameters by their names in a file; in an ensemble these begin with member_<number>/."""
        if len(self.members) == 1:
            return dict(self.members[0].get_parameters())
        found = {"means": self._means, "spreads": self._spreads}
        for number, member in enumerate(self.members, 1):
            found |= {f"member_{number}/{name}": parameter for name, parameter in member.get_parameters().items()}
        return found

    def get_weights(self) -> dict[str, np.ndarray]:
        """Return a copy of all parameters, by name."""
        return {name: parameter.d.copy() for name, parameter in self.get_parameters().items()}

    def set_weights(self, arrays: dict[str, np.ndarray]) -> None:
        """Set all parameters from the result of `get_weights`."""
        weights.fill(self.get_parameters(), arrays, "the path filter's weights")

    def save(self, file: str | os.PathLike) -> None:
        """Write weights and settings to an .h5 file atomically."""
        settings = json.dumps(self.settings | {"geometry": self.settings["geometry"].to_json()})
        weights.write(file, self.get_parameters(), path_filter=settings)

    @classmethod
    def load(cls, file: str | os.PathLike, geometry_type: type[Geometry] | None = None, **expected: Any) -> PathFilter:
        """Load a filter from a file that `save` wrote.

        Args:
            file: path of the file.
            geometry_type: class of the geometry, which the file does not name; None: that of the expected geometry.
            expected: settings, named as in the constructor, that the file must have.

        Raises:
            UserError: the file is missing, damaged or not a path filter, or it has other settings.
        """
        arrays = weights.read(file)
        (text,) = weights.attributes_of(file, "path_filter")
        try:
            settings = parse_json(text)
            kind = geometry_type or type(expected.get("geometry", OFA_RESNET50))
            geometry = kind.from_json(settings["geometry"])
            settings = OLDER | settings | {"geometry": geometry}
            _check_sizes(settings, arrays)
            loaded = cls(**settings, rng=np.random.default_rng(0))
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{file} is not the weights file of a path filter: its settings are missing or damaged") from error
        for name, value in expected.items():
            if settings[name] != value:
                raise UserError(f"the path filter in {file} was made with {name} {settings[name]}; this run has {value}")
        weights.fill(loaded.get_parameters(), arrays, str(file))
        return loaded


def _check_sizes(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if settings do not match the sizes of the arrays, since wrong ones could build a filter of any size."""
    members = {name.split("/")[0] for name in arrays if name.startswith("member_")}
    if not is_count(settings["ensemble"]) or settings["ensemble"] != max(1, len(members)):
        raise ValueError(f"its arrays are those of {max(1, len(members))} members")
    if members:
        if not (arrays["spreads"] > 0).all():
            raise ValueError("the spreads of its members must be positive")
        arrays = {name.removeprefix("member_1/"): array for name, array in arrays.items() if name.startswith("member_1/")}
    (buckets, dim), layers = arrays["bucket_embedding"].shape, {name.split("/")[1] for name in arrays if name[:8] == "encoder/"}
    found = {"buckets": buckets, "dim": dim, "layers": len(layers)}
    if any(not is_count(settings[name]) or settings[name] != size for name, size in found.items()):
        raise ValueError(f"its arrays are those of {found}")
    if not is_count(settings["heads"]) or not is_count(settings["feed_forward"]):
        raise ValueError("heads and feed_forward must be positive integers")
    if not isinstance(settings["linear_skip"], bool) or settings["linear_skip"] != ("skip" in arrays):
        raise ValueError("its arrays are those of a filter with another linear_skip")
    if settings["feed_forward"] not in {
        size for name, array in arrays.items() if name[:8] == "encoder/" for size in array.shape
    }:
        raise ValueError("its arrays have another feed_forward")


@dataclass(frozen=True)
class PathScorer:
    """The path filter g(a) as a function of paths alone, for pruning and search.

    Attributes:
        filter: the path filter.
        cost_flops: function of paths that returns (n,) FLOPs.
        bucket_index: function of FLOPs that returns the indices of their buckets.
    """

    filter: PathFilter
    cost_flops: Callable[[PathBatch], np.ndarray]
    bucket_index: Callable[[np.ndarray], np.ndarray]

    def __call__(self, batch: PathBatch) -> np.ndarray:
        """Return the scores of n paths, (n,) float32."""
        return self.filter.score(batch, self.bucket_index(self.cost_flops(batch)))
