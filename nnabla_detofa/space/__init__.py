"""Search space: paths, their exact costs and counts, FLOPs buckets, and pruning of operations and paths.

The names below are imported when they are first used: reading a config needs `space.geometry` alone, and no NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .costs import CostModel
    from .counting import Buckets
    from .geometry import Geometry
    from .operations import Operation
    from .paths import Path, PathBatch
    from .search_space import SearchSpace, compofa, ofa_resnet50

__all__ = ["Buckets", "CostModel", "Geometry", "Operation", "Path", "PathBatch", "SearchSpace", "compofa", "ofa_resnet50"]

_MODULES = {
    "Buckets": "counting",
    "CostModel": "costs",
    "Geometry": "geometry",
    "Path": "paths",
    "PathBatch": "paths",
    "Operation": "operations",
    **dict.fromkeys(("SearchSpace", "compofa", "ofa_resnet50"), "search_space"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
