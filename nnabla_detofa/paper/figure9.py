"""Figure 9: strategies of operation pruning."""

from __future__ import annotations

from collections.abc import Sequence

from .budget_figures import budget_figure
from .experiments import STRATEGIES
from .run import Run
from .run_results import operations_of


def pruned_operations(runs: Sequence[Run]) -> str:
    """Describe how many operations each strategy prunes, which differs in the paper too."""
    counts = []
    for experiment in STRATEGIES:
        found = operations_of(next(run for run in runs if run.experiment.name == experiment.name and run.seed == 0))
        counts.append(f"{experiment.title} {len(found['removed'])} of {len(found['operations'])}")
    return f"The strategies prune different shares of the operations (seed 0): {', '.join(counts)}."


TARGET = budget_figure(
    "figure9",
    "Figure 9: strategies of operation pruning",
    ("voc",),
    lambda profile: [("", STRATEGIES)],
    "FLOPs & score (all) is best; FLOPs & score (per bucket) is slightly better than FLOPs.",
    pruned_operations,
    names_data=False,
)
