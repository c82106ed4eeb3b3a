"""Atomic writing of files: an interrupted process or machine leaves either the old file or the complete new one."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py


def write_bytes(file: str | os.PathLike, content: bytes) -> None:
    """Write a file atomically: write a temporary file beside it, sync it to the disk, and rename it.

    Args:
        file: path of the file; a pipe or a device is written directly.
        content: its new content.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. The error names the file, and its previous
            content is unchanged.
    """
    file = FilePath(file)
    fresh = file.with_name(_fresh_name(file.name))
    with naming(file):
        if file.exists() and not file.is_file():  # a pipe or a device cannot be replaced
            file.write_bytes(content)
            return
        try:
            with open(fresh, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            if file.exists():
                shutil.copymode(file, fresh)
            os.replace(fresh, file)
        except OSError:
            with suppress(OSError):
                fresh.unlink()  # free the space on a full disk
            raise


def real(path: FilePath) -> FilePath:
    """Return an absolute path without links; unlike `Path.resolve`, links that form a loop are no error."""
    return FilePath(os.path.realpath(path))


def _fresh_name(name: str) -> str:
    """Return the name of the temporary file of a file, which no user chooses; names have at most 255 bytes."""
    return f".{name}.new" if len(os.fsencode(name)) <= 250 else f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.new"


def check_writable(file: str | os.PathLike) -> None:
    """Check that `write_bytes` can write a file, without changing anything.

    Raises:
        OSError: no file can be created in the folder, or the existing file is not writable.
    """
    file = FilePath(file)
    with naming(file):
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if file.is_file() or not file.exists():
            with tempfile.TemporaryFile(dir=file.absolute().parent) as probe:
                probe.write(b"0")


def write_json(file: str | os.PathLike, content: Any) -> None:
    """Write a value as JSON (see `write_bytes`)."""
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a string as UTF-8 (see `write_bytes`)."""
    write_bytes(file, text.encode())


@contextmanager
def whole_text(file: str | os.PathLike) -> Iterator[io.StringIO]:
    """Yield a text buffer that is written to `file` atomically when the block ends; line ends are not translated."""
    content = io.StringIO(newline="")
    yield content
    write_text(file, content.getvalue())


@contextmanager
def written_together(folder: str | os.PathLike) -> Iterator[FilePath]:
    """Yield an empty folder whose files are moved into `folder` when the block ends: all of them, or none after an error.

    Raises:
        OSError: a file cannot be written or moved; the files of these names in `folder` are as they were.
    """
    folder = FilePath(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
            fresh, old = FilePath(scratch, "fresh"), FilePath(scratch, "old")
            fresh.mkdir()
            old.mkdir()
            yield fresh
            _move_all(fresh, folder, old)
    except OSError as error:
        if error.errno is None:
            raise
        name = re.sub(r"/\.new-[^/]*(/fresh|/old)?", "", os.fsdecode(error.filename or os.fspath(folder)))
        raise OSError(error.errno, error.strerror, name) from error


def _move_all(fresh: FilePath, folder: FilePath, old: FilePath) -> None:
    """Move the files of `fresh` into `folder`; if one cannot be moved, restore those that were there, which `old` keeps."""
    names = sorted(os.listdir(fresh))
    for name in names:
        target = folder / name
        with open(fresh / name, "rb") as written:
            os.fsync(written.fileno())
        if os.path.lexists(target):
            try:
                os.link(target, old / name)
            except OSError:  # a file system without hard links
                shutil.copy2(target, old / name)
            shutil.copymode(target, fresh / name)
    moved: list[str] = []
    try:
        for name in names:
            moved.append(name)
            os.replace(fresh / name, folder / name)
    except BaseException:
        for name in moved:
            with suppress(OSError):
                if os.path.lexists(old / name):
                    os.replace(old / name, folder / name)
                elif not (fresh / name).exists():
                    (folder / name).unlink()
        raise


@contextmanager
def new_hdf5(file: str | os.PathLike) -> Iterator[h5py.File]:
    """Yield an HDF5 file in memory that is written to `file` atomically when the block ends.

    On a full disk, HDF5 itself would fail late, when it closes the file, and again when the process ends.
    """
    import h5py

    with h5py.File(os.fspath(file), "w", driver="core", backing_store=False) as opened:
        yield opened
        opened.flush()
        content = opened.id.get_file_image()
    write_bytes(file, content)


def sync_folder(folder: str | os.PathLike) -> None:
    """Sync a folder to the disk, so that renamed files in it survive a crash."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def digest(content: bytes) -> str:
    """Return the SHA-256 checksum of a file's content in hexadecimal, by which damage is detected."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def naming(file: str | os.PathLike) -> Iterator[None]:
    """Add the name of the file to an OSError in the block; the errors of a full disk lack it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(file)) from error
