"""Figure A2: kinds of path pruning."""

from __future__ import annotations

from .budget_figures import budget_figure, search_note
from .experiments import PATH_PRUNINGS

TARGET = budget_figure(
    "figureA2",
    "Figure A2: kinds of path pruning",
    ("voc",),
    lambda profile: [("", PATH_PRUNINGS)],
    "without operation pruning and at r = 0.25, Prune (Score) is best, and Prune (Uniform) is better than None.",
    search_note,
    names_data=False,
)
