"""The run of one experiment on one data set with one seed: its config, its folder, and whether it has finished.

A finished run with an equal config is reused from any folder below `RUNS`, unless it started from other contents of its
weights files or data, or used the mini-batches of several processes without a config that says so.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from pathlib import Path as FilePath

from .. import config as configs
from ..common.errors import UserError
from ..common.reading import parse_json
from ..runs import provenance
from ..training.mini_batch import kept_mini_batch
from . import archives
from .experiments import DETOFA, FULLNET, LONGER, Experiment, longer
from .profiles import DataSet, Profile

RUNS = FilePath("runs")


@dataclass(frozen=True, eq=False)
class Run:
    """One experiment of a profile on one data set with one seed.

    Attributes:
        profile: scale of the experiments.
        key: key of the data set in the profile.
        experiment: changes to the data set's config.
        seed: seed of the run.
        overrides: "key=value" strings from the command line; those for the data section of another data set are ignored.
    """

    profile: Profile
    key: str
    experiment: Experiment
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def data_set(self) -> DataSet:
        return self.profile.data_sets[self.key]

    @cached_property
    def own_overrides(self) -> tuple[str, ...]:
        """Overrides from the command line that apply to this data set."""
        return self.profile.own_overrides(self.data_set, self.overrides)

    @property
    def arguments(self) -> tuple[str, ...]:
        """All overrides of the data set's config."""
        seed = () if self.seed == 0 else (f"args.seed={self.seed}",)
        fullnet = self.data_set.pretraining.fullnet
        own: list[str] = []
        for override in self.experiment.overrides:
            if override == LONGER:
                own += longer(detection_hparams(configs.load(self.data_set.config, self.own_overrides)))
            else:
                own.append(override.replace(FULLNET, fullnet))
        return (*self.own_overrides, *own, *seed)

    @cached_property
    def config(self) -> configs.Config:
        return configs.load(self.data_set.config, self.arguments)

    @property
    def hparams(self) -> configs.DetofaHparams:
        """Section `hparams` of the config, which trains detectors."""
        return detection_hparams(self.config)

    @property
    def dataloader(self) -> configs.AnyDetectionData:
        """Section `dataloader` of the config, which is a detection data set."""
        section = self.config.dataloader
        if isinstance(section, configs.ImageFolderData):
            raise UserError(f"{self.config.name} must have a detection data set, got dataloader.{self.config.dataloader_name}")
        return section

    @property
    def name(self) -> str:
        return f"{self.key}-{self.experiment.name}-{self.seed}{self.suffix}"

    @property
    def suffix(self) -> str:
        """Suffix of folder names that keeps runs with overrides apart from those without.

        Overrides that do not change results, such as args.workers, do not count.
        """
        telling = [entry for entry in self.own_overrides if not configs.without_effect(entry.partition("=")[0])]
        return f"-{hashlib.sha256(' '.join(telling).encode()).hexdigest()[:6]}" if telling else ""

    @property
    def usual_folder(self) -> FilePath:
        """Folder of the run in the profile's own folder."""
        return profile_folder(self.profile) / self.name

    @cached_property
    def archive(self) -> FilePath | None:
        """Archive from which the run's results are read; None if they are read from its folder.

        If the profile starts runs, only archives of runs with an equal config are used.
        """
        if not self.profile.archives:
            return None
        file = archives.archive(self.profile.archives, self.name)
        return file if not self.profile.starts_runs or self.is_equal(archives.unpacked(file)) else None

    def is_equal(self, folder: FilePath) -> bool:
        """Return whether a folder has the files of a complete run with an equal config; weights and data do not count."""
        return (folder / "summary.json").exists() and _hash(folder / "config.json") == self.config.config_hash

    def is_older_than(self, file: FilePath) -> bool:
        """Return whether a file with what was measured of the run was written after its end, so not for an earlier run."""
        folder = self.folder_with_weights or self.folder
        return file.stat().st_mtime >= (folder / "summary.json").stat().st_mtime

    @cached_property
    def folder(self) -> FilePath:
        """Folder of the run: the usual one if it exists, else that of a finished run with an equal config, else a new one.

        If its results are read from an archive, the folder to which that is unpacked.
        """
        if self.archive:
            return archives.unpacked(self.archive)
        own = self.usual_folder.with_name(self.usual_folder.name + self.variant)
        if not own.exists():
            for file in sorted([*RUNS.glob("*/config.json"), *RUNS.glob("profiles/*/*/config.json")]):
                if _is_finished(file.parent, self.config):
                    return file.parent
        return own

    @cached_property
    def variant(self) -> str:
        """Suffix of folder names if the usual folder holds a run with an earlier version of the config, weights or data."""
        usual = self.usual_folder
        if self.archive:
            return ""
        if not (usual / "config.json").exists() or _is_of(usual, self.config):
            return ""
        inputs = [self.config.config_hash, *provenance.inputs(self.config)]
        return f"-{hashlib.sha256(' '.join(inputs).encode()).hexdigest()[:6]}"

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        if self.archive:  # its initial weights and data need not exist here
            return self.is_equal(self.folder)
        return _is_finished(self.folder, self.config)

    @property
    def folder_with_weights(self) -> FilePath | None:
        """Folder that can hold the run's weights, which archives lack; None if the run's results are read from an archive and
        its usual folder has no finished run."""
        if not self.archive:
            return self.folder
        return self.usual_folder if _is_finished(self.usual_folder, self.config) else None

    @property
    def location(self) -> str:
        """Where a reader finds the run: its folder, or its archive."""
        return str(self.archive or self.folder)

    @property
    def command(self) -> str:
        """Command line that starts or resumes the run."""
        return shlex.join(["nnabla_nas", "-f", self.data_set.config, *self.arguments, "-o", str(self.folder)])


def detection_hparams(config: configs.Config) -> configs.DetofaHparams:
    """Return the section `hparams` of a config that trains detectors.

    Raises:
        UserError: it is the config of a pre-training.
    """
    if not isinstance(config.hparams, configs.DetofaHparams):
        raise UserError(f"{config.name} must train detectors, got args.runner={config.args.runner}")
    return config.hparams


def profile_folder(profile: Profile) -> FilePath:
    """Return the folder of a profile's runs and filter studies."""
    return RUNS / "profiles" / profile.name


def _is_finished(folder: FilePath, config: configs.Config) -> bool:
    """Return whether a folder holds a finished run of a config with the current weights and data and default mini-batches."""
    return (folder / "summary.json").exists() and kept_mini_batch(folder) is None and _is_of(folder, config)


def _is_of(folder: FilePath, config: configs.Config) -> bool:
    """Return whether a folder holds a run of a config that started from the current weights and data."""
    return _hash(folder / "config.json") == config.config_hash and not provenance.changed_inputs(folder, config)


def check_config(config: configs.Config, folder: FilePath) -> None:
    """Raise UserError if a folder holds a run of another config."""
    file = folder / "config.json"
    if file.is_file() and _hash(file) != config.config_hash:
        raise UserError(f"{folder} holds a run of another config: restore that config, or move or remove the folder")


def _hash(file: FilePath) -> str | None:
    """Return the `Config.config_hash` of a run's config.json, or None if it is not a valid config."""
    try:
        content = parse_json(file.read_text("utf-8"))
        return configs.from_run(content, file.parent.name).config_hash if isinstance(content, dict) else None
    except (OSError, ValueError, UserError):
        return None


def plan(
    profile: Profile, keys: Sequence[str], experiments: Sequence[Experiment], seeds: int, overrides: Sequence[str]
) -> list[Run]:
    """Return the runs of some experiments, each once even if it has several titles.

    If the profile starts runs, those of Algorithm 1 come first, because other runs branch off them.

    Args:
        profile: scale of the experiments.
        keys: keys of the paper's data sets.
        experiments: the experiments.
        seeds: number of seeds: 0, 1, ...
        overrides: "key=value" strings from the command line.

    Raises:
        UserError: the config or an override sets what experiments and seeds vary, so that titles would be wrong.
    """
    once: dict[str, Experiment] = {}
    for experiment in (DETOFA, *experiments) if profile.starts_runs else experiments:
        once.setdefault(experiment.name, experiment)
    for key in profile.chosen(keys):
        _check_base(Run(profile, key, DETOFA, 0, tuple(overrides)))
    return [
        Run(profile, key, experiment, seed, tuple(overrides))
        for experiment in once.values()
        for key in profile.chosen(keys)
        for seed in range(seeds)
    ]


def _check_base(run: Run) -> None:
    """Raise UserError unless a config has the paper's values wherever experiments and seeds vary them."""
    usual = {"args.runner": "detofa", "args.seed": 0}
    pruning = asdict(configs.DetofaHparams())
    for name in ("path_pruning", "r_path"):
        usual[f"hparams.{name}"] = pruning[name]
    for name, value in pruning["operation_pruning"].items():
        usual[f"hparams.operation_pruning.{name}"] = value
    for key, value in usual.items():
        got = reduce(getattr, key.split("."), run.config)
        if got != value:
            raise UserError(
                f"{key} must be {value} in {run.data_set.config} and its overrides, because tables and figures vary it, "
                f"got {got}"
            )
