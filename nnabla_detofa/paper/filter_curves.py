"""Learning curves of the path filter and of its rivals: how well each ranks, from how many evaluated paths.

The supernets are pilots: trained with seeds that no table or figure of the paper is made from, up to the end of the warm-up.
So options of the filter can be chosen here, and judged there.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..backend.compat import Device, nn
from ..common import figures
from ..common.errors import UserError
from ..common.files import whole_text, write_text
from ..config import Filter
from ..methods import algorithm1
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.metrics import bootstrap_interval, kendall_tau, over_buckets, weakest
from . import filter_study
from .experiments import DETOFA
from .filter_paths import evaluated_into, noise_of, pretraining_paths
from .filter_study import BASELINES, CEILING, EVERYTHING, OURS, OURS_FRESH, RIDGE, SETTINGS, StudyInputs, StudyResults
from .filter_tables import RATIO, markdown_table, title
from .profiles import Profile
from .run import Run, profile_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "filter_study"
CHOSEN = tuple(setting for setting in SETTINGS if setting.name in (SETTINGS[2].name, EVERYTHING.name, OURS_FRESH, OURS))
"""The filter by the paper's letter and with our options, each with and without pre-training."""
MEASURES = {
    "Kendall's tau": lambda scores, losses, buckets: over_buckets(kendall_tau, scores, losses, buckets),
    f"precision for the weakest {RATIO:.0%}": lambda scores, losses, buckets: weakest(scores, losses, RATIO, buckets).precision,
}
"""(n,) scores, losses and FLOPs buckets -> a number, the mean over buckets."""


class Pilot(algorithm1.DetOFASearcher):
    """Algorithm 1 up to line 3."""

    def run(self) -> dict:
        """Train the fullnet and warm the supernet up."""
        self.train_fullnet(self.space)
        self.warm_up(self.space)
        return self.results


@dataclass(frozen=True, eq=False)
class Point:
    """The rankings of one pilot's test paths, fitted to so many paths of it.

    Attributes:
        pilot: seed of the supernet. paths: fitted, over all FLOPs buckets.
        results: the scores.
    """

    pilot: int
    paths: int
    results: StudyResults


# --- Making them ------------------------------------------------------------------------------------------------------


def curves(profile: Profile, device: Device, log: Callable[[str], None] = print) -> list[Point]:
    """Train the pilots, evaluate their paths and fit every ranking; what is done already is kept and not done again.

    Raises:
        UserError: the data or the pre-trained weights of the profile are missing, or it starts no runs.
    """
    if not profile.starts_runs:
        raise UserError(
            f"the filter study trains {len(profile.filter_study.pilots)} supernets, and the profile {profile.name} starts no "
            "runs: take one that does, such as demo"
        )
    ((key, data_set),) = profile.chosen(("voc",)).items()
    profile.check(data_set)
    sizes, first = profile.filter_study, Run(profile, key, DETOFA, 0)
    before = pretraining_paths(first) if first.config.hparams.filter.weights else None
    points, started, todo = [], time.monotonic(), len(sizes.pilots) * len(sizes.pilot_paths)
    for seed in sizes.pilots:
        train, test, noise = pilot_paths(Run(profile, key, DETOFA, seed), device)
        for per_bucket in sizes.pilot_paths:
            some = first_of_each_bucket(train, per_bucket)
            label = f"{data_set.title}, pilot supernet of seed {seed}"
            options, buckets = first.config.hparams.filter, first.config.hparams.buckets
            inputs = StudyInputs(label, some, test, options, before, buckets, noise=noise)
            folder = profile_folder(profile) / f"{key}-pilots" / f"{seed}_{len(some)}"
            points.append(Point(seed, len(some), filter_study.run(inputs, (0,), folder, log, processes(), CHOSEN)))
            spent = (time.monotonic() - started) / 60
            left = spent / len(points) * (todo - len(points))
            log(f"{len(points)} of {todo} points of the curves are there, {spent:.0f} minutes, about {left:.0f} more")
    return points


def pilot_paths(run: Run, device: Device) -> tuple[EvaluatedPaths, EvaluatedPaths, float]:
    """Paths of a pilot to fit to and to test on, and the noise of their losses; the pilot is trained first.

    Its config has no path filter, so that another choice of the filter's options finds it again.
    """
    sizes, config = run.profile.filter_study, run.config
    config = dataclasses.replace(config, hparams=dataclasses.replace(config.hparams, filter=Filter()))
    folder = profile_folder(run.profile) / f"{run.key}-pilots" / f"{run.seed}"
    weights = folder / "warm_up" / "weights.h5"
    if not weights.exists():
        algorithm1.run(config, device, folder, searcher=Pilot)
    most = sizes.pilot_paths[-1]
    test = evaluated_into(folder / "test.jsonl", config, weights, "test", sizes.test_paths_per_bucket, [])
    train = evaluated_into(folder / "fit.jsonl", config, weights, "fit", most, [test.file])
    return train, test, noise_of(config, weights, test)


def first_of_each_bucket(paths: EvaluatedPaths, per_bucket: int) -> EvaluatedPaths:
    """The first so many paths of each FLOPs bucket."""
    buckets = paths.buckets
    rows = np.sort(np.concatenate([np.flatnonzero(buckets == bucket)[:per_bucket] for bucket in np.unique(buckets)]))
    return EvaluatedPaths(paths.file, paths.header, [paths.items[row] for row in rows], paths.geometry, 0)


def processes() -> int:
    """Over how many processes fits are shared out."""
    return (os.cpu_count() or 1) if nn.get_current_context().backend == ["cpu:float"] else 1


# --- Telling them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """One measure of one ranking from so many paths: the mean over pilots, and what it is made of.

    Attributes:
        pilots: (pilots,) the measure of each.
        low, high: 95% interval of the mean over test paths that are drawn again inside the FLOPs buckets of each pilot.
    """

    pilots: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.pilots))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.2f} to {self.high:.2f})"


def measured(
    points: Sequence[Point], measure: Callable, of: Callable[[StudyResults], Sequence[np.ndarray]], resamples: int
) -> Value:
    """A measure, or a difference of two, of the points of equal size.

    Args:
        resamples: of the bootstrap.
        of: results -> scores of one ranking; or of two, whose difference is taken.
    """
    groups, values, start = [], [], 0
    for number, point in enumerate(points):
        test = point.results.inputs.test
        groups.append(test.buckets + 1000 * number)
        scores = of(point.results)
        values.append((start, scores, test.losses, test.buckets))
        start += len(test)

    def each(drawn: np.ndarray) -> list[float]:
        found = []
        for first, scores, losses, buckets in values:
            rows = drawn[(drawn >= first) & (drawn < first + len(losses))] - first
            by_ranking = [np.mean([measure(draw[rows], losses[rows], buckets[rows]) for draw in draws]) for draws in scores]
            found.append(float(by_ranking[0] - (by_ranking[1] if len(by_ranking) > 1 else 0)))
        return found

    rng = np.random.default_rng(0)
    interval = bootstrap_interval(lambda drawn: float(np.mean(each(drawn))), np.concatenate(groups), rng, resamples)
    return Value(tuple(each(np.arange(start))), *interval)


def write(points: Sequence[Point], output: FilePath, command: str, resamples: int = 300) -> list[FilePath]:
    """Write filter_study.md, .csv and .png into the folder; `resamples` of the bootstrap for each interval."""
    output.mkdir(parents=True, exist_ok=True)
    sizes = sorted({point.paths for point in points})
    at = {size: [point for point in points if point.paths == size] for size in sizes}
    names = [name for name in (*BASELINES, *(setting.name for setting in CHOSEN), CEILING) if name in points[0].results.scores]
    pilots = ", ".join(str(point.pilot) for point in at[sizes[0]])
    lines = [f"# How many paths the path filter needs, {points[0].results.inputs.label.split(', ')[0]}", ""]
    rows, found = [], {}
    for text, measure in MEASURES.items():
        for name in names:
            for size in sizes:
                draws = slice(None, 3) if name == CEILING else slice(None)
                found[text, name, size] = measured(
                    at[size], measure, lambda results, n=name, d=draws: [results.scores[n][d]], resamples
                )
        cells = [(title(name), *(str(found[text, name, size]) for size in sizes)) for name in names]
        lines += [f"{text}, by the number of paths that are fitted:", ""]
        lines += [*markdown_table(("ranking", *map(str, sizes)), cells), ""]
    for (text, name, size), value in found.items():
        row = {"measure": text, "ranking": title(name), "paths": size, "mean": value.mean, "low": value.low, "high": value.high}
        rows.append(row | {f"pilot_{point.pilot}": part for point, part in zip(at[size], value.pilots)})
    lines += [*gains(at, sizes, resamples), ""]
    inputs = points[0].results.inputs
    noise = ", ".join(f"{point.results.inputs.noise:.0%}" for point in at[sizes[0]])
    lines += [
        f"- Mean over {len(at[sizes[0]])} pilot supernets (seeds {pilots}), which no other table is made from: Algorithm 1 up "
        f"to the end of the warm-up, {len(inputs.test)} test paths each. In brackets: 95% bootstrap interval over the test "
        "paths.",
        f"- Both measures are taken inside the FLOPs buckets. Noise of the validation images: {noise} of the variance there.",
        f"- The filter is pre-trained on {len(inputs.pretraining) if inputs.pretraining else 0} paths of the classification "
        "supernet, and fitted once to each set of paths.",
        "- Our options: " + ", ".join(f"{key} {value}" for key, value in inputs.fingerprint["options"].items()) + ".",
        f"- Made by `{command}`.",
        "",
        f"![learning curves]({NAME}.png)",
        "",
    ]
    files = [output / f"{NAME}.{kind}" for kind in ("md", "csv", "png")]
    write_text(files[0], "\n".join(lines))
    with whole_text(files[1]) as opened:
        table = csv.DictWriter(opened, list(rows[0]))
        table.writeheader()
        table.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    figure = draw(found, names, sizes)
    figures.save(figure, files[2], dpi=110, bbox_inches="tight")
    return files


def gains(at: dict[int, list[Point]], sizes: Sequence[int], resamples: int) -> list[str]:
    """Markdown: what the filter with our options has above ridge, size by size."""
    cells = []
    for name in (OURS_FRESH, OURS):
        for text, measure in MEASURES.items():
            row = [f"{title(name)}: {text}"]
            for size in sizes:
                if name not in at[size][0].results.scores:
                    continue
                both = lambda results, n=name: [results.scores[n], results.scores[RIDGE]]  # noqa: E731
                value = measured(at[size], measure, both, resamples)
                row.append(f"{value.mean:+.3f} ({value.low:+.2f} to {value.high:+.2f})")
            if len(row) > 1:
                cells.append(tuple(row))
    return [f"Above {title(RIDGE)}, on the same test paths:", "", *markdown_table(("filter", *map(str, sizes)), cells)]


def draw(found: dict[tuple[str, str, int], Value], names: Sequence[str], sizes: Sequence[int]) -> Figure:
    """A panel for each measure, a line for each ranking; the bars of the filter with our options are its intervals."""
    figure, panels = figures.subplots(1, len(MEASURES), figsize=(6 * len(MEASURES), 4.4), layout="constrained")
    for panel, text in zip(panels, MEASURES):
        for number, name in enumerate(names):
            values = [found[text, name, size] for size in sizes]
            style = {"linestyle": ":" if name in BASELINES else "--" if name == CEILING else "-", "color": f"C{number % 10}"}
            marker = "so^v"[number // 10] if number >= 10 else "."
            panel.plot(sizes, [value.mean for value in values], marker=marker, label=title(name), **style)
            if name == OURS:
                panel.vlines(sizes, [value.low for value in values], [value.high for value in values], color=style["color"])
        panel.set(xscale="log", xlabel="paths that are fitted", ylabel=text, xticks=sizes)
        panel.set_xticks(sizes, map(str, sizes))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
