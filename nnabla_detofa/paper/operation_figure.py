"""Figures 3 and 8: what each operation is worth to the path filter, and which are pruned for it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from ..common import figures
from ..common.files import whole_text
from ..space.geometry import Geometry
from ..space.search_space import Operation
from ..tools.report import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TELLING = 0.1  # a difference of two means of four correlations that says something


@dataclass(frozen=True, eq=False)
class ScoredOperations:
    """The operations of one supernet.

    Attributes:
        title: of the supernet.
        geometry: its choices.
        operations: n of them.
        scores, flops: (n,) as `pruning.OperationScores` has them.
        removed: those that were pruned; none where nothing was pruned.
    """

    title: str
    geometry: Geometry
    operations: Sequence[Operation]
    scores: np.ndarray
    flops: np.ndarray
    removed: frozenset[Operation] = frozenset()

    @classmethod
    def from_json(cls, title: str, geometry: Geometry, content: dict) -> ScoredOperations:
        """What a run keeps in operations.json."""
        operations = [Operation(*entry) for entry in content["operations"]]
        removed = frozenset(Operation(*entry) for entry in content["removed"])
        return cls(title, geometry, operations, np.array(content["scores"]), np.array(content["flops"]), removed)

    def in_stage(self, stage: int) -> np.ndarray:
        """Indices of a stage's operations."""
        return np.array([index for index, operation in enumerate(self.operations) if operation.stage == stage])

    def correlations(self) -> dict[str, list[float]]:
        """Spearman's rho of score and each of FLOPs, D, W and E inside each stage; NaN where all scores are equal."""
        values = {
            "FLOPs": self.flops,
            "D": np.array([operation.depth for operation in self.operations]),
            "W": np.array([operation.width for operation in self.operations]),
            "E": np.array([operation.ratio for operation in self.operations]),
        }
        stages = [self.in_stage(stage) for stage in range(self.geometry.stages)]
        return {
            name: [float(stats.spearmanr(self.scores[members], column[members]).statistic) for members in stages]
            for name, column in values.items()
        }


def table(supernets: Sequence[ScoredOperations]) -> str:
    """Markdown: how scores follow an operation's size, stage by stage."""
    stages = range(1, supernets[0].geometry.stages + 1)
    lines = [
        markdown_row(["supernet", "Spearman's rho of score and", *(f"stage {stage}" for stage in stages), "mean"]),
        markdown_row(["---", "---"] + ["---:"] * (len(stages) + 1)),
    ]
    for supernet in supernets:
        for name, values in supernet.correlations().items():
            lines.append(markdown_row([supernet.title, name, *(f"{v:.2f}" for v in values), f"{np.mean(values):.2f}"]))
    return "\n".join(lines)


def comparison(before: ScoredOperations, after: ScoredOperations) -> str:
    """Whether scores follow size more strongly after than before, in a sentence made from the numbers."""
    old, new = (float(np.mean(net.correlations()["FLOPs"])) for net in (before, after))
    verdict = "as the paper says" if new > old else "unlike the paper"
    if abs(new - old) < TELLING:
        verdict = "too close to tell"
    return (
        f"Ours: rho of score and FLOPs inside a stage is {old:.2f} ({before.title}) and {new:.2f} ({after.title}), {verdict}."
    )


def write_csv(file: FilePath, supernets: Sequence[ScoredOperations]) -> None:
    """One line for each operation."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["supernet", "stage", "D", "W", "E", "score", "FLOPs of the stage", "pruned"])
        for net in supernets:
            for operation, score, flops in zip(net.operations, net.scores, net.flops):
                choices = (operation.stage + 1, operation.depth, operation.width, operation.ratio)
                writer.writerow([net.title, *choices, f"{score:.6f}", f"{flops:.0f}", int(operation in net.removed)])


def pruned_table(net: ScoredOperations) -> list[str]:
    """Markdown lines: how many operations of each stage are kept and pruned, and their mean scores."""
    lines = [
        markdown_row(["stage", "kept", "pruned", "mean score of the kept", "of the pruned"]),
        markdown_row(["---"] + ["---:"] * 4),
    ]
    gone = np.array([operation in net.removed for operation in net.operations])
    groups = [(str(stage + 1), net.in_stage(stage)) for stage in range(net.geometry.stages)]
    for name, members in [*groups, ("all", np.arange(len(gone)))]:
        parts = net.scores[members[~gone[members]]], net.scores[members[gone[members]]]
        means = [f"{part.mean():.3f}" if len(part) else "-" for part in parts]
        lines.append(markdown_row([name, *(str(len(part)) for part in parts), *means]))
    return lines


def draw_pruned(net: ScoredOperations) -> Figure:
    """Figure 3: a panel for each stage with the operations' scores over their FLOPs; crosses are pruned."""
    stages = net.geometry.stages
    figure, panels = figures.subplots(1, stages, figsize=(3.2 * stages, 3.4), sharey=True, squeeze=False, layout="constrained")
    for stage, panel in enumerate(panels[0]):
        members = net.in_stage(stage)
        gone = np.array([net.operations[index] in net.removed for index in members])
        for part, marker, color, label in ((~gone, "o", "tab:blue", "kept"), (gone, "x", "tab:red", "pruned")):
            chosen = members[part]
            panel.scatter(net.flops[chosen] / 1e6, net.scores[chosen], s=22, marker=marker, color=color, label=label)
        panel.set(title=f"stage {stage + 1}", xlabel="MFLOPs of the stage")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("operation score")
    panels[0][-1].legend()
    figure.suptitle(net.title)
    return figure


def draw(supernets: Sequence[ScoredOperations]) -> Figure:
    """A row of panels for each supernet, a panel for each stage: D and W downwards, E across, the score as color.

    Colors span the scores of a supernet; a cross marks what was pruned.
    """
    stages = supernets[0].geometry.stages
    figure, rows = figures.subplots(
        len(supernets), stages, figsize=(2.7 * stages, 3.9 * len(supernets)), squeeze=False, layout="constrained"
    )
    for panels, net in zip(rows, supernets):
        geometry = net.geometry
        pairs = [(depth, width) for depth in geometry.depths for width in geometry.widths]
        low, high = float(net.scores.min()), float(net.scores.max())
        for stage, panel in enumerate(panels):
            image = np.full((len(pairs), len(geometry.ratios)), np.nan)
            for index in net.in_stage(stage):
                operation = net.operations[index]
                place = pairs.index((operation.depth, operation.width)), geometry.ratios.index(operation.ratio)
                image[place] = net.scores[index]
                dark = net.scores[index] < (low + high) / 2
                text = f"{net.scores[index]:.3f}" + (" ×" if operation in net.removed else "")
                panel.text(*place[::-1], text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
            drawn = panel.imshow(image, vmin=low, vmax=high, aspect="auto", cmap="viridis")
            panel.set_xticks(range(len(geometry.ratios)), [f"E {ratio}" for ratio in geometry.ratios], fontsize=8)
            labels = [f"D {depth}, W {width}" for depth, width in pairs] if stage == 0 else [""] * len(pairs)
            panel.set_yticks(range(len(pairs)), labels, fontsize=8)
            panel.set_title(f"stage {stage + 1}", fontsize=9)
        panels[0].set_ylabel(net.title)
        figure.colorbar(drawn, ax=panels, label="mean path score", shrink=0.8)
    return figure
