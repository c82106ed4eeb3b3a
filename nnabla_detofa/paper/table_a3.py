"""Table A3: how well the path filter finds the weakest paths, for several shares of weak paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..common.seeds import rng_for
from ..path_filter.metrics import kendall_tau
from .experiments import DETOFA
from .filter_scores import PRECISION, fullest, mean, order_over_buckets, stem_groups, title, weakest_of
from .filter_study import BASELINES, CEILING, CONFIGURED, EVERYTHING, FLOPS, PRUNED_BY, RANDOM, RIDGE, StudyResults
from .filter_tables import (
    COLUMNS,
    RECALL,
    markdown_table,
    measure_cells,
    measure_values,
    notes,
    number,
    precision_limits,
    prepare_studies,
    study,
    write_files,
)
from .run import Run
from .run_results import runs_and_code
from .study_paths import detection_paths
from .table3 import PAPER as PAPER_TABLE3
from .target import Request, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    0.2: (0.880, 0.700, 0.158),
    0.25: PAPER_TABLE3[EVERYTHING.name],
    0.3: (0.880, 0.793, 0.248),
    0.4: (0.830, 0.792, 0.360),
}
"""r_path -> accuracy, precision and the column called recall; the row of 0.25 is the last of Table 3."""


def write_table(
    results: StudyResults, folder: FilePath, supernet: str, origin: str, rng: np.random.Generator
) -> list[FilePath]:
    """Write Table A3: the filter with most of Table 3's parts, with the config's options, and the run's own filter.

    For the arguments and the result see `table3.write_table`.
    """
    names = [name for name in (fullest(results), CONFIGURED, PRUNED_BY) if name in results.scores]
    rivals = [name for name in (*BASELINES, CEILING) if name in results.scores]
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, str | float]] = []
    for ratio, paper in PAPER.items():
        others = {rival: mean(weakest_of(results, rival, ratio)[:, PRECISION]) for rival in rivals}
        limits = precision_limits(results, names, rng, ratio)
        for name in names:
            given = paper if name == names[0] else ()
            cells = measure_cells(results, name, ratio, limits[name], given)
            rows.append((f"{ratio:g}", title(name), *cells, *(number(value, 3) for value in others.values())))
            row: dict[str, str | float] = {"r_path": ratio, "filter": title(name)}
            row |= measure_values(results, name, ratio, limits[name], given)
            row |= dict(zip(("tau_buckets", "tau_same_stem"), taus(results, name)))
            values.append(row | {f"precision_of_{rival}": value for rival, value in others.items()})
    lines = [
        "# Table A3: finding the weakest paths of each FLOPs bucket, for several shares r_path",
        "",
        *markdown_table(("r_path", "filter", *COLUMNS, *(f"precision of {title(rival)}" for rival in rivals)), rows),
        "",
        *markdown_table(
            ("Kendall's tau, for every r_path", "mean of buckets", "at equal stem depth"),
            [(title(name), *map(number, taus(results, name))) for name in (*names, *rivals)],
        ),
        "",
        *notes(results, supernet, origin),
        "- The paper's row of 0.25 is the last of its Table 3.",
        f"- {RECALL}",
        "",
    ]
    first = [row for row in values if row["filter"] == title(names[0])]
    return write_files(folder, "tableA3", lines, values, draw(first, title(names[0]), results.inputs.label))


def taus(results: StudyResults, name: str) -> list[float]:
    """Return Kendall's tau of a row, averaged over the seeds: inside the FLOPs buckets, and there at equal stem depth."""
    return [mean(order_over_buckets(results, name, kendall_tau, groups)) for groups in (None, stem_groups(results))]


def draw(rows: Sequence[Mapping[str, str | float]], name: str, label: str) -> Figure:
    """Plot the precision against the share of weak paths: a filter with its interval, the baselines, and the paper's values.

    Args:
        rows: rows of the CSV file for one filter.
        name: title of the filter.
        label: title of the figure.
    """
    figure, axes = figures.subplots(figsize=(6.5, 4))

    def column(key: str) -> np.ndarray:
        return np.array([row[key] for row in rows], float)

    ratios = column("r_path")
    axes.plot(ratios, column("precision"), "o-", color="tab:blue", label=f"{name}, 95% interval")
    axes.vlines(ratios, column("precision_low"), column("precision_high"), color="tab:blue", linewidth=2)
    axes.plot(ratios, column("paper_precision"), "D", color="tab:orange", markersize=7, markerfacecolor="none", label="paper")
    for baseline, style in zip((RANDOM, FLOPS, RIDGE), (":", "--", "-.")):
        axes.plot(ratios, column(f"precision_of_{baseline}"), style, color="0.4", label=title(baseline))
    axes.set(xlabel="r_path, share of weak paths", ylabel="precision", ylim=(-0.02, 1.02), xticks=ratios)
    axes.set_title(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Table A3 for the detection supernet after warm-up."""
    run = runs[0]
    prepare_studies(run, ("filter_study",))
    results = study(run, "filter_study", detection_paths(run))
    return write_table(results, request.output, runs_and_code([run]), request.origin(target), rng_for(0, "bootstrap"))[:1]


TARGET = Target(
    "tableA3",
    "Table A3: finding the weakest paths with the path filter, for several shares",
    ("voc",),
    (DETOFA,),
    write,
    one_seed=True,
    evaluates=True,
    names_data=False,
)
