"""Profiles: the scale at which the paper's tables and figures are made, with its configs and weights.

A profile is a JSON file in configs/profiles. The dataclasses of this module are its schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, get_args

from .. import config as configs
from ..common.checked import check_keys, kind_of, listed, read
from ..common.errors import UserError
from ..common.reading import parse_json, read_text, shown
from ..common.shipped import shipped
from ..config import Count, Share

FOLDER = FilePath("configs/profiles")
ShippedFile = Annotated[str, lambda value: str(shipped(value)) if isinstance(value, str) else value]
"""A file of the user, or one that is shipped with this package."""

RATIOS = {"path_ratios": 0.25, "operation_ratios": 0.3}
"""Keys with the ratios of Figure 10 -> the ratio of Algorithm 1 itself, which must be among them."""
Method = Literal["ofa-ps", "ofa", "compofa", "detofa"]
"""Name of the experiment of a method in Table 2 and Figure 5."""
PARTS = ("whole run", "branch", "filter study")
"""Parts of the work whose duration a profile may state in `minutes`."""


@dataclass(frozen=True)
class Need:
    """A required file or folder.

    Attributes:
        path: the file or folder.
        command: command or other instruction that creates it.
        targets: the tables and figures that need it; empty means all.
    """

    path: str
    command: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretraining:
    """What the runs on a data set start from.

    Attributes:
        config: config of the pre-training.
        supernet: weights file of the classification supernet.
        path_filter: the path filter pre-trained on that supernet.
        fullnet: weights file of a classifier of which only the largest path was trained.
        fullnet_command: command or other instruction that creates it.
        paths: file of the supernet's evaluated paths; None: new paths are evaluated.
    """

    config: str
    supernet: ShippedFile
    path_filter: ShippedFile
    fullnet: ShippedFile
    fullnet_command: str = "train it, and set pretraining.fullnet in the profile"
    paths: str | None = None

    def load(self) -> tuple[configs.Config, configs.PretrainHparams]:
        """Load the config, and return it with its section `hparams`.

        Raises:
            UserError: the config is invalid or not that of a pre-training.
        """
        config = configs.load(self.config)
        if not isinstance(config.hparams, configs.PretrainHparams):
            raise UserError(
                f"pretraining.config of a profile must have args.runner=pretrain, got {self.config} with args.runner="
                f"{config.args.runner}"
            )
        return config, config.hparams


@dataclass(frozen=True)
class DataSet:
    """A detection data set of a profile.

    Attributes:
        title: its name in tables.
        config: config of Algorithm 1 on it.
        pretraining: what the runs start from.
        needs: files that are checked before any work starts.
    """

    title: str
    config: str
    pretraining: Pretraining
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True)
class FilterStudySizes:
    """Sizes of the filter study, from which Tables 3 and A3 are made.

    Attributes:
        seeds: number of fits of each setting of the filter.
        test_paths_per_bucket: test paths of each FLOPs bucket.
        pretraining_paths_per_bucket: paths of each FLOPs bucket of the classification supernet, to pre-train the filter.
        pilots: seeds of the supernets of the learning curves. No other result uses these seeds, so options of the filter may
            be chosen on them.
        pilot_paths: fitted paths of each FLOPs bucket, one value for each point of the learning curves, in ascending order.
    """

    seeds: Count = 3
    test_paths_per_bucket: Count = 40
    pretraining_paths_per_bucket: Count = 100
    pilots: tuple[Count, ...] = (11, 12, 13)
    pilot_paths: tuple[Annotated[int, "[7, 100000]"], ...] = (7, 14, 28, 56, 112)

    def __post_init__(self) -> None:
        for name in ("pilots", "pilot_paths"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise UserError(f"{name} must be one or more numbers in ascending order, got {list(values)}")


@dataclass(frozen=True)
class Profile:
    """A scale at which the tables and figures are made.

    Attributes:
        name: stem of the file's name; the folders of its runs and results have the same name.
        source: the name or the path that it was loaded from.
        about: description by its author.
        data_sets: data sets by key. If there are several, their keys are "voc" and "coco", the paper's data sets. If there is
            only one, all tables and figures are made on it.
        starts_runs: whether missing runs are started; otherwise their commands are printed.
        filter_study: sizes of the filter study.
        minutes: duration of parts of the work on two cores, announced before they start.
        methods: the methods that Table 2 and Figure 5 compare, among them "detofa".
        path_ratios, operation_ratios: shares of each FLOPs bucket that Figure 10 prunes.
        archives: folder of archives from which results are made: all results if the profile does not start runs, else those
            of runs that have an archive with an equal config; None: no archives are read.
    """

    name: str
    source: str
    about: tuple[str, ...]
    data_sets: Mapping[str, DataSet]
    starts_runs: bool
    filter_study: FilterStudySizes
    minutes: Mapping[str, float]
    methods: tuple[Method, ...] = get_args(Method)
    path_ratios: tuple[Share, ...] = (0.0, 0.2, 0.25, 0.3, 0.4)
    operation_ratios: tuple[Share, ...] = (0.0, 0.2, 0.3, 0.4)
    archives: FilePath | None = None

    @property
    def results(self) -> FilePath:
        """Default folder of its tables and figures."""
        return FilePath("results", self.name)

    def chosen(self, keys: Sequence[str]) -> dict[str, DataSet]:
        """Return the data sets for a table that the paper makes on the data sets with these keys."""
        return dict(self.data_sets) if len(self.data_sets) == 1 else {key: self.data_sets[key] for key in keys}

    def own_overrides(self, data_set: DataSet, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return the overrides that apply to a data set, without those for the data section of another one."""
        if not any(entry.startswith("dataloader.") for entry in overrides):
            return tuple(overrides)
        names = {configs.load(other.config).dataloader_name for other in self.data_sets.values()}
        others = names - {configs.load(data_set.config).dataloader_name}
        return tuple(entry for entry in overrides if not any(entry.startswith(f"dataloader.{name}.") for name in others))

    def check(self, data_set: DataSet, overrides: Sequence[str] = (), targets: Sequence[str] = ()) -> None:
        """Raise UserError if a file is missing that some targets, or their runs on the data set, need."""
        root = configs.load(data_set.config, self.own_overrides(data_set, overrides)).dataloader.root
        written = configs.load(data_set.config).dataloader.root
        missing = [
            f"{path} ({need.command})"
            for need in data_set.needs
            if (not need.targets or set(need.targets) & set(targets))
            and not FilePath(path := root if need.path == written else need.path).exists()
        ]
        if missing:
            raise UserError(f"the profile {self.name} needs files for {data_set.title} that are missing: {'; '.join(missing)}")


def load(name: str) -> Profile:
    """Load a profile.

    Args:
        name: name of a file in configs/profiles, like "demo", or path of a .json file.

    Raises:
        UserError: the file does not exist, or a key or value is not allowed.
    """
    file = FilePath(name) if name.endswith(".json") else shipped(FOLDER / f"{name}.json")
    if not file.is_file():
        known = sorted(other.stem for other in shipped(FOLDER).glob("*.json"))
        found = f"{FOLDER} has {listed(known, 'and')}" if known else f"the working folder has no {FOLDER}"
        raise UserError(f"--profile must be a name in {FOLDER} or a .json file, got {name}; {found}")
    named = shipped(FOLDER / f"{file.stem}.json")
    if named.is_file() and not named.samefile(file):  # both would have the same folders of runs and results
        raise UserError(f"the profile {file} must not have the name of one in {FOLDER}, got {file.stem}: rename it")
    source = read_text(file, "the profile")
    try:
        content = parse_json(source, configs.without_duplicates)
    except ValueError as error:
        raise UserError(f"the profile {file} does not parse: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"the profile {file} must be a mapping, got {kind_of(content)}")
    try:
        return _profile(file.stem, name, content)
    except UserError as error:
        raise UserError(f"the profile {file}: {error}") from None


def _profile(name: str, source: str, content: Mapping[str, Any]) -> Profile:
    check_keys("", content, ("about", "data_sets", "starts_runs", "filter_study", "minutes", "methods", *RATIOS))
    data_sets, minutes = content.get("data_sets"), content.get("minutes", {})
    if not isinstance(data_sets, dict) or not data_sets:
        raise UserError("data_sets must map the key of each data set to its title, config, pretraining and needs")
    if len(data_sets) > 1 and set(data_sets) != {"voc", "coco"}:
        raise UserError(f"data_sets must have one key, or voc and coco, got {listed(data_sets, 'and')}")
    for key in data_sets:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", key):  # part of the names of folders
            raise UserError(f"a key of data_sets must consist of letters, digits, - or _, got {shown(key)}")
    if not isinstance(minutes, dict):
        raise UserError(f"minutes must map parts of the work to numbers, got {kind_of(minutes)}")
    check_keys("minutes", minutes, PARTS)
    methods = read(tuple[Method, ...], content.get("methods", list(Profile.methods)), "methods")
    if "detofa" not in methods or len(set(methods)) != len(methods):
        raise UserError(f"methods must include detofa, and each method once, got {shown(list(methods))}")
    ratios = {name: _ratios(content.get(name, getattr(Profile, name)), name) for name in RATIOS}
    return Profile(
        name,
        source,
        read(tuple[str, ...], content.get("about", []), "about"),
        {key: read(DataSet, value, f"data_sets.{key}") for key, value in data_sets.items()},
        read(bool, content.get("starts_runs", True), "starts_runs"),
        read(FilterStudySizes, content.get("filter_study", {}), "filter_study"),
        {key: read(configs.Positive, value, f"minutes.{key}") for key, value in minutes.items()},
        methods=methods,
        path_ratios=ratios["path_ratios"],
        operation_ratios=ratios["operation_ratios"],
    )


def _ratios(content: Any, name: str) -> tuple[float, ...]:
    """Check the ratios of Figure 10, which must include that of Algorithm 1 itself."""
    found: tuple[float, ...] = read(tuple[Share, ...], content, name)
    if list(found) != sorted(set(found)) or RATIOS[name] not in found:
        raise UserError(
            f"{name} must be in ascending order and include {RATIOS[name]:g}, Algorithm 1's ratio, got {shown(list(found))}"
        )
    return found
