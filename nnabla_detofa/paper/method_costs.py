"""Cost of a method: from the ledgers of finished runs, or estimated from the time of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.compat import nn
from ..common.errors import UserError
from ..config import Config, DetofaHparams
from ..methods.build import make_cost, make_model
from ..runs.cost_ledger import KINDS, DeviceClock, totals
from ..runs.phases import training_phases
from ..space.paths import PathBatch
from ..tools.data_facts import DataFacts, data_facts
from ..tools.synthetic import SyntheticBatch, synthetic
from ..training.loop import OnePath, new_optimizer, train
from .run import detection_hparams

OVERHEAD = ("path evaluation", "path filter")
"""Kinds of work that only Algorithm 1 has. The paper counts lines 4 and 5 as overhead (section 4.2); we count lines 4 to 7.
Path pruning (lines 12 and 13) is part of the training time."""
COLUMNS = ("fullnet", "training", *OVERHEAD, "search's filter", "search")
ESTIMATED = "estimated "
EVALUATION_SHARE = 1 / 3
"""Time of evaluating an image, relative to a training step on it: a rule of thumb, one forward pass without the backward pass,
which costs two."""


@dataclass(frozen=True)
class Cost:
    """Cost of one method on one data set.

    Attributes:
        title: title of the method.
        experiment: name of the experiment.
        key: key of the data set.
        hours: hours by `cost_ledger.KINDS`.
        unit: unit of the hours, such as "core hours". It starts with `ESTIMATED` if they do not come from a run.
        spread: least and largest total of the seeds.
    """

    title: str
    experiment: str
    key: str
    hours: Mapping[str, float]
    unit: str
    spread: tuple[float, float]

    @property
    def estimated(self) -> bool:
        """Whether the hours are an estimate."""
        return self.unit.startswith(ESTIMATED)

    @property
    def total(self) -> float:
        """Hours that Table 2 counts: training, search and overhead, without the fullnet and the search's filter."""
        return self.counted(self.hours)

    @staticmethod
    def counted(hours: Mapping[str, float]) -> float:
        """Return the `total` of hours by kind."""
        return sum(hours[kind] for kind in ("training", "search", *OVERHEAD))

    @property
    def overhead(self) -> float:
        """Hours of lines 4 to 7, which only Algorithm 1 has."""
        return sum(self.hours[kind] for kind in OVERHEAD)

    @property
    def everything(self) -> float:
        """Hours of all columns, from the pre-trained weights to the subnets."""
        return sum(self.hours[kind] for kind in COLUMNS)


def cost_of_runs(title: str, experiment: str, key: str, ledgers: Sequence[Mapping]) -> Cost:
    """Return the mean cost of several runs.

    Args:
        title, experiment, key: see `Cost`.
        ledgers: content of ledger.json of the run of each seed.

    Raises:
        UserError: the ledgers have different units, because the runs used different kinds of devices.
    """
    units = sorted({in_hours(ledger["unit"]) for ledger in ledgers})
    if len(units) > 1:
        raise UserError(
            f"the runs of {title} count {' and '.join(units)}, which cannot be averaged: use seeds of one kind of device"
        )
    hours = [{kind: seconds / 3600 for kind, seconds in totals(ledger).items()} for ledger in ledgers]
    sums = [Cost.counted(one) for one in hours]
    return Cost(
        title,
        experiment,
        key,
        {kind: float(np.mean([one[kind] for one in hours])) for kind in KINDS},
        units[0],
        (min(sums), max(sums)),
    )


def in_hours(unit: str) -> str:
    """Convert the name of a unit of seconds to that of hours."""
    return unit.replace("seconds", "hours")


@dataclass(frozen=True)
class StepTime:
    """Time of a training step on this device, for one image.

    Attributes:
        seconds: seconds of one image, measured by the clock of the ledgers.
        flops: multiply-accumulates of the path that was trained.
        unit: unit of `seconds`.
    """

    seconds: float
    flops: int
    unit: str = "core seconds"

    @classmethod
    def measure(cls, config: Config, steps: int = 2) -> StepTime:
        """Measure training steps of the largest path of a config on one synthetic image; a first step is not counted."""
        facts = data_facts(config)
        model = make_model(config, facts.num_classes)
        cost = make_cost(config, facts.num_classes, config.dataloader.image_size)
        largest = model.space.largest
        phase, arrays = training_phases(config)[0], synthetic(config, facts.num_classes)
        optimizer = new_optimizer(model, phase.solver, phase.schedule(facts.train))
        clock = DeviceClock(nn.get_current_context().backend != ["cpu:float"])
        ends: list[float] = []
        inputs = [nn.Variable(array.shape) for array in arrays]
        batches: Any = SyntheticBatch(arrays)  # repeats one batch, with the methods of a loader that `train` uses
        path, timed = OnePath(largest), range(steps + 1)
        train(model, optimizer, path, batches, inputs, timed, on_step=lambda progress: ends.append(clock()))
        flops = cost.flops(PathBatch.from_paths([largest], model.space.geometry))
        return cls((ends[-1] - ends[0]) / steps, int(flops[0]), clock.unit)

    def of(self, flops: float, images: float) -> float:
        """Return the seconds of training paths of so many multiply-accumulates on so many images."""
        return self.seconds * flops / self.flops * images


def estimate(title: str, experiment: str, key: str, config: Config, step: StepTime, rng: np.random.Generator) -> Cost:
    """Estimate the cost of a config's run on the device of a measured step.

    Training costs epochs times images, at the mean FLOPs of 200 uniform paths of each phase's space. Evaluating a path costs a
    forward pass of its images for re-estimation and validation. Filter fitting and the search are omitted; the paper calls both
    negligible.

    Args:
        title, experiment, key: see `Cost`.
        config: config of the run.
        step: time of a training step.
        rng: samples the uniform paths.
    """
    facts = data_facts(config)
    cost = make_cost(config, facts.num_classes, config.dataloader.image_size)
    seconds = dict.fromkeys(KINDS, 0.0)
    for phase in training_phases(config):
        paths = PathBatch.from_paths([phase.space.largest], phase.space.geometry)
        paths = paths if phase.largest_only else phase.space.sample_many(rng, 200)
        images = len(phase.epochs) * phase.steps_per_epoch(facts.train) * phase.batch_size
        seconds["fullnet" if phase.largest_only else "training"] += step.of(float(cost.flops(paths).mean()), images)
    space = config.network.space
    middle = sum(cost.flops.extremes(space)) / 2  # the paths are evenly spread over the FLOPs buckets
    evaluation = EVALUATION_SHARE * step.of(middle, _evaluated_images(detection_hparams(config), facts))
    seconds["path evaluation"] = evaluation if config.method == "detofa" else 0.0
    seconds["search's filter"] = evaluation if config.method != "fullnet" else 0.0
    hours = {kind: value / 3600 for kind, value in seconds.items()}
    return Cost(title, experiment, key, hours, ESTIMATED + in_hours(step.unit), (0.0, 0.0))


def _evaluated_images(hparams: DetofaHparams, facts: DataFacts) -> int:
    """Return the number of images that evaluating the paths of all FLOPs buckets takes."""
    images = min(hparams.bn_images, facts.train) + min(hparams.val_images or facts.val, facts.val)
    return images * hparams.paths_per_bucket * hparams.buckets


@dataclass(frozen=True)
class StepCost:
    """Cost of a method in training steps of a reference method: a unit that hardly depends on the device.

    Attributes:
        title: title of the method.
        experiment: name of the experiment.
        steps: training steps of the method's own supernet, without the fullnet's.
        training: their time, in steps of the reference.
        overhead: time of lines 4 to 7, likewise.
        search: time of the search by path scores, likewise.
    """

    title: str
    experiment: str
    steps: int
    training: float
    overhead: float
    search: float

    @property
    def total(self) -> float:
        """Steps that Table 2 counts."""
        return self.training + self.overhead + self.search

    @classmethod
    def of(cls, cost: Cost, steps: int, step: float) -> StepCost:
        """Convert a method's hours.

        Args:
            cost: the hours.
            steps: training steps of the method's supernet.
            step: hours of a training step of the reference.
        """
        parts = (cost.hours["training"], cost.overhead, cost.hours["search"])
        return cls(cost.title, cost.experiment, steps, *(hours / step for hours in parts))


def steps_for_ratio(detofa: StepCost, shrinking: StepCost, ratio: float) -> float | None:
    """Return the training steps at which DetOFA costs `ratio` times as much as OFA (w/ PS).

    The steps of OFA (w/ PS) grow in proportion; overhead and search are constant. The result is None if no number of steps has
    that ratio, because the training of DetOFA alone costs at least `ratio` times as much as that of OFA (w/ PS).
    """
    gained = (ratio * shrinking.training - detofa.training) / detofa.steps  # with each step of DetOFA
    if gained <= 0:
        return None
    return max(0.0, (detofa.overhead + detofa.search - ratio * shrinking.search) / gained)
