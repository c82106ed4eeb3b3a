"""Figure A1: initial weights of the supernet, like Figure 7 but on COCO."""

from __future__ import annotations

from collections.abc import Sequence

from . import figure7
from .budget_figures import budget_figure
from .experiments import PRETRAININGS
from .run import Run


def note(runs: Sequence[Run]) -> str:
    """Return the note of Figure 7, and whether the runs are the same because the profile has one data set."""
    same = (
        " The runs are the same as in Figure 7, because this profile has one data set."
        if len(runs[0].profile.data_sets) == 1
        else ""
    )
    return figure7.note(runs) + same


TARGET = budget_figure(
    "figureA1",
    "Figure A1: initial weights of the supernet (in the paper: for COCO)",
    ("coco",),
    lambda profile: [("", PRETRAININGS)],
    "pre-training of the supernet is best; pre-training of the fullnet is weaker under small budgets. The transfer gains 1.85.",
    note,
)
