"""Profiles: at which scale the paper's tables and figures are made, and from which configs and weights.

A profile is a JSON file in configs/profiles; the dataclasses below are its schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from .. import config as configs
from ..common.checked import check_keys, kind_of, listed, read
from ..common.errors import UserError
from ..common.reading import parse_json, read_text, shown
from ..common.shipped import shipped
from ..config import Count, Share

FOLDER = FilePath("configs/profiles")

RATIOS = {"path_ratios": 0.25, "operation_ratios": 0.3}
"""Entries of Figure 10, and the ratio of our method among them."""
PARTS = ("whole run", "branch", "filter study")
"""Of the work, whose minutes a profile may tell."""


ShippedFile = Annotated[str, lambda value: str(shipped(value)) if isinstance(value, str) else value]
"""A file of the user, or one that is shipped with this package."""


@dataclass(frozen=True)
class Need:
    """A file or folder that has to be there, and the command, or what else, that brings it.

    Attributes:
        targets: the tables and figures that need it; none stands for all.
    """

    path: str
    command: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretraining:
    """What a data set's runs start from.

    Attributes:
        config: of the pre-training.
        supernet: weights file of the classification supernet.
        path_filter: the filter pre-trained on it.
        fullnet: weights file of a classifier of which only the largest path was trained. fullnet_command: what makes it.
        paths: file of its evaluated paths; None evaluates some anew.
    """

    config: str
    supernet: ShippedFile
    path_filter: ShippedFile
    fullnet: ShippedFile
    fullnet_command: str = "train it and name it in the profile"
    paths: str | None = None

    def load(self) -> configs.Config:
        """The config.

        Raises:
            UserError: it is not one of a pre-training, or is not right.
        """
        config = configs.load(self.config)
        if config.args.runner != "pretrain":
            raise UserError(f"pretraining.config of a profile must have args.runner=pretrain, got {self.config}")
        return config


@dataclass(frozen=True)
class DataSet:
    """A detection data set of a profile.

    Attributes:
        title: what tables call it.
        config: of Algorithm 1 on it.
        needs: checked before anything starts.
    """

    title: str
    config: str
    pretraining: Pretraining
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True)
class FilterStudySizes:
    """How large Tables 3 and A3 are made.

    Attributes:
        seeds: fits of each setting of the filter.
        test_paths_per_bucket: paths that judge it.
        pretraining_paths_per_bucket: paths of the classification supernet that pre-train it.
        pilots: seeds of the supernets of the learning curves; no other result is made from them, so options can be chosen
            on them.
        pilot_paths: paths of each FLOPs bucket that rankings are fitted to, one point of the curves each, in rising order.
    """

    seeds: Count = 3
    test_paths_per_bucket: Count = 40
    pretraining_paths_per_bucket: Count = 100
    pilots: tuple[Count, ...] = (11, 12, 13)
    pilot_paths: tuple[Annotated[int, "[7, 100000]"], ...] = (7, 14, 28, 56, 112)

    def __post_init__(self):
        for name in ("pilots", "pilot_paths"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise UserError(f"{name} must be one or more numbers that rise, got {list(values)}")


@dataclass(frozen=True)
class Profile:
    """A scale at which the tables and figures are made.

    Attributes:
        name: stem of the file's name, and of the folders of its runs and its results.
        source: what it was loaded by, that name or the file's path.
        about: what its author says of it.
        data_sets: by their key; a table of the paper's about one of several data sets takes it by "voc" or "coco", a
            profile with one data set makes all of them on that.
        starts_runs: missing runs are started; otherwise their commands are printed.
        minutes: how long the parts take on two cores, for what is said before they start.
        path_ratios, operation_ratios: the shares that Figure 10 prunes of each bucket.
        archives: where results are made from the kept files of runs alone: their folder.
    """

    name: str
    source: str
    about: tuple[str, ...]
    data_sets: Mapping[str, DataSet]
    starts_runs: bool
    filter_study: FilterStudySizes
    minutes: Mapping[str, float]
    path_ratios: tuple[Share, ...] = (0.0, 0.2, 0.25, 0.3, 0.4)
    operation_ratios: tuple[Share, ...] = (0.0, 0.2, 0.3, 0.4)
    archives: FilePath | None = None

    @property
    def results(self) -> FilePath:
        """Where its tables and figures go, unless another folder is named."""
        return FilePath("results", self.name)

    def chosen(self, keys: Sequence[str]) -> dict[str, DataSet]:
        """The data sets for a table that the paper has for those of `keys`."""
        return dict(self.data_sets) if len(self.data_sets) == 1 else {key: self.data_sets[key] for key in keys}

    def own_overrides(self, data_set: DataSet, overrides: Sequence[str]) -> tuple[str, ...]:
        """Those of the entries that replace something of a data set's config: not another one's `dataloader.coco.root`."""
        if not any(entry.startswith("dataloader.") for entry in overrides):
            return tuple(overrides)
        names = {configs.load(other.config).dataloader_name for other in self.data_sets.values()}
        others = names - {configs.load(data_set.config).dataloader_name}
        return tuple(entry for entry in overrides if not any(entry.startswith(f"dataloader.{name}.") for name in others))

    def check(self, data_set: DataSet, overrides: Sequence[str] = (), targets: Sequence[str] = ()) -> None:
        """Raise UserError if something is not there that these targets need, or their runs on the data set."""
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
    """Read a profile: a name, like "demo", of a file in configs/profiles, or the path of a .json file.

    Raises:
        UserError: there is none of that name, or a key or a value is not allowed.
    """
    file = FilePath(name) if name.endswith(".json") else shipped(FOLDER / f"{name}.json")
    if not file.is_file():
        known = sorted(found.stem for found in shipped(FOLDER).glob("*.json"))
        found = f"{FOLDER} has {listed(known, 'and')}" if known else f"there is no {FOLDER} in this folder"
        raise UserError(f"--profile must be one of {FOLDER}, or a .json file, got {name}; {found}")
    known = shipped(FOLDER / f"{file.stem}.json")
    if known.is_file() and not known.samefile(file):  # its runs and results would be taken for the other's
        raise UserError(f"the profile {file} must have another name than those in {FOLDER}, got {file.stem}")
    source = read_text(file, "the profile")
    try:
        content = parse_json(source, configs.without_duplicates)
    except ValueError as error:
        raise UserError(f"the profile {file} does not parse: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"the profile {file} must hold a mapping")
    try:
        return _profile(file.stem, name, content)
    except UserError as error:
        raise UserError(f"the profile {file}: {error}") from None


def _profile(name: str, source: str, content: Mapping[str, Any]) -> Profile:
    check_keys("", content, ("about", "data_sets", "starts_runs", "filter_study", "minutes", *RATIOS))
    data_sets, minutes = content.get("data_sets"), content.get("minutes", {})
    if not isinstance(data_sets, dict) or not data_sets:
        raise UserError("data_sets must map the key of each data set to its config, its pretraining and its needs")
    if len(data_sets) > 1 and set(data_sets) != {"voc", "coco"}:
        raise UserError(f"data_sets must be one, or voc and coco, got {listed(data_sets, 'and')}")
    for key in data_sets:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", key):  # a part of the names of folders
            raise UserError(f"a name in data_sets must be letters, digits, - or _, got {shown(key)}")
    if not isinstance(minutes, dict):
        raise UserError(f"minutes must map parts to numbers, got {kind_of(minutes)}")
    check_keys("minutes", minutes, PARTS)
    return Profile(
        name,
        source,
        read(tuple[str, ...], content.get("about", []), "about"),
        {key: read(DataSet, value, f"data_sets.{key}") for key, value in data_sets.items()},
        read(bool, content.get("starts_runs", True), "starts_runs"),
        read(FilterStudySizes, content.get("filter_study", {}), "filter_study"),
        {key: read(configs.Positive, value, f"minutes.{key}") for key, value in minutes.items()},
        **{name: _ratios(content[name], name) for name in RATIOS if name in content},
    )


def _ratios(content: Any, name: str) -> tuple[float, ...]:
    """Shares to prune; the paper's own is among them, since it is our method's run."""
    found = read(tuple[Share, ...], content, name)
    if list(found) != sorted(set(found)) or RATIOS[name] not in found:
        raise UserError(f"{name} must rise and hold {RATIOS[name]:g}, which is the method's own, got {shown(list(found))}")
    return found
