"""Section `optimizer` of a config."""

from dataclasses import dataclass
from typing import Literal

from ..common.errors import UserError
from .values import Count, NonNegative, Positive, Steps, UpToOne


@dataclass(frozen=True)
class Solver:
    """An optimizer with its learning-rate schedule.

    Attributes:
        name: name of a solver of NNabla.
        lr: initial learning rate.
        schedule: "step" multiplies the rate by `gamma` at each of the `milestones`; "cosine" decays it to 0 over all epochs.
        milestones: epochs at which "step" decays the rate.
        gamma: factor of each "step" decay.
        warmup_steps: number of steps over which the rate rises linearly from 0.
        weight_decay: factor of the weight that is added to the gradient; AdamW instead subtracts this share of the weight.
    """

    name: Literal["Adam", "AdamW", "Momentum", "Nesterov", "Sgd"] = "Adam"
    lr: Positive = 5e-4
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[Count, ...] = (45, 60)
    gamma: UpToOne = 0.1
    warmup_steps: Steps = 0
    weight_decay: NonNegative = 0.0

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"milestones must be in ascending order, got {list(self.milestones)}")


@dataclass(frozen=True)
class Solvers:
    """The optimizers of a run.

    Attributes:
        train: optimizer of the network's parameters.
    """

    train: Solver = Solver()
