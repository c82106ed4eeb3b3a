"""Files of evaluated paths: JSON lines, one path per line, to which evaluations append and which experiments share."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import numpy as np

from ..common.errors import UserError
from ..common.files import naming
from ..common.reading import parse_json, read_bytes, shown, whole_lines
from ..space.geometry import Geometry
from ..space.paths import Path, PathBatch

FORMAT = "evaluated paths, version 2"
MAX_BYTES = 1 << 31
MAX_BUCKETS, MAX_COST, MAX_LOSS = 1000, 10**18, float(np.finfo(np.float32).max)
"""Largest numbers in a file: buckets as in `hparams.buckets`, costs whose sums do not overflow, and losses in float32."""
START = b'{"format": "evaluated paths'


@dataclass(frozen=True)
class EvaluatedPath:
    """Path and its measurements.

    Attributes:
        path: the path.
        bucket: FLOPs bucket, from 0.
        flops, params: multiply-accumulates and parameters.
        loss: validation loss with the path's own batch-normalization statistics.
        ap: AP50 on the validation images, in [0, 1]; None if the file's settings say that it was not measured.
    """

    path: Path
    bucket: int
    flops: int
    params: int
    loss: float
    ap: float | None = None


class EvaluatedPaths:
    """Distinct evaluated paths of one file.

    The first line identifies the supernet and the evaluation: the hash of the weights and the settings. Each line is on the
    disk before `append` returns. An incomplete last line, as a killed process leaves, is ignored. Any number of processes may
    read the file, and one may append to it: `append` of a second one raises.

    Attributes:
        file: path of the file.
        header: content of its first line.
        items: the evaluated paths, in the order of the file.
        geometry: geometry of the supernet.
    """

    def __init__(
        self, file: FilePath, header: Mapping[str, Any], items: list[EvaluatedPath], geometry: Geometry, size: int
    ) -> None:
        self.file, self.header, self.items, self.geometry = file, header, items, geometry
        self._known = {item.path for item in items}
        self._size = size  # size of the file in bytes after the last read or write of this object

    @classmethod
    def open(cls, file: str | os.PathLike, weights: str, settings: Mapping, geometry: Geometry) -> EvaluatedPaths:
        """Open the file for appending, or create it.

        Args:
            file: path of the file.
            weights: hash of the supernet's weights.
            settings: everything else that affects the loss or the bucket of a path, as JSON values.
            geometry: geometry of the supernet.

        Raises:
            UserError: the file belongs to other weights or settings, or is damaged before its last line. It is not changed.
        """
        file = FilePath(file)
        header = {"format": FORMAT, "weights": weights, "settings": dict(settings), "geometry": geometry.to_json()}
        wanted = json.loads(json.dumps(header))
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file) as opened:
            opened.seek(0)
            content = opened.read()
            if not content.startswith(START[: len(content)]):
                raise UserError(f"{file} is not a file of evaluated paths: choose another name")
            whole = whole_lines(content)
            if not whole:
                opened.truncate(0)
                size = _write_line(opened, wanted)
                return cls(file, wanted, [], geometry, size)
            found = cls._parsed(file, whole, type(geometry))
            if found.header != wanted:
                name, have, want = _first_difference(found.header, wanted)
                raise UserError(
                    f"{file} holds paths evaluated with {name} {have!r}, this run has {want!r}: remove or rename it"
                )
            if whole != content:
                opened.truncate(min(len(whole), len(content)))
                opened.write(whole[len(content) :])
        return found

    @classmethod
    def read(cls, file: str | os.PathLike, geometry: Geometry | None = None) -> EvaluatedPaths:
        """Read a file with any weights and settings.

        Args:
            file: path of the file.
            geometry: geometry that the supernet must have; None: any.

        Raises:
            UserError: the file is missing, is of another format or geometry, or is damaged before its last line.
        """
        file = FilePath(file)
        whole = whole_lines(read_bytes(file, "the evaluated paths", MAX_BYTES))
        if not whole:
            raise UserError(f"{file} holds no evaluated paths and no complete first line")
        found = cls._parsed(file, whole, Geometry if geometry is None else type(geometry))
        if geometry not in (None, found.geometry):
            raise UserError(f"{file} holds paths of {found.geometry}, not of {geometry}")
        return found

    @classmethod
    def _parsed(cls, file: FilePath, whole: bytes, kind: type[Geometry]) -> EvaluatedPaths:
        """Parse the complete lines of the file; raise UserError if they are damaged or have another format."""
        try:
            lines = whole.decode().splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read the evaluated paths {file}: it is not UTF-8 text") from error
        items: list[EvaluatedPath] = []
        known: set[Path] = set()
        for number, line in enumerate(lines, 1):
            try:
                entry = parse_json(line)
                if number == 1:
                    header = entry
                    if header["format"] != FORMAT:
                        raise UserError(f"its format is {header['format']!r}, not {FORMAT!r}: evaluate its paths again")
                    own = kind.from_json(header["geometry"])
                    if not isinstance(header["weights"], str) or not isinstance(header["settings"], dict):
                        raise UserError("weights must be their hash, and settings a mapping")
                else:
                    items.append(_checked(EvaluatedPath(**entry | {"path": Path.from_ofa(entry["path"], own)})))
                    if items[-1].path in known:
                        raise UserError("its path is duplicated")
                    known.add(items[-1].path)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"line {number} of {file} is not an evaluated path ({error})") from error
        return cls(file, header, items, own, len(whole))

    def append(self, item: EvaluatedPath) -> None:
        """Append a path to the file and to `items`.

        Raises:
            ValueError: the file contains the path already.
            UserError: its loss is not finite, or another process has changed the file.
        """
        if item.path in self._known:
            raise ValueError(f"{self.file} holds the path {item.path.to_ofa(self.geometry)} already")
        if not math.isfinite(item.loss):
            raise UserError(
                f"the validation loss of the path {json.dumps(item.path.to_ofa(self.geometry))} is {item.loss}, from "
                "which no ranking can be learned: the training of the supernet has diverged; try a lower optimizer.train.lr"
            )
        entry = {field.name: getattr(item, field.name) for field in fields(item)}
        with _locked(self.file) as opened:
            if opened.seek(0, os.SEEK_END) != self._size:
                raise UserError(f"{self.file} was changed by another process: only one may add paths to it at a time")
            self._size += _write_line(opened, entry | {"path": item.path.to_ofa(self.geometry)})
        self.items.append(item)
        self._known.add(item.path)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, path: Path) -> bool:
        """Return whether the file contains the path."""
        return path in self._known

    @property
    def settings(self) -> Mapping:
        """Settings of the evaluation."""
        return self.header["settings"]

    @property
    def batch(self) -> PathBatch:
        """The paths."""
        return PathBatch.from_paths([item.path for item in self.items], self.geometry)

    @property
    def buckets(self) -> np.ndarray:
        """(n,) FLOPs bucket of each path."""
        return np.array([item.bucket for item in self.items], int)

    @property
    def flops(self) -> np.ndarray:
        """(n,) FLOPs of each path."""
        return np.array([item.flops for item in self.items], np.int64)

    @property
    def losses(self) -> np.ndarray:
        """(n,) validation loss of each path."""
        return np.array([item.loss for item in self.items], float)

    @property
    def aps(self) -> np.ndarray:
        """(n,) AP50 of each path on the validation images, NaN if it was not measured."""
        return np.array([item.ap for item in self.items], float)


def _checked(item: EvaluatedPath) -> EvaluatedPath:
    """Return the item, or raise UserError if a value is not allowed."""
    for name, most in (("bucket", MAX_BUCKETS - 1), ("flops", MAX_COST), ("params", MAX_COST)):
        value = getattr(item, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise UserError(f"{name} must be an integer from 0 to {most}, got {shown(value)}")
    for name, low, high in (("loss", -MAX_LOSS, MAX_LOSS), ("ap", 0, 1)):
        value = getattr(item, name)
        if name == "ap" and value is None:
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            wanted = "a finite number in float32" if name == "loss" else "a number in [0, 1], or null"
            raise UserError(f"{name} must be {wanted}, got {shown(value)}")
    return item


@contextmanager
def _locked(file: FilePath) -> Iterator[BinaryIO]:
    """Open the file for reading and appending, with an exclusive lock inside the block."""
    with naming(file), open(file, "a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield opened


def _write_line(opened: BinaryIO, entry: Mapping) -> int:
    """Append a line, sync it to the disk, and return its size in bytes."""
    line = json.dumps(entry, allow_nan=False).encode() + b"\n"
    opened.write(line)
    opened.flush()
    os.fsync(opened.fileno())
    return len(line)


def _first_difference(found: Mapping, wanted: Mapping, prefix: str = "") -> tuple[str, object, object]:
    """Return the dotted key and both values of the first difference between two headers."""
    for name in sorted(found.keys() | wanted.keys()):
        have, want = found.get(name), wanted.get(name)
        if have != want:
            if isinstance(have, dict) and isinstance(want, dict):
                return _first_difference(have, want, f"{prefix}{name}.")
            return prefix + name, have, want
    raise ValueError("the two are equal")
