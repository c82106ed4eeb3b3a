"""Figure 7: initial weights of the supernet."""

from __future__ import annotations

from collections.abc import Sequence

from .budget_figures import SAME_SEARCH, budget_figure, pretrained_filter
from .experiments import PRETRAININGS
from .run import Run


def note(runs: Sequence[Run]) -> str:
    """Describe the search of supernets with different initial weights, and the pre-training of the first."""
    _, hparams = runs[0].data_set.pretraining.load()
    start = (
        ""
        if hparams.shrinking
        else " Supernet was pre-trained on uniform paths of A; in the paper, with progressive shrinking."
    )
    if not pretrained_filter(runs):
        return f"{SAME_SEARCH} No filter is pre-trained, so each starts from random weights.{start}"
    return (
        f"{SAME_SEARCH} The filter is pre-trained only for the pre-trained supernet. The others have no paths of a "
        f"classification supernet, so their filters start from random weights.{start}"
    )


TARGET = budget_figure(
    "figure7",
    "Figure 7: initial weights of the supernet (in the paper: for Pascal VOC)",
    ("voc",),
    lambda profile: [("", PRETRAININGS)],
    "pre-training of the supernet is best, with and without progressive shrinking alike; pre-training of the fullnet performs "
    "well only under large budgets; from scratch, progressive shrinking gains up to 3.5 points. The transfer gains 6.55.",
    note,
)
