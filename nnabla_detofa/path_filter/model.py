"""The path filter g(a): a path's layers as tokens, a transformer encoder, and one score; higher is better (section 3.1)."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import h5py
import nnabla as nn
import nnabla.functions as F
import numpy as np

from ..backend.compat import Mo
from ..common.errors import UserError
from ..common.reading import parse_json
from ..networks import weights
from ..space.geometry import OFA_RESNET50, Geometry, choice_word, is_count
from ..space.paths import Path, PathBatch, layer_stages

SKIP = "SC"
ENCODINGS = ("paper", "transformer")
POOLINGS = ("mean", "concat")
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
        self.query = linear(dim, dim, rng, bias=False)
        self.key = linear(dim, dim, rng, bias=False)
        self.value = linear(dim, dim, rng, bias=False)
        self.out = linear(dim, dim, rng, scale=0.1)  # a layer changes little at first: few paths teach it less by heart
        self.fc1 = linear(dim, feed_forward, rng)
        self.fc2 = linear(feed_forward, dim, rng, scale=0.1)

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


def linear(inputs: int, outputs: int, rng: np.random.Generator, bias: bool = True, scale: float = 1.0) -> Mo.Linear:
    """An affine layer with Glorot-uniform weights, times `scale`."""
    limit = scale * np.sqrt(6 / (inputs + outputs))
    return Mo.Linear(inputs, outputs, w_init=rng.uniform(-limit, limit, (inputs, outputs)), bias=bias)


def layer_norm(x: nn.Variable) -> nn.Variable:
    """Each row of (rows, dim) brought to mean 0 and variance 1."""
    return F.layer_normalization(x, None, None, batch_axis=0)


class PathFilter(Mo.Module):
    """The path filter g(a) of Figure 2, a score in (0, 1) for each path; only its order means something.

    The index of the path's FLOPs bucket is a token too, the first. Tokens carry the encodings of their layer and of their
    block; the bucket's carries none. "Two final FC layers with 128 dimensions" we read as pooled tokens -> dim, ReLU,
    dim -> 1. Pooling is not given: the mean over all tokens, or all tokens side by side, so that each layer of the supernet
    has weights of its own in the first FC layer. From the few hundred paths of the small experiments the latter learned to
    rank better.

    Args:
        geometry: the supernet.
        buckets: number of FLOPs buckets.
        dim, heads, layers, feed_forward: of the transformer (section 4.1).
        stem_tokens: see `Tokenizer`.
        block_encoding: add the encoding of the block index.
        encoding: see `positional_encoding`.
        pooling: "mean" or "concat".
        rng: draws the weights.

    Raises:
        UserError: `dim` is not a multiple of `heads`, or the encoding or the pooling is unknown.
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
        *,
        rng: np.random.Generator,
    ):
        super().__init__(name="path_filter")
        if dim % heads:
            raise UserError(f"dim of the path filter must be a multiple of its {heads} heads, got {dim}")
        if encoding not in ENCODINGS:
            raise UserError(f"encoding of the path filter must be {' or '.join(ENCODINGS)}, got {encoding!r}")
        if pooling not in POOLINGS:
            raise UserError(f"pooling of the path filter must be {' or '.join(POOLINGS)}, got {pooling!r}")
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
        }
        self.tokenizer = Tokenizer(geometry, stem_tokens)
        self._positions = positional_encoding(self.tokenizer.layers, dim, encoding)
        if block_encoding:
            self._positions = self._positions + positional_encoding(self.tokenizer.blocks, dim, encoding)
        self._graphs: dict[int, tuple[nn.Variable, nn.Variable, nn.Variable]] = {}
        with nn.parameter_scope("path_filter", OrderedDict()):  # Mo.Parameter would enter the global scope for good
            self.token_embedding = embedding(len(self.tokenizer.vocabulary), dim, rng)
            self.bucket_embedding = embedding(buckets, dim, rng)
            self.encoder = Mo.ModuleList([EncoderLayer(dim, heads, feed_forward, rng) for _ in range(layers)])
            self.fc1 = linear(dim * (self.tokenizer.length + 1 if pooling == "concat" else 1), dim, rng)
            # Scores start almost equal. While nothing is learned yet the pair loss only grows with their spread, and from a
            # wide one it drove all scores to one end of the sigmoid, where the gradient is 0, in some seeds for good.
            self.fc2 = linear(dim, 1, rng, scale=0.1)

    def call(self, tokens: nn.Variable, buckets: nn.Variable) -> nn.Variable:
        """Tokens (n, L) and bucket indices (n,) -> scores (n,) in (0, 1)."""
        n, length = tokens.shape[0], tokens.shape[1] + 1
        vocabulary, dim = self.token_embedding.shape
        n_buckets, heads = self.settings["buckets"], self.settings["heads"]
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
        concat = self.settings["pooling"] == "concat"
        pooled = F.reshape(x, (n, length * dim)) if concat else F.mean(F.reshape(x, (n, length, dim)), axis=1)
        return F.reshape(F.sigmoid(self.fc2(relu(self.fc1(pooled)))), (n,))

    def score(self, batch: PathBatch, buckets: np.ndarray) -> np.ndarray:
        """(n,) float32 scores of paths in these FLOPs buckets."""
        tokens, buckets = self.tokenizer(batch), np.asarray(buckets)
        scores = np.empty(len(batch), np.float32)
        start = 0
        while start < len(batch):
            size = next((size for size in CHUNKS if size <= len(batch) - start), CHUNKS[-1])
            here = slice(start, start + size)
            scores[here] = self._score_chunk(tokens[here], buckets[here], size)
            start += size
        return scores

    def _score_chunk(self, tokens: np.ndarray, buckets: np.ndarray, size: int) -> np.ndarray:
        """Scores of at most `size` paths, by the graph of that size, which is built once."""
        if size not in self._graphs:
            inputs = nn.Variable((size, self.tokenizer.length)), nn.Variable((size,))
            self._graphs[size] = (*inputs, self(*inputs))
        token_input, bucket_input, output = self._graphs[size]
        padding = size - len(tokens)
        token_input.d = np.pad(tokens, ((0, padding), (0, 0)))
        bucket_input.d = np.pad(buckets, (0, padding))
        output.forward(clear_buffer=True)
        return output.d[: len(tokens)]

    def copy(self) -> PathFilter:
        """Another filter with the same settings and weights."""
        other = PathFilter(**self.settings, rng=np.random.default_rng(0))
        other.set_weights(self.get_weights())
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
            settings = {"pooling": "mean"} | settings | {"geometry": geometry}  # older files do not name the pooling
            _refuse_other_sizes(settings, arrays)
            loaded = cls(**settings, rng=np.random.default_rng(0))
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{file} is not the weights file of a path filter: its settings are missing or damaged") from error
        for name, value in expected.items():
            if settings[name] != value:
                raise UserError(f"the path filter in {file} was made with {name} {settings[name]}; this run has {value}")
        weights.fill(loaded.get_parameters(), arrays, str(file))
        return loaded


def _refuse_other_sizes(settings: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless sizes are those of the arrays: a slip in one would build a filter of any size."""
    (buckets, dim), layers = arrays["bucket_embedding"].shape, {name.split("/")[1] for name in arrays if name[:8] == "encoder/"}
    found = {"buckets": buckets, "dim": dim, "layers": len(layers)}
    if any(not is_count(settings[name]) or settings[name] != size for name, size in found.items()):
        raise ValueError(f"its arrays are those of {found}")
    if not is_count(settings["heads"]) or not is_count(settings["feed_forward"]):
        raise ValueError("heads and feed_forward are no numbers")
    if settings["feed_forward"] not in {
        size for name, array in arrays.items() if name[:8] == "encoder/" for size in array.shape
    }:
        raise ValueError("its arrays have another feed_forward")


def embedding(rows: int, dim: int, rng: np.random.Generator) -> Mo.Parameter:
    """A learned embedding (rows, dim), smaller at first than the positional encodings: it generalises better."""
    return Mo.Parameter((rows, dim), initializer=rng.normal(0, 0.3, (rows, dim)))


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
