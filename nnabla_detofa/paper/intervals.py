"""Differences over paired seeds: their values, mean and t interval, and what these say about a claim (ours).

A claim is about a number whose value of no effect is known: 0 for a difference, 1 for a ratio. `verdict` has the one rule by
which numbers of several seeds speak for or against the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
REPRODUCED, NOT_REPRODUCED, NOT_DECIDABLE = "reproduced", "not reproduced", "not decidable"
Direction = Literal["above", "below", "not below", "alike"]


@dataclass(frozen=True)
class Values:
    """A number, one value for each seed.

    Attributes:
        values: of the seeds, in their order.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The t interval of the mean; None of a single seed, which says nothing about others."""
        count = len(self.values)
        if count < 2:
            return None
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * np.std(self.values, ddof=1) / count**0.5)
        return self.mean - half, self.mean + half

    def text(self, digits: int = 2, sign: bool = True) -> str:
        """Such as "+1.50 [-4.85, +7.85] (+1.00, +2.00)": mean, interval and the seeds' values."""
        form = f"{'+' if sign else ''}.{digits}f"
        if self.interval is None:
            return f"{self.mean:{form}}"
        low, high = self.interval
        each = ", ".join(f"{value:{form}}" for value in self.values)
        return f"{self.mean:{form}} [{low:{form}}, {high:{form}}] ({each})"


def verdict(interval: tuple[float, float] | None, direction: Direction, no_effect: float, margin: float) -> str:
    """What an interval says about the paper's direction.

    Above (below): reproduced where the interval lies wholly above (below) `no_effect`; not reproduced where it lies wholly on
    the other side, or wholly within `margin` of `no_effect`: the effect is then too small to matter. Not below: the paper's
    number is at least the other one; reproduced where the interval lies wholly above `no_effect` - `margin`, not reproduced
    where it lies wholly below `no_effect`. Alike: reproduced where the interval lies wholly within `margin`, not reproduced
    where it lies wholly outside. Otherwise, and without an interval, not decidable.
    """
    if interval is None:
        return NOT_DECIDABLE
    low, high = interval[0] - no_effect, interval[1] - no_effect
    if direction == "below":
        low, high = -high, -low
    inside = -margin <= low and high <= margin
    if direction == "alike":
        outside = low > margin or high < -margin
        return REPRODUCED if inside else NOT_REPRODUCED if outside else NOT_DECIDABLE
    if direction == "not below":
        return REPRODUCED if low > -margin else NOT_REPRODUCED if high < 0 else NOT_DECIDABLE
    return REPRODUCED if low > 0 else NOT_REPRODUCED if high < 0 or inside else NOT_DECIDABLE


def differences(one: Sequence[float], other: Sequence[float]) -> Values:
    """`one` minus `other`, seed by seed."""
    return Values(tuple(float(a - b) for a, b in zip(one, other, strict=True)))
