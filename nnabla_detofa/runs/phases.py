"""Training phases of a run, derived from its config: search space, epochs, batch size, learning rates.

The runners train these phases and the dry run prints them, so the two cannot disagree. This module uses no networks and no
data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..common.checked import counted
from ..common.errors import UserError
from ..config import Config, DetofaHparams, PretrainHparams, Solver
from ..space.search_space import SearchSpace
from .schedule import Schedule

GIVEN = "start"
"""Name of the first phase of a pre-training without fullnet epochs."""
FINE_TUNED = "finetuned"
"""Name of the only detector in the folder of a fine-tuning, and of its phase."""
TUNING_PHASES = ("before", FINE_TUNED)
"""All phases of a fine-tuning."""


@dataclass(frozen=True)
class TrainingPhase:
    """One phase of training.

    Attributes:
        name: name in the run's log and folders.
        paths: description of the trained paths.
        space: search space that the paths are sampled from.
        epochs: epochs of the schedule that this phase covers.
        schedule_epochs: epochs of the whole schedule.
        solver: update rule and learning rates.
        batch_size: images per step, summed over all ranks.
        warmup_epochs: epochs of learning-rate warm-up in addition to the solver's `warmup_steps`.
        paths_per_step: number of paths whose gradients are summed before each update.
        kd_ratio: weight of the distillation from the fullnet; 0 disables it.
        sorted_ratios, sorted_widths: before this phase the middle channels of the bottlenecks are sorted by importance, within
            the groups of channels that paths of these expand ratios and widths, which are trained already, use. Without
            ratios the channels are not sorted.
        largest_only: train only the largest path.
        continues: name of the phase whose schedule, optimizer and sequence of batches this phase continues; empty: none.
        epoch_steps: steps of an epoch; None is as many as the training images fill.
    """

    name: str
    paths: str
    space: SearchSpace
    epochs: range
    schedule_epochs: int
    solver: Solver
    batch_size: int
    warmup_epochs: int = 0
    paths_per_step: int = 1
    kd_ratio: float = 0.0
    sorted_ratios: tuple[float, ...] = ()
    sorted_widths: tuple[float, ...] = (1.0,)
    largest_only: bool = False
    epoch_steps: int | None = None
    continues: str = ""

    @property
    def schedule_name(self) -> str:
        """Name of the first phase of this phase's schedule; phases of one schedule share one sequence of batches."""
        return self.continues or self.name

    def steps_per_epoch(self, images: int) -> int:
        """Return `epoch_steps`, or the steps per epoch over `images` training images; an incomplete last batch is dropped."""
        return self.epoch_steps or max(1, images // self.batch_size)

    def schedule(self, images: int) -> Schedule:
        """Return the learning-rate schedule for a training set of `images` images."""
        per_epoch = self.steps_per_epoch(images)
        return Schedule(
            base=self.solver.lr,
            kind=self.solver.schedule,
            steps=self.schedule_epochs * per_epoch,
            milestones=tuple(epoch * per_epoch for epoch in self.solver.milestones),
            gamma=self.solver.gamma,
            warmup_steps=self.solver.warmup_steps + self.warmup_epochs * per_epoch,
        )


def check_phases(training: Sequence[TrainingPhase], images: int) -> None:
    """Check training phases against the number of training images.

    Raises:
        UserError: a batch is larger than the training set, or a learning rate would still be rising at the end of its schedule.
    """
    for phase in training:
        if phase.batch_size > images:
            raise UserError(
                f"the batch_size of the phase {phase.name} must be at most the number of training images, {images}, got "
                f"{phase.batch_size}"
            )
        schedule = phase.schedule(images)
        if phase.epochs and schedule.warmup_steps > schedule.steps:
            epochs = counted(phase.schedule_epochs, "epoch")
            raise UserError(
                f"optimizer.train.warmup_steps must be at most the {schedule.steps} steps of the phase {phase.name} "
                f"({epochs} of {counted(phase.steps_per_epoch(images), 'step')}), got {schedule.warmup_steps}"
            )


def slug(name: str) -> str:
    """Convert the name of a phase to a file name."""
    return name.replace(" ", "_").replace("-", "_")


def training_phases(config: Config) -> tuple[TrainingPhase, ...]:
    """Return the training phases of a config's run, in order."""
    space = config.network.space
    if not isinstance(config.hparams, DetofaHparams):
        return _pretrain(config, config.hparams, space)
    return (_fullnet(config, space), *_supernet(config, config.hparams, space))


def phase_names(config: Config, training: Sequence[TrainingPhase]) -> tuple[str, ...]:
    """Return the names of all phases of a run, in order: its training phases and the phases between and after them.

    Args:
        config: config of the run.
        training: the result of `training_phases(config)`.
    """
    fullnet, *supernet = (phase.name for phase in training)
    if not isinstance(config.hparams, DetofaHparams):
        return (fullnet, *supernet, *(("paths", "path filter") if config.hparams.paths else ()))
    if not supernet:
        return (fullnet, "evaluation")
    if config.method == "detofa":
        warm_up, fine_tuning = supernet
        supernet = [warm_up, "paths", "path filter", "operation pruning", "path thresholds", fine_tuning]
    return (fullnet, *supernet, "paths again", "path filter again", "held-out paths", "search", "evaluation")


def _fullnet(config: Config, space: SearchSpace) -> TrainingPhase:
    hparams = config.hparams
    epochs = hparams.fullnet_epochs
    solver = config.optimizer.train
    return TrainingPhase(
        "fullnet",
        "the largest path",
        space,
        range(epochs),
        epochs,
        solver,
        hparams.batch_size,
        largest_only=True,
        epoch_steps=hparams.steps_per_epoch,
    )


def _supernet(config: Config, hparams: DetofaHparams, space: SearchSpace) -> tuple[TrainingPhase, ...]:
    """Return the phases that train the supernet: warm-up and fine-tuning share one schedule (Algorithm 1 and baselines).

    OFA with progressive shrinking trains the five spaces of Table A1 for the epochs of Table A2: 70, 5, 65, 5, 65, where 5 and
    65 are the paper's warm-up and fine-tuning. Stage 1 has its own schedule. The paper is silent on the others; we let stages
    2 and 3, and stages 4 and 5, share one. Channels are sorted as in OFA before a smaller E or W is trained
    (`hparams.shrinking_sort`). Without `hparams.shrinking_spaces`, all five stages train uniform paths of A for the same steps
    with the same restarts of the learning rate, and channels are not sorted.
    """
    solver, warm, total = config.optimizer.train, hparams.warmup_epochs, hparams.warmup_epochs + hparams.epochs

    def phase(name: str, paths: str, of: SearchSpace, epochs: range, continues: str = "", **sorting: Any) -> TrainingPhase:
        return TrainingPhase(
            name,
            paths,
            of,
            epochs,
            total,
            solver,
            hparams.batch_size,
            continues=continues,
            epoch_steps=hparams.steps_per_epoch,
            **sorting,
        )

    first, second, whole = range(warm), range(warm, total), range(total)
    runner = config.method
    if runner == "fullnet":
        return ()
    if runner == "ofa_ps":
        stages = list(config.network.shrinking_stages)
        names, parts = [stage.name for stage in stages], (whole, first, second, first, second)
        continued = ("", "", names[1], "", names[3])
        if not hparams.shrinking_spaces:
            stages = [space] * len(stages)
        sorts = hparams.shrinking_sort and hparams.shrinking_spaces
        sortings: list[dict[str, Any]] = [{}, *(_choices(before) if sorts else {} for before in stages[:-1])]
        return tuple(
            phase(name, f"uniform paths of {stage.name}", stage, epochs, before, **sorting)
            for name, stage, epochs, before, sorting in zip(names, stages, parts, continued, sortings)
        )
    if runner in ("ofa", "compofa"):
        trained = config.network.coupled_space if runner == "compofa" else space
        words = f"uniform paths of {trained.name}"
        return phase("warm-up", words, trained, first), phase("fine-tuning", words, trained, second, "warm-up")
    kept = {
        "score": f"paths of the pruned space that g(a) keeps (r_path {hparams.r_path:g})",
        "uniform": f"paths of the pruned space but for a fixed random share (r_path {hparams.r_path:g})",
        "none": "uniform paths of the pruned space",
    }[hparams.path_pruning]
    return phase("warm-up", "uniform paths of A", space, first), phase("fine-tuning", kept, space, second, "warm-up")


def _choices(stage: SearchSpace) -> dict[str, tuple[float, ...]]:
    """Return the widths and ratios trained by a stage of progressive shrinking, as keyword arguments of `TrainingPhase`."""
    pairs = stage.pairs[0]  # (depth, width) -> ratios, equal in all stages of the network
    return {"sorted_widths": tuple(sorted({width for _, width in pairs})), "sorted_ratios": tuple(next(iter(pairs.values())))}


def _pretrain(config: Config, hparams: PretrainHparams, space: SearchSpace) -> tuple[TrainingPhase, ...]:
    """Return the phases of a pre-training: the fullnet, then either uniform paths of the space A or progressive shrinking.

    Without fullnet epochs the first phase is named `GIVEN`: the weights that it saves for the teacher are the initial ones and
    must not be mistaken for a trained fullnet.
    """
    solver, fullnet = config.optimizer.train, _fullnet(config, space)
    if not hparams.fullnet_epochs:
        fullnet = dataclasses.replace(fullnet, name=GIVEN, paths="none: the weights that the supernet starts from")
    if not hparams.shrinking:
        uniform = TrainingPhase(
            "supernet",
            "uniform paths of A",
            space,
            range(hparams.epochs),
            hparams.epochs,
            solver,
            hparams.batch_size,
            kd_ratio=hparams.kd_ratio,
            epoch_steps=hparams.steps_per_epoch,
        )
        return fullnet, uniform
    phases = [fullnet]
    trained: tuple[float, ...] = (max(space.geometry.ratios),)
    for part in hparams.shrinking:
        words = f"uniform paths of D {list(part.depths)} x W {list(part.widths)} x E {list(part.ratios)}"
        phases.append(
            TrainingPhase(
                part.name,
                words,
                config.network.part(part.name, part.depths, part.widths, part.ratios),
                range(part.epochs),
                part.epochs,
                dataclasses.replace(solver, lr=part.lr or solver.lr, warmup_steps=0),
                part.batch_size or hparams.batch_size,
                part.warmup_epochs,
                part.paths_per_step,
                hparams.kd_ratio,
                trained if part.sort_channels else (),
                epoch_steps=hparams.steps_per_epoch,
            )
        )
        trained = part.ratios
    return tuple(phases)


def tuning_phase(config: Config, space: SearchSpace) -> TrainingPhase:
    """Return the only phase of a fine-tuning with this config."""
    hparams, solver = config.hparams, config.optimizer.train
    epochs, steps = hparams.epochs, hparams.steps_per_epoch
    return TrainingPhase(
        FINE_TUNED,
        "the found path alone",
        space,
        range(epochs),
        epochs,
        solver,
        hparams.batch_size,
        epoch_steps=steps,
    )
