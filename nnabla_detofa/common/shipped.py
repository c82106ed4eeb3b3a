"""Files that are shipped with this package: configs, profiles and pre-trained weights.

In a clone they are in the repository; in an installed wheel they are inside the package (see setup.py). Their paths begin with
configs/ in both cases.
"""

from __future__ import annotations

from os.path import exists, isdir, isfile  # unlike pathlib's, these return False for names that are too long
from pathlib import Path

from .checked import nearest
from .errors import UserError
from .version import REPOSITORY

INSTALLED = Path(__file__).parents[1] / "shipped"
ROOT = INSTALLED if INSTALLED.is_dir() else REPOSITORY
"""Folder that contains configs/ and the lock files of requirements."""
SUFFIXES = (".json", ".yaml", ".yml")
FOLDERS = ("configs", "configs/baselines")
PIP = {
    "setup": "pip install -r {}/requirements.lock",
    "setup-cuda": "pip install --no-deps -r {}/requirements-cuda120.lock",
    "setup-export": "python -m venv .venv-export && .venv-export/bin/pip install -r {}/requirements-export.lock"
    " && touch .venv-export/.ready",
}
"""Target of the Makefile -> the command that does the same where a wheel is installed; {}: `ROOT`."""
LEVELS = 3
"""How many folders upwards a file is looked for from the folder of the config that names it."""


def install_command(target: str) -> str:
    """Return the command that installs what a target of the Makefile installs: make in a clone, otherwise pip."""
    return PIP[target].format(ROOT) if ROOT == INSTALLED else f"make {target}"


def shipped(path: str | Path) -> Path:
    """Return a relative path as it is if it exists, otherwise the shipped file or folder of that path if there is one."""
    path = Path(path)
    return path if exists(path) or not exists(ROOT / path) else ROOT / path


def shipped_configs() -> dict[str, Path]:
    """Return the files of the shipped configs by name."""
    return {file.stem: file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.json")) if file.stem != "schema"}


def find_config(name: str | Path) -> Path:
    """Return the file of a config: a path, or the name of a shipped config, such as "digits_detofa".

    Raises:
        UserError: `name` is a folder, or has no suffix of a config file, and no shipped config has this name.
    """
    path = shipped(name)
    if isfile(path) or path.suffix in SUFFIXES:
        return path
    known = shipped_configs()
    if str(name) in known:
        return known[str(name)]
    if path.parent == Path("."):
        if files := [f"{name}{suffix}" for suffix in SUFFIXES if isfile(Path(f"{name}{suffix}"))]:
            raise UserError(f"there is no config {name}; did you mean {files[0]}?")
        own = [stem for stem, file in known.items() if file.parent.name == "configs"]
        if not isdir(path):
            near = nearest(str(name), known)
            raise UserError(f"there is no config {name}{near}; shipped are {', '.join(own)}, and baselines")
    if isdir(path):
        own_config = f"; the config of this run is {path / 'config.json'}" if isfile(path / "config.json") else ""
        raise UserError(f"a config must be a .json or .yaml file, got the folder {name}{own_config}")
    return path


def locate(path: str, folder: Path) -> str:
    """Return where a file or folder named by a config is.

    Args:
        path: path in the config, relative to the working folder.
        folder: folder of the config.

    Returns:
        `path` if it exists; otherwise the path relative to `folder` or to a folder above it, or the shipped file, if one of
        these exists; otherwise `path`.
    """
    if path.startswith("~") or exists(path) or Path(path).is_absolute():
        return path
    above = [folder, *folder.absolute().parents][:LEVELS]
    return str(next((place / path for place in (*above, ROOT) if exists(place / path)), path))
