"""Learning-rate schedules of training phases."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule; NNablaNAS' Optimizer calls `get_learning_rate`.

    Attributes:
        base: the learning rate before any decay.
        kind: "step" (times `gamma` at each milestone), "cosine" (to 0 at the last step) or "constant".
        steps: steps of the whole schedule.
        milestones: steps at which "step" decays.
        gamma: factor of each "step" decay.
        warmup_steps: number of steps over which the rate rises linearly from 0 to `base`.
    """

    base: float
    kind: str
    steps: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_steps: int = 0

    def get_learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        rate = self.base * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.base
        if self.kind == "step":
            return rate * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "cosine":
            return rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return rate
