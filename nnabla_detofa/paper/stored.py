"""What is kept of runs in the repository: the small files of each, compressed, from which all results are made again.

A run's archive has its JSON files and evaluated paths, no weights and no detections, and with them what was measured of these
afterwards: the controls, and the standard errors over the test images. Readers ask `experiments.Run.folder` in either case:
where a profile has a folder `stored`, that is the unpacked archive.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path as FilePath

from ..common.errors import UserError
from ..common.files import write_bytes

SUFFIX = ".tar.xz"
KEPT = (
    "config",
    "summary",
    "ledger",
    "seconds",
    "operations",
    "search",
    "scores",
    "provenance",
    "shared",
    "fullnet",
    "mini_batch",
)
"""Names of JSON files of a run's folder that are kept; with them the found subnets', and all evaluated paths."""
MAX_BYTES = 1 << 28


def archive(folder: FilePath, name: str) -> FilePath:
    """The file of a folder of archives that keeps what is called `name`."""
    return folder / f"{name}{SUFFIX}"


def run_files(folder: FilePath) -> dict[str, FilePath]:
    """The small files of a run's folder, by their names in its archive."""
    files = [folder / f"{name}.json" for name in KEPT]
    subnets = [file for file in sorted(folder.glob("subnet_*.json")) if not file.stem.endswith("_detections")]
    return {file.name: file for file in (*files, *subnets, *sorted(folder.glob("*.jsonl"))) if file.is_file()}


def study_files(folder: FilePath) -> dict[str, FilePath]:
    """The small files of a filter study's folder: all but filters."""
    kept = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix in (".json", ".jsonl"))
    return {str(file.relative_to(folder)): file for file in kept}


def pack(file: FilePath, files: Mapping[str, FilePath]) -> bool:
    """Write an archive of files; the same content gives the same bytes.

    Returns:
        whether it is another than before.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as tar:
        for name in sorted(files):
            content = files[name].read_bytes()
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    if file.is_file() and file.read_bytes() == packed.getvalue():
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, packed.getvalue())
    return True


@cache
def _place() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="nnabla-detofa-stored-")


def unpacked(file: FilePath) -> FilePath:
    """The folder of an archive's files, which lasts as long as the process; one that does not exist has an empty folder.

    Raises:
        UserError: the archive is damaged.
    """
    if not file.is_file():
        return FilePath(_place().name, "missing", file.name.removesuffix(SUFFIX))
    return _unpacked(file.absolute(), file.stat().st_mtime_ns)


@cache
def _unpacked(file: FilePath, changed: int) -> FilePath:
    folder = FilePath(tempfile.mkdtemp(dir=_place().name)) / file.name.removesuffix(SUFFIX)
    folder.mkdir()
    try:
        with tarfile.open(file, "r:xz") as tar:
            for member in _plain(tar):
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(target, tar.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): take it from the repository again, or remove it") from error
    return folder


def _plain(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    """The members, all of them plain files below the archive's folder; ValueError otherwise."""
    total = 0
    for member in tar:
        total += member.size
        if not member.isfile() or FilePath(member.name).is_absolute() or ".." in FilePath(member.name).parts:
            raise ValueError(f"it holds {member.name!r}, which is not a plain file of its own")
        if total > MAX_BYTES:
            raise ValueError(f"it holds more than {MAX_BYTES >> 20} MiB")
        yield member
