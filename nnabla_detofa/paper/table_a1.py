"""Table A1: the search spaces of OFA's progressive shrinking, in the paper and here."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path as FilePath

from ..common.files import whole_text
from ..runs.phases import TrainingPhase, training_phases
from ..space.operations import Operation
from ..space.search_space import SearchSpace
from ..tools.report import markdown_row
from .experiments import OFA_PS
from .run import Run
from .target import Request, Target, csv_file, write_markdown

PAPER_CHOICES = (
    "{0, 1, 2} x {1.0} x {0.35}",
    "{0, 1, 2} x {0.8, 1.0} x {0.35}",
    "{0, 1, 2} x {0.65, 0.8, 1.0} x {0.35}",
    "{0, 1, 2} x {0.65, 0.8, 1.0} x {0.25, 0.35}",
    "{0, 1, 2} x {0.65, 0.8, 1.0} x {0.2, 0.25, 0.35}",
)


def choices(space: SearchSpace) -> str:
    """Format the choices of D, W and E of a space's first stage as in Table A1."""
    operations = [operation for operation in space.operations if isinstance(operation, Operation) and operation.stage == 0]
    sets = ({getattr(operation, name) for operation in operations} for name in ("depth", "width", "ratio"))
    return " x ".join("{" + ", ".join(map(str, sorted(values))) + "}" for values in sets)


def table(phases: Sequence[TrainingPhase]) -> tuple[list[str], list[Sequence[str]]]:
    """Return Markdown lines, and rows for a CSV file.

    Args:
        phases: training phases of OFA (w/ PS) after that of the fullnet.
    """
    header = ("stage", "paper's D x W x E", "D x W x E here", "paths")
    rows = [
        (str(number), paper, choices(phase.space), str(phase.space.size()))
        for number, (paper, phase) in enumerate(zip(PAPER_CHOICES, phases), 1)
    ]
    lines = [markdown_row(header), markdown_row(["---"] * 3 + ["---:"]), *map(markdown_row, rows)]
    note = "Exact number of canonical paths, including the stem's own choices: its depth, and two widths from the stage's W."
    return [*lines, "", note], [header, *rows]


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Table A1 from the config of OFA (w/ PS)."""
    run = next(run for run in runs if run.experiment == OFA_PS)
    lines, rows = table(training_phases(run.config)[1:])
    with whole_text(csv_file(request, target)) as opened:
        csv.writer(opened).writerows(rows)
    return write_markdown(request, target, lines)


TARGET = Target(
    "tableA1",
    "Table A1: search spaces of OFA's progressive shrinking",
    ("voc",),
    (OFA_PS,),
    write,
    runs="none",
    names_data=False,
)
