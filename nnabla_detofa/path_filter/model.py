"""The path filter g(a): a path's layers as tokens, a transformer encoder, and one score; higher is better (section 3.1)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import h5py
import numpy as np

from ..backend.compat import F, Mo, Parameter, nn
from ..backend.graphs import CachedGraphs
from ..common.errors import UserError
from ..common.reading import parse_json
from ..networks import weights
from ..space.geometry import OFA_RESNET50, Geometry, choice_word, is_count
from ..space.paths import Path, PathBatch, layer_stages

SKIP = "SC"
ENCODINGS = ("paper", "transformer")
POOLINGS = ("mean", "concat")
OLDER = {"pooling": "mean", "linear_skip": False, "ensemble": 1}
"""Settings that older files do not name."""
CHUNKS = (256, 64, 16, 4)
"""Paths of the graphs that score: as many of the largest as fit, and so on; the last of the smallest is padded."""


class Tokenizer:
    """Path -> one token per layer, "W{w}_E{e}", or SC where the layer is not active (section 3.1.1).

    The paper's example has no stem. By default three tokens for it stand in front, since a path is not determined without
    them: the width of its first convolutions, its residual convolution or SC, the width of its output.

    Attributes:
        geometry: the supernet.
        vocabulary: the word of each token.
        length: L, tokens of a path.
        layers: (L,) layer index of each place, from 0; the stem's three are layers too.
        blocks: (L,) block index of each place, from 0; the stem is a block of its own.
    """

    def __init__(self, geometry: Geometry = OFA_RESNET50, stem_tokens: bool = True):
        self.geometry, self.stem_tokens = geometry, stem_tokens
        words = [f"W{width}_{choice_word(ratio)}" for width in geometry.widths for ratio in geometry.ratios]
        stem = [f"STEM_W{width}" for width in geometry.widths] + ["STEM_R"] + [f"OUT_W{width}" for width in geometry.widths]
        self._skip = len(words)
        self.vocabulary: tuple[str, ...] = (*words, SKIP, *(stem if stem_tokens else ()))
        blocks = layer_stages(geometry)
        self.blocks = np.concatenate([np.zeros(3, int), blocks + 1]) if stem_tokens else blocks
        self.length = len(self.blocks)
        self.layers = np.arange(self.length)

    def __call__(self, batch: PathBatch) -> np.ndarray:
        """(n, L) int32 tokens."""
        geometry = self.geometry
        widths = np.repeat(batch.widths[:, 2:].astype(np.int32), geometry.layers_per_stage, axis=1)
        tokens = np.where(batch.ratios >= 0, widths * len(geometry.ratios) + batch.ratios, self._skip)
        if self.stem_tokens:
            stem = batch.widths[:, :2] + np.int32(self._skip + 1)
            stem[:, 1] += len(geometry.widths) + 1
            residual_token = self._skip + 1 + len(geometry.widths)
            residual = np.where(batch.depths[:, 0] == max(geometry.depths), residual_token, self._skip)
            tokens = np.column_stack([stem[:, 0], residual, stem[:, 1], tokens])
        return tokens.astype(np.int32)

    def words(self, path: Path) -> list[str]:
        """The path's tokens in the paper's notation, the stem's first."""
        return [self.vocabulary[token] for token in self(PathBatch.from_paths([path], self.geometry))[0]]


def positional_encoding(indices: np.ndarray, dim: int, encoding: str = "paper") -> np.ndarray:
    """(len(indices), dim) float32 sines and cosines of Eq. 4.

    Args:
        indices: index l of each place, from 0.
        encoding: "paper" divides the exponent 2i by the largest index, as Eq. 4 does; "transformer" by `dim`.
    """
    divisor = dim if encoding == "transformer" else max(1, int(indices.max()))
    even = np.arange(0, dim, 2)
    angles = indices[:, None] / 10000.0 ** (even / divisor)
    return np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(indices), -1)[:, :dim].astype(np.float32)


class EncoderLayer(Mo.Module):
    """One transformer encoder layer: self-attention, then two affine layers, each followed by residual and layer norm.

    The paper cites the transformer: so the norm comes after the sum, and queries, keys and values have no bias. Layer
    norms have no gain and bias either (paper is silent): they would be a third of the training time on the CPU.

    Args:
        dim: channels of a token; a multiple of `heads`.
        heads: attention heads.
        feed_forward: channels between the two affine layers.
        rng: draws the weights.
    """

    def __init__(self, dim: int, heads: int, feed_forward: int, rng: np.random.Generator):
        super().__init__()
        self._heads = heads
        self.query = Affine(dim, dim, rng, bias=False)
        self.key = Affine(dim, dim, rng, bias=False)
        self.value = Affine(dim, dim, rng, bias=False)
        self.out = Affine(dim, dim, rng, scale=0.1)  # a layer changes little at first: few paths teach it less by heart
        self.fc1 = Affine(dim, feed_forward, rng)
        self.fc2 = Affine(feed_forward, dim, rng, scale=0.1)

    def project(self, x: nn.Variable) -> list[nn.Variable]:
        """(rows, dim) -> queries, keys and values, each (rows, dim)."""
        return [self.query(x), self.key(x), self.value(x)]

    def call(self, x: nn.Variable, parts: Sequence[nn.Variable], by_head: nn.Variable) -> nn.Variable:
        """Tokens -> tokens.

        Args:
            x: (n * length, dim).
            parts: queries, keys and values, each (rows, dim).
            by_head: (n, heads, length) for each head of each token, which of the rows * heads parts is its own.
        """
        rows, dim = x.shape
        n, heads, length = by_head.shape
        # Looking rows up moves them 20 times as fast as `F.transpose` on the CPU, and the backward pass too.
        q, k, v = (F.embed(by_head, F.reshape(part, (-1, dim // heads))) for part in parts)
        attention = F.softmax(F.batch_matmul(q * (dim // heads) ** -0.5, k, transpose_b=True), axis=3)
        mixed = F.reshape(F.batch_matmul(attention, v), (-1, dim // heads))
        mixed = F.reshape(F.embed(constant(swapped(n, heads, length)), mixed), (rows, dim))
        x = layer_norm(F.add2(x, self.out(mixed)))
        return layer_norm(F.add2(x, self.fc2(relu(self.fc1(x)))))

    def __call__(self, x, parts, by_head):
        return self.call(x, parts, by_head)


def swapped(n: int, first: int, second: int) -> np.ndarray:
    """(n, second, first) the place of each entry in an array (n, first, second)."""
    return np.arange(n * first * second).reshape(n, first, second).transpose(0, 2, 1)


def relu(x: nn.Variable) -> nn.Variable:
    """`F.relu`, but 20 times as fast on the CPU."""
    return F.maximum_scalar(x, 0.0)


class Affine(Mo.Module):
    """An affine layer (rows, inputs) -> (rows, outputs) with Glorot-uniform weights, times `scale`."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, bias: bool = True, scale: float = 1.0):
        super().__init__()
        limit = scale * np.sqrt(6 / (inputs + outputs))
        self._W = Parameter((inputs, outputs), initializer=rng.uniform(-limit, limit, (inputs, outputs)))
        if bias:
            self._b = Parameter((outputs,))

    def __call__(self, x: nn.Variable) -> nn.Variable:
        return F.affine(x, *self.parameters.values())


def layer_norm(x: nn.Variable) -> nn.Variable:
    """Each row of (rows, dim) brought to mean 0 and variance 1."""
    return F.layer_normalization(x, None, None, batch_axis=0)


class Member(Mo.Module):
    """One network of the path filter (Figure 2): tokens -> a logit for each path; see `PathFilter` for the arguments."""

    def __init__(self, tokenizer: Tokenizer, settings: Mapping, rng: np.random.Generator):
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
        # Scores start almost equal. While nothing is learned yet the pair loss only grows with their spread, and from a
        # wide one it drove all scores to one end of the sigmoid, where the gradient is 0, in some seeds for good.
        self.fc2 = Affine(dim, 1, rng, scale=0.1)
        if settings["linear_skip"]:
            self.skip = Parameter((buckets + length * vocabulary, 1), initializer=np.zeros((buckets + length * vocabulary, 1)))

    def call(self, tokens: nn.Variable, buckets: nn.Variable, dropout: float = 0.0, seed: int = -1) -> nn.Variable:
        """Tokens (n, L) and bucket indices (n,) -> logits (n,).

        Args:
            dropout: share of the pooled vector's entries that are set to 0, for training. seed: of that.
        """
        n, length = tokens.shape[0], tokens.shape[1] + 1
        vocabulary, dim = self.token_embedding.shape
        n_buckets, heads = self._settings["buckets"], self._settings["heads"]
        # A token at a place is one of few vectors. Looking them up in a table of all spares a slow broadcast, and where
        # the table is the smaller, the first layer projects it to queries, keys and values, not every path.
        places = constant(self._positions[:, None])
        placed = F.reshape(F.reshape(self.token_embedding, (1, vocabulary, dim)) + places, (-1, dim))
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

    def __call__(self, tokens, buckets, dropout=0.0, seed=-1):
        return self.call(tokens, buckets, dropout, seed)

    def scale(self, factor: float) -> None:
        """Multiply every logit by `factor`."""
        last = list(self.fc2.get_parameters().values())
        for parameter in (*last, self.skip) if self._settings["linear_skip"] else last:
            parameter.d = parameter.d * factor


class PathFilter:
    """The path filter g(a) of Figure 2, a score for each path; only its order inside a FLOPs bucket means something.

    The index of the path's FLOPs bucket is a token too, the first. Tokens carry the encodings of their layer and of their
    block; the bucket's carries none. "Two final FC layers with 128 dimensions" we read as pooled tokens -> dim, ReLU,
    dim -> 1. Pooling is not given: the mean over all tokens, or all tokens side by side, so that each layer of the supernet
    has weights of its own in the first FC layer. From the few hundred paths of the small experiments the latter learned to
    rank better.

    The paper's score is the sigmoid of a logit. We rank by the logit: the order is the same, and where a sigmoid in float32
    is 1 for many paths their logits still differ.

    Two parts are ours. With `linear_skip` a logit also has one weight for each token at each place, so that effects of
    single layers, which add up, need not be learned by attention. With an `ensemble` a score is the mean of its members'
    logits, each brought to mean 0 and variance 1 inside the FLOPs bucket (over the paths that were fitted).

    Args:
        geometry: the supernet.
        buckets: number of FLOPs buckets.
        dim, heads, layers, feed_forward: of the transformer (section 4.1).
        stem_tokens: see `Tokenizer`.
        block_encoding: add the encoding of the block index.
        encoding: see `positional_encoding`.
        pooling: "mean" or "concat".
        linear_skip: add a linear function of the one-hot tokens and of the one-hot bucket; at first it is 0.
        ensemble: number of members, which differ by their first weights.
        rng: draws the weights.

    Attributes:
        settings: all arguments but `rng`. tokenizer: of its paths. members: its networks.

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
    ):
        if dim % heads:
            raise UserError(f"dim of the path filter must be a multiple of its {heads} heads, got {dim}")
        if encoding not in ENCODINGS:
            raise UserError(f"encoding of the path filter must be {' or '.join(ENCODINGS)}, got {encoding!r}")
        if pooling not in POOLINGS:
            raise UserError(f"pooling of the path filter must be {' or '.join(POOLINGS)}, got {pooling!r}")
        if ensemble < 1:
            raise UserError(f"ensemble of the path filter must be 1 or more, got {ensemble}")
        self.settings = {
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
        self._graphs = CachedGraphs(self._graph)

    def __call__(self, tokens: nn.Variable, buckets: nn.Variable) -> nn.Variable:
        """Tokens (n, L) and bucket indices (n,) -> scores (n,): all members in one graph."""
        logits = [member(tokens, buckets) for member in self.members]
        if len(logits) == 1:
            return logits[0]
        n = tokens.shape[0]
        columns = [F.reshape(values, (n, 1)) for values in logits]
        means, spreads = (F.embed(buckets, F.transpose(values, (1, 0))) for values in (self._means, self._spreads))
        return F.mean((F.concatenate(*columns, axis=1) - means) / spreads, axis=1)

    def score(self, batch: PathBatch, buckets: np.ndarray) -> np.ndarray:
        """(n,) float32 scores of paths in these FLOPs buckets."""
        return self._in_chunks(self.tokenizer(batch), np.asarray(buckets), None)

    def logits(self, batch: PathBatch, buckets: np.ndarray) -> np.ndarray:
        """(members, n) float32 logits of each member."""
        tokens = self.tokenizer(batch)
        return np.stack([self.member_logits(number, tokens, buckets) for number in range(len(self.members))])

    def member_logits(self, number: int, tokens: np.ndarray, buckets: np.ndarray) -> np.ndarray:
        """(n,) float32 logits of one member for paths as (n, L) tokens."""
        return self._in_chunks(tokens, np.asarray(buckets), number)

    def _in_chunks(self, tokens: np.ndarray, buckets: np.ndarray, member: int | None) -> np.ndarray:
        """(n,) scores, or the logits of a member, by graphs for `CHUNKS` of paths, each of which is built once."""
        found = np.empty(len(tokens), np.float32)
        start = 0
        while start < len(tokens):
            size = next((size for size in CHUNKS if size <= len(tokens) - start), CHUNKS[-1])
            here = slice(start, start + size)
            found[here] = self._chunk(tokens[here], buckets[here], size, member)
            start += size
        return found

    def _chunk(self, tokens: np.ndarray, buckets: np.ndarray, size: int, member: int | None) -> np.ndarray:
        """As `_in_chunks`, of at most `size` paths."""
        padding = size - len(tokens)
        with self._graphs.held((size, member)) as (token_input, bucket_input, output):
            token_input.d = np.pad(tokens, ((0, padding), (0, 0)))
            bucket_input.d = np.pad(buckets, (0, padding))
            output.forward(clear_buffer=True)
            return output.d[: len(tokens)].copy()

    def _graph(self, key: tuple[int, int | None]) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
        """Tokens and buckets of so many paths, and their scores, or the logits of a member."""
        size, member = key
        inputs = nn.Variable((size, self.tokenizer.length)), nn.Variable((size,))
        net = self if member is None else self.members[member]
        return (*inputs, net(*inputs))

    def renew(self, number: int, rng: np.random.Generator) -> None:
        """Give a member fresh weights."""
        fresh = Member(self.tokenizer, self.settings, rng).get_parameters()
        for name, parameter in self.members[number].get_parameters().items():
            parameter.d = fresh[name].d

    def standardize(self, batch: PathBatch, buckets: np.ndarray) -> None:
        """Take the members' means and spreads in each FLOPs bucket from these paths; a filter of one member needs none.

        A bucket of fewer than two paths, or of equal logits, takes the mean of the others' spreads.
        """
        if len(self.members) == 1:
            return
        for row, logits in enumerate(self.logits(batch, buckets)):
            inside = [logits[buckets == bucket] for bucket in range(self.settings["buckets"])]
            spreads = np.array([values.std() if len(values) > 1 else 0.0 for values in inside])
            usual = spreads[spreads > 0].mean() if (spreads > 0).any() else 1.0
            self._means.d[row] = [values.mean() if len(values) else logits.mean() for values in inside]
            self._spreads.d[row] = np.where(spreads > 0, spreads, usual)

    def get_parameters(self) -> dict[str, nn.Variable]:
        """Every parameter by its name in a file: those of a member of several are named member_<number>/..."""
        if len(self.members) == 1:
            return dict(self.members[0].get_parameters())
        found = {"means": self._means, "spreads": self._spreads}
        for number, member in enumerate(self.members, 1):
            found |= {f"member_{number}/{name}": parameter for name, parameter in member.get_parameters().items()}
        return found

    def copy(self) -> PathFilter:
        """Another filter with the same settings and weights."""
        return self.extended(self.settings["ensemble"], self.settings["linear_skip"])

    def extended(self, ensemble: int, linear_skip: bool) -> PathFilter:
        """A filter of `ensemble` members that begins with the weights of these, each in turn.

        Args:
            linear_skip: of the new filter. Where this one has none, that of the new one is 0.
        """
        settings = self.settings | {"ensemble": ensemble, "linear_skip": linear_skip}
        other = PathFilter(**settings, rng=np.random.default_rng(0))
        for number, member in enumerate(other.members):
            given = self.members[number % len(self.members)].get_parameters()
            for name, parameter in member.get_parameters().items():
                if name in given:
                    parameter.d = given[name].d
        if ensemble > 1 and len(self.members) > 1:
            rows = np.arange(ensemble) % len(self.members)
            other._means.d, other._spreads.d = self._means.d[rows], self._spreads.d[rows]
        return other

    def get_weights(self) -> dict[str, np.ndarray]:
        """A copy of every parameter, by name."""
        return {name: parameter.d.copy() for name, parameter in self.get_parameters().items()}

    def set_weights(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `get_weights` gave."""
        weights.fill(self.get_parameters(), arrays, "the path filter's weights")

    def save(self, file: str | os.PathLike) -> None:
        """Write weights and settings into one .h5; the file appears complete or not at all."""
        settings = json.dumps(self.settings | {"geometry": asdict(self.settings["geometry"])})
        weights.write(file, self.get_parameters(), path_filter=settings)

    @classmethod
    def load(cls, file: str | os.PathLike, **expected) -> PathFilter:
        """The filter that `save` wrote.

        Args:
            expected: settings, as the constructor names them, that the file's must equal. A geometry of a class of your
                own must be among them, since a file does not name the class.

        Raises:
            UserError: the file is missing, damaged or not a path filter's, or was made with other settings.
        """
        arrays = weights.read(file)
        with h5py.File(file, "r") as opened:
            text = opened.attrs.get("path_filter")
        try:
            settings = parse_json(text)
            geometry = type(expected.get("geometry", OFA_RESNET50)).from_json(settings["geometry"])
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


def _check_sizes(settings: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless sizes are those of the arrays: a slip in one would build a filter of any size."""
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
        raise ValueError("heads and feed_forward are no numbers")
    if not isinstance(settings["linear_skip"], bool) or settings["linear_skip"] != ("skip" in arrays):
        raise ValueError("its arrays are those of a filter with another linear_skip")
    if settings["feed_forward"] not in {
        size for name, array in arrays.items() if name[:8] == "encoder/" for size in array.shape
    }:
        raise ValueError("its arrays have another feed_forward")


def embedding(rows: int, dim: int, rng: np.random.Generator) -> Parameter:
    """A learned embedding (rows, dim), smaller at first than the positional encodings: it generalizes better."""
    return Parameter((rows, dim), initializer=rng.normal(0, 0.3, (rows, dim)))


def constant(array: np.ndarray) -> nn.Variable:
    """A variable that holds `array` and keeps it when buffers are cleared."""
    variable = nn.Variable.from_numpy_array(array)
    variable.persistent = True
    return variable


@dataclass(frozen=True)
class PathScorer:
    """g(a) as a function of paths alone: what pruning and the search ask.

    Attributes:
        filter: the path filter.
        cost_flops: paths -> (n,) FLOPs.
        bucket_index: FLOPs -> indices of their buckets.
    """

    filter: PathFilter
    cost_flops: Callable[[PathBatch], np.ndarray]
    bucket_index: Callable[[np.ndarray], np.ndarray]

    def __call__(self, batch: PathBatch) -> np.ndarray:
        """(n,) float32 scores."""
        return self.filter.score(batch, self.bucket_index(self.cost_flops(batch)))
