"""Statistics over paired seeds: mean, t interval, and the verdict on a claim of the paper.

A claim is about a number that has a known value without an effect: 0 for a difference, 1 for a ratio. `verdict` is the only
rule that decides whether the numbers of several seeds reproduce the claim. The paper has no such rule.
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
    """A number that was measured once for each seed.

    Attributes:
        values: the values, in the order of the seeds.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% t interval of the mean; None for a single seed."""
        return self.interval_of(len(self.values)) if len(self.values) > 1 else None

    def interval_of(self, count: int) -> tuple[float, float]:
        """Return the 95% t interval that `count` values with the mean and the deviation of these would have.

        Args:
            count: number of values, at least 2.
        """
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * np.std(self.values, ddof=1) / count**0.5)
        return self.mean - half, self.mean + half

    def text(self, digits: int = 2, sign: bool = True, each: bool = True) -> str:
        """Format as "+1.50 [-4.85, +7.85] (+1.00, +2.00)"; only the mean for a single seed.

        Args:
            digits: decimals.
            sign: write the sign of positive numbers.
            each: append the values.
        """
        form = f"{'+' if sign else ''}.{digits}f"
        mean, *values = (round(value, digits) + 0.0 for value in (self.mean, *self.values))  # + 0.0: no negative zero
        if self.interval is None:
            return f"{mean:{form}}"
        low, high = (round(end, digits) + 0.0 for end in self.interval)
        listed = f" ({', '.join(f'{value:{form}}' for value in values)})" if each else ""
        return f"{mean:{form}} [{low:{form}}, {high:{form}}]{listed}"


def verdict(interval: tuple[float, float] | None, direction: Direction, no_effect: float, margin: float) -> str:
    """Decide whether an interval reproduces the direction that the paper claims.

    - above (below): reproduced if the interval lies above (below) `no_effect`; not reproduced if it lies on the other side, or
      within `margin` of `no_effect`, because the effect is then too small to matter.
    - not below: reproduced if the interval lies above `no_effect` - `margin`; not reproduced if it lies below `no_effect`.
    - alike: reproduced if the interval lies within `margin` of `no_effect`; not reproduced if it lies outside.

    In all other cases, and without an interval, the claim is not decidable.
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
    """Return `one` minus `other`, seed by seed."""
    return Values(tuple(float(a - b) for a, b in zip(one, other, strict=True)))
