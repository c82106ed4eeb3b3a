"""The paper's tables and figures, each from the runs that it needs: the paper's numbers and ours, side by side.

Every target leaves <target>.md, .csv and .png in the output folder, from result files alone.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from . import __version__, budget_figures, filter_study, filter_tables, operation_figure, pretrain
from . import config as configs
from .budget_figures import Curve
from .costs import Buckets
from .errors import UserError
from .experiments import (
    OPERATION_RATIOS,
    OURS,
    PATH_PRUNINGS,
    PATH_RATIOS,
    STRATEGIES,
    Experiment,
    Run,
    ensure,
    plan,
)
from .filter_paths import classification_paths, detection_paths, study_folder
from .filter_study import StudyInputs, StudyResults
from .operation_figure import ScoredOperations
from .path_filter import PathFilter, PathScorer
from .profiles import DataSet, Profile
from .pruning import operation_scores
from .run_folder import read_result
from .runner import named_rng
from .search_space import ofa_resnet50


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        profile: the scale.
        seeds: how many: 0, 1, ...
        overrides: entries of the data sets' configs to replace.
        output: folder of the results.
        jobs: runs at a time.
    """

    profile: Profile
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    output: FilePath = FilePath("results")
    jobs: int = 2

    def command(self, target: str) -> str:
        """What makes the target."""
        assignments = [f"SET={shlex.quote(' '.join(self.overrides))}"] if self.overrides else []
        return " ".join(["make", target, f"PROFILE={self.profile.name}", f"SEEDS={self.seeds}", *assignments])

    def runs(self, target: Target) -> list[Run]:
        """Every run that the target needs."""
        seeds = 1 if target.one_seed else self.seeds
        return plan(self.profile, target.keys, target.experiments, seeds, self.overrides)


@dataclass(frozen=True)
class Target:
    """One table or figure.

    Attributes:
        title: what it is.
        paper: what the paper says of it, where its numbers are not in our table.
        keys: the paper's data sets for it.
        experiments: whose runs it is made of.
        write: (order, target, name, runs) -> its Markdown files, which it has written with their .csv and .png.
        one_seed: it is made of the run of seed 0 alone, however many seeds are asked for.
    """

    title: str
    paper: str
    keys: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    write: Callable[[Order, Target, str, Sequence[Run]], list[FilePath]]
    one_seed: bool = False


def reproduce(names: Sequence[str], order: Order, log: Callable[[str], None] = print) -> list[FilePath]:
    """Make targets, one after the other; runs that are missing are done first.

    Returns:
        their Markdown files.

    Raises:
        UserError: a target is unknown, or an input is missing.
    """
    for name in names:
        if name not in TARGETS:
            raise UserError(f"there is no table or figure {name}; known are {', '.join(TARGETS)}")
    needed: dict[str, DataSet] = {}
    for name in names:
        needed |= order.profile.chosen(TARGETS[name].keys)
    for data_set in needed.values():
        order.profile.check(data_set, order.overrides)
    made = []
    for name in names:
        target = TARGETS[name]
        log(f"{name} ({order.profile.name}): {target.title}")
        runs = order.runs(target)
        ensure(runs, order.jobs, log)
        order.output.mkdir(parents=True, exist_ok=True)
        made += target.write(order, target, name, runs)
    return made


def write_text(order: Order, target: Target, name: str, lines: Sequence[str]) -> list[FilePath]:
    """Write a target's Markdown file, with what made it."""
    file = order.output / f"{name}.md"
    file.write_text("\n".join([f"# {target.title}", "", *lines, "", f"Made by {origin(order, name)}.", ""]), encoding="utf-8")
    return [file]


def origin(order: Order, name: str) -> str:
    """What made a target, in words."""
    return f"`{order.command(name)}` at {revision()}"


def revision() -> str:
    """The commit that this is, or the version where there is no repository."""
    here = FilePath(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "nnabla_detofa", "configs"))
        return f"commit {git('rev-parse', '--short=12', 'HEAD')}" + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"


# --- Figures of AP over budgets ---------------------------------------------------------------------------------------


def curve_of(experiment: Experiment, runs: Sequence[Run]) -> Curve:
    """The curve of an experiment among runs of one data set."""
    return Curve.of(
        experiment.title, [read_result(run.folder, "summary") for run in runs if run.experiment.name == experiment.name]
    )


def write_budget_figure(panels: Sequence[tuple[str, Sequence[Experiment]]]) -> Callable[..., str]:
    """The writer of a figure with one panel for each group of experiments, and for each data set."""

    def write(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
        data_sets = order.profile.chosen(target.keys)
        figure, axes = plt.subplots(
            len(data_sets), len(panels), figsize=(5.2 * len(panels), 4.2 * len(data_sets)), squeeze=False, layout="constrained"
        )
        lines, everything = [f"The paper: {target.paper}", ""], []
        for row, (key, data_set) in zip(axes, data_sets.items()):
            of_data_set = [run for run in runs if run.key == key]
            measure = budget_figures.metric(read_result(of_data_set[0].folder, "summary"))
            for panel, (title, experiments) in zip(row, panels):
                curves = [curve_of(experiment, of_data_set) for experiment in experiments]
                heading = ": ".join(part for part in (data_set.title, title) if part)
                budget_figures.draw(panel, curves, measure, heading)
                lines += [f"## {heading}", "", budget_figures.table(curves, measure), "", budget_figures.order(curves), ""]
                fullnets = np.unique(np.concatenate([curve.fullnet for curve in curves]).round(1))
                lines += [f"The fullnet (line 2) has {', '.join(f'{value:.1f}' for value in fullnets)}.", ""]
                everything += [Curve(f"{heading}: {c.title}", c.budgets, c.flops, c.ap, c.fullnet) for c in curves]
        figure.savefig(order.output / f"{name}.png", dpi=110)
        plt.close(figure)
        budget_figures.write_csv(order.output / f"{name}.csv", everything)
        lines += [f"![{target.title}]({name}.png)", "", seeds_and_runs(order, runs)]
        return write_text(order, target, name, lines)

    return write


def seeds_and_runs(order: Order, runs: Sequence[Run]) -> str:
    """Which seeds, and where the runs are."""
    seeds = ", ".join(str(seed) for seed in range(order.seeds))
    folders = ", ".join(f"`{run.folder}`" for run in runs)
    return f"AP in points, of the subnet found for each budget, without fine-tuning of it. Seeds: {seeds}. Runs: {folders}."


# --- Figure 8 ---------------------------------------------------------------------------------------------------------


def write_figure8(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """Operation scores: the pre-trained filter's on the classification supernet, and those of the run of seed 0."""
    ((_, data_set),) = order.profile.chosen(target.keys).items()
    run = runs[0]
    after = f"{data_set.title}, after warm-up"
    geometry, count = run.config.network.geometry, run.config.hparams.paths_per_operation
    supernets = [
        pretrained_operations(data_set, count),
        ScoredOperations.from_json(after, geometry, read_result(run.folder, "operations")),
    ]
    figure = operation_figure.draw(supernets)
    figure.savefig(order.output / f"{name}.png", dpi=110)
    plt.close(figure)
    operation_figure.write_csv(order.output / f"{name}.csv", supernets)
    return write_text(
        order,
        target,
        name,
        [
            f"The paper: {target.paper}",
            "",
            operation_figure.table(supernets),
            "",
            operation_figure.comparison(*supernets),
            "",
            f"![{target.title}]({name}.png)",
            "",
            f"A score is the mean of g over {count} uniformly drawn paths with the operation put into its stage; × marks what "
            f"was pruned. Run: `{run.folder}`.",
        ],
    )


def pretrained_operations(data_set: DataSet, count: int) -> ScoredOperations:
    """Operation scores by the pre-trained path filter, over `count` paths of the supernet that it was trained on."""
    config = configs.load(data_set.pretraining.config)
    space = ofa_resnet50(config.network.geometry, config.network.elastic_stem)
    path_filter = PathFilter.load(data_set.pretraining.path_filter, geometry=space.geometry, buckets=config.hparams.buckets)
    cost = pretrain.make_cost(config, 1, config.dataloader.image_size)  # of the backbone: classes do not matter
    scorer = PathScorer(path_filter, cost.flops, Buckets(space, cost.flops, config.hparams.buckets).index)
    found = operation_scores(space, scorer, cost.stage_flops, count, named_rng(config.args.seed, "operation scores"))
    title = f"{config.name}, before transfer"
    return ScoredOperations(title, space.geometry, found.operations, found.scores, found.flops)


# --- Tables 3 and A3 --------------------------------------------------------------------------------------------------


def write_table3(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """The path filter on the detection supernet after warm-up, as in the paper, and on the classification supernet."""
    files = []
    for place, inputs in (("", detection_paths(runs[0])), ("_classification", classification_paths(runs[0]))):
        results = study(runs[0], f"filter_study{place}", inputs)
        files += filter_tables.table3(results, order.output, origin(order, name), named_rng(0, "bootstrap"), name + place)
    return [file for file in files if file.suffix == ".md"]


def write_table_a3(order: Order, target: Target, name: str, runs: Sequence[Run]) -> list[FilePath]:
    """Table 3's filter with everything on, for other shares of weakest paths."""
    results = study(runs[0], "filter_study", detection_paths(runs[0]))
    return filter_tables.table_a3(results, order.output, origin(order, name), named_rng(0, "bootstrap"))[:1]


def study(run: Run, name: str, inputs: StudyInputs) -> StudyResults:
    """Every setting of the filter, fitted with the profile's number of seeds."""
    seeds = range(run.profile.filter_study.seeds)
    with tqdm(total=len(inputs.settings) * len(seeds), desc=name, unit="fit", dynamic_ncols=True) as bar:

        def on_fit(outcome: str) -> None:
            bar.write(outcome)
            bar.update()

        return filter_study.run(inputs, seeds, study_folder(run) / name, on_fit)


# --- All of them ------------------------------------------------------------------------------------------------------

TARGETS = {
    "table3": Target(
        "Table 3: the path filter for the weakest 25%",
        "",
        ("voc",),
        (OURS,),
        write_table3,
        one_seed=True,
    ),
    "tableA3": Target(
        "Table A3: the path filter at other pruning ratios",
        "",
        ("voc",),
        (OURS,),
        write_table_a3,
        one_seed=True,
    ),
    "figure8": Target(
        "Figure 8: operation scores",
        "inside each block scores follow an operation's size, more strongly after warm-up on Pascal VOC than on ImageNet.",
        ("voc",),
        (OURS,),
        write_figure8,
        one_seed=True,
    ),
    "figure9": Target(
        "Figure 9: how operations are pruned",
        "FLOPs & score (all) is best; FLOPs & score (per bucket) is slightly better than FLOPs.",
        ("voc",),
        STRATEGIES,
        write_budget_figure([("", STRATEGIES)]),
    ),
    "figure10": Target(
        "Figure 10: how much is pruned",
        "without path pruning (r = 0) AP is worse under every bound; without operation pruning it is worst under the smallest; "
        "too much (r = 0.4) is weaker than other ratios.",
        ("voc",),
        (*PATH_RATIOS, *OPERATION_RATIOS),
        write_budget_figure([("paths", PATH_RATIOS), ("operations", OPERATION_RATIOS)]),
    ),
    "figureA2": Target(
        "Figure A2: how paths are pruned",
        "without operation pruning and at r = 0.25, Prune (Score) is best, and Prune (Uniform) is better than None.",
        ("voc",),
        PATH_PRUNINGS,
        write_budget_figure([("", PATH_PRUNINGS)]),
    ),
}
