"""Loading of configs: every error names the key, its value and the allowed values.

A config has the sections of NNablaNAS: args, network, dataloader, optimizer, hparams. It states only what differs from its
`base`, another config, and from the defaults in the dataclasses of the sections, which are the paper's values where the paper
gives them. `about` describes the config: its command, the duration on stated hardware, and the result to expect.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..common.checked import check_keys, listed, read, string_or_kind
from ..common.errors import UserError
from ..common.reading import MAX_LEVELS, parse_json, shown
from ..common.shipped import find_config, locate
from . import older
from .args import Args
from .config import RUNNERS, Config, method_of
from .dataloader import DATALOADERS, AnyData, dataloader_type
from .files import merged, parse_yaml, read_config
from .hparams import DetofaHparams, PretrainHparams
from .imported import IMPORT_PATH
from .network import NETWORKS, CenternetOfaResnet50, OfaResnet50, network_type
from .optimizer import Solvers

SECTIONS = ("about", "args", "network", "dataloader", "optimizer", "hparams")


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read and check a config file.

    Args:
        path: a .json, .yaml or .yml file, or the name of a shipped config. Data and weights that it names and that do not
            exist are looked for from its folder and the folders above, and among the shipped files.
        overrides: "key.sub=value" strings, applied after the file. A value is JSON, a list such as [a,b], or else a string.

    Raises:
        UserError: the file cannot be read, or an override, a key or a value is not allowed.
    """
    path = find_config(path)
    content = read_config(path)
    for override in _as_list(overrides):
        content = overridden(content, override)
    return from_dict(_with_files_found(content, path.parent), path.stem)


def _with_files_found(content: Any, folder: Path, key: str = "") -> Any:
    """Replace paths of data and weights that do not exist by those found from `folder`; see `shipped.locate`."""
    if isinstance(content, Mapping):
        return {name: _with_files_found(value, folder, f"{key}.{name}" if key else name) for name, value in content.items()}
    files = r"(network\.[\w.:]+|hparams\.filter)\.weights|dataloader\.[\w.:]+\.root"
    return locate(content, folder) if isinstance(content, str) and re.fullmatch(files, key) else content


def from_run(content: Mapping[str, Any], name: str, overrides: Iterable[str] = ()) -> Config:
    """Check the content of a run's config.json, with some values replaced; see `from_dict` and `older.completed`."""
    content = older.completed(content)
    for override in _as_list(overrides):
        content = overridden(content, override)
    return from_dict(content, name)


def _as_list(overrides: Iterable[str]) -> Iterable[str]:
    """Return overrides unchanged; a single string, whose characters would be taken for overrides, is a UserError."""
    if isinstance(overrides, str):
        raise UserError(f"overrides must be a list, such as ['hparams.epochs=3'], got {shown(overrides)}")
    return overrides


def overridden(content: dict[str, Any], override: str) -> dict[str, Any]:
    """Return `content` with the value of an override "key.sub=value".

    Raises:
        UserError: the override has another form, or its key is nested too deeply.
    """
    key, equals, source = override.partition("=")
    names = _names(key)
    if not equals or not all(names) or len(names) > MAX_LEVELS:
        raise UserError(f"an override must look like hparams.epochs=3, without spaces, got {shown(override)}")
    value = _override_value(source)
    for name in reversed(names):
        value = {name: value}
    return merged(older.current(content), older.current(value))


def _names(key: str) -> list[str]:
    """Split a dotted key into names; an import path, which has dots itself, is one name."""
    own = re.fullmatch(rf"(network|dataloader)\.({IMPORT_PATH.pattern})(?:\.(.*))?", key)
    return [*own.group(1, 2), *(own[3].split(".") if own[3] is not None else [])] if own else key.split(".")


def _override_value(source: str) -> Any:
    """Parse the value of an override: JSON, a list in brackets whose strings need no quotes, or else a string."""
    try:
        return parse_json(source)
    except ValueError:
        pass
    if source.startswith("[") and source.endswith("]"):
        try:
            return parse_yaml(source)  # [RBC,WBC] needs no quotes that a shell would remove
        except ValueError:
            pass
    return source


def from_dict(content: Mapping[str, Any], name: str) -> Config:
    """Check the content of a config file.

    Args:
        content: the content, without `base`.
        name: name of the config, and of the default output folder.

    Raises:
        UserError: a key is unknown or missing, or a value is not allowed.
    """
    content = older.current(content)
    check_keys("", content, SECTIONS)
    about = content.get("about", ())
    args = read(Args, content.get("args", {}), "args")
    method = method_of(args.runner)
    runner = RUNNERS[method]
    network_name, network = _one_entry(content, "network", NETWORKS, runner.networks, args.runner)
    data_name, data = _one_entry(content, "dataloader", DATALOADERS, runner.dataloaders, args.runner)
    stride = network.geometry.total_stride
    if isinstance(network, CenternetOfaResnet50) and data.image_size % stride:
        raise UserError(f"dataloader.{data_name}.image_size must be a multiple of {stride} (strides), got {data.image_size}")
    sides = network.geometry.resolutions
    if sides and data.image_size != sides[-1]:
        raise UserError(
            f"dataloader.{data_name}.image_size must be {sides[-1]}, the largest of network.{network_name}.resolutions, got "
            f"{data.image_size}"
        )
    hparams = read(runner.hparams, content.get("hparams", {}), "hparams")
    _check_batches(network, data, hparams)
    _check_filter(method, hparams)
    if isinstance(hparams, PretrainHparams) and hparams.kd_ratio and not (hparams.fullnet_epochs or network.weights):
        raise UserError(
            f"hparams.kd_ratio must be 0 without a trained teacher (hparams.fullnet_epochs above 0, or "
            f"network.{network_name}.weights), got {hparams.kd_ratio:g}"
        )
    return Config(
        name=name,
        about=read(tuple[str, ...], [about] if isinstance(about, str) else about, "about"),
        args=args,
        network_name=network_name,
        network=network,
        dataloader_name=data_name,
        dataloader=data,
        optimizer=read(Solvers, content.get("optimizer", {}), "optimizer"),
        hparams=hparams,
    )


def _one_entry(
    content: Mapping[str, Any], section: str, known: Mapping[str, type], usable: tuple[str, ...], runner: str
) -> tuple[str, Any]:
    """Return the name and the checked settings of the only entry of `section`."""
    entries = content.get(section)
    if not isinstance(entries, Mapping) or len(entries) != 1:
        named = listed(entries, "and") if isinstance(entries, Mapping) and entries else string_or_kind(entries)
        got = named if entries else "none"
        raise UserError(f"{section} must have exactly one entry, {listed(usable, 'or')}, got {got}")
    ((name, settings),) = entries.items()
    if section == "network" and isinstance(name, str) and ":" in name:
        found = network_type(name)
        if issubclass(found, CenternetOfaResnet50) != ("centernet_ofa_resnet50" in usable):
            kind = "its kind" if len(usable) == 1 else "their kind"
            raise UserError(f"network must be {listed(usable, 'or')}, or of {kind}, for the runner {runner}, got {name}")
        return name, read(found, settings, f"{section}.{name}")
    if section == "dataloader" and isinstance(name, str) and ":" in name and "voc" in usable:
        return name, read(dataloader_type(name), settings, f"{section}.{name}")
    check_keys(section, entries, known)
    if name not in usable:
        raise UserError(f"{section} must be {listed(usable, 'or')} for the runner {runner}, got {name}")
    return name, read(known[name], settings, f"{section}.{name}")


def _check_batches(network: OfaResnet50, data: AnyData, hparams: DetofaHparams | PretrainHparams) -> None:
    """Raise UserError if a batch of training or evaluation is too small for batch normalization."""
    few = "hparams.bn_batch" if hparams.bn_batch <= hparams.bn_images else "hparams.bn_images"
    check_batch_norm(network, data, few, min(hparams.bn_batch, hparams.bn_images))
    phases = hparams.shrinking if isinstance(hparams, PretrainHparams) else ()
    steps = [hparams.batch_size, *(phase.batch_size or hparams.batch_size for phase in phases)]
    key = "hparams.mini_batch" if hparams.mini_batch else "batch_size"
    check_batch_norm(network, data, key, hparams.mini_batch or min(steps))


def _check_filter(method: str, hparams: DetofaHparams | PretrainHparams) -> None:
    """Raise UserError if no mini-batch with which the run fits a path filter would contain a pair of paths.

    Mini-batches share the training paths of each FLOPs bucket evenly, see `path_filter.fitting`: one has two paths of a bucket
    if there are fewer mini-batches than training paths in the bucket.
    """
    per_bucket = hparams.paths // hparams.buckets if isinstance(hparams, PretrainHparams) else hparams.paths_per_bucket
    if not per_bucket or method == "fullnet":  # there is no path filter
        return
    bounded, in_bucket = hparams.filter.pairs != "all", per_bucket - round(0.2 * per_bucket)
    paths = hparams.buckets * in_bucket
    least = -(-paths // ((in_bucket if bounded else paths) - 1))
    if hparams.filter.batch_size < least:
        where = " in one FLOPs bucket" if bounded else ""
        raise UserError(
            f"hparams.filter.batch_size must be at least {least}, so that mini-batches of the {paths} training paths contain "
            f"pairs{where}, got {hparams.filter.batch_size}"
        )


def check_batch_norm(network: OfaResnet50, data: AnyData, key: str, images: int) -> None:
    """Check that batch normalization gets more than one value per channel of the last feature map.

    Args:
        network, data: sections of the config.
        key: key that sets the number of `images` of one forward pass, for the message.
        images: number of images.

    Raises:
        UserError: it gets one value, of which the variance is 0.
    """
    sides = data.image_size, *network.geometry.resolutions, *getattr(data, "train_sizes", ())
    side = -(-min(sides) // network.geometry.total_stride)
    if images * side * side == 1:
        raise UserError(
            f"{key} must be at least 2 for a last feature map of 1 x 1 (image size {min(sides)} over the stride "
            f"{network.geometry.total_stride}), or batch normalization gets one value per channel, got {images}"
        )
