"""Files that are there whole or not at all, whatever ends the process or the machine while they are written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py


def write_bytes(file: str | os.PathLike, content: bytes) -> None:
    """Write a file beside its place, bring it to the disk, and then rename it.

    Raises:
        OSError: it cannot be written, for want of room or otherwise; it names the file, and what was there is still there.
    """
    file = FilePath(file)
    fresh = file.with_name(file.name + ".new")
    with naming(file):
        if file.exists() and not file.is_file():  # a pipe or a device: it cannot be replaced
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
                fresh.unlink()  # a full disk needs the room
            raise


def check_writable(file: str | os.PathLike) -> None:
    """See whether `write_bytes` could write a file, and leave everything as it is.

    Raises:
        OSError: the folder takes no new files, or the file that is there may not be written.
    """
    file = FilePath(file)
    with naming(file):
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if file.is_file() or not file.exists():
            with tempfile.TemporaryFile(dir=file.absolute().parent) as probe:
                probe.write(b"0")


def write_json(file: str | os.PathLike, content) -> None:
    """`write_bytes` of JSON."""
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())


def write_text(file: str | os.PathLike, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(file, text.encode())


@contextmanager
def whole_text(file: str | os.PathLike) -> Iterator[io.StringIO]:
    """A text file to write into, line ends as they are given, which is written when the block ends."""
    content = io.StringIO(newline="")
    yield content
    write_text(file, content.getvalue())


@contextmanager
def new_hdf5(file: str | os.PathLike) -> Iterator[h5py.File]:
    """An HDF5 file to fill, which is written when the block ends.

    It is made in memory: on a full disk HDF5 itself fails late, in closing the file, and again when the process ends.
    """
    import h5py

    with h5py.File(os.fspath(file), "w", driver="core", backing_store=False) as opened:
        yield opened
        opened.flush()
        content = opened.id.get_file_image()
    write_bytes(file, content)


def sync_folder(folder: str | os.PathLike) -> None:
    """Bring a folder's renamed entries to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def digest(content: bytes) -> str:
    """By which damage is noticed."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def naming(file: str | os.PathLike) -> Iterator[None]:
    """Errors of writing say which file: a full disk's do not by themselves."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(file)) from error
