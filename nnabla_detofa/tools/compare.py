"""The fronts of several finished runs beside each other, and whether they may be compared at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import figures
from ..common.errors import UserError
from ..runs.lock import differences
from ..runs.run_folder import metric, number, points, read_result, reading, refuse_other_kinds, run_config
from .report import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST_SETTINGS = ("flip_test", "test_scales")
PLACES = ("about", "args.")
"""Beginnings of settings that are not listed as differences: where and how a run was done, not what."""
LISTED = 12
"""Settings that differ are listed up to this number."""


def compare(runs: Sequence[FilePath]) -> dict:
    """The average precision of each run's fullnet and of the subnet found for each budget, as plain JSON values.

    Returns:
        "runs": names, no two alike. "folders". "metric". "budgets": of all runs, ascending. "ap": for each run a list over
        the budgets, in points (0 to 100), None where it had no such budget. "flops": of those subnets. "fullnet": AP of each
        run's, in points, and "fullnet_flops". "mean_difference": to the first run, over the budgets that both have; None
        without one. "unfair": sentences that say why figures must not be compared. "settings": key -> each run's value, of
        the config's entries that differ.

    Raises:
        UserError: fewer than two runs, or one that is not finished or trains no detectors.
    """
    if len(runs) < 2:
        raise UserError(f"a comparison needs at least two runs, got {len(runs)}")
    names = _names(runs)
    configs = [run_config(run) for run in runs]
    for run, config in zip(runs, configs):
        refuse_other_kinds(run, config, "a comparison")
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
    """What a comparison reads of a run's summary.json.

    Attributes:
        fullnet: AP in points and FLOPs of the run's fullnet.
        subnets: the same of the subnet found for each budget.
        classes: in their order. metric: what the AP is.
    """

    fullnet: tuple[float, float]
    subnets: Mapping[float, tuple[float, float]]
    classes: Sequence[str]
    metric: str


def _front(run: FilePath) -> Front:
    summary = read_result(run, "summary")
    with reading(run / "summary.json"):
        fullnet, *subnets = [
            (number(points(result)), number(result["flops"])) for result in (summary["fullnet"], *summary["subnets"])
        ]
        budgets = [number(subnet["budget"], finite=True) for subnet in summary["subnets"]]
        classes = list(summary["fullnet"]["ap50_per_class"])
        return Front(fullnet, dict(zip(budgets, subnets)), classes, metric(summary))


def _at(front: Front, budget: float) -> tuple[float | None, float | None]:
    return front.subnets.get(budget, (None, None))


def _names(runs: Sequence[FilePath]) -> list[str]:
    """The folders' names, with as many folders above them as tell all apart."""
    parts = [run.absolute().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the runs to compare must be different folders, got {', '.join(map(str, runs))}")


def _mean_difference(first: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(first, other) if a is not None and b is not None]
    return float(np.mean([b - a for a, b in pairs])) if pairs else None


def _unfair(runs: Sequence[FilePath], names: Sequence[str], configs: Sequence, fronts: Sequence[Front]) -> Iterator[str]:
    """Why a run's figures are not of the same kind as the first one's."""
    tested = [_test_images(run) for run in runs]
    for index in range(1, len(runs)):
        pair = f"{names[0]} and {names[index]}"
        if fronts[0].classes != fronts[index].classes:
            yield f"{pair} know other classes"
        if None not in (tested[0], tested[index]) and tested[0] != tested[index]:
            shared = len(tested[0] & tested[index])
            counts = f"{len(tested[0])} and {len(tested[index])} images, {shared} of them the same"
            yield f"{pair} were tested on different images: {counts}"
        metrics = [config.dataloader.ap_metric for config in (configs[0], configs[index])]
        if metrics[0] != metrics[1]:
            yield f"{pair} measure AP by other rules: {metrics[0]} and {metrics[1]}"
        for setting in TEST_SETTINGS:
            values = [getattr(config.hparams, setting) for config in (configs[0], configs[index])]
            if values[0] != values[1]:
                yield f"{pair} were tested with other hparams.{setting}: {_short(values[0])} and {_short(values[1])}"
        scopes = [config.hparams.cost_scope for config in (configs[0], configs[index])]
        if scopes[0] != scopes[1]:
            yield f"the budgets of {pair} are of different parts: {scopes[0]} and {scopes[1]}"


def _test_images(run: FilePath) -> set[str] | None:
    """The names of the images that the run was tested on; None where that is not kept."""
    if not (run / "fullnet_detections.json").exists():
        return None
    detections = read_result(run, "fullnet_detections")
    with reading(run / "fullnet_detections.json"):
        return {entry["image"] for entry in detections}


def _settings(contents: Sequence[dict]) -> dict[str, list]:
    """Dotted key -> each run's value, where they differ."""

    def value(content: dict, key: str) -> Any:
        for part in key.split("."):
            content = content.get(part) if isinstance(content, dict) else None
        return content

    keys = sorted({key for other in contents[1:] for key in differences(contents[0], other)})
    kept = [key for key in keys if key in ("args.runner", "args.seed") or not key.startswith(PLACES)]
    return {key: [value(content, key) for content in contents] for key in kept}


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 30 else shown[:27] + "..."


def table(found: Mapping) -> str:
    """`compare`'s result as Markdown: a row for each budget, and beside the first run's AP the differences to it."""
    first, *others = found["runs"]
    titles = ["budget [GFLOPs]", first, *(cell for name in others for cell in (name, "difference"))]
    lines = [f"{found['metric']} in points on the test split", ""]
    lines += [markdown_row(titles), markdown_row(["---:"] * len(titles))]

    def row(label: str, values: Sequence[float | None]) -> str:
        cells = ["-" if values[0] is None else f"{values[0]:.1f}"]
        for value in values[1:]:
            both = None not in (value, values[0])
            cells += ["-" if value is None else f"{value:.1f}", f"{value - values[0]:+.1f}" if both else "-"]
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
        lines.append("one run of each: how far another seed would differ is not known")
    lines += [f"NOT FAIR: {reason}" for reason in found["unfair"]]
    if settings := found["settings"]:
        lines.append("settings that differ:")
        for key, values in list(settings.items())[:LISTED]:
            lines.append(f"  {key}: {' | '.join(map(_short, values))}")
        if len(settings) > LISTED:
            lines.append(f"  and {len(settings) - LISTED} more")
    return "\n".join(lines)


def draw(found: Mapping) -> Figure:
    """AP over the budgets, a curve for each run, and a star for its fullnet."""
    figure, axes = figures.subplots(figsize=(6.5, 4.6), layout="constrained")
    budgets = np.array(found["budgets"]) / 1e9
    for name, values, fullnet, flops in zip(found["runs"], found["ap"], found["fullnet"], found["fullnet_flops"]):
        shown = np.array([np.nan if value is None else value for value in values])
        has = ~np.isnan(shown)
        (line,) = axes.plot(budgets[has], shown[has], "o-", label=figures.plain(name))
        axes.plot(flops / 1e9, fullnet, "*", markersize=12, color=line.get_color(), markeredgecolor="black")
    axes.plot([], [], "*", markersize=12, color="white", markeredgecolor="black", label="fullnet, at its own FLOPs")
    title = "not a fair comparison: see the text" if found["unfair"] else ""
    axes.set(
        xlabel="budget [GFLOPs, multiply-accumulates]", ylabel=f"{found['metric']} on the test split [points]", title=title
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    return figure
