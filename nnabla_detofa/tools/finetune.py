"""Fine-tuning of one found subnet alone: its path cut out of the supernet, trained further by the same loop.

The paper evaluates subnets as the supernet left them; this is for a detector that is to be used. The output is a run's folder
with one detector, "finetuned", which `evaluate` and `export` take as they take those of a run of Algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath

from ..backend.compat import Device
from ..common.errors import UserError
from ..config import Config
from ..methods.algorithm1 import DetOFASearcher
from ..networks import weights
from ..runs.phases import FINE_TUNED, TUNING_PHASES, tuning_phase
from ..runs.run_folder import fine_tuned
from ..space.paths import Path
from ..training.loop import OnePath
from ..training.runner import start
from .evaluate import OpenDetector, alone

SLOWER = 10
"""The learning rate at the start is that of the run's training over this, unless it is given."""


class Tuner(DetOFASearcher):
    """Trains one path alone, and evaluates it before and after.

    Args:
        model: a network of that path and nothing else (`evaluate.alone`).
        origin: where its weights came from; kept as origin.json (see `finetune`). The others are `SupernetRunner`'s.
    """

    phases = TUNING_PHASES

    def __init__(self, model, *args, origin: dict, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.origin = origin
        self.training = {FINE_TUNED: tuning_phase(self.config, self.space)}

    def callback_on_start(self) -> None:
        """There are no budgets and no filter to check."""
        if self.comm.rank == 0:
            self.remember("origin", self.origin)

    def run(self) -> dict[str, dict]:
        """Train; the results before and after are in before.json and finetuned.json, and returned."""
        path, phase = Path.from_ofa(self.origin["path"], self.space.geometry), self.training[FINE_TUNED]
        with self.phase("before"):
            before = self.evaluate_path("before", path)
        with self.phase(FINE_TUNED):
            self.train_phase(phase, OnePath(path), self.new_optimizer(phase))
            after = self.evaluate_path(FINE_TUNED, path)
        return {"before": before, FINE_TUNED: after}


def tuning_config(config: Config, epochs: int, lr: float | None = None) -> Config:
    """A run's config with another schedule: the cosine without a warm-up, from a tenth of the run's rate or from `lr`."""
    solver = config.optimizer.train
    solver = replace(solver, lr=lr or solver.lr / SLOWER, schedule="cosine", milestones=(), warmup_steps=0)
    return replace(config, optimizer=replace(config.optimizer, train=solver), hparams=replace(config.hparams, epochs=epochs))


def finetune(
    opened: OpenDetector,
    run: FilePath,
    detector: str,
    output: FilePath,
    epochs: int,
    device: Device,
    lr: float | None = None,
    restart: bool = False,
) -> dict:
    """Train a detector's path further, alone; the same call goes on where it was stopped.

    Args:
        opened: `evaluate.open_detector` of `run` and `detector`.
        output: a new folder, or that of the same fine-tuning.
        epochs: of the run's training images, its augmentation and its batch size.
        lr: the learning rate at the start; None is a tenth of the run's.
        restart: begin anew what is there.

    Returns:
        `Tuner.run`'s.

    Raises:
        UserError: the folder holds something else, or the fine-tuning of another detector.
    """
    check_request(output, epochs, lr)
    config, net = tuning_config(opened.config, epochs, lr), alone(opened.config, opened.net, opened.path)
    origin = {
        "run": run.name,
        "detector": detector,
        "path": opened.path.to_ofa(opened.config.network.geometry),
        "weights": weights.digest(net.get_parameters()),
    }
    refuse_other(output, origin, restart)
    return start(partial(Tuner, origin=origin), net, opened.sets, opened.cost, config, device, output, restart)


def check_request(output: FilePath, epochs: int, lr: float | None) -> None:
    """Raise UserError before anything is opened: a number is wrong, or the folder holds a run that is no fine-tuning."""
    if epochs < 1:
        raise UserError(f"--epochs must be 1 or more, got {epochs}")
    if lr is not None and not 0 < lr < float("inf"):
        raise UserError(f"--lr must be positive, got {lr}")
    if not fine_tuned(output) and (output / "config.json").exists():
        raise UserError(f"{output} holds a run that is no fine-tuning: take another -o")


def refuse_other(output: FilePath, origin: dict, restart: bool) -> None:
    """Raise UserError if a folder holds the fine-tuning of another detector or other weights."""
    before = fine_tuned(output)
    if before and before != origin and not restart:
        which = f"{before['detector']} of {before['run']}"
        other = which if which != f"{origin['detector']} of {origin['run']}" else f"other weights of {which}"
        raise UserError(f"{output} holds the fine-tuning of {other}: take another -o, or --restart to lose it")
