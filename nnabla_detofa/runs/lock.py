"""Exclusive locking of run folders, and safe replacement of a run by `--restart`.

`--restart` removes the previous run only after the new run has passed its checks. Every operation here may be interrupted at
any moment; the next run repairs the folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from .. import config as configs
from ..common.errors import UserError
from ..common.files import write_json
from ..common.reading import parse_json

CONFIG = "config.json"
LOCK = ".lock"
BEFORE = ".before"
"""Subfolder to which `--restart` moves the previous run while it checks the new one. Its config is moved last."""
DISCARDED = ".gone"
"""Name to which `BEFORE` is renamed before it is removed."""
OWN_FILES = {LOCK, BEFORE, DISCARDED, f".{CONFIG}.new"}
MINI_BATCH = "mini_batch.json"
"""File of a run whose mini-batches, over which batch normalization computes its statistics, are not those of one process. It
is written before the run's config, so every folder from which the run can be resumed contains it."""
EARLY_FILES = {MINI_BATCH, f".{MINI_BATCH}.new"}
"""Files of a run that was killed before its config was written."""
RUNS_ARGS = {"runner", "seed", "context", "device_id", "type_config"}
"""Keys of `args` that the config.json of every run has."""
MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class LockedRun:
    """A run folder that this process has locked.

    Attributes:
        folder: the run folder.
        fresh: whether the run is new, not resumed.
    """

    folder: FilePath
    fresh: bool

    def commit(self) -> None:
        """Remove the run that `--restart` replaces, after the new run has passed its checks."""
        if (self.folder / BEFORE).exists():
            os.replace(self.folder / BEFORE, self.folder / DISCARDED)
            shutil.rmtree(self.folder / DISCARDED)

    def roll_back(self) -> None:
        """Restore the previous run, or empty the folder of a new run, after the new run has failed its checks."""
        if (self.folder / BEFORE).exists():
            _restore(self.folder)
        elif self.fresh:
            _empty(self.folder)


@contextmanager
def locked_run(
    folder: FilePath, config: configs.Config, restart: bool = False, mini_batch: dict | None = None
) -> Iterator[LockedRun]:
    """Lock `folder` for the run of this config inside the block; with `restart` an existing run is set aside.

    Folders that are created here, and are empty at the end, are removed again.

    Args:
        folder: the run folder, created if it does not exist.
        config: config of the run, written to the folder.
        restart: replace an existing run, see `LockedRun.commit` and `LockedRun.roll_back`.
        mini_batch: content of `MINI_BATCH` for a new run; None: the file is not written.

    Yields:
        The locked folder.

    Raises:
        UserError: another process runs in the folder, the folder holds a run whose config gives another result or files that
            are not a run, or it is not writable. Nothing is changed then.
    """
    check(folder, config, restart)
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        with _holding_lock(folder):
            try:
                shutil.rmtree(folder / DISCARDED, ignore_errors=True)
                if (folder / BEFORE).exists():
                    _restore(folder)
                check(folder, config, restart)  # check again, now that no other process can change it
                fresh = restart or not (folder / CONFIG).exists()
                if fresh:
                    _begin(folder, mini_batch)
                write_json(folder / CONFIG, config.to_dict())
            except OSError as error:
                raise _not_writable(folder, error) from error
            yield LockedRun(folder, fresh)
    finally:
        with suppress(OSError):  # a folder is not empty
            for parent in created:
                parent.rmdir()


def _begin(folder: FilePath, mini_batch: dict | None) -> None:
    """Prepare the folder of a new run, up to its config: set an existing run aside, and write `MINI_BATCH`."""
    if (folder / CONFIG).exists():
        _set_aside(folder)
    (folder / MINI_BATCH).unlink(missing_ok=True)
    if mini_batch is not None:
        write_json(folder / MINI_BATCH, mini_batch)


def check(folder: FilePath, config: configs.Config, restart: bool) -> None:
    """Raise UserError if the run of a config must not use the folder.

    Args:
        folder: the run folder; it need not exist.
        config: config of the run.
        restart: allow a folder that holds a run with another config.

    Raises:
        UserError: the folder is a file, its path is not text, it holds files that are not a run, or it holds a run whose
            config gives another result.
    """
    path = str(folder.absolute())
    if any("\ud800" <= char <= "\udfff" for char in path):  # stands for a byte; TensorBoard cannot write there
        raise UserError(f"args.output_path must be a folder whose path is {sys.getfilesystemencoding()} text, got {path}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"args.output_path must be a folder, and {folder} is a file")
    if (folder / BEFORE).exists():
        return  # a restart was interrupted: checked after it is repaired
    file = folder / CONFIG
    if not file.is_file():
        if folder.exists() and any(entry.name not in {*OWN_FILES, *EARLY_FILES} for entry in folder.iterdir()):
            raise UserError(f"args.output_path {folder} holds files that are not a run: choose a new or empty folder")
        return
    try:
        before = parse_json(file.read_text("utf-8"))
    except ValueError:
        before = {}
    if not _is_complete(before):
        raise UserError(f"args.output_path {folder} holds a config.json that is not a run's: choose another folder")
    changed = [key for key in differences(configs.completed(before), config.to_dict()) if not configs.without_effect(key)]
    if changed and not restart:
        places = all(re.fullmatch(r".*\.(weights|root)", key) for key in changed)
        hint = "start it from the folder where it was started if the files are the same, " if places else ""
        raise UserError(
            f"{folder} holds a run with another config (differing: {', '.join(changed)}): {hint}"
            "choose another -o, or pass --restart to discard that run"
        )


def _is_complete(content: Any) -> bool:
    """Return whether the content of a config.json has all settings, as a run's has; a user's own has what it changes."""
    args = content.get("args") if isinstance(content, dict) else None
    return isinstance(args, dict) and {"network", "hparams"} <= content.keys() and args.keys() >= RUNS_ARGS


@contextmanager
def _holding_lock(folder: FilePath) -> Iterator[None]:
    """Lock the folder. The lock ends with this process, and forked processes do not inherit it."""
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
    """Open and lock the lock file; return its file descriptor."""
    for _ in range(MAX_ATTEMPTS):
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # depending on the system
            os.close(opened)
            break
        # The previous holder may have removed the file since it was opened here: then the lock is on a deleted file.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder / LOCK), os.fstat(opened)):
                return opened
        os.close(opened)
    raise UserError(f"another process is running in {folder}: wait until it ends, stop it, or choose another -o")


def is_locked(folder: FilePath) -> bool:
    """Return whether another process has locked the folder. A process that calls this loses its own lock on the folder."""
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
    """Move the files of a run into `BEFORE`, its config last: if the config is there, all files are."""
    before = folder / BEFORE
    before.mkdir()
    for entry in _run_files(folder):
        if entry.name != CONFIG:
            os.replace(entry, before / entry.name)
    os.replace(folder / CONFIG, before / CONFIG)


def _restore(folder: FilePath) -> None:
    """Undo `_set_aside`, even if it, or a previous call of this function, was interrupted."""
    before = folder / BEFORE
    if (before / CONFIG).exists():  # all files were moved, so the folder holds only files of the new run
        _empty(folder)
        os.replace(before / CONFIG, folder / CONFIG)
    for entry in before.iterdir():
        os.replace(entry, folder / entry.name)
    before.rmdir()


def _empty(folder: FilePath) -> None:
    """Remove all files and folders of a run, except the lock and what is set aside."""
    for entry in _run_files(folder):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _run_files(folder: FilePath) -> list[FilePath]:
    """Return the files and folders of a run, without the lock and what is set aside."""
    return [entry for entry in sorted(folder.iterdir()) if entry.name not in OWN_FILES]


def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two nested mappings, each after `prefix`."""
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(prefix + key)
    return found
