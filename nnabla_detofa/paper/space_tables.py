"""Tables A1 and A2: the spaces and the epochs of OFA's progressive shrinking, as the paper has them and as they are run."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config
from ..runs.phases import TrainingPhase, training_phases
from ..space.search_space import SearchSpace
from ..tools.report import markdown_row

PAPER_CHOICES = (
    "{0, 1, 2} x {1.0} x {0.35}",
    "{0, 1, 2} x {0.8, 1.0} x {0.35}",
    "{0, 1, 2} x {0.65, 0.8, 1.0} x {0.35}",
    "{0, 1, 2} x {0.65, 0.8, 1.0} x {0.25, 0.35}",
    "{0, 1, 2} x {0.65, 0.8, 1.0} x {0.2, 0.25, 0.35}",
)
"""Table A1."""
PAPER_EPOCHS = (70, 5, 65, 5, 65)
"""Table A2, for Pascal VOC."""


def choices(space: SearchSpace) -> str:
    """The D, W and E of the first stage, as Table A1 writes them."""
    operations = [operation for operation in space.operations if operation.stage == 0]
    sets = ({getattr(operation, name) for operation in operations} for name in ("depth", "width", "ratio"))
    return " x ".join("{" + ", ".join(map(str, sorted(values))) + "}" for values in sets)


def stages(config: Config) -> tuple[TrainingPhase, ...]:
    """The phases of the config's runner that follow the fullnet's."""
    return training_phases(config)[1:]


def table_a1(config: Config) -> tuple[list[str], list[Sequence[str]]]:
    """Markdown lines, and rows for a CSV file."""
    header = ("stage", "paper's D x W x E", "ours", "paths")
    rows = [
        (str(number), paper, choices(phase.space), str(phase.space.size()))
        for number, (paper, phase) in enumerate(zip(PAPER_CHOICES, stages(config)), 1)
    ]
    lines = [markdown_row(header), markdown_row(["---"] * 3 + ["---:"]), *map(markdown_row, rows)]
    notes = "Paths are canonical ones, counted exactly, with the stem's own choices: its depth, and widths among the stage's W."
    return [*lines, "", notes], [header, *rows]


def table_a2(config: Config, title: str) -> tuple[list[str], list[Sequence[str]]]:
    """Markdown lines, and rows for a CSV file.

    Args:
        title: of the data set.
    """
    header = ("stage", "paper's epochs (Pascal VOC)", f"ours ({title})", "of a schedule of")
    rows = [
        (str(number), str(paper), str(len(phase.epochs)), str(phase.schedule_epochs))
        for number, (paper, phase) in enumerate(zip(PAPER_EPOCHS, stages(config)), 1)
    ]
    lines = [markdown_row(header), markdown_row(["---"] + ["---:"] * 3), *map(markdown_row, rows)]
    notes = (
        "The paper's 5 and 65 epochs are its warm-up and fine-tuning, and 70 are both: other data sets take theirs. It does "
        "not give the learning rate of a stage: stage 1 has a schedule of its own, and stages 2 and 3, and 4 and 5, share one."
    )
    return [*lines, "", notes], [header, *rows]
