"""Figure 5: AP of the best path of each method under each budget."""

from __future__ import annotations

from collections.abc import Sequence

from .budget_figures import budget_figure, search_note
from .experiments import left_out, methods_of
from .run import Run


def note(runs: Sequence[Run]) -> str:
    """Describe the search of the methods, and name those that are left out."""
    return " ".join(filter(None, (left_out(runs[0].profile), search_note(runs))))


TARGET = budget_figure(
    "figure5",
    "Figure 5: best path of each method under each budget",
    ("voc", "coco"),
    lambda profile: [("", methods_of(profile))],
    "on average, DetOFA is 0.85 points above OFA on Pascal VOC and 0.45 on COCO; CompOFA* performs well only under large "
    "budgets; the best paths are 0.5 and 1.0 points below the fullnet.",
    note,
)
