"""Table 2: what each method costs, from the ledgers of finished runs, or estimated from the time of a training step."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np

from ..backend.compat import nn
from ..common.errors import UserError
from ..common.files import whole_text
from ..config import Config
from ..methods.build import make_cost, make_model
from ..runs.cost_ledger import KINDS, DeviceClock, totals
from ..runs.phases import training_phases
from ..space.costs import CostModel
from ..space.paths import PathBatch
from ..space.search_space import ofa_resnet50
from ..tools.data_facts import DataFacts, data_facts
from ..tools.report import markdown_row
from ..tools.synthetic import SyntheticBatch, synthetic
from ..training.loop import OnePath, new_optimizer, train

PAPER = {
    "ofa-ps": {"voc": (1.150, None), "coco": (14.41, None)},
    "ofa": {"voc": (0.383, None), "coco": (4.804, None)},
    "compofa": {"voc": (0.383, None), "coco": (4.804, None)},
    "detofa": {"voc": (0.800, 0.414), "coco": (5.260, 0.456)},
}
"""Experiment -> data set -> GPU days in all, and overhead of them (Table 2)."""
PAPER_SETS = {"voc": "Pascal VOC", "coco": "COCO"}
OVERHEAD = ("path evaluation", "path filter")
"""What the paper says that ours costs beyond OFA: lines 4 and 5 of Algorithm 1 (section 4.2), and here lines 6 and 7."""
COLUMNS = ("fullnet", "training", *OVERHEAD, "search's filter", "search")
ESTIMATED = "estimated "
EVALUATION_SHARE = 1 / 3
"""Of a training step's time that the same images cost in evaluation: a rule of thumb, one pass forward without the two that
the backward pass amounts to."""


@dataclass(frozen=True)
class Cost:
    """What one method costs on one data set.

    Attributes:
        title: of the method. experiment, key: its names, for the paper's numbers.
        hours: of each of `ledger.KINDS`.
        unit: of the hours, such as "core hours"; it begins with `ESTIMATED` where they are from a step's time, not from a run.
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
        """Not from a run."""
        return self.unit.startswith(ESTIMATED)

    @property
    def total(self) -> float:
        """What Table 2 counts: training and search, and the overhead; not the fullnet, nor the filter of the search."""
        return self.counted(self.hours)

    @staticmethod
    def counted(hours: Mapping[str, float]) -> float:
        """`total` of such hours."""
        return sum(hours[kind] for kind in ("training", "search", *OVERHEAD))

    @property
    def overhead(self) -> float:
        """Of lines 4 to 7, which only Algorithm 1 has."""
        return sum(self.hours[kind] for kind in OVERHEAD)

    @property
    def everything(self) -> float:
        """All columns together: from the pre-trained weights to the subnets."""
        return sum(self.hours[kind] for kind in COLUMNS)


def cost_of_runs(title: str, experiment: str, key: str, ledgers: Sequence[Mapping]) -> Cost:
    """The mean of the runs' ledgers, one for each seed.

    Raises:
        UserError: they are in different units, as those of a GPU and of a CPU are.
    """
    units = sorted({in_hours(ledger["unit"]) for ledger in ledgers})
    if len(units) > 1:
        raise UserError(f"the runs of {title} count {' and '.join(units)}, which have no mean: ask for seeds of one device")
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
    """The unit of hours that belongs to one of seconds."""
    return unit.replace("seconds", "hours")


@dataclass(frozen=True)
class StepTime:
    """Seconds of this device for one image of a training step, for each multiply-accumulate of the path.

    Attributes:
        seconds: measured, by the clock of a run's ledger. flops: of the path that it was measured on.
        unit: of the seconds.
    """

    seconds: float
    flops: int
    unit: str = "core seconds"

    @classmethod
    def measure(cls, config: Config, steps: int = 2) -> StepTime:
        """Steps of the largest path of the config's own network, on one synthetic image; the first is not counted."""
        facts = data_facts(config)
        model = make_model(config, facts.num_classes)
        cost = make_cost(config, facts.num_classes, config.dataloader.image_size)
        largest = model.space.largest
        phase, arrays = training_phases(config)[0], synthetic(config, facts.num_classes)
        optimizer = new_optimizer(model, phase.solver, phase.schedule(facts.train))
        clock = DeviceClock(nn.get_current_context().backend != ["cpu:float"])
        ends: list[float] = []
        inputs = [nn.Variable(array.shape) for array in arrays]
        steps_range = range(steps + 1)
        train(
            model, optimizer, OnePath(largest), SyntheticBatch(arrays), inputs, steps_range,
            on_step=lambda progress: ends.append(clock()),
        )  # fmt: skip
        flops = cost.flops(PathBatch.from_paths([largest], model.space.geometry))
        return cls((ends[-1] - ends[0]) / steps, int(flops[0]), clock.unit)

    def of(self, flops: float, images: float) -> float:
        """Seconds of training on so many images, paths of so many multiply-accumulates."""
        return self.seconds * flops / self.flops * images


def estimate(title: str, experiment: str, key: str, config: Config, step: StepTime, rng: np.random.Generator) -> Cost:
    """What a run of the config would cost on the device of the step.

    Training: epochs times images, at the mean FLOPs of 200 uniform paths of a phase's space. Evaluating a path: its images for
    re-estimation and for the loss, forward only. Fitting a filter and searching by its scores are left out: both are negligible
    in the paper.
    """
    facts = data_facts(config)
    cost = make_cost(config, facts.num_classes, config.dataloader.image_size)
    seconds = dict.fromkeys(KINDS, 0.0)
    for phase in training_phases(config):
        paths = PathBatch.from_paths([phase.space.largest], phase.space.geometry)
        paths = paths if phase.largest_only else phase.space.sample_many(rng, 200)
        images = len(phase.epochs) * phase.steps_per_epoch(facts.train) * phase.batch_size
        seconds["fullnet" if phase.largest_only else "training"] += step.of(float(cost.flops(paths).mean()), images)
    evaluation = _evaluation(config, facts, cost, step)
    seconds["path evaluation"] = evaluation if config.args.runner == "detofa" else 0.0
    seconds["search's filter"] = evaluation if config.args.runner != "fullnet" else 0.0
    hours = {kind: value / 3600 for kind, value in seconds.items()}
    return Cost(title, experiment, key, hours, ESTIMATED + in_hours(step.unit), (0.0, 0.0))


def _evaluation(config: Config, facts: DataFacts, cost: CostModel, step: StepTime) -> float:
    """Seconds of evaluating m paths of each FLOPs bucket: on average in the middle of the buckets."""
    hparams = config.hparams
    space = ofa_resnet50(config.network.geometry, config.network.elastic_stem)
    middle = sum(cost.flops.extremes(space)) / 2
    images = min(hparams.bn_images, facts.train) + min(hparams.val_images or facts.val, facts.val)
    return EVALUATION_SHARE * step.of(middle, images * hparams.paths_per_bucket * hparams.buckets)


def table(costs: Sequence[Cost], paper_sets: Sequence[str]) -> list[str]:
    """Markdown lines: the paper's numbers of some of its data sets, and ours."""
    of_shrinking = "of OFA (w/ PS)"
    units = " or ".join(dict.fromkeys(cost.unit for cost in costs))
    header = [
        "method",
        *(part for key in paper_sets for part in (f"paper's GPU days, {PAPER_SETS[key]} (overhead)", f"paper: {of_shrinking}")),
        *(*COLUMNS, f"total [{units}]", "overhead", of_shrinking, "all columns"),
    ]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * (len(header) - 1))]
    reference = next((cost for cost in costs if cost.experiment == "ofa-ps"), None)
    for cost in costs:
        paper = []
        for key in paper_sets:
            days, overhead = PAPER[cost.experiment][key]
            share = days / PAPER["ofa-ps"][key][0]
            paper += [f"{days:.3f}" + (f" ({overhead:.3f})" if overhead else ""), f"{share:.2f}"]
        left_out = ("search", *(["path filter"] if cost.hours["path evaluation"] else [])) if cost.estimated else ()
        parts = ["-" if kind in left_out else _hours(cost.hours[kind]) for kind in COLUMNS]
        low, high = cost.spread
        total = _hours(cost.total) + (f" ({_hours(low)} to {_hours(high)})" if high > low else "")
        alike = reference is not None and reference.unit == cost.unit  # an estimate and a run are of different devices
        ours = f"{cost.total / reference.total:.2f}" if alike else "-"
        title = cost.title + (" (ESTIMATE)" if cost.estimated else "")
        ends = [total, _hours(cost.overhead), ours, _hours(cost.everything)]
        lines.append(markdown_row([title, *paper, *parts, *ends]))
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:.3g}"


def write_csv(file: FilePath, costs: Sequence[Cost]) -> None:
    """One line for each method and data set, in hours."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["data set", "method", "unit", *KINDS, "total"])
        for cost in costs:
            hours = [f"{cost.hours[kind]:.5g}" for kind in KINDS]
            writer.writerow([cost.key, cost.title, cost.unit, *hours, f"{cost.total:.5g}"])


# --- Costs in training steps ------------------------------------------------------------------------------------------

PAPER_RATIO = 0.70
"""Ours of OFA (w/ PS) on Pascal VOC (Table 2)."""


@dataclass(frozen=True)
class StepCost:
    """A method's cost in steps of its own supernet's training (ours): it does not depend on how fast the device is.

    Attributes:
        title: of the method. experiment: its name.
        steps: of the supernet, without the fullnet's.
        overhead: of lines 4 to 7. search: by path scores. Both in steps' worth of time.
    """

    title: str
    experiment: str
    steps: int
    overhead: float
    search: float

    @property
    def total(self) -> float:
        """What Table 2 counts."""
        return self.steps + self.overhead + self.search

    @classmethod
    def of(cls, cost: Cost, steps: int) -> StepCost:
        """The hours of a method, in steps.

        Raises:
            UserError: they have no time of training.
        """
        if not cost.hours["training"]:
            raise UserError(f"the ledger of {cost.title} has no time of training, in whose steps its costs could be told")
        step = cost.hours["training"] / steps
        return cls(cost.title, cost.experiment, steps, cost.overhead / step, cost.hours["search"] / step)


def steps_for_ratio(ours: StepCost, shrinking: StepCost, ratio: float = PAPER_RATIO) -> float | None:
    """At how many steps of ours its total is this share of that of OFA (w/ PS), whose steps grow with them.

    The overhead and the searches stay as they are, whatever the length. None where no length has that ratio: OFA (w/ PS)
    then does not train for more than 1 / ratio times the steps.
    """
    times = shrinking.steps / ours.steps
    if ratio * times <= 1:
        return None
    return max(0.0, (ours.overhead + ours.search - ratio * shrinking.search) / (ratio * times - 1))


def step_table(costs: Sequence[StepCost]) -> list[str]:
    """Markdown lines: steps, what else costs in steps, and the ratio to OFA (w/ PS), with the length that the paper's needs."""
    reference = next((cost for cost in costs if cost.experiment == "ofa-ps"), None)
    header = ["method", "training steps", "lines 4 to 7", "search", "total, in training steps", "of OFA (w/ PS)"]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * 5)]
    for cost in costs:
        share = f"{cost.total / reference.total:.2f}" if reference else "-"
        parts = [str(cost.steps), *(f"{value:.0f}" for value in (cost.overhead, cost.search, cost.total)), share]
        lines.append(markdown_row([cost.title, *parts]))
    ours = next((cost for cost in costs if cost.experiment == "detofa"), None)
    if ours and reference:
        needed = steps_for_ratio(ours, reference)
        length = "at no length" if needed is None else f"where ours trains for {needed:,.0f} steps, here {ours.steps:,}"
        lines += ["", f"The paper's ratio on Pascal VOC, {PAPER_RATIO:.2f}, is reached {length}: the overhead does not grow."]
    return lines
