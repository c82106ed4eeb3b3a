"""Table A2: the epochs of OFA's progressive shrinking, in the paper and here."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path as FilePath

from ..common.files import whole_text
from ..runs.phases import TrainingPhase, training_phases
from ..tools.report import markdown_row
from .experiments import OFA_PS
from .run import Run
from .target import Request, Target, csv_file, write_markdown

PAPER_EPOCHS = (70, 5, 65, 5, 65)
"""For Pascal VOC."""


def table(phases: Sequence[TrainingPhase], title: str) -> tuple[list[str], list[Sequence[str]]]:
    """Return Markdown lines, and rows for a CSV file.

    Args:
        phases: training phases of OFA (w/ PS) after that of the fullnet.
        title: name of the data set.
    """
    header = ("stage", "paper's epochs (Pascal VOC)", f"epochs here ({title})", "epochs of the whole schedule")
    rows = [
        (str(number), str(paper), str(len(phase.epochs)), str(phase.schedule_epochs))
        for number, (paper, phase) in enumerate(zip(PAPER_EPOCHS, phases), 1)
    ]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * 3), *map(markdown_row, rows)]
    note = (
        "The paper's 5 and 65 epochs are those of its warm-up and fine-tuning, and 70 is their sum; other data sets use their "
        "own numbers. The paper does not give the learning rates of the stages. Here stage 1 has its own schedule, stages 2 "
        "and 3 share one, and stages 4 and 5 share one."
    )
    return [*lines, "", note], [header, *rows]


def write(request: Request, target: Target, runs: Sequence[Run]) -> list[FilePath]:
    """Write Table A2 from the config of OFA (w/ PS)."""
    run = next(run for run in runs if run.experiment == OFA_PS)
    lines, rows = table(training_phases(run.config)[1:], run.data_set.title)
    with whole_text(csv_file(request, target)) as opened:
        csv.writer(opened).writerows(rows)
    return write_markdown(request, target, lines)


TARGET = Target(
    "tableA2",
    "Table A2: epochs of OFA's progressive shrinking",
    ("voc",),
    (OFA_PS,),
    write,
    runs="none",
    names_data=False,
)
