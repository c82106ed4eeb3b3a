"""The sections of a config of a detector, with the types that only detectors have."""

from __future__ import annotations

from typing import NamedTuple

from ..common.errors import UserError
from .config import Config
from .dataloader import AnyDetectionData, ImageFolderData
from .hparams import DetofaHparams
from .network import CenternetOfaResnet50


class DetectionSections(NamedTuple):
    """The network, the dataset and the hyperparameters of a config of Algorithm 1 or of a baseline."""

    network: CenternetOfaResnet50
    data: AnyDetectionData
    hparams: DetofaHparams


def detection_sections(config: Config) -> DetectionSections:
    """Return the sections of a config of a detector.

    Raises:
        UserError: the config is for a pre-training, which trains a classifier.
    """
    network, data, hparams = config.network, config.dataloader, config.hparams
    if (
        not isinstance(network, CenternetOfaResnet50)
        or isinstance(data, ImageFolderData)
        or not isinstance(hparams, DetofaHparams)
    ):
        raise UserError(f"the config {config.name} must be for a detector; its runner {config.args.runner} trains a classifier")
    return DetectionSections(network, data, hparams)
