"""Mutation and crossover of paths, many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..space.paths import PathBatch
from ..space.search_space import SearchSpace


def mutate_many(space: SearchSpace, batch: PathBatch, rate: float, rng: np.random.Generator) -> PathBatch:
    """Mutate each path: resample each of its choices with probability `rate`, uniformly within `space`.

    The choices are the stem's depth, its two widths, each stage's (D, W), each layer's E and the named ones. If a new (D, W)
    adds a layer, or does not allow a layer's E, that E is resampled too.
    """
    fresh = space.sample_many(rng, len(batch))
    picked = _pick(fresh, batch, rate, rng)
    redrawn = rng.random(batch.ratios.shape) < rate
    named = np.where(rng.random(batch.named.shape) < rate, fresh.named, batch.named)
    return _with_ratios(space, *picked, named, [np.where(redrawn, -1, batch.ratios)], rng)


def crossover_many(space: SearchSpace, first: PathBatch, second: PathBatch, rng: np.random.Generator) -> PathBatch:
    """Cross pairs of paths: take each choice (see `mutate_many`) from either parent with equal probability, within `space`.

    An E that the child's (D, W) does not allow, or that the parent does not have, is taken from the other parent; if that
    fails too, it is resampled.
    """
    picked = _pick(first, second, 0.5, rng)
    swap = rng.random(first.ratios.shape) < 0.5
    one, other = np.where(swap, second.ratios, first.ratios), np.where(swap, first.ratios, second.ratios)
    named = np.where(rng.random(first.named.shape) < 0.5, first.named, second.named)
    return _with_ratios(space, *picked, named, [one, other], rng)


def _pick(first: PathBatch, second: PathBatch, chance: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Take depths and widths from `first` with probability `chance`, else from `second`; a stage's (D, W) is one choice."""
    n, stages = len(first), first.geometry.stages
    stem_depth, stem_widths, pairs = np.split(rng.random((n, 3 + stages)) < chance, [1, 3], axis=1)
    depths = np.where(np.hstack([stem_depth, pairs]), first.depths, second.depths)
    return depths, np.where(np.hstack([stem_widths, pairs]), first.widths, second.widths)


def _with_ratios(
    space: SearchSpace,
    depths: np.ndarray,
    widths: np.ndarray,
    named: np.ndarray,
    wishes: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> PathBatch:
    """Build paths with the first of the proposed ratios that is allowed in each layer, or else a uniformly sampled one."""
    ratios = space.sample_ratios(depths, widths, rng)
    for wish in reversed(wishes):
        ratios = np.where(space.allows_ratios(depths, widths, wish), wish, ratios)
    return PathBatch.canonical(depths, widths, ratios, space.geometry, named)
