"""Archives of the small files of runs, from which all results can be made again without the runs.

The archive of a run holds its JSON files and evaluated paths, and what was measured of the run afterwards: the controls and
the standard errors over the test images. It holds no weights and no detections.
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
"""Names of the JSON files of a run's folder that are archived, besides the found subnets' and the evaluated paths."""
MAX_BYTES = 1 << 28


def archive(folder: FilePath, name: str) -> FilePath:
    """Return the file of the archive `name` in a folder of archives."""
    return folder / f"{name}{SUFFIX}"


def run_files(folder: FilePath) -> dict[str, FilePath]:
    """Return the small files of a run's folder, by their names in the archive."""
    files = [folder / f"{name}.json" for name in KEPT]
    subnets = [file for file in sorted(folder.glob("subnet_*.json")) if not file.stem.endswith("_detections")]
    return {file.name: file for file in (*files, *subnets, *sorted(folder.glob("*.jsonl"))) if file.is_file()}


def study_files(folder: FilePath) -> dict[str, FilePath]:
    """Return the small files of a filter study's folder, which are all but the filters, by their names in the archive."""
    kept = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix in (".json", ".jsonl"))
    return {str(file.relative_to(folder)): file for file in kept}


def as_complete(files: Mapping[str, FilePath], before: Mapping[str, FilePath]) -> bool:
    """Return whether a filter study has all files of an archived one, and in JSON lines at least as many lines.

    The file of Figure 4 does not count, since its name depends on the supernet.
    """

    def lines(file: FilePath) -> int:
        return file.read_bytes().count(b"\n") if file.suffix == ".jsonl" else 0

    needed = {name: file for name, file in before.items() if not name.startswith("figure4_")}
    return bool(files) and all(name in files and lines(files[name]) >= lines(file) for name, file in needed.items())


def pack(file: FilePath, files: Mapping[str, FilePath]) -> bool:
    """Write an archive; equal content gives equal bytes.

    Args:
        file: the archive.
        files: files to archive, by their names in the archive.

    Returns:
        Whether the archive is new or has changed.
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
    return tempfile.TemporaryDirectory(prefix="nnabla-detofa-archives-")


def unpacked(file: FilePath) -> FilePath:
    """Unpack an archive and return its folder, which exists as long as this process.

    If the archive does not exist, neither does the folder.

    Raises:
        UserError: the archive is damaged.
    """
    if not file.is_file():
        return FilePath(_place().name, "missing", file.name.removesuffix(SUFFIX))
    return _unpacked(file.absolute(), file.stat().st_mtime_ns)


def restore(file: FilePath, folder: FilePath) -> None:
    """Copy the files of an archive, if it exists, into a folder; files that the folder has are kept."""
    source = unpacked(file)
    for member in sorted(source.rglob("*")):
        target = folder / member.relative_to(source)
        if member.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, member.read_bytes())


@cache
def _unpacked(file: FilePath, changed: int) -> FilePath:
    """Unpack the version of an archive that was written at the time `changed`."""
    folder = FilePath(tempfile.mkdtemp(dir=_place().name)) / file.name.removesuffix(SUFFIX)
    folder.mkdir()
    try:
        with tarfile.open(file, "r:xz") as tar:
            for member in _plain_files(tar):
                content = tar.extractfile(member)
                assert content is not None  # only directories and devices have none
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(target, content.read())
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): restore it from the repository, or remove it") from error
    return folder


def _plain_files(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    """Yield the members of an archive; ValueError unless each is a plain file inside the archive's folder."""
    total = 0
    for member in tar:
        total += member.size
        if not member.isfile() or FilePath(member.name).is_absolute() or ".." in FilePath(member.name).parts:
            raise ValueError(f"{member.name!r} is not a plain file inside the archive")
        if total > MAX_BYTES:
            raise ValueError(f"it holds more than {MAX_BYTES >> 20} MiB")
        yield member
