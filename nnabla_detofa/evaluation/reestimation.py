"""Re-estimation of the batch-normalization statistics of a path."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..backend.compat import Mo, nn
from ..networks.layers import CollectedStatistics
from ..space.paths import Path

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


PARTS = ("graph", "re-estimation", "validation")
"""What the time of evaluating a path goes to."""


class Stopwatch:
    """Seconds spent on each of the `PARTS`, from one lap to the next."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What was done since the last lap was for `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def batch_statistics(net: Mo.Module, path: Path, batches: Sequence[np.ndarray], watch: Stopwatch) -> Iterator[Statistics]:
    """Mean and variance of every batch normalisation of `path`, for each batch of images (B, 3, H, W); B must not change."""
    images, collected = nn.Variable(batches[0].shape), CollectedStatistics()
    output = net.trunk(images, path, collected)
    watch.lap("graph")
    for batch in batches:
        images.d = batch
        output.forward(clear_buffer=True)
        yield collected.read()
    watch.lap("re-estimation")


def average(found: Iterable[Statistics]) -> Statistics:
    """The mean of several batches' statistics."""
    several = list(found)
    return {
        name: tuple(np.mean(parts, axis=0, dtype=np.float64).astype(np.float32) for parts in zip(*(s[name] for s in several)))
        for name in several[0]
    }


def reestimate(net: Mo.Module, path: Path, batches: Sequence[np.ndarray], watch: Stopwatch | None = None) -> Statistics:
    """Mean and variance of every batch normalisation of `path`: the average over the batches' own, as OFA takes them.

    Args:
        batches: images (B, 3, H, W), the same B in each.
    """
    return average(batch_statistics(net, path, batches, watch or Stopwatch()))
