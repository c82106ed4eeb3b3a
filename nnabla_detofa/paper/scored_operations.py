"""Operation scores of a supernet, which Figures 3 and 8 show."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
from scipy import stats

from ..common.files import whole_text
from ..space.geometry import Geometry
from ..space.operations import Operation


@dataclass(frozen=True, eq=False)
class ScoredOperations:
    """Scores of the n operations of one supernet.

    Attributes:
        title: name of the supernet.
        geometry: choices of the supernet.
        operations: the operations.
        scores, flops: (n,) see `pruning.OperationScores`.
        removed: operations that were pruned.
    """

    title: str
    geometry: Geometry
    operations: Sequence[Operation]
    scores: np.ndarray
    flops: np.ndarray
    removed: frozenset[Operation] = frozenset()

    @classmethod
    def from_json(cls, title: str, geometry: Geometry, content: Mapping) -> ScoredOperations:
        """Convert the content of a run's operations.json; its named choices, which have no stage, are left out."""
        rows = [row for row, entry in enumerate(content["operations"]) if len(entry) == 4]
        operations = [Operation(*content["operations"][row]) for row in rows]
        removed = frozenset(Operation(*entry) for entry in content["removed"] if len(entry) == 4)
        scores, flops = (np.array(content[name])[rows] for name in ("scores", "flops"))
        return cls(title, geometry, operations, scores, flops, removed)

    def in_stage(self, stage: int) -> np.ndarray:
        """Return the indices of a stage's operations."""
        return np.array([index for index, operation in enumerate(self.operations) if operation.stage == stage])

    def correlations(self) -> dict[str, list[float]]:
        """Return Spearman's rho of the score with FLOPs, D, W and E inside each stage; NaN if all scores are equal."""
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


def write_csv(file: FilePath, supernets: Sequence[ScoredOperations]) -> None:
    """Write one row for each operation."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["supernet", "stage", "D", "W", "E", "score", "FLOPs of the stage", "pruned"])
        for net in supernets:
            for operation, score, flops in zip(net.operations, net.scores, net.flops):
                choices = (operation.stage + 1, operation.depth, operation.width, operation.ratio)
                writer.writerow([net.title, *choices, f"{score:.6f}", f"{flops:.0f}", int(operation in net.removed)])
