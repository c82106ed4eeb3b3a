"""Figures of AP against FLOPs budgets, with one curve for each experiment: Figures 5, 7, 9, 10, A1 and A2."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.errors import UserError
from ..common.files import whole_text
from ..runs.run_folder import metric, searched_space
from ..space.paths import Path
from ..tools.report import markdown_row
from .budget_curves import Curve, by_fullnet, with_range
from .experiments import METHODS, Experiment
from .intervals import differences
from .profiles import Profile
from .run import Run
from .run_results import runs_and_code, summary_of
from .standard_errors import standard_errors_of
from .target import Request, Target, csv_file, picture_line, save_picture, write_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panels = Sequence[tuple[str, Sequence[Experiment]]]
"""Title and experiments of each panel of a figure."""
FAR = 5.0
"""Points of AP below the curves from which a fullnet may be left out of a picture."""
INDEPENDENT_BUDGETS = (
    "Each budget is searched independently, and a subnet found for a smaller budget is not a candidate for a larger one, so AP "
    "can decrease when the budget increases."
)


def budget_figure(
    name: str,
    title: str,
    keys: tuple[str, ...],
    panels: Callable[[Profile], Panels],
    paper: str,
    note: Callable[[Sequence[Run]], str] = lambda runs: "",
    names_data: bool = True,
) -> Target:
    """Return the target of a figure with one panel for each group of experiments and each data set.

    Args:
        name, title, keys, paper, names_data: see `Target`.
        panels: function of the profile that returns the groups of experiments.
        note: function of the runs that returns a note for readers.
    """

    def experiments(profile: Profile) -> tuple[Experiment, ...]:
        return tuple(experiment for _, group in panels(profile) for experiment in group)

    return Target(name, title, keys, experiments, partial(write, panels, note), paper, names_data=names_data)


def write(
    panels_of: Callable[[Profile], Panels],
    note: Callable[[Sequence[Run]], str],
    request: Request,
    target: Target,
    runs: Sequence[Run],
) -> list[FilePath]:
    """Write a figure, its table and a CSV file; see `budget_figure` and `Target.write`."""
    panels, data_sets = panels_of(request.profile), request.profile.chosen(target.keys)
    size = (5.2 * len(panels), 4.2 * len(data_sets))
    figure, axes = figures.subplots(len(data_sets), len(panels), figsize=size, squeeze=False, layout="constrained")
    experiments = target.of(request.profile)
    colors = colors_of([experiment.title for experiment in experiments])
    runs = [run for run in runs if run.experiment.name in {experiment.name for experiment in experiments}]
    lines: list[str] = []
    everything: list[Curve] = []
    for row, (key, data_set) in zip(axes, data_sets.items()):
        own = [run for run in runs if run.key == key]
        measure = metric(summary_of(own[0]))
        for panel, (title, group) in zip(row, panels):
            curves = [curve_of(experiment, own) for experiment in group]
            check_budgets(curves)
            heading = ": ".join(part for part in (data_set.title, title) if part)
            draw(panel, curves, measure, colors, heading)
            lines += [f"## {heading}", "", table(curves, measure), "", ranking(curves), ""]
            lines += [differences_table(curves), "", fullnets(curves), ""]
            everything += [replace(curve, title=f"{heading}: {curve.title}") for curve in curves]
    save_picture(request, target, figure)
    write_csv(csv_file(request, target), everything)
    lines += [picture_line(target), "", " ".join(filter(None, (note(runs), INDEPENDENT_BUDGETS))), ""]
    return write_markdown(request, target, [*lines, *searched_in_a(runs), seeds_and_runs(request, runs)])


def curve_of(experiment: Experiment, runs: Sequence[Run]) -> Curve:
    """Return the curve of an experiment from its runs on one data set."""
    own = [run for run in runs if run.experiment.name == experiment.name]
    return Curve.of(experiment.title, [summary_of(run) for run in own], [standard_errors_of(run) for run in own])


def colors_of(titles: Sequence[str]) -> dict[str, str]:
    """Return a color for each title: the methods of Figure 5 have the same color in all figures. Beyond ten, they repeat."""
    methods = {experiment.title: f"C{number}" for number, experiment in enumerate(METHODS)}
    colors = {title: methods[title] for title in titles if title in methods}
    free = cycle([f"C{number}" for number in range(10) if f"C{number}" not in colors.values()])
    return {title: colors.get(title) or next(free) for title in dict.fromkeys(titles)}


def check_budgets(curves: Sequence[Curve]) -> None:
    """Raise UserError unless all curves have the same budgets, which are the columns of their table."""
    for curve in curves[1:]:
        if not np.array_equal(curve.budgets, curves[0].budgets):
            names = [f"{one.title} has {', '.join(f'{budget:.0f}' for budget in one.budgets)}" for one in (curves[0], curve)]
            raise UserError(f"all runs of a figure must have the same budgets (in FLOPs), but {' and '.join(names)}")


def table(curves: Sequence[Curve], measure: str) -> str:
    """Return the Markdown table: a row for each curve, a column for each budget, and the mean over the budgets."""
    budgets = [f"≤ {budget / 1e9:.3g} G" for budget in curves[0].budgets]
    lines = [
        markdown_row([measure, *budgets, "mean"]),
        markdown_row(["---"] + ["---:"] * (len(budgets) + 1)),
    ]
    for curve in curves:
        cells = [with_range(column) for column in curve.ap.T]
        lines.append(markdown_row([curve.title, *cells, with_range(curve.over_budgets)]))
        if len(known := curve.known_errors):
            shown = [f"{error:.1f}" for error in curve.errors[known, 1:].mean(axis=0)]
            lines.append(markdown_row([f"standard error over the test images{_seeds(known, curve)}", *shown, ""]))
    return "\n".join(lines)


def _seeds(some: np.ndarray, curve: Curve) -> str:
    """Return seeds in parentheses; empty if they are all seeds of the curve."""
    return "" if len(some) == len(curve.ap) else f" (seed{'s' * (len(some) > 1)} {', '.join(map(str, some))})"


def ranking(curves: Sequence[Curve]) -> str:
    """Rank the curves by mean AP in a sentence, with the standard deviation over the seeds if there are several."""
    means = [float(curve.ap.mean()) for curve in curves]
    ranked = ", ".join(f"{curves[index].title} ({means[index]:.1f})" for index in np.argsort(means)[::-1])
    seeds = len(curves[0].ap)
    if seeds == 1:
        return f"Mean AP over the budgets here: {ranked}. Single seed; variance unknown."
    spread = np.mean([curve.over_budgets.std(ddof=1) for curve in curves])
    return f"Mean AP over the budgets here: {ranked}; its standard deviation over the {seeds} seeds is {spread:.1f} on average."


def differences_table(curves: Sequence[Curve]) -> str:
    """Return a Markdown table of the mean AP over the budgets by seed, and of the differences between curves.

    Seeds are paired. With several seeds, a difference has its mean and 95% t interval.
    """
    seeds = [f"seed {seed}" for seed in range(len(curves[0].ap))]
    columns = [
        "AP, mean over the budgets",
        *seeds,
        *(f"minus {curve.title}" for curve in curves[:-1]),
        "best subnet minus fullnet",
    ]
    lines = [markdown_row(columns), markdown_row(["---"] + ["---:"] * (len(columns) - 1))]
    for number, curve in enumerate(curves):
        gains = [difference_text(curve.over_budgets, other.over_budgets) for other in curves[:number]]
        cells = [*(f"{ap:.1f}" for ap in curve.over_budgets), *gains, *[""] * (len(curves) - 1 - number)]
        lines.append(markdown_row([curve.title, *cells, difference_text(curve.ap.max(axis=1), curve.fullnet)]))
    return "\n".join(lines)


def difference_text(one: np.ndarray, other: np.ndarray) -> str:
    """Format the mean of `one` minus `other`, (seeds,) each, with its interval if there are several seeds."""
    return differences(one.tolist(), other.tolist()).text(each=False)


def fullnets(curves: Sequence[Curve]) -> str:
    """Give the AP of the fullnets in a sentence."""
    groups = by_fullnet(curves)
    each = []
    for group in groups:
        curve = max(group, key=lambda one: len(one.known_errors))
        text = with_range(curve.fullnet)
        if len(known := curve.known_errors):
            text += f", standard error over the test images{_seeds(known, curve)} {curve.errors[known, 0].mean():.1f}"
        each.append(text if len(groups) == 1 else f"{', '.join(one.title for one in group)} {text}")
    return f"AP of the fullnet{'s' * (len(groups) > 1)} (Algorithm 1, line 2): {'; '.join(each)}."


def searched_in_a(runs: Sequence[Run]) -> list[str]:
    """Return a line that names subnets outside the pruned space, which had no path within their budget."""
    found = []
    for run in runs:
        space = searched_space(run.folder, run.config)
        for subnet in summary_of(run)["subnets"]:
            if Path.from_ofa(subnet["path"], space.geometry) not in space:
                found.append(f"{run.name} (≤ {subnet['budget'] / 1e9:.3g} G)")
    if not found:
        return []
    return [f"After pruning, no path was within the budget, so the whole space A was searched: {', '.join(found)}.", ""]


def seeds_and_runs(request: Request, runs: Sequence[Run]) -> str:
    """Describe the seeds and the runs of a figure."""
    seeds = ", ".join(str(seed) for seed in range(request.seeds))
    about = (
        "AP in points on the test images, of the subnet found for each budget, which is not fine-tuned. Differences are paired "
        "by seed; with several seeds, they have the mean and in brackets its 95% t interval. The best subnet is the one with "
        "the highest AP on the test images, so its difference is an upper limit."
    )
    return f"{about} Seeds: {seeds}. Runs: {runs_and_code(runs)}."


def write_csv(file: FilePath, curves: Sequence[Curve]) -> None:
    """Write one row for each experiment, seed and budget."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["experiment", "seed", "budget [FLOPs]", "FLOPs", "AP [points]"])
        for curve in curves:
            for seed, (flops, ap) in enumerate(zip(curve.flops, curve.ap)):
                writer.writerows(
                    [curve.title, seed, f"{b:.0f}", f, f"{a:.2f}"] for b, f, a in zip(curve.budgets, flops.tolist(), ap)
                )


def draw(axes: Axes, curves: Sequence[Curve], measure: str, colors: Mapping[str, str], title: str = "") -> None:
    """Plot the curves, and their fullnets as dotted lines; error bars are side by side so that none hides another.

    The bars span the seeds, or with one seed a standard error over the test images to each side. A fullnet that is far below
    the curves is only named in the legend, so that the curves have the space.

    Args:
        axes: the panel.
        curves: the curves.
        measure: name of the metric.
        colors: color of each curve by title.
        title: title of the panel.
    """
    seeds = len(curves[0].ap)
    for number, curve in enumerate(curves):
        shift = (number + 0.5) / len(curves) - 0.5
        places = (curve.budgets + 0.03 * shift * np.ptp(curve.budgets)) / 1e9
        marker = "osD^"[[colors[earlier.title] for earlier in curves[:number]].count(colors[curve.title]) % 4]
        axes.errorbar(places, curve.mean, yerr=error_bars(curve), marker=marker, color=colors[curve.title], label=curve.title)
    low, high = min(curve.ap.min() for curve in curves), max(curve.ap.max() for curve in curves)
    groups = by_fullnet(curves)
    for group in groups:
        color, label = ("0.6", "fullnet") if len(groups) == 1 else (colors[group[0].title], f"fullnet of {group[0].title}, …")
        ap = float(group[0].fullnet.mean())
        if low - ap > max(high - low, FAR):
            axes.plot([], [], color=color, linestyle=":", label=f"{label}: {ap:.1f}, below")
        else:
            axes.axhline(ap, color=color, linestyle=":", label=label)
    bars = [error_bars(curve) is not None for curve in curves]
    one = f"one seed{'; bars: standard error' * any(bars)}{', where known' * (any(bars) and not all(bars))}"
    over = f"mean and range of {seeds} seeds" if seeds > 1 else one
    axes.set(xlabel="budget [GFLOPs, multiply-accumulates]", ylabel=f"{measure} [points]", title=f"{title} ({over})")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    axes.grid(alpha=0.3)


def error_bars(curve: Curve) -> np.ndarray | None:
    """Return (2, b) lengths of the error bars below and above the means; None if one seed has no standard errors."""
    if len(curve.ap) > 1:
        return np.stack([curve.mean - curve.ap.min(axis=0), curve.ap.max(axis=0) - curve.mean])
    return np.stack([curve.errors[0, 1:]] * 2) if len(curve.known_errors) else None


# --- Notes ------------------------------------------------------------------------------------------------------------

SAME_SEARCH = (
    "All methods are searched in the same way, by a path filter fitted to the same number of paths of their final supernet."
)


def search_note(runs: Sequence[Run]) -> str:
    """Describe the search of methods that have the same pre-training."""
    start = (
        "from the pre-trained filter" if pretrained_filter(runs) else "from random weights, because no filter is pre-trained"
    )
    return f"{SAME_SEARCH} In Algorithm 1 it was fitted to the paths of line 4 before; in the baselines it starts {start}."


def pretrained_filter(runs: Sequence[Run]) -> bool:
    """Return whether any run starts with a pre-trained filter."""
    return any(run.config.hparams.filter.weights for run in runs)
