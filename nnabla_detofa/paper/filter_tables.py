"""Cells, notes and files that Tables 3 and A3 have in common."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..backend.compat import nn
from ..backend.launch import cores
from ..common import figures
from ..common.errors import UserError
from ..common.files import whole_text, write_text
from ..common.progress import ProgressBar
from ..path_filter.metrics import MIN_PATHS
from ..tools.report import markdown_row
from . import filter_study
from .filter_scores import MEASURES, PRECISION, mean, precision_interval, stem_groups, stem_share, weakest_of
from .filter_study import BASELINES, EXTENSIONS, SETTINGS, Setting, StudyInputs, StudyResults, as_in_paper
from .run import Run
from .score_file import stored_fits
from .study_paths import study_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECALL = (
    'The paper\'s column "recall" cannot be TP / (TP + FN): in the row with all three parts, precision 0.79, accuracy 0.89 and '
    "25% positives imply a recall of 0.76, but the column has 0.212. Over the seven rows of both tables, the column is closest "
    "to TP / (TP + TN), with a mean error of 0.014 (TP / N: 0.034; recall: 0.381), so it is compared with TP / (TP + TN), and "
    "the recall measured here has its own column. It equals the precision: as many paths are predicted weak as are weak."
)
COLUMNS = (
    *("paper's accuracy", "accuracy", "paper's precision", "precision", "95% interval", "recall"),
    *('paper\'s "recall"', "TP / (TP + TN)", "precision at equal stem depth"),
)


# --- The study --------------------------------------------------------------------------------------------------------


def study(run: Run, name: str, inputs: StudyInputs, settings: Sequence[Setting] = SETTINGS) -> StudyResults:
    """Fit the filter with several settings and the profile's number of seeds; stored fits are reused.

    Args:
        run: run to which the study belongs.
        name: name of the study's folder.
        inputs: the paths.
        settings: the settings; those that the paths do not allow are omitted.
    """
    seeds, possible = range(run.profile.filter_study.seeds), set(settings) & set(inputs.settings)
    with ProgressBar(total=len(possible) * len(seeds), desc=f"{name} of seed {run.seed}", unit="fit") as bar:

        def on_fit(outcome: str) -> None:
            bar.write(outcome)
            bar.update()

        on_cpu = nn.get_current_context().backend == ["cpu:float"]
        folder, pretrained_in = study_folder(run) / name, study_folder(replace(run, seed=0))
        return filter_study.run(inputs, seeds, folder, on_fit, cores() if on_cpu else 1, settings, pretrained_in)


def prepare_studies(run: Run, names: Sequence[str], settings: Sequence[Setting] = SETTINGS) -> None:
    """Announce how long the missing fits of some studies take.

    Args:
        run: run to which the studies belong.
        names: names of the studies' folders.
        settings: settings of the fits.

    Raises:
        UserError: results are made from archives, which lack fits.
    """
    if run.archive and not all(all_fits_stored(run, name, settings) for name in names):
        raise UserError(f"the archives of {run.profile.name} do not have all fits of the filter study of seed {run.seed}")
    minutes = run.profile.minutes.get("filter study")
    left = sum(len(_missing_fits(run, name, settings)) / len(_fits(run, SETTINGS)) for name in names)
    if minutes and left > 0:
        ProgressBar.write(f"filter study, including its paths: at most about {left * minutes / 2:.0f} minutes on two cores")


def all_fits_stored(run: Run, name: str, settings: Sequence[Setting] = SETTINGS) -> bool:
    """Return whether all fits of a filter study with some settings are stored."""
    return not _missing_fits(run, name, settings)


def _missing_fits(run: Run, name: str, settings: Sequence[Setting]) -> set[tuple[str, int]]:
    return _fits(run, settings) - stored_fits(study_folder(run) / name / "scores.jsonl")


def _fits(run: Run, settings: Sequence[Setting]) -> set[tuple[str, int]]:
    names = (*BASELINES, *(setting.name for setting in settings))
    return {(name, seed) for name in names for seed in range(run.profile.filter_study.seeds)}


# --- Cells ------------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 2) -> str:
    """Format a number; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def interval(low: float, high: float) -> str:
    """Format an interval; "-" if there is none."""
    return "-" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def spread(values: np.ndarray) -> str:
    """Format the mean over the seeds, and the range if the seeds differ."""
    around = f" ({np.min(values):.3f}..{np.max(values):.3f})" if np.ptp(values) > 0 else ""
    return number(mean(values), 3) + around


def measure_cells(
    results: StudyResults, name: str, ratio: float, limits: tuple[float, float], paper: Sequence[float]
) -> tuple[str, ...]:
    """Return the cells of a row below `COLUMNS`.

    Args:
        results: results of the study.
        name: name of the row.
        ratio: share of the paths that is weak.
        limits: interval of the precision.
        paper: the paper's accuracy, precision and "recall"; may be empty.
    """
    accuracy, precision, recall, of_right = (spread(column) for column in weakest_of(results, name, ratio).T)
    same_stem = spread(weakest_of(results, name, ratio, groups=stem_groups(results))[:, PRECISION])
    papers = [f"{value:.3f}" for value in paper] or ["-"] * 3
    return (papers[0], accuracy, papers[1], precision, interval(*limits), recall, papers[2], of_right, same_stem)


def measure_values(
    results: StudyResults, name: str, ratio: float, limits: tuple[float, float], paper: Sequence[float]
) -> dict[str, float]:
    """Return the values of a row for the CSV file; for the arguments see `measure_cells`."""
    row = dict(zip(("paper_accuracy", "paper_precision", "paper_recall"), paper))
    for key, values in zip(MEASURES, weakest_of(results, name, ratio).T):
        row |= {key: mean(values), f"{key}_min": float(np.min(values)), f"{key}_max": float(np.max(values))}
    row |= dict(zip(("precision_low", "precision_high"), limits))
    row["precision_same_stem"] = mean(weakest_of(results, name, ratio, groups=stem_groups(results))[:, PRECISION])
    return row


def precision_limits(
    results: StudyResults, names: Sequence[str], rng: np.random.Generator, ratio: float
) -> dict[str, tuple[float, float]]:
    """Return the interval of the precision of several rows, over the same resampled paths."""
    return {name: precision_interval(results, name, rng, ratio) for name in names}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table whose first column is text and whose others are numbers."""
    return [markdown_row(columns), markdown_row(["---"] + ["---:"] * (len(columns) - 1)), *map(markdown_row, rows)]


# --- Notes ------------------------------------------------------------------------------------------------------------


def notes(results: StudyResults, supernet: str, origin: str) -> list[str]:
    """Return the Markdown lines below both tables.

    Args:
        results: results of the study.
        supernet: description of where the supernet is.
        origin: description of the command and the code that make the table.
    """
    inputs = results.inputs
    few = [b for b, count in enumerate(np.bincount(inputs.test.buckets, minlength=inputs.buckets)) if count < MIN_PATHS]
    omitted = f" (omitted: {', '.join(f'bucket {b + 1}' for b in few)})" if few else ""
    counts = ", ".join(f"{len(paths)} {name}" for name, paths in inputs.sets.items())
    missing = "" if inputs.pretraining else " There are no pre-training paths, so the settings with pre-training are missing."
    paper = as_in_paper(inputs.options)
    return [
        f"- Supernet: {inputs.label}; paths: {counts}.{missing} From {supernet}.",
        f"- The filter is fitted with {len(results.seeds)} seeds ({', '.join(map(str, results.seeds))}). Cells have the mean "
        "over the seeds and, if they differ, the range in parentheses. Other supernets may differ more. The interval is a "
        "bootstrap interval of the mean over the seeds, over test paths resampled inside each bucket.",
        "- Weak paths are those with the largest measured losses of their bucket; paths with the lowest scores are predicted "
        "weak.",
        f"- Means over buckets use the buckets with at least {MIN_PATHS} test paths{omitted}.",
        f"- The config's options are {option_list(inputs.fingerprint['options'])}, buckets {inputs.buckets}. All other rows "
        f"use the paper's filter: {option_list({key: getattr(paper, key) for key in EXTENSIONS})}.",
        *stem_notes(results),
        *ceiling_notes(inputs),
        f"- Made by {origin}.",
    ]


def option_list(options: Mapping[str, object]) -> str:
    """Format filter options as a list of words."""
    return ", ".join(f"{key} {value}" for key, value in options.items())


def stem_notes(results: StudyResults) -> list[str]:
    """Explain the columns at equal stem depth; empty if no bucket has two paths that differ."""
    if math.isnan(share := stem_share(results)):
        return []
    return [
        f"- The depth of the stem alone explains {share:.0%} of the variance of the test losses inside a bucket. "
        '"At equal stem depth" compares the paths of a bucket with the stem\'s residual convolution only with each other, and '
        "likewise those without it: it measures the ranking apart from that choice."
    ]


def ceiling_notes(inputs: StudyInputs) -> list[str]:
    """Explain the rows without a fit."""
    lines = []
    if inputs.pruned_by is not None:
        lines.append("- The run's own filter is the one with which the run pruned; the other rows are separate fits.")
    if inputs.noise is not None:
        lines.append(
            f"- Noise of the validation images is {inputs.noise:.0%} of the variance inside a bucket, measured from disjoint "
            "halves of the images. The last row ranks by true losses that are plausible given the measured ones and normally "
            "distributed errors. It estimates what a ranking can reach; a fit to losses on the same images can exceed it."
        )
    return lines


# --- Files ------------------------------------------------------------------------------------------------------------


def write_files(
    folder: FilePath, name: str, lines: Sequence[str], rows: Sequence[Mapping[str, str | float]], figure: Figure
) -> list[FilePath]:
    """Write <name>.md, .csv and .png into a folder, and return these files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{kind}" for kind in ("md", "csv", "png")]
    write_text(files[0], "\n".join(lines))
    with whole_text(files[1]) as opened:
        table = csv.DictWriter(opened, list(dict.fromkeys(column for row in rows for column in row)))
        table.writeheader()
        table.writerows({key: _csv_cell(value) for key, value in row.items()} for row in rows)
    figures.save(figure, files[2], dpi=110, bbox_inches="tight")
    return files


def _csv_cell(value: str | float) -> str:
    return value if isinstance(value, str) else "" if math.isnan(value) else f"{value:.6g}"
