"""The training phases of a run, as a config says them: what is trained for how long, on what, at which rates.

The runners train by these, and the dry run prints them: both ask here, so they cannot disagree. No networks, no data.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ..config import Config, DetofaHparams, PretrainHparams, Solver
from ..space.search_space import SearchSpace, compofa, ofa_resnet50, product_space, shrinking_stages

GIVEN = "start"
"""The first phase of a pre-training that trains no fullnet."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step; NNablaNAS' Optimizer asks it by `get_learning_rate`.

    Attributes:
        base: the learning rate before any decay.
        kind: "step" (times `gamma` at each milestone), "cosine" (to 0 at the last step) or "constant".
        steps: steps of the whole schedule.
        milestones: steps at which "step" decays.
        warmup_steps: the rate climbs linearly from 0 to `base` over this many steps.
    """

    base: float
    kind: str
    steps: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_steps: int = 0

    def get_learning_rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        rate = self.base * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.base
        if self.kind == "step":
            return rate * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "cosine":
            return rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return rate


@dataclass(frozen=True)
class TrainingPhase:
    """One phase of training.

    Attributes:
        name: what the run's log and folders call it.
        paths: which paths it trains, in words.
        space: the space they are drawn from.
        epochs: the part of the schedule that this phase is.
        schedule_epochs: epochs of the whole schedule.
        solver: update rule and rates.
        batch_size: images of one step, over all ranks.
        warmup_epochs: added to the solver's own `warmup_steps`.
        paths_per_step: paths whose gradients are added before each update.
        kd_ratio: weight of the distillation from the fullnet; 0 is none.
        sorted_ratios: before this phase the bottlenecks' middle channels are sorted by importance, within the groups that
            paths of these expand ratios use, which are trained already; empty: they are not.
        largest_only: the largest path alone is trained.
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
    largest_only: bool = False

    def steps_per_epoch(self, images: int) -> int:
        """Steps of an epoch over `images` training images: a batch that they do not fill is left out."""
        return max(1, images // self.batch_size)

    def schedule(self, images: int) -> Schedule:
        """The learning rate of each step, for a training set of `images`."""
        per_epoch = self.steps_per_epoch(images)
        return Schedule(
            base=self.solver.lr,
            kind=self.solver.schedule,
            steps=self.schedule_epochs * per_epoch,
            milestones=tuple(epoch * per_epoch for epoch in self.solver.milestones),
            gamma=self.solver.gamma,
            warmup_steps=self.solver.warmup_steps + self.warmup_epochs * per_epoch,
        )


def training_phases(config: Config) -> tuple[TrainingPhase, ...]:
    """The training phases of the run that a config describes, in their order."""
    space = ofa_resnet50(config.network.geometry, config.network.elastic_stem)
    if not isinstance(config.hparams, DetofaHparams):
        return _pretrain(config, config.hparams, space)
    return (_fullnet(config, space), *_supernet(config, config.hparams, space))


def phase_names(config: Config) -> tuple[str, ...]:
    """All phases of the run that a config describes, in their order: those of `training_phases`, and what is between them."""
    fullnet, *supernet = (phase.name for phase in training_phases(config))
    if not isinstance(config.hparams, DetofaHparams):
        return (fullnet, *supernet, *(("paths", "path filter") if config.hparams.paths else ()))
    if not supernet:
        return (fullnet, "evaluation")
    if config.args.runner == "detofa":
        warm_up, fine_tuning = supernet
        supernet = [warm_up, "paths", "path filter", "operation pruning", "path thresholds", fine_tuning]
    return (fullnet, *supernet, "paths again", "path filter again", "held-out paths", "search", "evaluation")


def _fullnet(config: Config, space: SearchSpace) -> TrainingPhase:
    hparams = config.hparams
    epochs = hparams.fullnet_epochs
    solver = config.optimizer.train
    return TrainingPhase(
        "fullnet", "the largest path", space, range(epochs), epochs, solver, hparams.batch_size, largest_only=True
    )


def _supernet(config: Config, hparams: DetofaHparams, space: SearchSpace) -> tuple[TrainingPhase, ...]:
    """What trains all paths: warm-up and fine-tuning are two parts of one schedule, for Algorithm 1 and its baselines.

    OFA with progressive shrinking has Table A2's epochs for the five spaces of Table A1: 70, 5, 65, 5, 65, where 5 and 65 are
    the paper's warm-up and fine-tuning. Stage 1 is a schedule of its own, and (paper is silent) stages 2 and 3, and 4 and 5,
    are the two parts of one.
    """
    solver, warm, total = config.optimizer.train, hparams.warmup_epochs, hparams.warmup_epochs + hparams.epochs

    def phase(name: str, paths: str, of: SearchSpace, epochs: range) -> TrainingPhase:
        return TrainingPhase(name, paths, of, epochs, total, solver, hparams.batch_size)

    first, second, whole = range(warm), range(warm, total), range(total)
    runner, stem = config.args.runner, config.network.elastic_stem
    if runner == "fullnet":
        return ()
    if runner == "ofa_ps":
        stages = zip(shrinking_stages(space.geometry, stem), (whole, first, second, first, second))
        return tuple(phase(stage.name, f"uniform paths of {stage.name}", stage, epochs) for stage, epochs in stages)
    if runner in ("ofa", "compofa"):
        trained = compofa(space.geometry, stem) if runner == "compofa" else space
        words = f"uniform paths of {trained.name}"
        return phase("warm-up", words, trained, first), phase("fine-tuning", words, trained, second)
    kept = {
        "score": f"paths of the pruned space that g(a) keeps (r_path {hparams.r_path:g})",
        "uniform": f"paths of the pruned space but for a fixed random share (r_path {hparams.r_path:g})",
        "none": "uniform paths of the pruned space",
    }[hparams.path_pruning]
    return phase("warm-up", "uniform paths of A", space, first), phase("fine-tuning", kept, space, second)


def _pretrain(config: Config, hparams: PretrainHparams, space: SearchSpace) -> tuple[TrainingPhase, ...]:
    """The fullnet, then either uniform paths of A or the phases of progressive shrinking.

    Without epochs for it the first phase has another name: the weights that it keeps, as those of a teacher, are the given
    ones, and nobody is to take them for a fullnet's.
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
        )
        return fullnet, uniform
    geometry, stem = config.network.geometry, config.network.elastic_stem
    phases, trained = [fullnet], (max(geometry.ratios),)
    for part in hparams.shrinking:
        words = f"uniform paths of D {list(part.depths)} x W {list(part.widths)} x E {list(part.ratios)}"
        phases.append(
            TrainingPhase(
                part.name,
                words,
                product_space(part.name, part.depths, part.widths, part.ratios, geometry, stem),
                range(part.epochs),
                part.epochs,
                dataclasses.replace(solver, lr=part.lr or solver.lr, warmup_steps=0),
                part.batch_size or hparams.batch_size,
                part.warmup_epochs,
                part.paths_per_step,
                hparams.kd_ratio,
                trained if part.sort_channels else (),
            )
        )
        trained = part.ratios
    return tuple(phases)


def slug(name: str) -> str:
    """A phase's name as a file's."""
    return name.replace(" ", "_").replace("-", "_")
