"""Table 2: the cost of each method."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from ..common.files import whole_text
from ..common.progress import ProgressBar
from ..common.seeds import rng_for
from ..runs.cost_ledger import KINDS
from ..runs.phases import phase_names, training_phases
from ..tools.report import markdown_row
from .experiments import Experiment, left_out, methods_of
from .method_costs import COLUMNS, Cost, StepCost, StepTime, cost_of_runs, estimate, steps_for_ratio
from .profiles import DataSet
from .run import Run
from .run_results import ledger_of, runs_and_code, supernet_steps
from .target import PAPER_DATA_SETS, Request, Target, csv_file, write_markdown

PAPER: dict[str, dict[str, tuple[float, float | None]]] = {
    "ofa-ps": {"voc": (1.150, None), "coco": (14.41, None)},
    "ofa": {"voc": (0.383, None), "coco": (4.804, None)},
    "compofa": {"voc": (0.383, None), "coco": (4.804, None)},
    "detofa": {"voc": (0.800, 0.414), "coco": (5.260, 0.456)},
}
"""Experiment -> data set -> GPU days in total, and overhead among them."""
PAPER_RATIO = 0.70
"""Cost of DetOFA relative to OFA (w/ PS) on Pascal VOC."""
TO_SHRINKING = "ratio to OFA (w/ PS)"


@dataclass
class Collected:
    """Costs of all methods and data sets, with what the notes need.

    Attributes:
        costs: cost of each method and data set.
        steps: time of a training step by data set, if costs are estimated.
        finished: runs whose ledgers are used.
        incomplete: methods with fewer finished runs than seeds, in words.
        lost: phases that are missing in ledgers, in words.
    """

    costs: list[Cost] = field(default_factory=list)
    steps: dict[str, StepTime] = field(default_factory=dict)
    finished: list[Run] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, request: Request, experiment: Experiment, key: str, data_set: DataSet, runs: Sequence[Run]) -> None:
        """Add the cost of a method on a data set: from its finished runs, or an estimate if there are none."""
        own = [run for run in runs if run.key == key and run.experiment.name == experiment.name]
        done = [run for run in own if run.finished]
        if done:
            ledgers = [ledger_of(run) for run in done]
            self.finished += done
            self.lost += filter(None, map(missing_phases, done, ledgers))
            if len(done) < request.seeds:
                self.incomplete.append(f"{len(done)} of {request.seeds} of {experiment.title} on {data_set.title}")
            self.costs.append(cost_of_runs(experiment.title, experiment.name, key, ledgers))
            return
        if key not in self.steps:
            ProgressBar.write(f"measuring a training step of the largest path on {data_set.title}: at most two minutes")
            self.steps[key] = StepTime.measure(own[0].config)
        rng = rng_for(0, f"estimate {key}")
        self.costs.append(estimate(experiment.title, experiment.name, key, own[0].config, self.steps[key], rng))


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Table 2 from the ledgers of finished runs; methods without one are estimated from a training step."""
    found, lines = Collected(), []
    for key, data_set in request.profile.chosen(target.keys).items():
        for experiment in methods_of(request.profile):
            found.add(request, experiment, key, data_set, runs)
        costs = [cost for cost in found.costs if cost.key == key]
        paper_sets = [key] if data_set.title == PAPER_DATA_SETS.get(key) else [*PAPER_DATA_SETS]
        lines += [f"## {data_set.title}", "", *table(costs, paper_sets), ""]
        if in_steps := step_costs(costs, [run for run in found.finished if run.key == key]):
            lines += [f"In training steps of {in_steps[0].title}, whose time is the unit:", "", *step_table(in_steps), ""]
    write_csv(csv_file(request, target), found.costs)
    return write_markdown(request, target, [*lines, *notes(request, found)])


def step_costs(costs: Sequence[Cost], runs: Sequence[Run]) -> list[StepCost]:
    """Convert the costs of finished runs to training steps of OFA (w/ PS), or else of the first method.

    Methods whose number of steps is unknown, or that were timed on another kind of device, are omitted; the reference is first.
    """
    steps = {run.experiment.name: supernet_steps(run) for run in runs}
    known = [(cost, count) for cost in costs if cost.hours["training"] and (count := steps.get(cost.experiment))]
    if not known:
        return []
    known.sort(key=lambda item: item[0].experiment != "ofa-ps")
    reference, count = known[0]
    step = reference.hours["training"] / count
    return [StepCost.of(cost, own, step) for cost, own in known if cost.unit == reference.unit]


def missing_phases(run: Run, ledger: Mapping) -> str:
    """Describe the phases of a finished run that its ledger lacks; empty if there are none."""
    phases = [name for name in phase_names(run.config, training_phases(run.config)) if name not in ledger["phases"]]
    return f"{run.name} lacks {', '.join(phases)}" if phases else ""


def table(costs: Sequence[Cost], paper_sets: Sequence[str]) -> list[str]:
    """Return the Markdown table of the costs on one data set.

    Args:
        costs: cost of each method.
        paper_sets: keys of the paper's data sets whose numbers are shown.
    """
    units = " or ".join(dict.fromkeys(cost.unit for cost in costs))
    header = ["method"]
    for key in paper_sets:
        header += [f"paper's GPU days, {PAPER_DATA_SETS[key]} (overhead)", f"paper: {TO_SHRINKING}"]
    header += [*COLUMNS, f"total [{units}]", "overhead", TO_SHRINKING, "all columns"]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * (len(header) - 1))]
    reference = next((cost for cost in costs if cost.experiment == "ofa-ps"), None)
    return lines + [_row(cost, reference, paper_sets) for cost in costs]


def _row(cost: Cost, reference: Cost | None, paper_sets: Sequence[str]) -> str:
    """Return the Markdown row of a method; `reference` is OFA (w/ PS)."""
    paper = []
    for key in paper_sets:
        days, overhead = PAPER[cost.experiment][key]
        share = days / PAPER["ofa-ps"][key][0]
        paper += [f"{days:.3f}" + (f" ({overhead:.3f})" if overhead else ""), f"{share:.2f}"]
    omitted = ("search", *(["path filter"] if cost.hours["path evaluation"] else [])) if cost.estimated else ()
    parts = ["-" if kind in omitted else _hours(cost.hours[kind]) for kind in COLUMNS]
    low, high = cost.spread
    total = _hours(cost.total) + (f" ({_hours(low)} to {_hours(high)})" if high > low else "")
    comparable = reference is not None and reference.unit == cost.unit  # an estimate and a run used different devices
    ratio = f"{cost.total / reference.total:.2f}" if reference and comparable else "-"
    title = cost.title + (" (ESTIMATE)" if cost.estimated else "")
    return markdown_row([title, *paper, *parts, total, _hours(cost.overhead), ratio, _hours(cost.everything)])


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:.3g}"


def step_table(costs: Sequence[StepCost]) -> list[str]:
    """Return Markdown lines: the costs in training steps, and the training length at which the paper's ratio is reached."""
    reference = next((cost for cost in costs if cost.experiment == "ofa-ps"), None)
    header = ["method", "number of training steps", "training", "lines 4 to 7", "search", "total", TO_SHRINKING]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * 6)]
    for cost in costs:
        ratio = f"{cost.total / reference.total:.2f}" if reference else "-"
        parts = [str(cost.steps), *(f"{value:.0f}" for value in (cost.training, cost.overhead, cost.search, cost.total)), ratio]
        lines.append(markdown_row([cost.title, *parts]))
    detofa = next((cost for cost in costs if cost.experiment == "detofa"), None)
    if detofa and reference:
        needed = steps_for_ratio(detofa, reference, PAPER_RATIO)
        length = "is not reached at any length" if needed is None else f"would be reached with {needed:,.0f} training steps"
        lines += [
            "",
            f"Because the overhead does not grow with the training length, the paper's ratio on Pascal VOC, {PAPER_RATIO:.2f}, "
            f"{length} of DetOFA; here it trains for {detofa.steps:,}.",
        ]
    return lines


def notes(request: Request, found: Collected) -> list[str]:
    """Return the Markdown lines below the tables."""
    missing = left_out(request.profile)
    lines = [missing, ""] if missing else []
    if found.incomplete:
        lines += [f"Seeds without a finished run: {'; '.join(found.incomplete)}.", ""]
    if found.lost:
        lines += [f"The costs are too low where a run's ledger lacks phases: {'; '.join(found.lost)}.", ""]
    if found.steps:
        data_sets = request.profile.data_sets
        times = (f"{step.seconds:.3g} {step.unit} per image of {data_sets[key].title}" for key, step in found.steps.items())
        lines += [
            "An ESTIMATE is not a run. It is the time of a training step of the largest path on this machine "
            f"({', '.join(times)}), times the images of all epochs and the mean FLOPs of the paths of each phase's space "
            "(for DetOFA, without pruning). The evaluation of a path is estimated as a third of a training step for each "
            "image, a rule of thumb. Filter fitting and the search are not estimated and not part of any sum. The ratios are "
            "more meaningful than the hours. No ratio of an estimate and a run is given.",
            "",
        ]
    lines += [
        "The paper's 0.383 and 1.150 GPU days have the ratio of 70 to 210 epochs: they omit the 70 epochs of the fullnet and "
        "the work for a search. The total here is accordingly the sum of training, the search by path scores (with the "
        "validation losses of the best path of each bucket) and, for DetOFA, the overhead: lines 4 to 7 of Algorithm 1 (in "
        "section 4.2 of the paper, lines 4 and 5). It omits the fullnet and the search's filter (section 3.3) with the "
        "evaluation of the paths that it is fitted to, which every method needs here. The evaluation of the fullnet's AP is "
        "part of the column fullnet. The evaluation of the subnets' AP and of the held-out paths, which only the tables need, "
        "is not counted. A run that branched off another one includes the time of the phases that they share.",
    ]
    if found.finished:
        over = "Runs, of which the costs are means over the seeds" if len({run.seed for run in found.finished}) > 1 else "Runs"
        lines += ["", f"{over}: {runs_and_code(found.finished)}."]
    return lines


def write_csv(file: FilePath, costs: Sequence[Cost]) -> None:
    """Write one row for each method and data set, in hours."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["data set", "method", "unit", *KINDS, "total"])
        for cost in costs:
            hours = [f"{cost.hours[kind]:.5g}" for kind in KINDS]
            writer.writerow([cost.key, cost.title, cost.unit, *hours, f"{cost.total:.5g}"])


TARGET = Target(
    "table2",
    "Table 2: cost of each method",
    ("voc", "coco"),
    methods_of,
    write,
    paper="DetOFA costs 30% less than OFA (w/ PS) on Pascal VOC, and 63% less on COCO.",
    runs="optional",
)
