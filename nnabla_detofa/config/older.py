"""Configs of older versions: keys and values that have changed since, in config files and in the folders of runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ..common.normalization import UNRECORDED

RENAMED = {
    "dataloader": {"colour": "color", "centre_share": "center_share"},
    "network": {"heat_map_std": "heatmap_std"},
}
"""Keys of a dataset and of a network that were renamed: section -> older name -> name."""


def current(content: Any) -> Any:
    """Return the content of a config with older keys and values replaced; a malformed section is returned unchanged."""
    if not isinstance(content, Mapping):
        return content
    changed = dict(content)
    for section, names in RENAMED.items():
        if isinstance(entries := content.get(section), Mapping):
            changed[section] = {name: _renamed(settings, names) for name, settings in entries.items()}
    if "hparams" in content:
        changed["hparams"] = _with_pairs(content["hparams"])
    return changed


def hashed(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a config with the older keys, so that the hashes of checkpoints stay valid."""
    changed = dict(content)
    for section, names in RENAMED.items():
        older = {name: key for key, name in names.items()}
        changed[section] = {name: _renamed(settings, older) for name, settings in content[section].items()}
    for settings in changed["network"].values():
        if not settings.get("resolutions", True):  # a key that older versions did not have
            del settings["resolutions"]
    return changed


def completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the current content of a run's config.json, with the values that runs had before their keys existed.

    Images were normalized by `UNRECORDED`, and progressive shrinking on detection data did not sort channels.
    """
    content = dict(current(content))
    args, hparams = content.get("args"), content.get("hparams")
    if isinstance(args, Mapping) and args.get("runner") == "ofa_ps" and isinstance(hparams, Mapping):
        content["hparams"] = {"shrinking_sort": False} | dict(hparams)
    section = content.get("dataloader")
    if not isinstance(section, Mapping):
        return content
    unrecorded = json.loads(json.dumps({"normalization": dataclasses.asdict(UNRECORDED)}))
    data = {name: unrecorded | value if isinstance(value, dict) else value for name, value in section.items()}
    return {**content, "dataloader": data}


def _renamed(settings: Any, names: Mapping[str, str]) -> Any:
    """Rename keys, except a key whose new name is present too: that is an unknown key."""
    if not isinstance(settings, Mapping):
        return settings
    return {key if names.get(key, key) in settings else names[key]: value for key, value in settings.items()}


def _with_pairs(hparams: Any) -> Any:
    """Replace `filter.flops_bounded`, which has become a value of `filter.pairs`."""
    settings = hparams.get("filter") if isinstance(hparams, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(settings.get("flops_bounded"), bool) or "pairs" in settings:
        return hparams
    kept = {key: value for key, value in settings.items() if key != "flops_bounded"}
    return {**hparams, "filter": kept | {"pairs": "bounded" if settings["flops_bounded"] else "all"}}
