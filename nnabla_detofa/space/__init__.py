"""The search space: paths as values, their exact costs and counts, FLOPs buckets, and the pruning of operations and paths."""

from .costs import Buckets, CostModel
from .geometry import Geometry
from .paths import Operation, Path, PathBatch, SearchSpace, compofa, ofa_resnet50

__all__ = ["Buckets", "CostModel", "Geometry", "Operation", "Path", "PathBatch", "SearchSpace", "compofa", "ofa_resnet50"]
