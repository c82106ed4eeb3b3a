"""Times of what takes turns, and their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

import numpy as np

ROUNDS = 7


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    work()
    return clock() - start


def turns(sides: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> np.ndarray:
    """(rounds, sides) CPU seconds, after one round that does not count; every other round goes the other way."""
    for side in sides:
        side()
    found = np.empty((rounds, len(sides)))
    for number in range(rounds):
        for side in range(len(sides))[:: -1 if number % 2 else 1]:
            found[number, side] = seconds(sides[side])
    return found


def spread(values: np.ndarray) -> list[float]:
    """The first and third quartile."""
    return [float(f"{value:.4g}") for value in np.quantile(values, [0.25, 0.75])]


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """Median and quartiles of the ratios of each round."""
    return {"value": float(f"{np.median(ours / theirs):.4g}"), "spread": spread(ours / theirs)}


def busy_share(interval: float = 1.0) -> float:
    """Share of the cores' time that is in use now, by Linux' counters; 0 where there are none."""

    def counters() -> np.ndarray:
        return np.array(FilePath("/proc/stat").read_text().split("\n")[0].split()[1:], float)

    try:
        before = counters()
        time.sleep(interval)
        passed = counters() - before
    except OSError:
        return 0.0
    return float(1 - (passed[3] + passed[4]) / max(1.0, passed.sum()))
