"""The paper's tables and figures, each from the runs that it needs: the paper's numbers and ours, side by side.

Every target leaves <target>.md, .csv and .png in the output folder: from result files alone, but for those that evaluate
paths of their own.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from ..backend.compat import nn
from ..backend.launch import cores
from ..common import figures
from ..common.errors import UserError
from ..common.files import digest, whole_text, write_json, write_text
from ..common.progress import ProgressBar
from ..common.reading import read_json
from ..common.seeds import rng_for
from ..methods.build import make_cost
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.model import PathFilter, PathScorer
from ..runs import result_files
from ..runs.phases import phase_names, training_phases
from ..runs.provenance import code_of, revision
from ..runs.run_folder import final_weights, metric, read_result, searched_space, trained_classes
from ..space.counting import Buckets
from ..space.paths import Path
from ..space.pruning import operation_scores
from ..space.search_space import ofa_resnet50
from ..tools.data_facts import data_facts
from ..tools.search import load_run
from . import architectures, budget_figures, controls, filter_study, filter_tables, operation_figure, space_tables
from . import figure4 as kept_paths_figure
from . import figure6 as random_paths_figure
from . import table2 as cost_table
from .budget_figures import Curve
from .execution import complete
from .experiments import (
    DETOFA,
    METHODS,
    OFA,
    OFA_PS,
    OPERATION_RATIOS,
    PATH_PRUNINGS,
    PATH_RATIOS,
    PRETRAININGS,
    STRATEGIES,
    Experiment,
    operation_ratios,
    path_ratios,
)
from .figure4 import FilteredPaths
from .filter_paths import classification_paths, detection_paths, evaluated, study_folder
from .filter_study import StudyInputs, StudyResults
from .image_errors import errors_of
from .operation_figure import ScoredOperations
from .profiles import DataSet, Profile
from .run import Run, plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panels = Sequence[tuple[str, Sequence[Experiment]]]
"""Title and experiments of each panel of a figure."""


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        profile: the scale.
        output: folder of the results.
        seeds: how many: 0, 1, ...
        overrides: entries of the data sets' configs to replace.
        jobs: runs at a time.
        cores: that they may take together; those of a run that is alone share its work.
    """

    profile: Profile
    output: FilePath
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    jobs: int = 2
    cores: int = 1

    def command(self, target: str) -> str:
        """What makes the target: make, or the program itself where the folder is one that make does not write to."""
        seeds, replaced, source = self.seeds_of(TARGETS[target]), " ".join(self.overrides), shlex.quote(self.profile.source)
        if self.output == self.profile.results:
            assignments = [f"SET={shlex.quote(replaced)}"] if replaced else []
            return " ".join(["make", target, f"PROFILE={source}", f"SEEDS={seeds}", *assignments])
        flags = ["--set", shlex.quote(replaced)] if replaced else []
        program = f"detofa paper {target} --profile {source} --seeds {seeds}"
        return " ".join([program, *flags, "-o", shlex.quote(str(self.output))])

    def seeds_of(self, target: Target) -> int:
        """How many seeds the target is made of."""
        return 1 if target.one_seed or target.runs == "none" else self.seeds

    def runs(self, target: Target) -> list[Run]:
        """Every run that the target needs."""
        return plan(self.profile, target.keys, target.of(self.profile), self.seeds_of(target), self.overrides)


@dataclass(frozen=True)
class Target:
    """One table or figure.

    Attributes:
        title: what it is.
        paper: what the paper says of it, where its numbers are not in our table.
        keys: the paper's data sets for it.
        experiments: whose runs it is made of.
        note: (runs) -> what a reader should know of ours.
        write: (order, target, name, runs) -> its Markdown files, which it has written with their .csv and .png.
        runs: "needed"; "welcome": it does with those there are where the profile starts none; or "none".
        one_seed: it is made of the run of seed 0 alone, however many seeds are asked for.
        evaluates: it evaluates paths itself, for which it needs the data.
        panels: where the experiments depend on the profile: what they are.
        names_data: the paper says which data set it is about; where it does not, `keys` is our reading.
    """

    title: str
    paper: str
    keys: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    write: Callable[[Order, Target, str, Sequence[Run]], list[FilePath]]
    runs: Literal["needed", "welcome", "none"] = "needed"
    one_seed: bool = False
    evaluates: bool = False
    names_data: bool = True
    note: Callable[[Sequence[Run]], str] = lambda runs: ""
    panels: Callable[[Profile], Panels] | None = None

    def of(self, profile: Profile) -> tuple[Experiment, ...]:
        """The experiments that it is made of at the scale of a profile."""
        if self.panels is None:
            return self.experiments
        return tuple(experiment for _, experiments in self.panels(profile) for experiment in experiments)


def reproduce(names: Sequence[str], order: Order, log: Callable[[str], None] = print) -> list[FilePath]:
    """Make targets, one after the other; runs that are missing are done first.

    Returns:
        their Markdown files.

    Raises:
        UserError: a target is unknown, or an input is missing.
    """
    for name in names:
        if name not in TARGETS:
            raise UserError(f"there is no table or figure {name}; known are {', '.join(TARGETS)}, and make table1")
    starts, runs = order.profile.starts_runs, {name: order.runs(TARGETS[name]) for name in names}

    def waits(name: str) -> bool:
        """Are there runs to be done for it?"""
        welcome = TARGETS[name].runs == "needed" or (starts and TARGETS[name].runs == "welcome")
        return welcome and not all(run.finished for run in runs[name])

    def make(some: Sequence[str]) -> list[FilePath]:
        made = []
        if some:
            order.output.mkdir(parents=True, exist_ok=True)
        for name in some:
            log(f"{name} ({order.profile.name}): {TARGETS[name].title}")
            made += TARGETS[name].write(order, TARGETS[name], name, runs[name])
        return made

    def announce(files: Sequence[FilePath]) -> None:
        for file in files:
            log(f"written: {file}")

    waiting = [name for name in names if waits(name)]
    if not starts and waiting:  # it ends with what is missing: make what there is first
        announce(make([name for name in names if name not in waiting]))
    for key, data_set in order.profile.data_sets.items():
        if unknown := [name for need in data_set.needs for name in need.targets if name not in TARGETS]:
            raise UserError(f"targets in the needs of {key} in a profile must be of {', '.join(TARGETS)}, got {unknown[0]}")
        about_it = [name for name in names if key in order.profile.chosen(TARGETS[name].keys)]
        if needed := [name for name in about_it if name in waiting or TARGETS[name].evaluates]:
            order.profile.check(data_set, order.overrides, needed)
    once = {run.name: run for name in waiting for run in runs[name]}
    if starts:
        order.output.mkdir(parents=True, exist_ok=True)  # not after hours of runs
    try:
        complete(sorted(once.values(), key=lambda run: run.experiment != DETOFA), order.jobs, log, order.cores)
    except UserError as error:  # a run failed, and others are there
        if starts and (there := [name for name in names if not waits(name)]):
            log(f"{error}; first what can be made without it: {', '.join(there)}")
            with suppress(UserError):  # the first error says what is wrong
                announce(make(there))
        raise
    return make(names)


def write_page(order: Order, target: Target, name: str, lines: Sequence[str]) -> list[FilePath]:
    """Write a target's Markdown file, with what made it."""
    file = order.output / f"{name}.md"
    head, tail = [f"# {target.title}", "", *other_data(order, target)], ["", f"Made by {origin(order, name)}.", ""]
    write_text(file, "\n".join([*head, *lines, *tail]))
    return [file]


def other_data(order: Order, target: Target) -> list[str]:
    """A line that says so where ours is not on the paper's data sets, or where the paper does not say on which it is."""
    titles = [data_set.title for data_set in order.profile.chosen(target.keys).values()]
    papers = [cost_table.PAPER_SETS[key] for key in target.keys]
    ours = " and ".join(titles)
    if not target.names_data:
        return [f"The paper does not say on which data set; here on {ours}.", ""]
    return [] if titles == papers else [f"In the paper on {' and '.join(papers)}, here on {ours}.", ""]


def save_picture(order: Order, name: str, figure: Figure) -> None:
    """Write a target's picture."""
    figures.save(figure, order.output / f"{name}.png", dpi=110)


def origin(order: Order, name: str) -> str:
    """What made a target, in words."""
    return f"`{order.command(name)}` at {revision()}"


def weights_file(file: str) -> str:
    """A weights file, and which content it has."""
    return f"`{file}` (sha256 {digest(FilePath(file).read_bytes())[:12]})"


def runs_and_code(runs: Sequence[Run]) -> str:
    """Where runs are, and what computed them."""
    by_code: dict[str, list[str]] = {}
    for run in runs:
        by_code.setdefault(code_of(run.folder), []).append(f"`{run.location}` (seed {run.seed})")
    return "; ".join(f"{', '.join(folders)}, computed by {code}" for code, folders in by_code.items())


# --- Figures of AP over budgets ---------------------------------------------------------------------------------------


def curve_of(experiment: Experiment, runs: Sequence[Run]) -> Curve:
    """The curve of an experiment among runs of one data set."""
    own = [run for run in runs if run.experiment.name == experiment.name]
    return Curve.of(experiment.title, [summary_of(run) for run in own], [errors_of(run) for run in own])


def summary_of(run: Run) -> dict:
    """What a finished run found."""
    hparams, geometry = run.config.hparams, run.config.network.geometry
    budgets = len(hparams.search.budgets) or hparams.buckets
    return read_result(run.folder, "summary", lambda content: result_files.summary(content, geometry, budgets))


def ledger_of(run: Run) -> dict:
    """What a run cost."""
    return read_result(run.folder, "ledger", result_files.ledger)


def operations_of(run: Run) -> dict:
    """What a run of Algorithm 1 pruned."""
    geometry = run.config.network.geometry
    return read_result(run.folder, "operations", lambda content: result_files.operations(content, geometry))


def write_budget_figure(groups: Panels | None = None) -> Callable[..., str]:
    """The writer of a figure with one panel for each group of experiments, and for each data set.

    Args:
        groups: of experiments; None are those that the target has for the profile.
    """

    def write(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
        panels = target.panels(order.profile) if groups is None else groups
        data_sets = order.profile.chosen(target.keys)
        figure, axes = figures.subplots(
            len(data_sets), len(panels), figsize=(5.2 * len(panels), 4.2 * len(data_sets)), squeeze=False, layout="constrained"
        )
        shown = {experiment.name for _, experiments in panels for experiment in experiments}
        colors = colors_of([experiment.title for _, experiments in panels for experiment in experiments])
        runs = [run for run in runs if run.experiment.name in shown]
        lines, everything = [f"The paper: {target.paper}", ""], []
        for row, (key, data_set) in zip(axes, data_sets.items()):
            of_data_set = [run for run in runs if run.key == key]
            measure = metric(summary_of(of_data_set[0]))
            for panel, (title, experiments) in zip(row, panels):
                curves = [curve_of(experiment, of_data_set) for experiment in experiments]
                budget_figures.check_budgets(curves)
                heading = ": ".join(part for part in (data_set.title, title) if part)
                budget_figures.draw(panel, curves, measure, colors, heading)
                lines += [f"## {heading}", "", budget_figures.table(curves, measure), "", budget_figures.order(curves), ""]
                if experiments[-1].name == DETOFA.name:
                    lines += [budget_figures.gains(curves), ""]
                lines += [budget_figures.fullnets(curves), ""]
                everything += [Curve(f"{heading}: {c.title}", c.budgets, c.flops, c.ap, c.fullnet) for c in curves]
        save_picture(order, name, figure)
        budget_figures.write_csv(order.output / f"{name}.csv", everything)
        lines += [f"![{target.title}]({name}.png)", "", " ".join(filter(None, (target.note(runs), BY_ITSELF))), ""]
        return write_page(order, target, name, [*lines, *searched_in_a(runs), seeds_and_runs(order, runs)])

    return write


def colors_of(titles: Sequence[str]) -> dict[str, str]:
    """A color for each title: Figure 5's for its methods in whatever figure they are, the next free ones for others."""
    methods = {experiment.title: f"C{number}" for number, experiment in enumerate(METHODS)}
    colors = {title: methods[title] for title in titles if title in methods}
    free = iter(f"C{number}" for number in range(10) if f"C{number}" not in colors.values())
    return {title: colors.get(title) or next(free) for title in dict.fromkeys(titles)}


def searched_in_a(runs: Sequence[Run]) -> list[str]:
    """A line that names the subnets that are of A, since pruning left no path within their budget."""
    found = []
    for run in runs:
        space = searched_space(run.folder, run.config)
        for subnet in summary_of(run)["subnets"]:
            if Path.from_ofa(subnet["path"], space.geometry) not in space:
                found.append(f"{run.name} (≤ {subnet['budget'] / 1e9:.3g} G)")
    return [f"Pruning left no path within the budget, so A was searched instead: {', '.join(found)}.", ""] if found else []


def seeds_and_runs(order: Order, runs: Sequence[Run]) -> str:
    """Which seeds, and where the runs are."""
    seeds = ", ".join(str(seed) for seed in range(order.seeds))
    about = "AP in points, of the subnet found for each budget, without fine-tuning of it."
    return f"{about} Seeds: {seeds}. Runs: {runs_and_code(runs)}."


# --- Tables 2, A1 and A2 ----------------------------------------------------------------------------------------------


def write_table2(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """From the ledgers of runs where they have finished, otherwise estimated from a training step on this device."""
    lines, costs, steps, lost, few, finished = [f"The paper: {target.paper}", ""], [], {}, [], [], []
    for key, data_set in order.profile.chosen(target.keys).items():
        papers = cost_table.PAPER_SETS
        paper_sets = [key] if data_set.title == papers.get(key) else [*papers]
        found = []
        for experiment in target.experiments:
            done = [run for run in runs if run.key == key and run.experiment.name == experiment.name and run.finished]
            if done:
                finished += done
                ledgers = [ledger_of(run) for run in done]
                lost += [times_lost(run, ledger) for run, ledger in zip(done, ledgers)]
                if len(done) < order.seeds:
                    few.append(f"{len(done)} of {order.seeds} of {experiment.title} on {data_set.title}")
                found.append(cost_table.cost_of_runs(experiment.title, experiment.name, key, ledgers))
                continue
            config = next(run.config for run in runs if run.key == key and run.experiment.name == experiment.name)
            if key not in steps:
                tqdm.write(f"timing a training step of the largest path of {data_set.title} here: seconds to two minutes")
                steps[key] = cost_table.StepTime.measure(config)
            rng = rng_for(0, f"estimate {key}")
            found.append(cost_table.estimate(experiment.title, experiment.name, key, config, steps[key], rng))
        lines += [f"## {data_set.title}", "", *cost_table.table(found, paper_sets), ""]
        if in_steps := step_costs(found, [run for run in finished if run.key == key]):
            lines += ["In steps of each method's own training:", "", *cost_table.step_table(in_steps), ""]
        costs += found
    if few:
        lines += [f"Not all seeds have been run: {'; '.join(few)}.", ""]
    if lost := [line for line in lost if line]:
        lines += [f"Too little is counted where a run's ledger was lost on its way: {'; '.join(lost)}.", ""]
    if steps:
        lines += [
            "An ESTIMATE is not a run: it is the time of a training step of the largest path on this machine, "
            + ", ".join(
                f"{step.seconds:.3g} {step.unit} an image of {order.profile.data_sets[key].title}"
                for key, step in steps.items()
            )
            + ", times the images of all epochs and the mean FLOPs of the paths of each phase's space (ours: as before "
            "pruning); evaluating a path costs a third of a step for each of its images (a rule of thumb). Not estimated, and "
            "in no sum, are fitting the filter and the search by its scores. The ratios mean more than the hours; there is "
            "none of an estimate and a run.",
            "",
        ]
    lines += [
        "The paper's 0.383 and 1.150 stand as 70 to 210 epochs: they leave out the fullnet's 70, and what a search needs. Its "
        "overhead is that of lines 4 and 5 (section 4.2); ours has 6 and 7 too. So our total is training, the search by path "
        "scores and, for Algorithm 1, the overhead. Apart stands the search's filter (section 3.3), with the paths that it is "
        "fitted to: every method has one here. The fullnet's AP is in its column; that of the subnets, and the held-out paths, "
        "which only these tables need, are nowhere in. A run that branched off another has its time for the phases they share.",
    ]
    if finished:
        lines += ["", f"Runs, of several seeds the mean: {runs_and_code(finished)}."]
    cost_table.write_csv(order.output / f"{name}.csv", costs)
    return write_page(order, target, name, lines)


def step_costs(costs: Sequence[cost_table.Cost], runs: Sequence[Run]) -> list[cost_table.StepCost]:
    """The costs of finished runs in training steps; none where their number is not known."""
    found = []
    for cost in costs:
        run = next((run for run in runs if run.experiment.name == cost.experiment), None)
        if run and cost.hours["training"] and (steps := controls.training_steps(run, training_images(run))):
            found.append(cost_table.StepCost.of(cost, steps))
    return found


def times_lost(run: Run, ledger: Mapping) -> str:
    """The phases of a finished run whose time its ledger does not know, in words; empty where it knows all."""
    phases = [name for name in phase_names(run.config, training_phases(run.config)) if name not in ledger["phases"]]
    return f"{run.name} has no time of {', '.join(phases)}" if phases else ""


def write_space_table(make: Callable[..., tuple[list[str], list]]) -> Callable[..., list[FilePath]]:
    """The writer of Table A1 or A2, which need no runs."""

    def write(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
        run = next(run for run in runs if run.experiment == OFA_PS)
        lines, rows = make(run.config, run.data_set.title)
        with whole_text(order.output / f"{name}.csv") as opened:
            csv.writer(opened).writerows(rows)
        return write_page(order, target, name, lines)

    return write


# --- Figures 3, 4 and 6 -----------------------------------------------------------------------------------------------

RANDOM_PATHS = 15
"""Paths of each FLOPs bucket (Figures 4 and 6)."""


def write_figure3(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """Operations that the run of seed 0 kept and pruned (Alg. 1 line 6)."""
    run = runs[0]
    title = f"{run.data_set.title}, after warm-up"
    scored = ScoredOperations.from_json(title, run.config.network.geometry, operations_of(run))
    figure = operation_figure.draw_pruned(scored)
    save_picture(order, name, figure)
    operation_figure.write_csv(order.output / f"{name}.csv", [scored])
    lines = [f"The paper: {target.paper}", "", *operation_figure.pruned_table(scored), ""]
    if spared := operations_of(run)["spared"]:
        lines += [f"Kept against the strategy: {'; '.join(spared)}.", ""]
    lines += ["What is left, in the paper's notation:", "", "```", str(searched_space(run.folder, run.config)), "```", ""]
    lines += [f"![{target.title}]({name}.png)", "", f"One run: {runs_and_code([run])}."]
    return write_page(order, target, name, lines)


def write_figure4(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """Random paths of the fine-tuned supernet's pruned space, kept or not by the filter that pruned (Alg. 1 line 12)."""
    run = runs[0]
    buckets = run.config.hparams.buckets
    thresholds = read_result(run.folder, "summary", lambda content: result_files.thresholds(content, buckets))
    paths = random_paths(run)
    kept = study_folder(run) / f"figure4_{paths.header['weights'][:8]}.json"
    if not kept.is_file():
        if run.profile.archives:
            raise UserError(f"{run.name} has no path scores of Figure 4 among its kept files")
        searched = load_run(run.folder)
        scorer = PathScorer(PathFilter.load(run.folder / "path_filter.h5"), searched.costs["flops"], searched.buckets.index)
        write_json(kept, scorer(paths.batch).tolist())
    scores = np.array(read_json(kept, "the path scores"), float)
    found = FilteredPaths(paths, scores, np.array(thresholds, float), np.array(paths.settings["bucket_edges"], float))
    figure = kept_paths_figure.draw(found, run.data_set.title)
    save_picture(order, name, figure)
    kept_paths_figure.write_csv(order.output / f"{name}.csv", found)
    lines = [f"The paper: {target.paper}", "", *kept_paths_figure.table(found), "", kept_paths_figure.comparison(found), ""]
    lines += [
        f"![{target.title}]({name}.png)",
        "",
        f"{RANDOM_PATHS} uniformly drawn paths of each FLOPs bucket of the pruned space, where it holds any; their AP50 on the "
        "validation images under the final weights. Scores are of the filter of lines 5 to 14. "
        f"One run: {runs_and_code([run])}.",
    ]
    return write_page(order, target, name, lines)


def write_figure6(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """AP on the validation images of random paths: of A without pruning, of the pruned space with it."""
    data_sets = order.profile.chosen(target.keys)
    figure, axes = figures.subplots(len(data_sets), 1, figsize=(6.5, 4 * len(data_sets)), squeeze=False, layout="constrained")
    lines, groups, shown = [f"The paper: {target.paper}", ""], [], []
    for panel, (key, data_set) in zip(axes[:, 0], data_sets.items()):
        found = []
        for experiment in target.experiments:
            run = next(run for run in runs if run.key == key and run.experiment.name == experiment.name and run.seed == 0)
            found.append(random_paths_figure.PathsOf(experiment.title, random_paths(run)))
            shown.append(run)
        random_paths_figure.draw(panel, found, colors_of([paths.title for paths in found]), data_set.title)
        lines += [f"## {data_set.title}", "", *random_paths_figure.table(found, run.config.hparams.buckets), ""]
        lines += [random_paths_figure.comparison(*found), ""]
        groups += [(data_set.title, paths) for paths in found]
    save_picture(order, name, figure)
    random_paths_figure.write_csv(order.output / f"{name}.csv", groups)
    lines += [
        f"![{target.title}]({name}.png)",
        "",
        f"AP50 on the validation images of {RANDOM_PATHS} uniformly drawn paths of each FLOPs bucket, seed 0: of A for OFA "
        f"(w/o PS), of the pruned space for ours, whose buckets may hold none. Runs: {runs_and_code(shown)}.",
    ]
    return write_page(order, target, name, lines)


def random_paths(run: Run) -> EvaluatedPaths:
    """Paths of the run's final supernet, drawn from the space that it trained, with their AP."""
    weights, space = final_weights(run.folder, run.config), searched_space(run.folder, run.config)
    name = f"random_{run.experiment.name}"
    if not run.profile.archives and not (study_folder(run) / f"{name}.jsonl").exists():
        ledger, evaluated_before = ledger_of(run), EvaluatedPaths.read(run.folder / "paths_again.jsonl")
        count, long = RANDOM_PATHS * run.config.hparams.buckets, "its ledger does not say how long"
        if len(evaluated_before) and "paths again" in ledger["phases"]:
            each = ledger["phases"]["paths again"]["seconds"] / len(evaluated_before)
            long = f"about {count * each / 60:.1f} {ledger['unit'].replace('seconds', 'minutes')}"
        tqdm.write(f"{run.name}: up to {count} random paths are to be evaluated, {long}")
    return evaluated(run, run.config, weights, name, RANDOM_PATHS, [], space, ap=True)


# --- Figure 8 ---------------------------------------------------------------------------------------------------------


def write_figure8(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """Operation scores: the pre-trained filter's on the classification supernet, and those of the run of seed 0."""
    ((_, data_set),) = order.profile.chosen(target.keys).items()
    run = runs[0]
    after = f"{data_set.title}, after warm-up"
    geometry, count = run.config.network.geometry, run.config.hparams.paths_per_operation
    supernets = [
        pretrained_operations(data_set, count),
        ScoredOperations.from_json(after, geometry, operations_of(run)),
    ]
    figure = operation_figure.draw(supernets)
    save_picture(order, name, figure)
    operation_figure.write_csv(order.output / f"{name}.csv", supernets)
    return write_page(
        order,
        target,
        name,
        [
            f"The paper: {target.paper}",
            "",
            operation_figure.table([*supernets, *same_stem_operations(run, after, count)]),
            "",
            operation_figure.comparison(*supernets),
            "",
            f"![{target.title}]({name}.png)",
            "",
            f"A score is the mean of g over {count} uniformly drawn paths with the operation put into its stage; × marks what "
            f"was pruned. The rows with a stem depth are of the same filter, the one that pruned, on the same paths, all with "
            f"that depth. One run: {runs_and_code([run])}.",
        ],
    )


def same_stem_operations(run: Run, title: str, count: int) -> list[ScoredOperations]:
    """Operation scores by the filter that pruned, over paths whose stems are equally deep: of the least and of the largest."""
    searched, geometry = load_run(run.folder), run.config.network.geometry
    scorer = PathScorer(PathFilter.load(run.folder / "path_filter.h5"), searched.costs["flops"], searched.buckets.index)
    side = run.config.dataloader.image_size
    stage_flops = make_cost(run.config, len(trained_classes(run.folder)), (side, side)).stage_flops
    nets = []
    for depth in geometry.stem_depths:
        rng = rng_for(run.config.args.seed, "operation scores")
        found = operation_scores(searched.buckets.space, scorer, stage_flops, count, rng, depth)
        nets.append(ScoredOperations(f"{title}, stem depth {depth}", geometry, found.operations, found.scores, found.flops))
    return nets


def pretrained_operations(data_set: DataSet, count: int) -> ScoredOperations:
    """Operation scores by the pre-trained path filter, over `count` paths of the supernet that it was trained on."""
    config = data_set.pretraining.load()
    space = ofa_resnet50(config.network.geometry, config.network.elastic_stem)
    path_filter = PathFilter.load(data_set.pretraining.path_filter, geometry=space.geometry, buckets=config.hparams.buckets)
    cost = make_cost(config, 1, config.dataloader.image_size)  # of the backbone: classes do not matter
    scorer = PathScorer(path_filter, cost.flops, Buckets(space, cost.flops, config.hparams.buckets).index)
    found = operation_scores(space, scorer, cost.stage_flops, count, rng_for(config.args.seed, "operation scores"))
    title = f"{config.name}, before transfer"
    return ScoredOperations(title, space.geometry, found.operations, found.scores, found.flops)


# --- Beside the paper -------------------------------------------------------------------------------------------------


def write_controls(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """What more steps gain, and what training and the choice of paths gain."""
    ordered = [run for experiment in target.experiments for run in runs if run.experiment.name == experiment.name]
    evidence = evidence_of_runs(ordered)
    save_picture(order, name, controls.draw(evidence))
    controls.write_csv(order.output / f"{name}.csv", evidence)
    lines = [
        *controls.tables(evidence),
        "",
        f"![{target.title}]({name}.png)",
        "",
        "AP in points on the test images. Several seeds: mean, 95% t interval in brackets, and each seed's. The random paths "
        f"are {controls.RANDOM_PATHS} of each FLOPs bucket of A, the same for all methods of a seed. Runs: "
        f"{runs_and_code(runs)}.",
    ]
    return write_page(order, target, name, lines)


def evidence_of_runs(runs: Sequence[Run]) -> list[controls.Evidence]:
    """What the runs have for the controls, measured where it is missing."""
    summaries = {run.name: summary_of(run) for run in runs}
    ours = {run.seed: summaries[run.name] for run in runs if run.experiment.name == DETOFA.name}
    return [controls.evidence_of(run, summaries[run.name], ours.get(run.seed), training_images(run)) for run in runs]


FACTS = "facts.json"
"""Kept with a run's files: what its data say that its results need."""


def training_images(run: Run) -> int | None:
    """Images that the run was trained on; None where neither its kept files nor the data tell."""
    if (file := run.folder / FACTS).is_file():
        return int(read_json(file, "the facts of the data")["training images"])
    try:
        return data_facts(run.config).train
    except (UserError, OSError):
        return None


def write_architectures(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """Depth and width of the found subnets, stage by stage and budget by budget."""
    ((_, data_set),) = order.profile.chosen(target.keys).items()
    groups = [
        architectures.Architectures.of(experiment.title, [summary_of(run) for run in own], own[0].config.network.geometry)
        for experiment in target.experiments
        if (own := [run for run in runs if run.experiment.name == experiment.name])
    ]
    save_picture(order, name, architectures.draw(groups, data_set.title))
    architectures.write_csv(order.output / f"{name}.csv", groups)
    lines = [f"The paper: {target.paper}", ""]
    for group in groups:
        lines += [f"## {group.title}", "", *architectures.table(group), ""]
    lines += [f"![{target.title}]({name}.png)", "", f"Means over the seeds. Runs: {runs_and_code(runs)}."]
    return write_page(order, target, name, lines)


# --- Tables 3 and A3 --------------------------------------------------------------------------------------------------


def write_table3(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """The path filter on the detection supernet after warm-up, as in the paper, and on the classification supernet."""
    run, files = runs[0], []
    announce_study(run, ("", "_classification"))
    check_fits(run, ("filter_study", "filter_study_classification"))
    for place, inputs, supernet in (
        ("", detection_paths(run), runs_and_code([run])),
        ("_classification", classification_paths(run), weights_file(run.data_set.pretraining.supernet)),
    ):
        results, made = study(run, f"filter_study{place}", inputs), (supernet, origin(order, name))
        files += filter_tables.table3(results, order.output, *made, rng_for(0, "bootstrap"), name + place)
    return [file for file in files if file.suffix == ".md"]


def write_table_a3(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """Table 3's filter with everything on, for other shares of weakest paths."""
    announce_study(runs[0], ("",))
    check_fits(runs[0], ("filter_study",))
    results, made = study(runs[0], "filter_study", detection_paths(runs[0])), (runs_and_code(runs[:1]), origin(order, name))
    return filter_tables.table_a3(results, order.output, *made, rng_for(0, "bootstrap"))[:1]


def announce_study(run: Run, places: Sequence[str]) -> None:
    """Say how long the filter studies take, where there is more to do than to read what was kept."""
    minutes = run.profile.minutes.get("filter study")
    fits = run.profile.filter_study.seeds * (len(filter_study.SETTINGS) + len(filter_study.BASELINES))
    files = [study_folder(run) / f"filter_study{place}" / "scores.jsonl" for place in places]
    left = sum(1 - kept_lines(file) / (1 + fits) for file in files)
    if minutes and left > 0:
        tqdm.write(f"the filter study, its paths included: at most about {left * minutes / 2:.0f} minutes on two cores")


def check_fits(run: Run, places: Sequence[str]) -> None:
    """Raise UserError where results are made from kept files alone, and fits are missing there."""
    if run.profile.archives and not all(kept_fits(run, place) for place in places):
        raise UserError(f"not all fits of the filter study of {run.profile.name} are kept")


def kept_fits(run: Run, place: str) -> bool:
    """Are all fits of a filter study kept?"""
    fits = run.profile.filter_study.seeds * (len(filter_study.SETTINGS) + len(filter_study.BASELINES))
    return kept_lines(study_folder(run) / place / "scores.jsonl") > fits


def kept_lines(file: FilePath) -> int:
    """How many lines a file has; 0 where there is none."""
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def study(run: Run, name: str, inputs: StudyInputs) -> StudyResults:
    """Every setting of the filter, fitted with the profile's number of seeds."""
    seeds = range(run.profile.filter_study.seeds)
    with ProgressBar(total=len(inputs.settings) * len(seeds), desc=name, unit="fit") as bar:

        def on_fit(outcome: str) -> None:
            bar.write(outcome)
            bar.update()

        on_cpu = nn.get_current_context().backend == ["cpu:float"]
        return filter_study.run(inputs, seeds, study_folder(run) / name, on_fit, cores() if on_cpu else 1)


# --- All of them ------------------------------------------------------------------------------------------------------

BY_ITSELF = (
    "Each budget is searched by itself: what a smaller one found is not a candidate of a larger one again, so AP can fall "
    "where the budget grows."
)
SEARCHED = "Each is searched in the same way, by a path filter fitted to as many paths of its final supernet."


def searches(runs: Sequence[Run]) -> str:
    """How methods that have one pre-training are searched."""
    start = "from the pre-trained one" if pretrained_filter(runs) else "anew, as there is no pre-trained one here"
    return f"{SEARCHED} That of Algorithm 1 had line 4's paths before, that of the baselines starts {start}."


def searches_without_filter(runs: Sequence[Run]) -> str:
    """How supernets that start from something else are searched, and what the first of them start from."""
    shrunk = runs[0].data_set.pretraining.load().hparams.shrinking
    start = "" if shrunk else " Supernet was pre-trained on uniform paths of A, in the paper with progressive shrinking."
    if not pretrained_filter(runs):
        return f"{SEARCHED} There is no pre-trained one here, so each starts anew.{start}"
    return (
        f"{SEARCHED} It is pre-trained for the pre-trained supernet alone: for the others there are no paths of a "
        f"classification supernet, so theirs starts anew.{start}"
    )


def searches_without_filter_again(runs: Sequence[Run]) -> str:
    """The same on COCO, and where that is not another data set."""
    same = " The runs are Figure 7's, as this profile has one data set." if len(runs[0].profile.data_sets) == 1 else ""
    return searches_without_filter(runs) + same


def pruned_operations(runs: Sequence[Run]) -> str:
    """How many operations each strategy prunes: they differ in that, too, in the paper as here."""
    counts = []
    for experiment in STRATEGIES:
        found = operations_of(next(run for run in runs if run.experiment.name == experiment.name and run.seed == 0))
        counts.append(f"{experiment.title} {len(found['removed'])} of {len(found['operations'])}")
    return f"The strategies prune different shares: {', '.join(counts)} operations (seed 0)."


def pretrained_filter(runs: Sequence[Run]) -> bool:
    """Does any of the runs begin with a pre-trained filter?"""
    return any(run.config.hparams.filter.weights for run in runs)


TARGETS = {
    "controls": Target(
        "Controls: what more steps, training and the choice of paths gain",
        "",
        ("voc",),
        controls.EXPERIMENTS,
        write_controls,
        evaluates=True,
        names_data=False,
    ),
    "architectures": Target(
        "Architectures: depth and width of the found subnets",
        "larger depths and smaller channels on the output side do better for small paths (4.2).",
        ("voc",),
        (OFA, DETOFA),
        write_architectures,
        names_data=False,
    ),
    "table3": Target(
        "Table 3: the path filter for the weakest 25%",
        "",
        ("voc",),
        (DETOFA,),
        write_table3,
        one_seed=True,
        evaluates=True,
        names_data=False,
    ),
    "tableA3": Target(
        "Table A3: the path filter at other pruning ratios",
        "",
        ("voc",),
        (DETOFA,),
        write_table_a3,
        one_seed=True,
        evaluates=True,
        names_data=False,
    ),
    "table2": Target(
        "Table 2: what each method costs",
        "on Pascal VOC ours takes 30% less than OFA (w/ PS), on COCO 63% less.",
        ("voc", "coco"),
        METHODS,
        write_table2,
        runs="welcome",
    ),
    "tableA1": Target(
        "Table A1: the spaces of OFA's progressive shrinking",
        "",
        ("voc",),
        (OFA_PS,),
        write_space_table(lambda config, title: space_tables.table_a1(config)),
        runs="none",
        names_data=False,
    ),
    "tableA2": Target(
        "Table A2: the epochs of OFA's progressive shrinking",
        "",
        ("voc",),
        (OFA_PS,),
        write_space_table(space_tables.table_a2),
        runs="none",
        names_data=False,
    ),
    "figure3": Target(
        "Figure 3: operation pruning",
        "an example of operations that are pruned by score and FLOPs; it gives no numbers.",
        ("voc",),
        (DETOFA,),
        write_figure3,
        one_seed=True,
        names_data=False,
    ),
    "figure4": Target(
        "Figure 4: path pruning",
        "an example of 15 uniformly drawn paths, kept and pruned; it gives no numbers.",
        ("voc",),
        (DETOFA,),
        write_figure4,
        one_seed=True,
        evaluates=True,
        names_data=False,
    ),
    "figure6": Target(
        "Figure 6: random paths of each FLOPs bucket",
        "ours has more paths of better AP than OFA (w/o PS), over all FLOPs.",
        ("voc", "coco"),
        (OFA, DETOFA),
        write_figure6,
        one_seed=True,
        evaluates=True,
    ),
    "figure5": Target(
        "Figure 5: the best path of each method under each budget",
        "ours is 0.85 points above OFA on Pascal VOC and 0.45 on COCO on average; CompOFA* does well only under large budgets; "
        "the best paths are 0.5 and 1.0 points below the fullnet.",
        ("voc", "coco"),
        METHODS,
        write_budget_figure([("", METHODS)]),
        note=searches,
    ),
    "figure7": Target(
        "Figure 7: what the supernet is pre-trained on (in the paper: for Pascal VOC)",
        "pre-training of the supernet is best, with and without progressive shrinking alike; that of the fullnet does well "
        "under large budgets only; from scratch, progressive shrinking is worth up to 3.5 points. Transfer is worth 6.55.",
        ("voc",),
        PRETRAININGS,
        write_budget_figure([("", PRETRAININGS)]),
        note=searches_without_filter,
    ),
    "figureA1": Target(
        "Figure A1: what the supernet is pre-trained on (in the paper: for COCO)",
        "pre-training of the supernet is best; that of the fullnet is weaker under small budgets. Transfer is worth 1.85.",
        ("coco",),
        PRETRAININGS,
        write_budget_figure([("", PRETRAININGS)]),
        note=searches_without_filter_again,
    ),
    "figure8": Target(
        "Figure 8: operation scores",
        "inside each block scores follow an operation's size, more strongly after warm-up on Pascal VOC than on ImageNet.",
        ("voc",),
        (DETOFA,),
        write_figure8,
        one_seed=True,
    ),
    "figure9": Target(
        "Figure 9: how operations are pruned",
        "FLOPs & score (all) is best; FLOPs & score (per bucket) is slightly better than FLOPs.",
        ("voc",),
        STRATEGIES,
        write_budget_figure([("", STRATEGIES)]),
        note=pruned_operations,
        names_data=False,
    ),
    "figure10": Target(
        "Figure 10: how much is pruned",
        "without path pruning (r = 0) AP is worse under every bound; without operation pruning it is worst under the smallest; "
        "too much (r = 0.4) is weaker than other ratios.",
        ("voc",),
        (*PATH_RATIOS, *OPERATION_RATIOS),
        write_budget_figure(),
        panels=lambda profile: (
            ("paths", path_ratios(profile.path_ratios)),
            ("operations", operation_ratios(profile.operation_ratios)),
        ),
    ),
    "figureA2": Target(
        "Figure A2: how paths are pruned",
        "without operation pruning and at r = 0.25, Prune (Score) is best, and Prune (Uniform) is better than None.",
        ("voc",),
        PATH_PRUNINGS,
        write_budget_figure([("", PATH_PRUNINGS)]),
        note=searches,
        names_data=False,
    ),
}
