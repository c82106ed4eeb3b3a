"""The config of a run: the schema of each section, and the loading of files with their bases and overrides."""

from .args import Args
from .config import BASELINES, RUNNERS, WITHOUT_EFFECT, Config, without_effect
from .dataloader import DATALOADERS, AnyData, AnyDetectionData, CocoData, CocoSplit, ImageFolderData, OwnData, VocData, YoloData
from .files import without_duplicates
from .hparams import DetofaHparams, Filter, OperationPruning, PretrainHparams
from .load import check_batch_norm, from_dict, from_run, load, overridden
from .network import (
    NETWORKS,
    CenternetElasticNeck,
    CenternetOfaResnet50,
    OfaResnet50,
    OwnClassifier,
    OwnDetector,
    network_type,
)
from .older import completed
from .optimizer import Solver, Solvers
from .values import Count, Positive, Share

__all__ = [
    "AnyData",
    "AnyDetectionData",
    "BASELINES",
    "Args",
    "CenternetElasticNeck",
    "CenternetOfaResnet50",
    "CocoData",
    "CocoSplit",
    "Config",
    "Count",
    "DATALOADERS",
    "DetofaHparams",
    "Filter",
    "ImageFolderData",
    "NETWORKS",
    "OfaResnet50",
    "OperationPruning",
    "OwnClassifier",
    "OwnData",
    "OwnDetector",
    "Positive",
    "PretrainHparams",
    "RUNNERS",
    "Share",
    "Solver",
    "Solvers",
    "VocData",
    "YoloData",
    "WITHOUT_EFFECT",
    "completed",
    "from_dict",
    "from_run",
    "load",
    "network_type",
    "overridden",
    "check_batch_norm",
    "without_duplicates",
    "without_effect",
]
