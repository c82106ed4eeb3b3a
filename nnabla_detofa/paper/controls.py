"""Controls of the comparison: gains from more training steps, from training, and from the choice of paths.

The methods and the controls are compared by their found subnets and by `control_paths`. The paper has no controls.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.files import whole_text
from ..tools.report import markdown_row
from .control_paths import FOUND_BY_DETOFA, LARGEST, RANDOM, RANDOM_PATHS, RunResults, results_of
from .experiments import (
    CONTROLS,
    DETOFA,
    DETOFA_LONG,
    FROM_SCRATCH,
    METHODS,
    OFA,
    OFA_PS,
    UNIFORM_LONG,
    UNIFORM_RESTARTS,
)
from .intervals import Values, differences
from .run import Run
from .run_results import runs_and_code
from .target import Request, Target, csv_file, picture_line, save_picture, write_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRATCH, SCRATCH_PS, SCRATCH_LONG = FROM_SCRATCH
EXPERIMENTS = (*METHODS, *CONTROLS, *FROM_SCRATCH)
PAIRS = (
    (DETOFA, OFA),
    (DETOFA, OFA_PS),
    (OFA_PS, UNIFORM_RESTARTS),
    (OFA_PS, UNIFORM_LONG),
    (DETOFA_LONG, OFA_PS),
    (DETOFA_LONG, UNIFORM_LONG),
    (UNIFORM_LONG, UNIFORM_RESTARTS),
    (SCRATCH_PS, SCRATCH),
    (SCRATCH_LONG, SCRATCH),
    (SCRATCH_PS, SCRATCH_LONG),
)
"""Pairs of experiments whose differences are shown, the first minus the second."""


def by_experiment(results: Sequence[RunResults]) -> dict[str, list[RunResults]]:
    """Group runs by experiment, in the order of their seeds."""
    groups: dict[str, list[RunResults]] = {}
    for item in sorted(results, key=lambda item: item.seed):
        groups.setdefault(item.name, []).append(item)
    return groups


def tables(results: Sequence[RunResults]) -> list[str]:
    """Return Markdown lines: AP by method, differences, and control paths under the final weights."""
    groups = by_experiment(results)
    lines = ["## Training steps and AP", "", *method_table(groups), "", "## Differences of the found subnets", ""]
    for one, other in PAIRS:
        if one.name in groups and other.name in groups:
            gain = paired(groups[one.name], groups[other.name])
            lines.append(f"- {one.title} minus {other.title}, mean over the budgets: {gain.text()}")
    if {DETOFA.name, OFA.name} <= set(groups):
        lines += ["", "## Gains from training and from the choice of paths", ""]
        lines += training_and_choice(groups[DETOFA.name], groups[OFA.name])
    errors = [entry["se"] for run in results for entry in run.measured if entry["se"] is not None]
    if errors:
        mean = f"The AP of a control path has a standard error over the test images of {np.mean(errors):.1f} on average"
        lines += ["", f"{mean} (`controls.csv` has each)."]
    return [*lines, "", "## Random paths and found subnets", "", *random_table(groups)]


def method_table(groups: dict[str, list[RunResults]]) -> list[str]:
    """Return Markdown lines: training steps and AP of each method."""
    header = ["method", "steps", "found, mean over the budgets", "fullnet", "largest path, final weights"]
    header += ["random paths, final weights"]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * 5)]
    for runs in groups.values():
        steps = "-" if runs[0].steps is None else str(runs[0].steps)
        found, fullnet = Values(tuple(run.found.mean() for run in runs)), Values(tuple(run.fullnet for run in runs))
        cells = [found.text(1, False), fullnet.text(1, False), _cell(runs, LARGEST), _cell(runs, RANDOM)]
        lines.append(markdown_row([runs[0].title, steps, *cells]))
    return lines


def _cell(runs: Sequence[RunResults], kind: str) -> str:
    """Return the mean AP of a kind of control paths, for the seeds for which they were evaluated."""
    done = [run for run in runs if len(run.of(kind))]
    return Values(tuple(run.of(kind).mean() for run in done)).text(1, False) + _seeds(done, runs) if done else "-"


def _seeds(some: Sequence[RunResults], runs: Sequence[RunResults]) -> str:
    """Return the seeds of some runs in parentheses; empty if they are all runs."""
    return "" if len(some) == len(runs) else f" (seed{'s' * (len(some) > 1)} {', '.join(str(run.seed) for run in some)})"


def random_table(groups: dict[str, list[RunResults]]) -> list[str]:
    """Return Markdown lines: mean AP of the random paths of each FLOPs bucket, and of the subnets found for its budget.

    A row has only the seeds for which random paths were evaluated; methods without any are left out.
    """
    places = range(1, 1 + max(len(run.found) for runs in groups.values() for run in runs))
    lines = [
        markdown_row(["AP: mean of random paths; found", *(f"bucket {place}" for place in places)]),
        markdown_row(["---"] + ["---:"] * len(places)),
    ]
    for runs in groups.values():
        if done := [run for run in runs if len(run.of(RANDOM))]:
            cells = []
            for place in places:
                sampled = np.concatenate([run.of(RANDOM, place) for run in done])
                found = np.mean([run.found[place - 1] for run in done])
                cells.append(f"{f'{sampled.mean():.1f}' if len(sampled) else '-'}; {found:.1f}")
            lines.append(markdown_row([runs[0].title + _seeds(done, runs), *cells]))
    return lines if len(lines) > 2 else ["No random paths were evaluated."]


def paired(one: Sequence[RunResults], other: Sequence[RunResults]) -> Values:
    """Return the mean AP of the found subnets, `one` minus `other`, for the seeds that both have."""
    others = {run.seed: run.found.mean() for run in other}
    both = [run for run in one if run.seed in others]
    return differences([run.found.mean() for run in both], [others[run.seed] for run in both])


def training_gain(detofa: Sequence[RunResults], ofa: Sequence[RunResults], kind: str = RANDOM) -> dict[int, float]:
    """Return the mean AP of the same paths under the weights of DetOFA minus under the weights of OFA (w/o PS), by seed.

    Args:
        detofa, ofa: runs of the two methods. Seeds whose paths were not evaluated under both are omitted.
        kind: `RANDOM`, or `FOUND_BY_DETOFA` for the subnets that DetOFA found.
    """
    others = {run.seed: run for run in ofa}
    gains = {}
    for run in detofa:
        theirs = others[run.seed].of(kind) if run.seed in others else np.array([])
        own = run.of(RANDOM) if kind == RANDOM else run.found
        if len(theirs) == len(own) and len(own):
            gains[run.seed] = float(np.mean(own - theirs))
    return gains


def training_and_choice(detofa: Sequence[RunResults], ofa: Sequence[RunResults]) -> list[str]:
    """Return Markdown lines: the gains from training, and from the choice of paths in the supernet of OFA (w/o PS)."""
    others = {run.seed: run for run in ofa}
    choice = {
        run.seed: float(others[run.seed].of(FOUND_BY_DETOFA).mean() - others[run.seed].found.mean())
        for run in detofa
        if run.seed in others and len(others[run.seed].of(FOUND_BY_DETOFA))
    }
    lines = []
    for what, gains in (
        ("Training: the same random paths, supernet of DetOFA minus supernet of OFA (w/o PS)", training_gain(detofa, ofa)),
        ("Training: the subnets that DetOFA found, likewise", training_gain(detofa, ofa, FOUND_BY_DETOFA)),
        (
            "Choice of paths: subnets found by DetOFA minus those found by OFA (w/o PS), both in the supernet of OFA (w/o PS)",
            choice,
        ),
    ):
        one = " (one seed)" if len(gains) == 1 else ""
        lines.append(f"- {what}: {Values(tuple(gains.values())).text() + one if gains else 'not measured'}")
    return lines


def write_csv(file: FilePath, results: Sequence[RunResults]) -> None:
    """Write one row for each path: the fullnet, the found subnets, and the control paths under the final weights."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["experiment", "seed", "steps", "path", "bucket or budget", "AP [points]", "SE over the test images"])
        for run in results:
            start = [run.title, run.seed, run.steps]
            writer.writerow([*start, "fullnet", "", f"{run.fullnet:.3f}", ""])
            writer.writerows([*start, "found", place, f"{ap:.3f}", ""] for place, ap in enumerate(run.found, 1))
            for entry in run.measured:
                writer.writerow([*start, entry["kind"], entry["place"], entry["ap"], entry["se"]])


def draw(results: Sequence[RunResults]) -> Figure:
    """Plot the mean AP of the found subnets against the training steps, with one point for each run.

    Methods are side by side, so that none hides another.
    """
    figure, axes = figures.subplots(figsize=(7.5, 4.5), layout="constrained")
    lengths = sorted({run.steps for run in results if run.steps is not None})
    for number, runs in enumerate(by_experiment(results).values()):
        known = [run for run in runs if run.steps is not None]
        places = [_place(run, [other for other in results if other.steps == run.steps]) for run in known]
        points = [lengths.index(run.steps) + place for run, place in zip(known, places) if run.steps is not None]
        axes.scatter(points, [run.found.mean() for run in known], s=26, color=f"C{number}", label=runs[0].title)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set(xlabel="training steps of the supernet", ylabel="AP of the found subnets, mean over the budgets [points]")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _place(run: RunResults, alike: Sequence[RunResults]) -> float:
    """Return the place of a run's method among the methods with as many steps, from -0.4 to 0.4."""
    names = list(dict.fromkeys(other.name for other in alike))
    return 0.8 * ((names.index(run.name) + 0.5) / len(names) - 0.5)


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write the controls; missing control paths are evaluated."""
    ordered = [run for experiment in EXPERIMENTS for run in runs if run.experiment.name == experiment.name]
    results = results_of(ordered)
    save_picture(request, target, draw([run for run in results if run.name not in {one.name for one in FROM_SCRATCH}]))
    write_csv(csv_file(request, target), results)
    lines = [
        *tables(results),
        "",
        picture_line(target),
        "",
        "AP in points on the test images. With several seeds: mean, 95% t interval in brackets, and the value of each seed. "
        f"The random paths are {RANDOM_PATHS} of each FLOPs bucket of the search space A, the same for all methods of a seed. "
        f"PS is OFA's progressive shrinking. The picture does not have training from scratch. Runs: {runs_and_code(runs)}.",
    ]
    return write_markdown(request, target, lines)


TARGET = Target(
    "controls",
    "Controls: gains from more steps, from training and from the choice of paths",
    ("voc",),
    EXPERIMENTS,
    write,
    evaluates=True,
    names_data=False,
)
