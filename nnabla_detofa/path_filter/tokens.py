"""Tokens of paths and their positional encodings, the input of the path filter (section 3.1.1)."""

from __future__ import annotations

import numpy as np

from ..space.geometry import OFA_RESNET50, Geometry, choice_word
from ..space.paths import Path, PathBatch, layer_stages

SKIP = "SC"


class Tokenizer:
    """Conversion of a path to one token per layer: "W{w}_E{e}", or "SC" if the layer is inactive (section 3.1.1).

    The paper's example has no tokens of the stem. By default we prepend three, since the others do not determine a path: the
    width of the stem's first convolutions, its residual convolution or "SC", and the width of its output. Each named choice of
    the geometry appends one token, its name and value, as a further layer of a block after the stages.

    Args:
        geometry: geometry of the supernet.
        stem_tokens: prepend the tokens of the stem.

    Attributes:
        geometry, stem_tokens: the arguments.
        vocabulary: the word of each token.
        length: L, the number of tokens of a path.
        layers: (L,) layer index of each position, from 0; the three stem tokens count as layers.
        blocks: (L,) block index of each position, from 0; the stem is a separate block.
    """

    def __init__(self, geometry: Geometry = OFA_RESNET50, stem_tokens: bool = True) -> None:
        self.geometry, self.stem_tokens = geometry, stem_tokens
        words = [f"W{width}_{choice_word(ratio)}" for width in geometry.widths for ratio in geometry.ratios]
        stem = [f"STEM_W{width}" for width in geometry.widths] + ["STEM_R"] + [f"OUT_W{width}" for width in geometry.widths]
        self._skip = len(words)
        named = [f"{name}_{value}" for name, values in geometry.named for value in values]
        self.vocabulary: tuple[str, ...] = (*words, SKIP, *(stem if stem_tokens else ()), *named)
        sizes = [len(values) for _, values in geometry.named]
        self._named = (
            len(self.vocabulary) - len(named) + np.cumsum([0, *sizes], dtype=np.int32)[:-1]
        )  # token of each first value
        blocks = np.concatenate([layer_stages(geometry), np.full(len(sizes), geometry.stages)])
        self.blocks = np.concatenate([np.zeros(3, int), blocks + 1]) if stem_tokens else blocks
        self.length = len(self.blocks)
        self.layers = np.arange(self.length)

    def __call__(self, batch: PathBatch) -> np.ndarray:
        """Return the tokens of n paths, (n, L) int32."""
        geometry = self.geometry
        widths = np.repeat(batch.widths[:, 2:].astype(np.int32), geometry.layers_per_stage, axis=1)
        tokens = np.where(batch.ratios >= 0, widths * len(geometry.ratios) + batch.ratios, self._skip)
        if self.stem_tokens:
            stem = batch.widths[:, :2] + np.int32(self._skip + 1)
            stem[:, 1] += len(geometry.widths) + 1
            residual_token = self._skip + 1 + len(geometry.widths)
            residual = np.where(batch.depths[:, 0] == max(geometry.depths), residual_token, self._skip)
            tokens = np.column_stack([stem[:, 0], residual, stem[:, 1], tokens])
        if len(self._named):
            tokens = np.column_stack([tokens, batch.named + self._named])
        return tokens.astype(np.int32)

    def words(self, path: Path) -> list[str]:
        """Return the tokens of a path in the paper's notation, those of the stem first."""
        return [self.vocabulary[token] for token in self(PathBatch.from_paths([path], self.geometry))[0]]


def one_hot(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """Convert (n, L) tokens to (n, L * vocabulary) float64, one column for each token at each position."""
    return (tokens[:, :, None] == np.arange(vocabulary)).reshape(len(tokens), -1).astype(float)


def positional_encoding(indices: np.ndarray, dim: int, encoding: str = "paper") -> np.ndarray:
    """Compute the sines and cosines of Eq. 4.

    Args:
        indices: (L,) index l of each position, from 0.
        dim: number of channels.
        encoding: "paper" divides the exponent 2i by the largest index, as Eq. 4 does; "transformer" divides it by `dim`.

    Returns:
        (L, dim) float32.
    """
    divisor = dim if encoding == "transformer" else max(1, int(indices.max()))
    even = np.arange(0, dim, 2)
    angles = indices[:, None] / 10000.0 ** (even / divisor)
    return np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(indices), -1)[:, :dim].astype(np.float32)
