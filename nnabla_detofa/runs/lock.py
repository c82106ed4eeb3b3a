"""Whose folder it is: a run holds its folder alone, and `--restart` loses the run that was there only when it is sure.

All that is done here may be cut short at any moment; the next run puts it in order.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path as FilePath

from .. import config as configs
from ..common.errors import UserError
from ..common.files import write_json
from ..common.reading import parse_json

CONFIG = "config.json"
LOCK = ".lock"
BEFORE = ".before"
"""Where a run waits, inside its folder, while `--restart` checks what replaces it. Its config goes in last."""
GONE = ".gone"
"""What `BEFORE` is called once it is to be removed."""
OURS = {LOCK, BEFORE, GONE, f"{CONFIG}.new"}
MINI_BATCH = "mini_batch.json"
"""Of a run whose mini-batches, over which batch normalisation takes its statistics, are not those of one process. It is there
before the run's config is, and so in every folder that goes on as that run's."""
BEGUN = {MINI_BATCH, f"{MINI_BATCH}.new"}
"""All that there is of a run that was killed before it had its config."""
TRIES = 100


@dataclass(frozen=True)
class Claim:
    """A folder held for one run.

    Attributes:
        folder: the run's.
        fresh: no run goes on here: this one is a new one.
    """

    folder: FilePath
    fresh: bool

    def confirm(self) -> None:
        """The new run can be done: the one that `--restart` replaces is removed."""
        if (self.folder / BEFORE).exists():
            os.replace(self.folder / BEFORE, self.folder / GONE)
            shutil.rmtree(self.folder / GONE)

    def withdraw(self) -> None:
        """The new run cannot be done: bring back what was there, or leave the folder as empty as it was."""
        if (self.folder / BEFORE).exists():
            _bring_back(self.folder)
        elif self.fresh:
            _empty(self.folder)


@contextmanager
def claimed(folder: FilePath, config: configs.Config, restart: bool = False, mini_batch: dict | None = None) -> Iterator[Claim]:
    """Hold `folder` for this config's run while the block lasts; with `restart` the run that is there is set aside.

    Folders that are made for it, and are empty in the end, are removed again.

    Args:
        mini_batch: content of `MINI_BATCH`, where a new run has one.

    Raises:
        UserError: another process runs there, or it holds the run of a config with another result or something that is not
            a run, or it cannot be written; nothing is changed then.
    """
    check(folder, config, restart)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with _locked(folder):
            try:
                shutil.rmtree(folder / GONE, ignore_errors=True)
                if (folder / BEFORE).exists():
                    _bring_back(folder)
                check(folder, config, restart)  # again: now nobody else changes it
                fresh = restart or not (folder / CONFIG).exists()
                if fresh:
                    _begin(folder, mini_batch)
                write_json(folder / CONFIG, config.to_dict())
            except OSError as error:
                raise _not_writable(folder, error) from error
            yield Claim(folder, fresh)
    finally:
        with suppress(OSError):  # one is not empty
            for place in made:
                place.rmdir()


def _begin(folder: FilePath, mini_batch: dict | None) -> None:
    """All that a new run has before its config: what a run before it left is set aside, or was never one."""
    if (folder / CONFIG).exists():
        _set_aside(folder)
    (folder / MINI_BATCH).unlink(missing_ok=True)
    if mini_batch is not None:
        write_json(folder / MINI_BATCH, mini_batch)


def check(folder: FilePath, config: configs.Config, restart: bool) -> None:
    """Raise UserError if the config's run may not be done in the folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"args.output_path must be a folder, and {folder} is a file")
    if (folder / BEFORE).exists():
        return  # a restart was cut short: judged once it is put in order
    file = folder / CONFIG
    if not file.is_file():
        if folder.exists() and any(entry.name not in {*OURS, *BEGUN} for entry in folder.iterdir()):
            raise UserError(f"args.output_path {folder} holds something that is not a run: take a new or an empty folder")
        return
    try:
        before = parse_json(file.read_text())
    except ValueError:
        before = {}
    if not (isinstance(before, dict) and {"args", "network", "hparams"} <= before.keys()):
        raise UserError(f"args.output_path {folder} holds a config.json that is not a run's: take another folder")
    changed = [key for key in differences(configs.completed(before), config.to_dict()) if not configs.without_effect(key)]
    if changed and not restart:
        raise UserError(
            f"{folder} holds a run with another config (differing: {', '.join(changed)}): "
            "take another -o, or --restart to lose that run"
        )


@contextmanager
def _locked(folder: FilePath) -> Iterator[None]:
    """A lock that ends with this process, and that no process it forks inherits."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = _lock(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(opened)


def _lock(folder: FilePath) -> int:
    """The lock's file, open and locked."""
    for _ in range(TRIES):
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two depends on the system
            os.close(opened)
            break
        # Its holder removes it at its end, perhaps since we opened it: then it is not the folder's any more.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder / LOCK), os.fstat(opened)):
                return opened
        os.close(opened)
    raise UserError(f"another process is running in {folder}: wait for its end, stop it, or take another -o")


def is_locked(folder: FilePath) -> bool:
    """Does another process run in the folder? To be asked where this one does not: it would lose its own lock by it."""
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK, "r+b") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False


def _not_writable(folder: FilePath, error: OSError) -> UserError:
    return UserError(f"args.output_path must be a folder that can be written, got {folder} ({error.strerror})")


def _set_aside(folder: FilePath) -> None:
    """Move a run's files into `BEFORE`; that its config is there says that all are."""
    before = folder / BEFORE
    before.mkdir()
    for entry in _entries(folder):
        if entry.name != CONFIG:
            os.replace(entry, before / entry.name)
    os.replace(folder / CONFIG, before / CONFIG)


def _bring_back(folder: FilePath) -> None:
    """Undo `_set_aside`, however far it, or this, had come."""
    before = folder / BEFORE
    if (before / CONFIG).exists():  # all had been moved, so what is in its place belongs to the run that was not to be
        _empty(folder)
        os.replace(before / CONFIG, folder / CONFIG)
    for entry in before.iterdir():
        os.replace(entry, folder / entry.name)
    before.rmdir()


def _empty(folder: FilePath) -> None:
    """Remove a run's own files and folders."""
    for entry in _entries(folder):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _entries(folder: FilePath) -> list[FilePath]:
    """A run's own files and folders."""
    return [entry for entry in sorted(folder.iterdir()) if entry.name not in OURS]


def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(prefix + key)
    return found
