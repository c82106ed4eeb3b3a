"""Learning curves of the path filter and of other rankings: how well each ranks, by the number of evaluated paths.

The supernets are pilots, trained up to the end of the warm-up with seeds that no table or figure of the paper uses. Options of
the filter may therefore be chosen on them and judged in the tables.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..backend.compat import Device, nn
from ..backend.launch import cores
from ..common import figures
from ..common.errors import UserError
from ..common.files import whole_text, write_text
from ..config import Filter
from ..methods import algorithm1
from ..path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from ..path_filter.metrics import bootstrap_interval, kendall_tau, over_buckets, weakest
from ..runs.provenance import revision
from . import archives, filter_study
from .experiments import DETOFA
from .filter_scores import RATIO
from .filter_scores import title as row_title
from .filter_study import (
    BASELINES,
    CEILING,
    CONFIGURED,
    CONFIGURED_FRESH,
    EVERYTHING,
    RIDGE,
    SETTINGS,
    StudyInputs,
    StudyResults,
)
from .filter_tables import markdown_table, option_list
from .profiles import Profile
from .run import Run, check_config, profile_folder
from .study_paths import evaluated_into, noise_of, pretraining_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "filter_study"
CHOSEN = tuple(
    setting for setting in SETTINGS if setting.name in (SETTINGS[2].name, EVERYTHING.name, CONFIGURED_FRESH, CONFIGURED)
)
"""The filter as in the paper and with the config's options, each with and without pre-training."""
TITLES = {
    SETTINGS[2].name: "paper's filter, not pre-trained",
    EVERYTHING.name: "paper's filter, pre-trained",
    CONFIGURED_FRESH: "extended filter, not pre-trained",
    CONFIGURED: "extended filter, pre-trained",
}
"""Titles of the filters; in Table 3 they are rows among others with fewer parts."""
BucketMeasure = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""(n,) scores, losses and FLOPs buckets -> a number, averaged over the buckets."""
MEASURES: dict[str, BucketMeasure] = {
    "Kendall's tau": lambda scores, losses, buckets: over_buckets(kendall_tau, scores, losses, buckets),
    f"precision for the weakest {RATIO:.0%}": lambda scores, losses, buckets: weakest(scores, losses, RATIO, buckets).precision,
}


class Pilot(algorithm1.DetOFASearcher):
    """Algorithm 1 up to line 3."""

    def run(self) -> dict:
        """Train the fullnet and warm up the supernet."""
        self.train_fullnet(self.space)
        self.warm_up(self.space)
        return self.results


@dataclass(frozen=True, eq=False)
class Point:
    """Rankings of a pilot's test paths, fitted to a number of its paths.

    Attributes:
        pilot: seed of the supernet.
        paths: number of fitted paths, over all FLOPs buckets.
        results: scores of the test paths.
    """

    pilot: int
    paths: int
    results: StudyResults


# --- Making of the points ---------------------------------------------------------------------------------------------


def curves(
    profile: Profile,
    device: Device,
    log: Callable[[str], None] = print,
    on_size: Callable[[list[Point]], None] = lambda points: None,
) -> list[Point]:
    """Train the pilots, evaluate their paths and fit every ranking; stored results are reused.

    The smallest number of paths comes first, for all pilots, then the next.

    Args:
        profile: the scale.
        device: device for the training.
        log: called with each message.
        on_size: called with all points so far when a number of paths is complete, if fits were made for it, and at the end.

    Raises:
        UserError: the data or the pre-trained weights of the profile are missing, or it does not start runs.
    """
    if not profile.starts_runs:
        raise UserError(
            f"the filter study trains {len(profile.filter_study.pilots)} supernets, but the profile {profile.name} does not "
            "start runs: use a profile that does, such as demo"
        )
    ((key, data_set),) = profile.chosen(("voc",)).items()
    profile.check(data_set)
    sizes, first = profile.filter_study, Run(profile, key, DETOFA, 0)
    before = pretraining_paths(first) if first.hparams.filter.weights else None
    points: list[Point] = []
    started, total = time.monotonic(), len(sizes.pilots) * len(sizes.pilot_paths)
    for per_bucket in sizes.pilot_paths:
        fits: list[str] = []

        def on_fit(text: str, fits: list[str] = fits) -> None:
            fits.append(text)
            log(text)

        for seed in sizes.pilots:
            train, test, noise = pilot_paths(Run(profile, key, DETOFA, seed), per_bucket, device)
            some = first_of_each_bucket(train, per_bucket)
            label = f"{data_set.title}, pilot supernet of seed {seed}"
            inputs = StudyInputs(label, some, test, first.hparams.filter, before, first.hparams.buckets, noise=noise)
            where = pilots_folder(profile, key) / f"{seed}_{len(some)}"
            points.append(Point(seed, len(some), filter_study.run(inputs, (0,), where, on_fit, processes(), CHOSEN)))
            minutes = (time.monotonic() - started) / 60
            log(f"{len(points)} of {total} points of the curves after {minutes:.0f} minutes; larger ones take longer")
        if fits or per_bucket == sizes.pilot_paths[-1]:
            on_size(points)
    return points


def pilots_folder(profile: Profile, key: str) -> FilePath:
    """Return the folder of the pilots and their points."""
    return profile_folder(profile) / f"{key}-pilots"


def pilot_paths(run: Run, per_bucket: int, device: Device) -> tuple[EvaluatedPaths, EvaluatedPaths, float]:
    """Train a pilot and evaluate paths of it, unless they are stored.

    Its config has default options of the path filter, so the pilot is reused when the options change.

    Args:
        run: the pilot's run.
        per_bucket: number of paths to fit to in each FLOPs bucket.
        device: device for the training.

    Returns:
        The paths to fit to, which may be more, the test paths, and the noise of their losses.

    Raises:
        UserError: the stored pilot has another config.
    """
    sizes, config = run.profile.filter_study, replace(run.config, hparams=replace(run.hparams, filter=Filter()))
    folder = pilots_folder(run.profile, run.key) / f"{run.seed}"
    supernet, files = folder / "run", (folder / "fit.jsonl", folder / "test.jsonl")  # a run needs a folder of its own
    weights = supernet / "warm_up" / "weights.h5"
    check_config(config, supernet)
    counts, geometry = (per_bucket, sizes.test_paths_per_bucket), config.network.geometry
    if not all(_holds(file, count, run) for file, count in zip(files, counts)):
        if not weights.exists():
            algorithm1.run(config, device, supernet, searcher=Pilot)
        evaluated_into(files[1], config, weights, "test", counts[1], [])
        evaluated_into(files[0], config, weights, "fit", counts[0], [files[1]])
    train, test = (EvaluatedPaths.read(file, geometry) for file in files)
    return train, test, noise_of(config, weights, test)


def _holds(file: FilePath, per_bucket: int, run: Run) -> bool:
    """Return whether a file has evaluated paths, at least `per_bucket` in each FLOPs bucket."""
    if not file.exists():
        return False
    counts = np.bincount(EvaluatedPaths.read(file, run.config.network.geometry).buckets, minlength=run.hparams.buckets)
    return int(counts.min()) >= per_bucket


def archive_points(profile: Profile, output: FilePath) -> None:
    """Archive the evaluated paths and scores, with which `restore_points` continues a study on another machine."""
    folder, names = profile_folder(profile), ("fit.jsonl", "test.jsonl", "noise_*.json", "scores.jsonl")
    found = [file for name in names for file in folder.glob(f"*-pilots/*/{name}")] + list(
        folder.glob("*-filter/pretraining.jsonl")
    )
    archives.pack(archives.archive(output, NAME), {str(file.relative_to(folder)): file for file in found})


def restore_points(profile: Profile, output: FilePath) -> None:
    """Restore the files of `archive_points` that this machine lacks."""
    archives.restore(archives.archive(output, NAME), profile_folder(profile))


def first_of_each_bucket(paths: EvaluatedPaths, per_bucket: int) -> EvaluatedPaths:
    """Return the first `per_bucket` paths of each FLOPs bucket."""
    buckets = paths.buckets
    rows = np.sort(np.concatenate([np.flatnonzero(buckets == bucket)[:per_bucket] for bucket in np.unique(buckets)]))
    return subset(paths, [paths.items[row] for row in rows])


def subset(paths: EvaluatedPaths, items: list[EvaluatedPath]) -> EvaluatedPaths:
    """Return some paths of the same supernet and evaluation."""
    return EvaluatedPaths(paths.file, paths.header, items, paths.geometry, 0)


def processes() -> int:
    """Return the number of processes that share the fits."""
    return cores() if nn.get_current_context().backend == ["cpu:float"] else 1


# --- Measures of the points -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A measure of a ranking, fitted to a number of paths.

    Attributes:
        pilots: (pilots,) the measure of each pilot.
        low, high: 95% bootstrap interval of the mean over test paths, resampled inside the FLOPs buckets of each pilot.
    """

    pilots: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The mean over the pilots."""
        return float(np.mean(self.pilots))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.2f} to {self.high:.2f})"


Values = Mapping[tuple[str, str, int], Value]
"""Measure, ranking and number of fitted paths -> value."""


def measured(points: Sequence[Point], measure: BucketMeasure, name: str, resamples: int, rival: str | None = None) -> Value:
    """Return a measure of a ranking, averaged over points with the same number of paths.

    Args:
        points: a point for each pilot.
        measure: the measure.
        name: name of the ranking.
        resamples: number of resamples of the bootstrap.
        rival: name of a ranking whose measure is subtracted, on the same resampled paths.
    """
    groups, starts, total = [], [], 0
    for number, point in enumerate(points):
        test = point.results.inputs.test
        groups.append(test.buckets + 1000 * number)
        starts.append(total)
        total += len(test)

    def of_ranking(point: Point, ranking: str, rows: np.ndarray) -> float:
        test = point.results.inputs.test
        draws = point.results.scores[ranking][: 3 if ranking == CEILING else None]
        return float(np.mean([measure(draw[rows], test.losses[rows], test.buckets[rows]) for draw in draws]))

    def each(drawn: np.ndarray) -> list[float]:
        found = []
        for start, point in zip(starts, points):
            rows = drawn[(drawn >= start) & (drawn < start + len(point.results.inputs.test))] - start
            value = of_ranking(point, name, rows)
            found.append(value - of_ranking(point, rival, rows) if rival else value)
        return found

    rng = np.random.default_rng(0)
    low, high = bootstrap_interval(lambda drawn: float(np.mean(each(drawn))), np.concatenate(groups), rng, resamples)
    return Value(tuple(each(np.arange(total))), low, high)


# --- Files ------------------------------------------------------------------------------------------------------------


def write(points: Sequence[Point], output: FilePath, command: str, resamples: int = 300) -> list[FilePath]:
    """Write filter_study.md, .csv and .png.

    Args:
        points: points of the curves.
        output: folder of the files.
        command: command line that makes them.
        resamples: number of resamples of the bootstrap for each interval.

    Returns:
        The files.
    """
    output.mkdir(parents=True, exist_ok=True)
    by_size = {size: [point for point in points if point.paths == size] for size in sorted({point.paths for point in points})}
    candidates = (*BASELINES, *(setting.name for setting in CHOSEN), CEILING)
    names = [name for name in candidates if name in points[0].results.scores]
    found = {
        (text, name, size): measured(group, measure, name, resamples)
        for text, measure in MEASURES.items()
        for name in names
        for size, group in by_size.items()
    }
    files = [output / f"{NAME}.{kind}" for kind in ("md", "csv", "png")]
    write_text(files[0], "\n".join(markdown(by_size, names, found, command, resamples)))
    rows = []
    for (text, name, size), value in found.items():
        row = {"measure": text, "ranking": title(name), "paths": size, "mean": value.mean, "low": value.low, "high": value.high}
        rows.append(row | {f"pilot_{point.pilot}": part for point, part in zip(by_size[size], value.pilots)})
    with whole_text(files[1]) as opened:
        table = csv.DictWriter(opened, list(rows[0]))
        table.writeheader()
        table.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    figures.save(draw(found, names, list(by_size)), files[2], dpi=110, bbox_inches="tight")
    return files


def markdown(
    by_size: Mapping[int, Sequence[Point]], names: Sequence[str], found: Values, command: str, resamples: int
) -> list[str]:
    """Return the lines of filter_study.md.

    Args:
        by_size: points by the number of fitted paths.
        names: names of the rankings.
        found: values of all measures.
        command, resamples: see `write`.
    """
    sizes = list(by_size)
    points = by_size[sizes[0]]
    inputs = points[0].results.inputs
    lines = [f"# Learning curves of the path filter, {inputs.label.split(', ')[0]}", ""]
    for text in MEASURES:
        cells = [(title(name), *(str(found[text, name, size]) for size in sizes)) for name in names]
        lines += [f"{text[0].upper()}{text[1:]}, by the number of fitted paths:", ""]
        lines += [*markdown_table(("ranking", *map(str, sizes)), cells), ""]
    noise = ", ".join(f"{point.results.inputs.noise or 0:.0%}" for point in points)
    return [
        *lines,
        *gains(by_size, resamples),
        "",
        f"- Mean over {len(points)} pilot supernets (seeds {', '.join(str(point.pilot) for point in points)}), which no other "
        f"table uses: Algorithm 1 up to the end of the warm-up, with {len(inputs.test)} test paths each. In parentheses: 95% "
        "bootstrap interval over the test paths.",
        f"- Both measures are taken inside the FLOPs buckets. Noise of the validation images: {noise} of the variance there.",
        f"- The filter is pre-trained on {len(inputs.pretraining) if inputs.pretraining else 0} paths of the classification "
        "supernet, and fitted once to each set of paths.",
        f"- The extended filter has the config's options: {option_list(inputs.fingerprint['options'])}. Its members "
        "start from one pre-trained filter. The paper's filter has the same sizes, pooling, learning rate, and batch size.",
        f"- Made by `{command}` at {revision()}.",
        "",
        f"![learning curves]({NAME}.png)",
        "",
    ]


def gains(by_size: Mapping[int, Sequence[Point]], resamples: int) -> list[str]:
    """Return Markdown lines: the filter with the config's options minus ridge regression, by the number of fitted paths."""
    cells = []
    for name in (CONFIGURED_FRESH, CONFIGURED):
        for text, measure in MEASURES.items():
            row = [f"{title(name)}: {text}"]
            for points in by_size.values():
                if name in points[0].results.scores:
                    value = measured(points, measure, name, resamples, RIDGE)
                    row.append(f"{value.mean:+.3f} ({value.low:+.2f} to {value.high:+.2f})")
            if len(row) > 1:
                cells.append(tuple(row))
    head = f"Difference from {title(RIDGE)}, on the same test paths:"
    return [head, "", *markdown_table(("filter", *map(str, by_size)), cells)]


def title(name: str) -> str:
    """Return the title of a ranking."""
    return TITLES.get(name, row_title(name))


def draw(found: Values, names: Sequence[str], sizes: Sequence[int]) -> Figure:
    """Plot the curves, with one panel for each measure and intervals for the filter with the config's options."""
    figure, panels = figures.subplots(1, len(MEASURES), figsize=(6 * len(MEASURES), 4.4), layout="constrained")
    for panel, text in zip(panels, MEASURES):
        for number, name in enumerate(names):
            _draw_curve(panel, [found[text, name, size] for size in sizes], sizes, number, name)
        panel.set(xscale="log", xlabel="number of fitted paths", ylabel=text, xticks=sizes)
        panel.set_xticks(sizes, map(str, sizes))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _draw_curve(panel: Axes, values: Sequence[Value], sizes: Sequence[int], number: int, name: str) -> None:
    color, marker = ("black" if name == CEILING else f"C{number % 10}"), "s" if number >= 10 else "."
    line = ":" if name in BASELINES else "--" if name == CEILING else "-"
    panel.plot(sizes, [value.mean for value in values], marker=marker, label=title(name), linestyle=line, color=color)
    if name == CONFIGURED:
        panel.vlines(sizes, [value.low for value in values], [value.high for value in values], color=color)
