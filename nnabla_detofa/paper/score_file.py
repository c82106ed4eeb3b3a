"""The file scores.jsonl of a filter study, to which each fit is appended, so that a stopped study can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path as FilePath

import numpy as np

from ..common.errors import UserError
from ..common.files import write_bytes
from ..common.reading import parse_json, whole_lines

FORMAT = "scores of the filter study, version 2"
START = b'{"format": "scores of the filter study'


def stored_fits(file: FilePath) -> set[tuple[str, int]]:
    """Return the settings or baselines and seeds whose scores a file has, without checking what else it has."""
    found = set()
    for line in whole_lines(file.read_bytes()).splitlines()[1:] if file.is_file() else []:
        with suppress(ValueError, TypeError, KeyError):  # `ScoreFile` says what is damaged
            entry = parse_json(line.decode())
            found.add((entry["name"], entry["seed"]))
    return found


class ScoreFile:
    """Stored scores of a filter study.

    Args:
        file: the file; it is created if it does not exist, and an incomplete last line is dropped.
        fingerprint: everything that affects the scores apart from setting and seed, as JSON values.
        parts: parts of each setting or baseline by name. Scores of a setting whose parts have changed are ignored.
        count: number of test paths.

    Attributes:
        known: (n,) scores by setting or baseline and seed.

    Raises:
        UserError: the file has scores of other paths or options, is another kind of file, or is damaged before its last line.
            It is not changed.
    """

    def __init__(self, file: FilePath, fingerprint: Mapping, parts: Mapping[str, Mapping], count: int):
        self.file = file
        self.known: dict[tuple[str, int], np.ndarray] = {}
        header = json.loads(json.dumps({"format": FORMAT, **fingerprint}))
        content = file.read_bytes() if file.exists() else b""
        if not content.startswith(START[: len(content)]):
            raise UserError(f"{file} is not a file of the filter study's scores: remove or rename it")
        complete = whole_lines(content)
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                entry = parse_json(line.decode())
                changed = (
                    [name for name in sorted(header | entry) if entry.get(name) != header.get(name)] if number == 1 else []
                )
                if number > 1 and entry["parts"] == parts.get(entry["name"]):
                    self.known[entry["name"], entry["seed"]] = np.array(entry["scores"], float).reshape(count)
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"line {number} of {file} is not a result of the filter study ({error})") from error
            if changed:
                raise UserError(f"{file} has scores of a study with other {' and '.join(changed)}: remove or rename it")
        complete = complete or (json.dumps(header) + "\n").encode()
        if complete != content:
            write_bytes(file, complete)

    def append(self, name: str, seed: int, parts: Mapping, scores: np.ndarray) -> None:
        """Append the scores of a setting or baseline and a seed to the file, and then to `known`."""
        entry = {"name": name, "seed": seed, "parts": parts, "scores": np.asarray(scores, float).tolist()}
        with open(self.file, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(entry, allow_nan=False) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        self.known[name, seed] = np.asarray(scores, float)
