"""Figure 10: pruning ratios of paths and operations."""

from __future__ import annotations

from .budget_figures import budget_figure
from .experiments import operation_ratios, path_ratios

TARGET = budget_figure(
    "figure10",
    "Figure 10: pruning ratios",
    ("voc",),
    lambda profile: [
        ("paths", path_ratios(profile.path_ratios)),
        ("operations", operation_ratios(profile.operation_ratios)),
    ],
    "without path pruning (r = 0), AP is worse under every budget; without operation pruning, it is worst under the smallest; "
    "too much pruning (r = 0.4) is weaker than other ratios.",
)
