"""Comparison of the Pareto fronts of finished runs, and checks of whether the comparison is fair."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import figures
from ..common.errors import UserError
from ..runs import result_files
from ..runs.lock import differences
from ..runs.run_folder import check_has_subnets, metric, number, points, read_result, reading, run_config
from .report import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST_SETTINGS = ("flip_test", "test_scales")
PLACES = ("about", "args.")
"""Prefixes of settings that are not listed as differences, because they say where and how a run was computed."""
LISTED = 12
"""Largest number of differing settings that are listed."""


def compare(runs: Sequence[FilePath]) -> dict:
    """Compare the average precision of the fullnets, and of the subnets found for each budget, of finished runs.

    Args:
        runs: folders of two or more runs of Algorithm 1 or of a baseline.

    Returns:
        A dict of plain JSON values; lists over runs are in the order of `runs`:

        - "runs": distinct names. "folders": their folders.
        - "metric": name of the AP metric of the first run.
        - "budgets": FLOPs budgets of all runs, in ascending order.
        - "ap": for each run, AP of the subnets in points (0 to 100), one per budget; None if the run lacks the budget.
        - "flops": for each run, FLOPs of these subnets; None as for "ap".
        - "fullnet", "fullnet_flops": AP in points and FLOPs of each run's fullnet.
        - "mean_difference": for each run, the mean AP difference to the first run over shared budgets, in points; None if
          no budget is shared.
        - "unfair": sentences that say why the numbers are not comparable.
        - "settings": dotted key -> value of each run, for the settings that differ.

    Raises:
        UserError: there are fewer than two runs, or a run is not finished or is a pre-training or a fine-tuning.
    """
    if len(runs) < 2:
        raise UserError(f"a comparison needs at least two runs, got {len(runs)}")
    names = _names(runs)
    configs = [run_config(run) for run in runs]
    for run, config in zip(runs, configs):
        check_has_subnets(run, config, "a comparison")
    fronts = [_front(run) for run in runs]
    budgets = sorted({budget for front in fronts for budget in front.subnets})
    ap, flops = ([[_at(front, budget)[part] for budget in budgets] for front in fronts] for part in (0, 1))
    contents = [config.to_dict() for config in configs]
    return {
        "runs": names,
        "folders": [str(run) for run in runs],
        "metric": fronts[0].metric,
        "budgets": budgets,
        "ap": ap,
        "flops": flops,
        "fullnet": [front.fullnet[0] for front in fronts],
        "fullnet_flops": [front.fullnet[1] for front in fronts],
        "mean_difference": [_mean_difference(ap[0], other) for other in ap],
        "unfair": list(_unfair(runs, names, configs, fronts)),
        "settings": _settings(contents),
    }


@dataclass(frozen=True)
class Front:
    """The numbers of a run's summary.json that a comparison needs.

    Attributes:
        fullnet: AP in points and FLOPs of the fullnet.
        subnets: FLOPs budget -> AP in points and FLOPs of the subnet found for it.
        classes: class names, in order.
        metric: name of the AP metric.
    """

    fullnet: tuple[float, float]
    subnets: Mapping[float, tuple[float, float]]
    classes: Sequence[str]
    metric: str


def _front(run: FilePath) -> Front:
    """Read the numbers to compare from a run's folder."""
    summary = read_result(run, "summary", result_files.bounded)
    with reading(run / "summary.json"):
        fullnet, *subnets = [
            (number(points(result)), number(result["flops"])) for result in (summary["fullnet"], *summary["subnets"])
        ]
        budgets = [number(subnet["budget"], finite=True) for subnet in summary["subnets"]]
        classes = list(summary["fullnet"]["ap50_per_class"])
        return Front(fullnet, dict(zip(budgets, subnets)), classes, metric(summary))


def _at(front: Front, budget: float) -> tuple[float | None, float | None]:
    """Return AP and FLOPs of the subnet found for a budget; (None, None) if the run lacks the budget."""
    return front.subnets.get(budget, (None, None))


def _names(runs: Sequence[FilePath]) -> list[str]:
    """Name each run by its folder, with as many parent folders as make all names distinct."""
    parts = [run.absolute().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the runs to compare must be different folders, got {', '.join(map(str, runs))}")


def _mean_difference(first: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """Return the mean of other - first over the budgets that both have, or None."""
    pairs = [(a, b) for a, b in zip(first, other) if a is not None and b is not None]
    return float(np.mean([b - a for a, b in pairs])) if pairs else None


def _unfair(runs: Sequence[FilePath], names: Sequence[str], configs: Sequence, fronts: Sequence[Front]) -> Iterator[str]:
    """Yield the reasons why the numbers of a run are not comparable with those of the first run."""
    tested = [_test_images(run) for run in runs]
    for index in range(1, len(runs)):
        pair = f"{names[0]} and {names[index]}"
        if fronts[0].classes != fronts[index].classes:
            yield f"{pair} have different classes"
        first, other = tested[0], tested[index]
        if first is not None and other is not None and first != other:
            counts = f"{len(first)} and {len(other)} images, {len(first & other)} of them the same"
            yield f"{pair} were tested on different images: {counts}"
        metrics = [config.dataloader.ap_metric for config in (configs[0], configs[index])]
        if metrics[0] != metrics[1]:
            yield f"{pair} measure AP by different rules: {metrics[0]} and {metrics[1]}"
        for setting in TEST_SETTINGS:
            values = [getattr(config.hparams, setting) for config in (configs[0], configs[index])]
            if values[0] != values[1]:
                yield f"{pair} were tested with different hparams.{setting}: {_short(values[0])} and {_short(values[1])}"
        scopes = [config.hparams.cost_scope for config in (configs[0], configs[index])]
        if scopes[0] != scopes[1]:
            yield f"the budgets of {pair} are for different parts of the network: {scopes[0]} and {scopes[1]}"


def _test_images(run: FilePath) -> set[str] | None:
    """Return the names of the test images of a run; None if the run has no file of detections."""
    if not (run / "fullnet_detections.json").exists():
        return None
    detections = read_result(run, "fullnet_detections")
    with reading(run / "fullnet_detections.json"):
        return {entry["image"] for entry in detections}


def _settings(contents: Sequence[dict]) -> dict[str, list]:
    """Return dotted key -> value of each run, for the settings that differ."""

    def value(content: Any, key: str) -> Any:
        for part in key.split("."):
            content = content.get(part) if isinstance(content, dict) else None
        return content

    keys = sorted({key for other in contents[1:] for key in differences(contents[0], other)})
    kept = [key for key in keys if key in ("args.runner", "args.seed") or not key.startswith(PLACES)]
    return {key: [value(content, key) for content in contents] for key in kept}


def _short(value: Any) -> str:
    """Format a value as JSON of at most 30 characters."""
    shown = json.dumps(value)
    return shown if len(shown) <= 30 else shown[:27] + "..."


def table(found: Mapping) -> str:
    """Format the result of `compare` as Markdown: one row per budget, with AP and its difference to the first run."""
    first, *others = found["runs"]
    titles = ["budget [GFLOPs]", first, *(cell for name in others for cell in (name, "difference"))]
    lines = [f"{found['metric']} in points on the test split", ""]
    lines += [markdown_row(titles), markdown_row(["---:"] * len(titles))]

    def row(label: str, values: Sequence[float | None]) -> str:
        base = values[0]
        cells = ["-" if base is None else f"{base:.1f}"]
        for value in values[1:]:
            difference = "-" if value is None or base is None else f"{value - base:+.1f}"
            cells += ["-" if value is None else f"{value:.1f}", difference]
        return markdown_row([label, *cells])

    lines += [row(f"{budget / 1e9:.4g}", column) for budget, column in zip(found["budgets"], zip(*found["ap"]))]
    lines.append(row("fullnet", found["fullnet"]))
    lines.append("")
    for name, mean in zip(others, found["mean_difference"][1:]):
        if mean is not None:
            lines.append(
                f"{name} is {abs(mean):.1f} points {'above' if mean >= 0 else 'below'} {first} on average over budgets"
            )
        elif found["budgets"]:
            lines.append(f"{name} has no budget in common with {first}")
    if list(found["settings"]) != ["args.seed"]:
        lines.append("one run per method; the variance over seeds is unknown")
    lines += [f"NOT COMPARABLE: {reason}" for reason in found["unfair"]]
    if settings := found["settings"]:
        lines.append("settings that differ:")
        for key, values in list(settings.items())[:LISTED]:
            lines.append(f"  {key}: {' | '.join(map(_short, values))}")
        if len(settings) > LISTED:
            lines.append(f"  and {len(settings) - LISTED} more")
    return "\n".join(lines)


def draw(found: Mapping) -> Figure:
    """Plot AP against the budgets: one curve per run, and a star for its fullnet."""
    figure, axes = figures.subplots(figsize=(6.5, 4.6), layout="constrained")
    budgets = np.array(found["budgets"]) / 1e9
    for name, values, fullnet, flops in zip(found["runs"], found["ap"], found["fullnet"], found["fullnet_flops"]):
        shown = np.array([np.nan if value is None else value for value in values])
        has = ~np.isnan(shown)
        (line,) = axes.plot(budgets[has], shown[has], "o-", label=figures.plain(name))
        axes.plot(flops / 1e9, fullnet, "*", markersize=12, color=line.get_color(), markeredgecolor="black")
    axes.plot([], [], "*", markersize=12, color="white", markeredgecolor="black", label="fullnet, at its own FLOPs")
    title = "not a fair comparison; see the printed reasons" if found["unfair"] else ""
    axes.set(
        xlabel="budget [GFLOPs, multiply-accumulates]", ylabel=f"{found['metric']} on the test split [points]", title=title
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    return figure
