"""The paper's claims C1 to C8, each as numbers with an interval over seeds and a verdict.

The numbers come from existing runs; none is started. A verdict (`intervals.verdict`) depends on the direction that the paper
claims, and on a margin within which a difference counts as none. With fewer than two seeds, a number is not decidable. The
paper has no such verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

import numpy as np

from ..common.errors import UserError
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.metrics import weakest
from ..runs import result_files
from ..runs.run_folder import read_result
from . import table3
from .control_paths import RunResults
from .controls import training_gain
from .experiments import (
    COMPOFA,
    DETOFA,
    DETOFA_LONG,
    OFA,
    OFA_PS,
    PATH_PRUNINGS,
    PRETRAININGS,
    SCRATCH_LONG,
    STRATEGIES,
    UNIFORM_LONG,
    Experiment,
    operation_ratios,
    path_ratios,
)
from .filter_scores import title
from .filter_study import PRUNED_BY
from .intervals import Direction, Values, differences, verdict
from .method_costs import cost_of_runs
from .profiles import Profile
from .run import Run
from .run_results import ledger_of, subnet_points, summary_of

AP_MARGIN = 0.5
"""Points of AP within which a difference counts as none. The paper's smallest difference, 0.45 on COCO, would need more runs;
its 0.85 on Pascal VOC does not."""
PRECISION_MARGIN = 0.05
PAPER_ROWS = [row.name for row in table3.ROWS]
"""Rows of Table 3 in the paper, in its order."""
PAPER_PRECISION = table3.PAPER[PAPER_ROWS[-1]][1]
SMALL, LARGE = slice(0, 2), slice(-2, None)
"""The two smallest and the two largest budgets."""
CONTROL = "control"
"""Mark of numbers that the paper does not have, instead of the paper's number."""
MIN_BUDGETS = 4
"""Budgets from which the two smallest and the two largest are different ones."""


@dataclass(frozen=True)
class Number:
    """One number of a claim.

    Attributes:
        name: description, such as "DetOFA minus OFA (w/o PS)".
        paper: the paper's number, in words.
        values: the value of each seed.
        direction, no_effect, margin: see `intervals.verdict`.
        seeds: the seeds of the values.
        unit: unit of the values.
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
        """Whether the values reproduce the claim."""
        return verdict(self.values.interval, self.direction, self.no_effect, self.margin)

    def to_json(self, claim: str) -> dict:
        """Return the number's object in claims.json; "interval" is null for a single seed.

        Args:
            claim: text of the claim.
        """
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


@dataclass(eq=False)
class Evidence:
    """Results of a profile's runs on its only data set.

    Attributes:
        profile: the scale.
        key: key of the data set.
        precisions_of: function of a run that returns (fits,) precisions by title of a row of Table 3; empty without a filter
            study.
        controls_of: function of an experiment that returns the results of the runs whose control paths were evaluated.
    """

    profile: Profile
    key: str
    precisions_of: Callable[[Run], dict[str, np.ndarray]]
    controls_of: Callable[[Experiment], Sequence[RunResults]]
    _finished: dict[str, Run] = field(default_factory=dict)

    def runs(self, experiment: Experiment) -> dict[int, Run]:
        """Return the finished runs of an experiment by seed, up to the first missing seed."""
        found = {}
        for seed in count():
            run = Run(self.profile, self.key, experiment, seed)
            if not run.finished:
                break
            found[seed] = self._finished.setdefault(run.name, run)
        return found

    def aps(self, experiment: Experiment) -> dict[int, np.ndarray]:
        """Return the (b,) AP of the found subnets, in points, from the smallest budget to the largest, by seed."""
        found = {}
        for seed, run in self.runs(experiment).items():
            summary = summary_of(run)
            order = np.argsort([subnet["budget"] for subnet in summary["subnets"]], kind="stable")
            found[seed] = subnet_points(summary)[order]
        return found

    def difference(
        self,
        one: Experiment,
        other: Experiment,
        paper: str,
        direction: Direction = "above",
        part: slice = slice(None),
        budgets: str = "mean over the budgets",
    ) -> list[Number]:
        """Return the AP of `one` minus the AP of `other`, for the seeds that both have.

        Args:
            one, other: the experiments.
            paper: the paper's number, in words.
            direction: see `intervals.verdict`.
            part: budgets over which the AP is averaged, of those from the smallest to the largest.
            budgets: description of `part`.

        Returns:
            The number in a list, which is empty if there are no such seeds, or too few budgets for a part of them.
        """
        first, second = self.aps(one), self.aps(other)
        enough = 1 if part == slice(None) else MIN_BUDGETS
        seeds = tuple(seed for seed in sorted(first.keys() & second.keys()) if len(first[seed]) >= enough)
        values = Values(tuple(float((first[seed] - second[seed])[part].mean()) for seed in seeds))
        return [Number(f"{one.title} minus {other.title}, {budgets}", paper, values, direction, seeds=seeds)] if seeds else []

    def small_minus_large(self, one: Experiment, other: Experiment, paper: str, direction: Direction) -> list[Number]:
        """Return how much larger `difference` is under the two smallest budgets than under the two largest."""
        budgets = "two smallest budgets minus two largest"
        small = self.difference(one, other, paper, direction, SMALL, budgets)
        large = self.difference(one, other, paper, direction, LARGE, budgets)
        return [replace(n, values=differences(n.values.values, m.values.values)) for n, m in zip(small, large)]

    @cached_property
    def studied(self) -> dict[int, dict[str, np.ndarray]]:
        """Precisions of `precisions_of` by seed, for the runs of DetOFA that have a filter study."""
        precisions = {seed: self.precisions_of(run) for seed, run in self.runs(DETOFA).items()}
        return {seed: rows for seed, rows in precisions.items() if rows}


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims.

    Attributes:
        name: "C1" to "C8".
        text: the claim.
        source: section, table or figure of the paper.
        numbers: function of the evidence that returns the numbers of the claim.
    """

    name: str
    text: str
    source: str
    numbers: Callable[[Evidence], Sequence[Number]]


def costs(found: Evidence) -> list[Number]:
    """Return the cost of DetOFA relative to OFA (w/ PS), in device time."""
    ratios: dict[int, float] = {}
    detofa, shrinking = found.runs(DETOFA), found.runs(OFA_PS)
    for seed in sorted(detofa.keys() & shrinking.keys()):
        runs = detofa[seed], shrinking[seed]
        one, other = (cost_of_runs(run.experiment.title, run.experiment.name, found.key, [ledger_of(run)]) for run in runs)
        if one.unit == other.unit and other.total:
            ratios[seed] = one.total / other.total
    name, paper = "cost of DetOFA / cost of OFA (w/ PS), in device time", "0.70 on Pascal VOC, 0.37 on COCO (Table 2)"
    return [Number(name, paper, _of_seeds(ratios), "below", 1.0, 0.05, tuple(ratios), "ratio")] if ratios else []


def _of_seeds(values: Mapping[int, float]) -> Values:
    return Values(tuple(values.values()))


def same_paths(found: Evidence) -> list[Number]:
    """Return the difference in AP of DetOFA and OFA (w/o PS) on the same random paths, if they were evaluated."""
    gains = training_gain(found.controls_of(DETOFA), found.controls_of(OFA))
    name = "DetOFA minus OFA (w/o PS), the same random paths under both supernets"
    return [Number(name, CONTROL, _of_seeds(gains), seeds=tuple(gains))] if gains else []


def pretraining(found: Evidence) -> list[Number]:
    """Return differences between initial weights (Figures 7 and A1)."""
    supernet, supernet_ps, fullnet, fullnet_ps, scratch, scratch_ps = PRETRAININGS
    return [
        *found.difference(supernet, scratch, "6.55 on Pascal VOC, 1.85 on COCO"),
        *found.difference(supernet, fullnet, "above (Fig. 7)"),
        *found.difference(supernet_ps, fullnet_ps, "above (Fig. 7)"),
        *found.small_minus_large(supernet, fullnet, "above 0 (Fig. 7)", "above"),
        *found.difference(fullnet, scratch, "above (Fig. 7)", "above", LARGE, "two largest budgets"),
        *found.difference(scratch_ps, scratch, "up to 3.5"),
        *found.difference(scratch_ps, SCRATCH_LONG, f"{CONTROL}, with equal steps"),
        *found.difference(supernet_ps, supernet, "alike (4.3)", "alike"),
        *found.difference(supernet_ps, UNIFORM_LONG, f"{CONTROL}, with equal steps", "alike"),
    ]


def filter_precision(found: Evidence) -> list[Number]:
    """Return the precision for the weakest 25% of each bucket, of three filters.

    These are the filter of the search on the held-out paths, and on the test paths of the filter study the paper's filter with
    all its parts and the filter that the run pruned with.
    """
    held_out = {}
    for seed, run in found.runs(DETOFA).items():
        with suppress(UserError):
            paths = EvaluatedPaths.read(run.folder / "held_out_paths.jsonl", run.config.network.geometry)
            scores = np.array(read_result(run.folder, "scores", result_files.scores), float)
            if len(paths):
                held_out[seed] = weakest(scores, paths.losses, 0.25, paths.buckets).precision
    what, other = "precision for the weakest 25% of the", f"{PAPER_PRECISION:g}, with pre-training"
    numbers = [_precision(f"{what} held-out paths, filter of the search", other, held_out, "not below", PAPER_PRECISION)]
    for row, paper in ((title(PAPER_ROWS[-1]), str(PAPER_PRECISION)), (title(PRUNED_BY), other)):
        values = {seed: float(np.mean(each[row])) for seed, each in found.studied.items() if row in each}
        numbers.append(_precision(f"{what} test paths, {row}", paper, values, "not below", PAPER_PRECISION))
    return [number for number in numbers if number.seeds]


def filter_parts(found: Evidence) -> list[Number]:
    """Return the gain of each part of the filter (Table 3) for the supernet of each seed, as the mean over the fits to it.

    Fits to the same paths agree more than those to the paths of other supernets, so they are not values of their own.
    """
    rows, numbers = [title(name) for name in PAPER_ROWS], []
    for before, after, paper in zip(rows, rows[1:], ("+0.08", "+0.01", "+0.36")):
        both = {seed: each for seed, each in found.studied.items() if before in each and after in each}
        gains = {seed: float(np.mean(each[after] - each[before])) for seed, each in both.items()}
        numbers.append(_precision(f"precision: {after} minus {before}", paper, gains))
    return [number for number in numbers if number.seeds]


def _precision(
    name: str, paper: str, values: Mapping[int, float], direction: Direction = "above", no_effect: float = 0.0
) -> Number:
    """Return a number of precisions, without the seeds whose precision is undecided (NaN)."""
    known = {seed: value for seed, value in values.items() if not math.isnan(value)}
    return Number(name, paper, _of_seeds(known), direction, no_effect, PRECISION_MARGIN, tuple(known), "precision")


def small_budgets(found: Evidence) -> list[Number]:
    """Return differences between CompOFA* and DetOFA under the two smallest budgets, the two largest, and between these."""
    return [
        *found.difference(COMPOFA, DETOFA, "weaker (Fig. 5)", "below", SMALL, "two smallest budgets"),
        *found.difference(COMPOFA, DETOFA, "performs well (Fig. 5)", "not below", LARGE, "two largest budgets"),
        *found.small_minus_large(COMPOFA, DETOFA, "below 0 (Fig. 5)", "below"),
    ]


def pruning(found: Evidence) -> list[Number]:
    """Return differences between strategies and ratios of pruning (Figures 9 and 10)."""
    flops, per_bucket, all_scores = STRATEGIES
    paths, operations = path_ratios(found.profile.path_ratios), operation_ratios(found.profile.operation_ratios)
    too_much = "above: r = 0.4 is weaker (Fig. 10)"
    return [
        *found.difference(all_scores, per_bucket, "best (Fig. 9)"),
        *found.difference(all_scores, flops, "best (Fig. 9)"),
        *found.difference(per_bucket, flops, "slightly better (Fig. 9)"),
        *_ratios(found, "paths", paths, 0, "above under every budget (Fig. 10)"),
        *_ratios(found, "paths", paths, max(found.profile.path_ratios), too_much),
        *_ratios(found, "operations", operations, 0, "above (Fig. 10)"),
        *_ratios(found, "operations", operations, 0, "above: worst with r = 0 (Fig. 10)", slice(0, 1), "smallest budget"),
        *_ratios(found, "operations", operations, max(found.profile.operation_ratios), too_much),
    ]


def _ratios(
    found: Evidence,
    what: str,
    experiments: Sequence[Experiment],
    ratio: float,
    paper: str,
    part: slice = slice(None),
    budgets: str = "mean over the budgets",
) -> list[Number]:
    """Return the difference between DetOFA's own pruning ratio and another one, if it is among the experiments.

    Args:
        found: the evidence.
        what: what is pruned.
        experiments: experiments by ratio.
        ratio: the other ratio.
        paper, part, budgets: see `Evidence.difference`.
    """
    own = next(one for one in experiments if one.name == DETOFA.name)
    others = [one for one in experiments if one is not own and one.title == f"r = {ratio:g}"]
    numbers = [number for other in others for number in found.difference(own, other, paper, "above", part, budgets)]
    return [replace(number, name=f"{what} pruned: {number.name}") for number in numbers]


CLAIMS = (
    Claim(
        "C1",
        "DetOFA finds better subnets than OFA (w/o PS)",
        "4.2, Figure 5",
        lambda found: [*found.difference(DETOFA, OFA, "0.85 on Pascal VOC, 0.45 on COCO"), *same_paths(found)],
    ),
    Claim(
        "C2",
        "DetOFA is at least as good as OFA (w/ PS), at lower cost",
        "4.2, Table 2, Figure 5",
        lambda found: [
            *found.difference(DETOFA, OFA_PS, "above under most budgets (Fig. 5)", "not below"),
            *found.difference(DETOFA_LONG, OFA_PS, f"{CONTROL}, with equal steps", "not below"),
            *costs(found),
        ],
    ),
    Claim("C3", "CompOFA* is weak under small budgets", "4.2, Figure 5", small_budgets),
    Claim(
        "C4",
        "starting from the supernet is better than from the fullnet, and both are better than from scratch; PS helps only from "
        "scratch",
        "4.3, Figures 7 and A1",
        pretraining,
    ),
    Claim("C5", "the path filter finds the weakest paths as precisely as in the paper", "4.4, Table 3", filter_precision),
    Claim(
        "C6",
        "block encoding, FLOPs-bounded loss and pre-training each improve the path filter",
        "4.4, Table 3",
        filter_parts,
    ),
    Claim(
        "C7",
        "pruning paths by score is better than uniform pruning, and uniform pruning is better than none",
        "D.1, Figure A2",
        lambda found: [
            *found.difference(PATH_PRUNINGS[2], PATH_PRUNINGS[1], "best (Fig. A2)"),
            *found.difference(PATH_PRUNINGS[1], PATH_PRUNINGS[0], "better (Fig. A2)"),
        ],
    ),
    Claim(
        "C8",
        "FLOPs & score (all) is the best strategy, and pruning is better than none and than too much",
        "4.5, Figures 9 and 10",
        pruning,
    ),
)
