"""Fine-tuning of one subnet: its path is copied out of the supernet and trained alone, by the same loop.

The paper evaluates subnets without fine-tuning; this tool is for detectors in practical use. The output is a run folder with
one detector, "finetuned", which `evaluate` and `export` accept like the detectors of a run of Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from ..backend.compat import Device
from ..common.errors import UserError
from ..config import Config
from ..methods.detectors import DetectorRunner
from ..networks import weights
from ..runs.phases import FINE_TUNED, TUNING_PHASES, tuning_phase
from ..runs.run_folder import fine_tuned
from ..space.paths import Path
from ..training.loop import OnePath
from ..training.start_up import start
from .evaluate import OpenDetector, static_detector

MAX_EPOCHS = 10**6
SLOWER = 10
"""Divisor of the run's learning rate, which gives the default initial learning rate."""
REPLACED = (
    *(f"optimizer.train.{key}" for key in ("schedule", "milestones", "gamma", "warmup_steps")),
    *(f"hparams.{key}" for key in ("fullnet_epochs", "warmup_epochs", "epochs")),
)
"""Settings of the run's schedule, which that of the fine-tuning replaces."""


class Tuner(DetectorRunner):
    """Runner that trains one path alone and evaluates it before and after.

    Args:
        model: the static network of the path (`evaluate.static_detector`).
        origin: run, detector, path and digest of the weights to start from, saved as origin.json (see `finetune`).
        args, kwargs: further arguments of `SupernetRunner`.
    """

    phases = TUNING_PHASES

    def __init__(self, model: Any, *args: Any, origin: dict, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        self.origin = origin

    def callback_on_start(self) -> None:
        """Save the origin. The checks of budgets and path filter are skipped, because a fine-tuning has neither."""
        if self.comm.rank == 0:
            self.files.write("origin", self.origin)

    def run(self) -> dict[str, dict]:
        """Evaluate, train and evaluate again.

        Returns:
            "before" and "finetuned" -> result, which are also saved as before.json and finetuned.json.
        """
        path, phase = Path.from_ofa(self.origin["path"], self.space.geometry), self.training[FINE_TUNED]
        with self.phase("before"):
            before = self.evaluate_detector("before", path)
        with self.phase(FINE_TUNED):
            self.train_phase(phase, OnePath(path), self.new_optimizer(phase))
            after = self.evaluate_detector(FINE_TUNED, path)
        return {"before": before, FINE_TUNED: after}


def tuning_config(config: Config, epochs: int, lr: float | None = None) -> Config:
    """Return the run's config with the schedule of a fine-tuning.

    The paper is silent; we use a cosine without warm-up, from `lr` or else from the run's learning rate divided by `SLOWER`.
    """
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
    """Fine-tune the path of a detector alone; the same call resumes an interrupted fine-tuning.

    Args:
        opened: the result of `evaluate.open_detector` for `run` and `detector`.
        run: the folder of the run that the detector comes from.
        detector: the name of the detector; see `evaluate.evaluate`.
        output: a new folder, or the folder of the same fine-tuning.
        epochs: number of epochs over the run's training images, with the run's augmentation and batch size.
        device: the device to train on.
        lr: initial learning rate; None is a tenth of the run's.
        restart: discard an existing fine-tuning in `output` and start again.

    Returns:
        The results before and after, as `Tuner.run` returns them.

    Raises:
        UserError: a number is not positive, or the folder holds something else or the fine-tuning of another detector.
    """
    check_request(output, epochs, lr)
    config = tuning_config(opened.config, epochs, lr)
    net = static_detector(opened.network, opened.net, opened.path)
    origin = {
        "run": run.name,
        "detector": detector,
        "path": opened.path.to_ofa(opened.config.network.geometry),
        "weights": weights.digest(net.get_parameters()),
    }
    check_same_origin(output, origin, restart)
    training = [tuning_phase(config, net.space)]
    return start(partial(Tuner, origin=origin), net, opened.sets, opened.cost, config, training, device, output, restart)


def check_request(output: FilePath, epochs: int, lr: float | None, overrides: Sequence[str] = ()) -> None:
    """Raise UserError if `epochs` or `lr` is not positive, if the folder holds a run that is not a fine-tuning, or if one of
    the "key=value" strings `overrides` replaces a part of the run's schedule, which `tuning_config` replaces anyway.
    """
    for key in (text.partition("=")[0] for text in overrides):
        if key in REPLACED:
            raise UserError(f"{key} has no effect on a fine-tuning: --epochs and a cosine without warm-up replace it; omit it")
    if not 1 <= epochs <= MAX_EPOCHS:
        raise UserError(f"--epochs must be from 1 to {MAX_EPOCHS}, got {epochs}")
    if lr is not None and not 0 < lr < float("inf"):
        raise UserError(f"--lr must be positive, got {lr}")
    if not fine_tuned(output) and (output / "config.json").exists():
        raise UserError(f"{output} contains a run that is not a fine-tuning; choose another -o")


def check_same_origin(output: FilePath, origin: dict, restart: bool) -> None:
    """Raise UserError if a folder holds the fine-tuning of another detector or of other weights, unless `restart` is set."""
    before = fine_tuned(output)
    if before and before != origin and not restart:
        which = f"{before['detector']} of {before['run']}"
        other = which if which != f"{origin['detector']} of {origin['run']}" else f"other weights of {which}"
        raise UserError(f"{output} contains the fine-tuning of {other}; choose another -o, or discard it with --restart")
