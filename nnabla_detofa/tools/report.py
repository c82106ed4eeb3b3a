"""Tables and figures of a finished run, made from its result files and its test images."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import figures
from ..common.drawing import class_colors
from ..common.errors import UserError
from ..common.files import real, whole_text, write_bytes, write_text, written_together
from ..common.reading import one_line
from ..data.dataset import Sample
from ..data.sets import DetectionSets, open_sets
from ..evaluation.metrics import AP_TITLES, ap_keys
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..runs import result_files
from ..runs.provenance import code_of, revision
from ..runs.run_folder import check_has_subnets, read_result, reading, run_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

COLUMNS = ("detector", "budget [GFLOPs]", "GFLOPs", "M parameters", "validation loss", "AP50")
COCO_COLUMNS = ("AP", "AP75", "APs", "APm", "APl")
METRICS = {
    "ap50_11point": "AP50 averages precision over all recalls, as VOC since 2010; AP50 (11-point) averages it at the recalls "
    "0, 0.1, ..., 1, as VOC 2007.",
    "ap50_area": "AP50 averages precision at the recalls 0, 0.1, ..., 1, as VOC 2007; AP50 (area) averages it over all "
    "recalls, as VOC since 2010.",
}
"""Key of the second AP50 metric of a result -> description of both metrics."""
SHOWN_SCORE = 0.3  # lowest score of a detection in the figure
SHOWN_IMAGES = 6


COPIED = ("summary.json", "config.json")
"""Files of a run that its report contains."""


def write_report(run: FilePath, output: FilePath) -> list[FilePath]:
    """Write the report of a finished run of Algorithm 1 or of a baseline.

    The files are summary.json, config.json, table.md, table.csv, pareto.png, detections.png and, if the run measured
    Kendall's tau, scores.png.

    Args:
        run: the run's folder.
        output: the folder of the report; it is created if it does not exist.

    Returns:
        The files written.

    Raises:
        UserError: the run has not finished or is a pre-training or a fine-tuning, one of its files is damaged, its data are
            missing, or `output` is a run's folder or holds another config.json or summary.json than an earlier report's.
            Nothing is written in these cases.
    """
    check_has_subnets(run, run_config(run), "a report")
    if real(output) == real(run):
        raise UserError(f"--output must not be the folder of the run, got {output}")
    others = [name for name in COPIED if (output / name).exists()]
    if others and not (output / "table.md").exists():
        raise UserError(
            f"--output must be a new folder or one with an earlier report, and {output} holds {others[0]} but no table.md: "
            "choose another folder"
        )
    summary = read_result(run, "summary", result_files.bounded)
    with reading(run / "summary.json"):
        columns, rows = table_rows(summary)
        text = markdown(columns, rows, summary)
        drawn = {"pareto.png": draw_pareto(summary), "detections.png": draw_detections(run, summary)}
        if any(tau is not None for tau in summary.get("kendall_tau", ())):
            drawn["scores.png"] = draw_scores(run, summary)
    command = shlex.join(["detofa", "report", str(run), "-o", str(output)])
    output.mkdir(parents=True, exist_ok=True)
    with written_together(output) as fresh:
        for name in COPIED:
            write_bytes(fresh / name, (run / name).read_bytes())
        write_text(
            fresh / "table.md",
            f"{text}\nThe run was computed by {code_of(run)}.\n\nMade by `{command}` at {revision()}.\n",
        )
        with whole_text(fresh / "table.csv") as opened:
            csv.writer(opened).writerows([columns, *rows])
        for name, figure in drawn.items():
            figures.save(figure, fresh / name, dpi=110, bbox_inches="tight")
    return [output / name for name in (*COPIED, "table.md", "table.csv", *drawn)]


def table_rows(summary: dict) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Return the columns and rows of the result table: the fullnet, then the subnet found for each budget."""
    coco = COCO_COLUMNS if "coco" in summary["fullnet"] else ()
    others = other_metrics(summary["fullnet"])

    def row(name: str, budget: str, result: dict) -> tuple[str, ...]:
        numbers = (result["flops"] / 1e9, result["params"] / 1e6, result["loss"], result["ap50"])
        precisions = [*(result[key] for key in others), *(result["coco"][column] for column in coco)]
        return (
            name,
            budget,
            *(f"{number:.{digits}f}" for number, digits in zip(numbers, (4, 3, 3, 3))),
            *("-" if value is None else f"{value:.3f}" for value in precisions),
        )

    subnets = [
        row(f"subnet {number}", f"{result['budget'] / 1e9:.4f}", result) for number, result in enumerate(summary["subnets"], 1)
    ]
    columns = (*COLUMNS, *(AP_TITLES[key] for key in others), *coco)
    return columns, [row("fullnet", "", summary["fullnet"]), *subnets]


def other_metrics(result: Mapping) -> list[str]:
    """Return the keys of the AP50 metrics that a result has besides "ap50"; only VOC's rules have one."""
    return [key for key in ap_keys(result) if key.startswith("ap50_")]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], summary: dict) -> str:
    """Return the result table, the AP of each class, and the statistics of Algorithm 1 as Markdown."""
    lines = [markdown_row(columns), markdown_row(["---"] + ["---:"] * (len(columns) - 1)), *map(markdown_row, rows), ""]
    classes = list(summary["fullnet"]["ap50_per_class"])
    titles = [plain(cls) for cls in classes]
    results = [summary["fullnet"], *summary["subnets"]]
    head = [markdown_row(["detector", *titles]), markdown_row(["---"] + ["---:"] * len(classes))]
    others = other_metrics(summary["fullnet"])
    for key in ("ap50", *others):
        lines += [f"{AP_TITLES[key]} per class:", "", *head]
        for (name, *_), result in zip(rows, results):
            values = [result[f"{key}_per_class"][cls] for cls in classes]
            lines.append(markdown_row([name, *("-" if value is None else f"{value:.3f}" for value in values)]))
        lines.append("")
    lines += ["FLOPs are multiply-accumulates; AP50 is on the test split, the loss on the validation split."]
    lines += [METRICS[key] for key in others] + [""]
    if "thresholds" in summary:  # Algorithm 1; the baselines prune nothing
        thresholds = ", ".join("-" if value is None else f"{value:.3f}" for value in summary["thresholds"])
        lines += [
            f"- operations pruned: {summary['pruned_operations']} of {summary['total_operations']}",
            f"- path-score thresholds of the FLOPs buckets: {thresholds}",
            f"- rejected paths: {result_files.rejected_share(summary):.1%}",
        ]
    if "kendall_tau" in summary:
        taus = {"path filter": summary["kendall_tau"], **summary["kendall_tau_of_baselines"]}
        lines.append("- Kendall's tau of score and measured loss on held-out paths, per FLOPs bucket:")
        for name, values in taus.items():
            lines.append(f"  - {name}: " + ", ".join("-" if tau is None else f"{tau:.2f}" for tau in values))
    seconds = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in summary["seconds"].items())
    return "\n".join([*lines, f"- seconds: {seconds}", ""])


def plain(text: str) -> str:
    """Escape text so that Markdown shows it literally, also inside a table."""
    return re.sub(r"([\\`*_~\[\]<>|!&#])", r"\\\1", " ".join(text.split()))


def markdown_row(cells: Sequence[str]) -> str:
    """Format one row of a Markdown table; vertical bars and line breaks inside a cell are escaped or replaced."""
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", one_line(" ".join(cell.splitlines()))) for cell in cells) + " |"


def draw_pareto(summary: dict) -> Figure:
    """Plot the AP50 of the subnets found and of the fullnet against their FLOPs (as in Figure 5)."""
    figure, axes = figures.subplots(figsize=(5.5, 4))
    subnets = sorted(summary["subnets"], key=lambda result: result["flops"])
    axes.plot([r["flops"] / 1e9 for r in subnets], [r["ap50"] for r in subnets], "o-", label="found subnets")
    for result in subnets:
        axes.axvline(result["budget"] / 1e9, color="0.8", linewidth=1, zorder=0)
    axes.plot(summary["fullnet"]["flops"] / 1e9, summary["fullnet"]["ap50"], "k*", markersize=12, label="fullnet (line 2)")
    axes.set(xlabel="GFLOPs (multiply-accumulates); vertical lines: budgets", ylabel="AP50 on the test split")
    axes.set_title("Subnets found for the budgets")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def draw_scores(run: FilePath, summary: dict) -> Figure:
    """Plot the path scores of the held-out paths against their measured losses, with one color per FLOPs bucket."""
    paths = EvaluatedPaths.read(run / "held_out_paths.jsonl", run_config(run).network.geometry)
    scores = np.array(read_result(run, "scores", result_files.scores))
    if len(scores) != len(paths):
        raise UserError(
            f"{run / 'held_out_paths.jsonl'} has {len(paths)} paths, but scores.json has {len(scores)} scores: one of them is "
            "damaged; restore it"
        )
    figure, axes = figures.subplots(figsize=(5.5, 4))
    for bucket, tau in enumerate(summary["kendall_tau"]):
        inside = paths.buckets == bucket
        if inside.any():
            label = f"bucket {bucket + 1}: tau " + ("-" if tau is None else f"{tau:.2f}")
            axes.scatter(paths.losses[inside], scores[inside], s=18, label=label)
    axes.set(xlabel="measured validation loss", ylabel="path score g(a)", title="Held-out paths of the final supernet")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def draw_detections(run: FilePath, summary: dict) -> Figure:
    """Draw detections and ground truth (dashed) on at most `SHOWN_IMAGES` test images.

    The detector is the subnet of the largest budget, or the fullnet if the run found no subnet.

    Raises:
        UserError: the data are missing, or the file of detections is damaged.
    """
    sets = open_sets(run_config(run), quiet=True)
    assert isinstance(sets, DetectionSets)  # `write_report` rejects pre-trainings
    detector, title = "fullnet", "the fullnet"
    if budgets := [result["budget"] for result in summary["subnets"]]:
        detector, title = f"subnet_{1 + int(np.argmax(budgets))}", f"budget {max(budgets) / 1e9:.4g} GFLOPs"
    detections = read_result(run, f"{detector}_detections")
    with reading(run / f"{detector}_detections.json"):
        found = {entry["image"]: entry for entry in detections}
    chosen = np.linspace(0, len(sets.test) - 1, min(SHOWN_IMAGES, len(sets.test))).round().astype(int)
    samples = [sets.test.load(int(index)) for index in chosen]
    aspect = float(np.median([sample.image.shape[0] / sample.image.shape[1] for sample in samples]))
    figure, panels = figures.subplots(2, 3, figsize=(10, 0.6 + 6.6 * min(max(aspect, 0.3), 2.0)))
    for panel in panels.flat:
        panel.axis("off")
    for panel, sample in zip(panels.flat, samples):
        if (entry := found.get(sample.image_id)) is None:
            raise UserError(f"{run}/{detector}_detections.json is damaged: it lacks the test image {sample.image_id}")
        _draw_image(panel, sample, entry, sets.classes)
    figure.suptitle(f"Detections with a score of {SHOWN_SCORE} or more; {title}. Dashed: ground truth")
    figure.tight_layout()
    return figure


def _draw_image(panel: Axes, sample: Sample, entry: Mapping, classes: Sequence[str]) -> None:
    """Draw an image with its ground truth and the detections of its entry in the file of detections."""
    panel.imshow(sample.image[:, :, ::-1])
    for box in sample.boxes:
        panel.add_patch(_rectangle(box, "white", linewidth=0.8, linestyle="--"))
    colors = class_colors(len(classes))
    for box, score, label in zip(entry["boxes"], entry["scores"], entry["labels"]):
        if score >= SHOWN_SCORE:
            color = colors[label % len(colors)]
            panel.add_patch(_rectangle(box, color, linewidth=1.6))
            panel.text(
                box[0],
                box[1],
                figures.plain(f"{classes[label]} {score:.2f}"),
                fontsize=7,
                color="black",
                verticalalignment="bottom",
                bbox={"facecolor": color, "pad": 0.8, "linewidth": 0},
                clip_on=True,
            )


def _rectangle(box: Sequence[float], color: Any, **style: Any) -> Rectangle:
    """Make the outline of a box x1 y1 x2 y2 for Matplotlib."""
    from matplotlib import patches

    x1, y1, x2, y2 = box
    return patches.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, **style)
