"""Re-estimation of the batch normalization statistics of a path."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..backend import kernels
from ..backend.compat import Mo, nn
from ..data.compact import AnyArray, put
from ..networks.layers import CollectedStatistics
from ..space.paths import Path

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]
"""Layer name -> mean and variance, (1, C, 1, 1) each."""

PARTS = ("graph", "re-estimation", "validation")
"""Parts of the time that the evaluation of a path takes."""


class Stopwatch:
    """Measures the seconds spent on each of the `PARTS`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def batch_statistics(net: Mo.Module, path: Path, batches: Sequence[AnyArray], watch: Stopwatch) -> Iterator[Statistics]:
    """Yield, for each batch of images, the mean and variance of every batch normalization layer of `path`.

    Args:
        net: supernet.
        path: path to run.
        batches: images (B, 3, H, W), with the same B in each batch.
        watch: measures the time.
    """
    images, output, collected = _trunk(net, path, batches[0].shape)
    watch.lap("graph")
    for batch in batches:
        put(images, batch)
        output.forward(clear_buffer=True)
        yield collected.read()
    watch.lap("re-estimation")


def average(found: Iterable[Statistics]) -> Statistics:
    """Average the statistics of several batches."""
    several = list(found)
    return {
        name: tuple(np.mean(parts, axis=0, dtype=np.float64).astype(np.float32) for parts in zip(*(s[name] for s in several)))
        for name in several[0]
    }


def reestimate(net: Mo.Module, path: Path, batches: Sequence[AnyArray], watch: Stopwatch | None = None) -> Statistics:
    """Re-estimate the batch normalization statistics of a path: the average over the statistics of the batches, as in OFA.

    On a GPU the statistics are added up there, and the host reads them once.

    Args:
        net: supernet.
        path: path to run.
        batches: images (B, 3, H, W), with the same B in each batch.
        watch: measures the time.

    Returns:
        Mean and variance of each layer.
    """
    watch = watch or Stopwatch()
    if kernels.on_cpu():
        return average(batch_statistics(net, path, batches, watch))
    images, output, collected = _trunk(net, path, batches[0].shape)
    watch.lap("graph")
    total = collected.sum()
    for batch in batches:
        put(images, batch)
        output.forward(clear_buffer=True)
        total.add()
    found = dict(zip(collected.names, total.mean()))
    watch.lap("re-estimation")
    return found


def _trunk(net: Mo.Module, path: Path, shape: tuple[int, ...]) -> tuple[nn.Variable, nn.Variable, CollectedStatistics]:
    """Build the graph of a path up to its last batch normalization: images, output and their statistics."""
    images, collected = nn.Variable(shape), CollectedStatistics()
    return images, net.trunk(images, path, collected), collected
