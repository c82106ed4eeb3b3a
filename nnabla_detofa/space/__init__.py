"""Search space: paths, their exact costs and counts, FLOPs buckets, and pruning of operations and paths."""

from .costs import CostModel
from .counting import Buckets
from .geometry import Geometry
from .paths import Path, PathBatch
from .search_space import Operation, SearchSpace, compofa, ofa_resnet50

__all__ = ["Buckets", "CostModel", "Geometry", "Operation", "Path", "PathBatch", "SearchSpace", "compofa", "ofa_resnet50"]
