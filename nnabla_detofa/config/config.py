"""A complete config, and what each runner requires of it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from . import older
from .args import Args
from .dataloader import AnyData
from .hparams import DetofaHparams, PretrainHparams
from .imported import imported
from .network import CenternetOfaResnet50, OfaResnet50
from .optimizer import Solvers


@dataclass(frozen=True)
class Runner:
    """Requirements of one runner.

    Attributes:
        hparams: class of the section `hparams`.
        networks, dataloaders: names of the networks and datasets that it supports.
    """

    hparams: type[DetofaHparams] | type[PretrainHparams]
    networks: tuple[str, ...]
    dataloaders: tuple[str, ...]


BASELINES = ("fullnet", "ofa", "ofa_ps", "compofa")
DETECTORS = ("centernet_ofa_resnet50", "centernet_elastic_neck")
RUNNERS = dict.fromkeys(("detofa", *BASELINES), Runner(DetofaHparams, DETECTORS, ("voc", "coco", "yolo"))) | {
    "pretrain": Runner(PretrainHparams, ("ofa_resnet50",), ("image_folder",))
}
"""Runners by their names, the values of `args.runner`."""


def method_of(runner: str) -> str:
    """Return the name in `RUNNERS` of a runner, or that of the runner on which a class of the user's own is based.

    Raises:
        UserError: the import path of a class cannot be imported, or does not name a runner.
    """
    if runner in RUNNERS:
        return runner
    kind = imported("args.runner", runner)
    method = getattr(kind, "method", None)
    if not isinstance(kind, type) or method not in RUNNERS:
        raise UserError(
            f"args.runner {runner}: {runner.partition(':')[2]} must be a class based on a runner, such as "
            "nnabla_detofa.methods.algorithm1.DetOFASearcher"
        )
    return method


WITHOUT_EFFECT = {
    "args": ("output_path", "workers", "evaluation_processes", "print_frequency", "context", "device_id"),
    "hparams": ("checkpoint_every_epochs",),
}
"""Keys of each section that change where, how fast or how verbosely a run computes, but not its result."""


def without_effect(key: str) -> bool:
    """Return whether a dotted key does not affect the result of a run."""
    section, _, rest = key.partition(".")
    return section == "about" or rest in WITHOUT_EFFECT.get(section, ())


@dataclass(frozen=True)
class Config:
    """A complete, checked config.

    Attributes:
        name: name of its file without the suffix.
        about: description by its author, line by line.
        args: section `args`.
        network_name, dataloader_name: names of the network and the dataset.
        network, dataloader: their settings.
        optimizer: section `optimizer`.
        hparams: section `hparams`, of the class that the runner requires.
    """

    name: str
    about: tuple[str, ...]
    args: Args
    network_name: str
    network: OfaResnet50 | CenternetOfaResnet50
    dataloader_name: str
    dataloader: AnyData
    optimizer: Solvers
    hparams: DetofaHparams | PretrainHparams

    @property
    def method(self) -> str:
        """The runner, or the one on which a runner of the user's own is based: it determines phases and files of a run."""
        return method_of(self.args.runner)

    @property
    def output_path(self) -> Path:
        """Folder of the run."""
        return Path(self.args.output_path or Path("runs", self.name))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config file that loads into an equal config, with all defaults."""
        sections = {
            "about": self.about,
            "args": dataclasses.asdict(self.args),
            "network": {self.network_name: dataclasses.asdict(self.network)},
            "dataloader": {self.dataloader_name: dataclasses.asdict(self.dataloader)},
            "optimizer": dataclasses.asdict(self.optimizer),
            "hparams": dataclasses.asdict(self.hparams),
        }
        return json.loads(json.dumps(sections))

    @property
    def config_hash(self) -> str:
        """Hash of all values that affect the result of a run, see `WITHOUT_EFFECT`."""
        content = older.hashed(self.to_dict())
        del content["about"]
        for section, keys in WITHOUT_EFFECT.items():
            for key in keys:
                del content[section][key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
