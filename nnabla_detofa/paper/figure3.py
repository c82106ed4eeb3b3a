"""Figure 3: operation pruning by score and FLOPs (Algorithm 1, line 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from ..common import figures
from ..runs.run_folder import searched_space
from ..tools.report import markdown_row
from .experiments import DETOFA
from .run import Run
from .run_results import operations_of, runs_and_code
from .scored_operations import ScoredOperations, write_csv
from .target import Request, Target, csv_file, picture_line, save_picture, write_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(net: ScoredOperations) -> list[str]:
    """Return Markdown lines: the number of kept and pruned operations of each stage, and their mean scores."""
    lines = [
        markdown_row(["stage", "kept", "pruned", "mean score, kept", "mean score, pruned"]),
        markdown_row(["---"] + ["---:"] * 4),
    ]
    pruned = np.array([operation in net.removed for operation in net.operations])
    groups = [(str(stage + 1), net.in_stage(stage)) for stage in range(net.geometry.stages)]
    for name, members in [*groups, ("all", np.arange(len(pruned)))]:
        parts = net.scores[members[~pruned[members]]], net.scores[members[pruned[members]]]
        means = [f"{part.mean():.3f}" if len(part) else "-" for part in parts]
        lines.append(markdown_row([name, *(str(len(part)) for part in parts), *means]))
    return lines


def draw(net: ScoredOperations) -> Figure:
    """Plot the operations' scores against their FLOPs, with one panel for each stage; crosses are pruned operations."""
    stages = net.geometry.stages
    figure, panels = figures.subplots(1, stages, figsize=(3.2 * stages, 3.4), sharey=True, squeeze=False, layout="constrained")
    for stage, panel in enumerate(panels[0]):
        members = net.in_stage(stage)
        pruned = np.array([net.operations[index] in net.removed for index in members])
        for part, marker, color, label in ((~pruned, "o", "tab:blue", "kept"), (pruned, "x", "tab:red", "pruned")):
            chosen = members[part]
            panel.scatter(net.flops[chosen] / 1e6, net.scores[chosen], s=22, marker=marker, color=color, label=label)
        panel.set(title=f"stage {stage + 1}", xlabel="MFLOPs of the stage")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("operation score")
    panels[0][-1].legend()
    figure.suptitle(net.title)
    return figure


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Figure 3 from the operations that the run of seed 0 kept and pruned."""
    run, operations = runs[0], operations_of(runs[0])
    scored = ScoredOperations.from_json(f"{run.data_set.title}, after warm-up", run.config.network.geometry, operations)
    save_picture(request, target, draw(scored))
    write_csv(csv_file(request, target), [scored])
    lines = [*table(scored), ""]
    if operations["spared"]:
        lines += [f"Kept although the strategy would prune them: {'; '.join(operations['spared'])}.", ""]
    lines += [
        "The pruned search space, in the paper's notation:",
        "",
        "```",
        str(searched_space(run.folder, run.config)),
        "```",
    ]
    lines += ["", picture_line(target), "", f"One run: {runs_and_code([run])}."]
    return write_markdown(request, target, lines)


TARGET = Target(
    "figure3",
    "Figure 3: operation pruning",
    ("voc",),
    (DETOFA,),
    write,
    paper="an example of operations pruned by score and FLOPs, without numbers.",
    one_seed=True,
    names_data=False,
)
