"""The paper's claims C1 to C8, each as numbers with an interval over seeds and a verdict (ours).

Every number is made of runs that are there; none is started. The verdict's rule is `intervals.verdict`, with the direction that
the paper claims and a margin below which a difference counts as none. A number of fewer than two seeds is not decidable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.errors import UserError
from ..common.files import write_json, write_text
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.metrics import weakest
from ..runs import result_files
from ..runs.run_folder import points, read_result
from ..tools.report import markdown_row
from . import table2
from .controls import training_gain
from .experiments import (
    COMPOFA,
    DETOFA,
    OFA,
    OFA_PS,
    PATH_PRUNINGS,
    PRETRAININGS,
    STRATEGIES,
    Experiment,
    operation_ratios,
    path_ratios,
)
from .intervals import Direction, Values, verdict
from .profiles import Profile
from .run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AP_MARGIN = 0.5
"""Points of AP below which a difference counts as none: less than the least of the paper's own, 0.45 on COCO, needs more runs
than these; 0.85 on Pascal VOC does not."""
PRECISION_MARGIN = 0.05
MAX_SEEDS = 20


@dataclass(frozen=True)
class Number:
    """One number of a claim.

    Attributes:
        name: what it is, such as "ours above OFA (w/o PS)".
        paper: the paper's number, in words.
        values: one for each of the seeds.
        direction, no_effect, margin: see `intervals.verdict`.
        seeds: of the values.
        unit: of the values.
    """

    name: str
    paper: str
    values: Values
    direction: Direction = "above"
    no_effect: float = 0.0
    margin: float = AP_MARGIN
    seeds: tuple[int, ...] = ()
    unit: str = "points of AP"

    @property
    def verdict(self) -> str:
        return verdict(self.values.interval, self.direction, self.no_effect, self.margin)

    def to_json(self, claim: str) -> dict:
        """An entry of claims.json; the interval is null where one seed gives none."""
        interval = self.values.interval
        return {
            "claim": f"{claim}: {self.name}",
            "paper": self.paper,
            "values": [round(value, 4) for value in self.values.values],
            "mean": round(self.values.mean, 4) if self.values.values else None,
            "interval": interval and [round(end, 4) for end in interval],
            "verdict": self.verdict,
            "direction": self.direction,
            "no_effect": self.no_effect,
            "margin": self.margin,
            "unit": self.unit,
            "seeds": list(self.seeds),
        }


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims.

    Attributes:
        name: "C1" to "C8". text: the claim. where: its place in the paper. make: the numbers, of what there is.
    """

    name: str
    text: str
    where: str
    make: Callable[[Evidence], Sequence[Number]]


@dataclass(eq=False)
class Evidence:
    """What there is of a profile's runs, on its one data set.

    Attributes:
        summary_of: (run) -> its summary. steps_of: (run) -> training steps of its supernet, None where they are not known.
        precisions_of: (run) -> Table 3's rows in the paper's order -> (fits,) precision; empty without a filter study.
        controls_of: (experiment) -> what `controls.evidence_of` has for the runs whose controls were measured.
        used: the runs that were looked at, by their names.
    """

    profile: Profile
    key: str
    overrides: tuple[str, ...]
    summary_of: Callable[[Run], dict]
    steps_of: Callable[[Run], int | None]
    precisions_of: Callable[[Run], dict[str, np.ndarray]]
    controls_of: Callable[[Experiment], list]
    used: dict[str, Run] = field(default_factory=dict)

    def runs(self, experiment: Experiment) -> dict[int, Run]:
        """Seed -> the finished run of an experiment."""
        found = {}
        for seed in range(MAX_SEEDS):
            run = Run(self.profile, self.key, experiment, seed, self.overrides)
            if not run.finished:
                break
            found[seed] = self.used.setdefault(run.name, run)
        return found

    def aps(self, experiment: Experiment) -> dict[int, np.ndarray]:
        """Seed -> (b,) AP of the found subnets, in points."""
        summaries = {seed: self.summary_of(run) for seed, run in self.runs(experiment).items()}
        return {seed: np.array([points(subnet) for subnet in found["subnets"]]) for seed, found in summaries.items()}

    def difference(
        self,
        one: Experiment,
        other: Experiment,
        paper: str,
        direction: Direction = "above",
        part: slice = slice(None),
        where: str = "mean over the budgets",
    ) -> list[Number]:
        """`one` minus `other` for the seeds that both have, of the budgets of `part`; nothing where there are none."""
        first, second = self.aps(one), self.aps(other)
        seeds = tuple(sorted(first.keys() & second.keys()))
        values = Values(tuple(float((first[seed] - second[seed])[part].mean()) for seed in seeds))
        name = f"{one.title} minus {other.title}, {where}"
        return [Number(name, paper, values, direction, seeds=seeds)] if seeds else []


def costs(found: Evidence) -> list[Number]:
    """Ours' cost as a share of that of OFA (w/ PS): in core (or GPU) time, and in training steps."""
    hours: dict[int, float] = {}
    steps: dict[int, float] = {}
    ours, shrinking = found.runs(DETOFA), found.runs(OFA_PS)
    for seed in sorted(ours.keys() & shrinking.keys()):
        both = []
        for run in (ours[seed], shrinking[seed]):
            ledger = read_result(run.folder, "ledger", result_files.ledger)
            both.append(table2.cost_of_runs(run.experiment.title, run.experiment.name, found.key, [ledger]))
        if both[0].unit == both[1].unit and both[1].total:
            hours[seed] = both[0].total / both[1].total
        lengths = [found.steps_of(run) for run in (ours[seed], shrinking[seed])]
        if all(lengths) and all(cost.hours["training"] for cost in both):
            totals = [table2.StepCost.of(cost, length).total for cost, length in zip(both, lengths)]
            steps[seed] = totals[0] / totals[1]
    paper = "0.70 on Pascal VOC, 0.37 on COCO (Table 2)"
    return [
        Number(name, paper, Values(tuple(values.values())), "below", 1.0, 0.05, tuple(values), "share")
        for name, values in (
            ("cost of ours as a share of that of OFA (w/ PS), in device time", hours),
            ("cost of ours as a share of that of OFA (w/ PS), in training steps", steps),
        )
        if values
    ]


def same_paths(found: Evidence) -> list[Number]:
    """Ours above OFA (w/o PS) on the same random paths, where the controls were measured."""
    gain = training_gain(found.controls_of(DETOFA), found.controls_of(OFA))
    if gain is None:
        return []
    name = "ours minus OFA (w/o PS), the same 25 random paths under both supernets"
    return [Number(name, "not given", gain, seeds=tuple(range(len(gain.values))))]


def pretraining(found: Evidence) -> list[Number]:
    """Figures 7 and A1."""
    supernet, supernet_ps, fullnet, _, scratch, scratch_ps = PRETRAININGS
    return [
        *found.difference(supernet, scratch, "6.55 on Pascal VOC, 1.85 on COCO"),
        *found.difference(supernet, fullnet, "above (Fig. 7)"),
        *found.difference(fullnet, scratch, "above under large budgets (Fig. 7)"),
        *found.difference(scratch_ps, scratch, "up to 3.5"),
        *found.difference(supernet_ps, supernet, "alike (4.3)", "alike"),
    ]


def held_out_precision(found: Evidence) -> list[Number]:
    """Precision for the weakest 25% of each bucket of the held-out paths, by the filter that searched."""
    values = {}
    for seed, run in found.runs(DETOFA).items():
        with suppress(UserError):
            paths = EvaluatedPaths.read(run.folder / "held_out_paths.jsonl", run.config.network.geometry)
            scores = np.array(read_result(run.folder, "scores")["scores"], float)
            if len(paths):
                values[seed] = weakest(scores, paths.losses, 0.25, paths.buckets).precision
    name = "precision for the weakest 25% of the held-out paths"
    return [_precision(name, "0.79", values, "not below", 0.79)] if values else []


def parts(found: Evidence) -> list[Number]:
    """Table 3's rows, each against the one before: of one supernet, a value for each fit."""
    run = found.runs(DETOFA).get(0)
    precisions = found.precisions_of(run) if run else {}
    names = list(precisions)
    papers = ("+0.08", "+0.01", "+0.36")
    numbers = []
    for before, after, paper in zip(names, names[1:], papers):
        gains = dict(enumerate((precisions[after] - precisions[before]).tolist()))
        numbers.append(_precision(f"precision: {after} minus {before} (fits to one supernet)", paper, gains))
    return numbers


def _precision(name: str, paper: str, values: dict[int, float], direction: Direction = "above", no_effect=0.0) -> Number:
    of = Values(tuple(values.values()))
    return Number(name, paper, of, direction, no_effect, PRECISION_MARGIN, tuple(values), "precision")


def small_budgets(found: Evidence) -> list[Number]:
    """CompOFA* against ours under the two smallest budgets, and how that differs from the two largest."""
    ours, other = found.aps(DETOFA), found.aps(COMPOFA)
    seeds = tuple(sorted(ours.keys() & other.keys()))
    small = found.difference(COMPOFA, DETOFA, "weaker (Fig. 5)", "below", slice(0, 2), "two smallest budgets")
    large = found.difference(COMPOFA, DETOFA, "performs well (Fig. 5)", "not below", slice(-2, None), "two largest budgets")
    if not seeds:
        return []
    gaps = [other[seed] - ours[seed] for seed in seeds]
    values = Values(tuple(float(gap[:2].mean() - gap[-2:].mean()) for gap in gaps))
    name = "CompOFA* minus ours, the two smallest budgets less the two largest"
    return [*small, *large, Number(name, "below 0 (Fig. 5)", values, "below", seeds=seeds)]


def ratios(found: Evidence) -> list[Number]:
    """Figures 9 and 10."""
    flops, per_bucket, all_scores = STRATEGIES
    numbers = [
        *found.difference(all_scores, per_bucket, "best (Fig. 9)"),
        *found.difference(per_bucket, flops, "slightly better (Fig. 9)"),
    ]
    paths, operations = path_ratios(found.profile.path_ratios), operation_ratios(found.profile.operation_ratios)
    for experiments, what in ((paths, "paths"), (operations, "operations")):
        own = next(one for one in experiments if one.name == DETOFA.name)
        for other in (experiments[0], experiments[-1]):
            if other is not own:
                pruned = [Number(f"{what} pruned: {n.name}", n.paper, n.values, seeds=n.seeds) for n in
                          found.difference(own, other, "above (Fig. 10)")]  # fmt: skip
                numbers += pruned
    return numbers


CLAIMS = (
    Claim("C1", "ours finds better subnets than OFA (w/o PS)", "4.2, Figure 5", lambda found: [
        *found.difference(DETOFA, OFA, "0.85 on Pascal VOC, 0.45 on COCO"), *same_paths(found)]),
    Claim("C2", "ours is at least as good as OFA (w/ PS), at less cost", "4.2, Table 2, Figure 5", lambda found: [
        *found.difference(DETOFA, OFA_PS, "above under most budgets (Fig. 5)", "not below"), *costs(found)]),
    Claim("C3", "CompOFA* is weak under small budgets", "4.2, Figure 5", small_budgets),
    Claim("C4", "pre-training: supernet above fullnet above scratch; PS is needed from scratch only", "4.3, Figures 7 and A1",
          pretraining),
    Claim("C5", "the path filter finds the weakest paths", "4.4, Table 3", held_out_precision),
    Claim("C6", "block encoding, FLOPs-bounded loss and pre-training each make it better", "4.4, Table 3", parts),
    Claim("C7", "pruning paths by score is better than uniform pruning, and that better than none", "D.3, Figure A2",
          lambda found: [*found.difference(PATH_PRUNINGS[2], PATH_PRUNINGS[1], "best (Fig. A2)"),
                         *found.difference(PATH_PRUNINGS[1], PATH_PRUNINGS[0], "better (Fig. A2)")]),
    Claim("C8", "FLOPs & score (all) is the best strategy, and pruning is better than none or too much", "4.5, Figures 9, 10",
          ratios),
)  # fmt: skip


def write(found: Evidence, output: FilePath, page: FilePath, made_by: str) -> list[FilePath]:
    """Write claims.json and a picture of each claim into `output`, and the page that shows them.

    Args:
        page: the Markdown file. made_by: what made them, in words.
    """
    output.mkdir(parents=True, exist_ok=True)
    content, lines, rows = {}, [], []
    for claim in CLAIMS:
        numbers = list(claim.make(found))
        entries = [number.to_json(claim.text) for number in numbers]
        content[claim.name] = entries[0] if len(entries) == 1 else entries
        outcome = "; ".join(dict.fromkeys(number.verdict for number in numbers)) or "not run so far"
        rows.append(markdown_row([f"[{claim.name}](#{claim.name.lower()})", claim.text, claim.where, outcome]))
        lines += [f"## {claim.name}", "", f"{claim.text[0].upper()}{claim.text[1:]} ({claim.where}).", ""]
        if not numbers:
            lines += ["No runs of it so far.", ""]
            continue
        lines += [markdown_row(["number", "the paper", "here: mean [95% interval] (seeds)", "verdict"])]
        lines += [markdown_row(["---"] * 4)]
        lines += [markdown_row([n.name, n.paper, f"{n.values.text()} {n.unit}", _why(n)]) for n in numbers]
        picture = output / f"{claim.name}.png"
        figure = draw(claim, numbers)
        figures.save(figure, picture, dpi=110)
        lines += ["", f"![{claim.name}]({_relative(picture, page.parent)})", ""]
    write_json(output / "claims.json", content)
    titles = ", ".join(data_set.title for data_set in found.profile.data_sets.values())
    head = [
        f"# The paper's claims on {titles}",
        "",
        markdown_row(["", "claim", "in the paper", "verdict"]),
        markdown_row(["---"] * 4),
        *rows,
        "",
        "The rule: a claim's number is *reproduced* where its 95% t interval over seeds excludes no effect in the paper's "
        "direction, *not reproduced* where it excludes it in the other one or lies wholly within the margin "
        f"({AP_MARGIN:g} points of AP, {PRECISION_MARGIN:g} of precision), and otherwise *not decidable* at this scale. For "
        '"at least as good" the interval must lie above minus the margin, for "alike" within it. Seeds are paired: data, first '
        "weights and draws are the same for all methods of a seed.",
        "",
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, "\n".join([*head, *lines, f"Made by {made_by}.", ""]))
    return [page, output / "claims.json"]


def _why(number: Number) -> str:
    """The verdict, and why there is none where there is none."""
    if number.values.interval is None:
        return f"{number.verdict}: one seed"
    return number.verdict


def _relative(file: FilePath, start: FilePath) -> str:
    return FilePath(os.path.relpath(file, start)).as_posix()


def draw(claim: Claim, numbers: Sequence[Number]) -> Figure:
    """A row for each number: its seeds as points, mean and interval, no effect as a line, and the margin as a band."""
    figure, axes = figures.subplots(
        len(numbers), 1, figsize=(8, 0.9 + 0.95 * len(numbers)), squeeze=False, layout="constrained"
    )
    for panel, number in zip(axes[:, 0], numbers):
        values = number.values
        panel.axvspan(number.no_effect - number.margin, number.no_effect + number.margin, color="0.93")
        panel.axvline(number.no_effect, color="0.4", linewidth=1)
        panel.scatter(values.values, [0] * len(values.values), s=24, color="C0", zorder=3)
        if values.interval:
            panel.plot(values.interval, [0.35, 0.35], color="C1", linewidth=3, solid_capstyle="butt")
        panel.scatter([values.mean], [0.35], marker="D", s=30, color="C1", zorder=4)
        panel.set(yticks=[], ylim=(-0.4, 0.8))
        panel.set_title(f"{number.name} [{number.unit}]: {number.verdict}", fontsize=8, loc="left")
        panel.tick_params(labelsize=8)
    figure.suptitle(f"{claim.name}: {claim.text}", fontsize=9)
    return figure
