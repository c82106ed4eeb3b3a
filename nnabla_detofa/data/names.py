"""Files by the names that a data set lists: one answer for the check, for training and for copies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS and some archives decompose what others compose."""
    return normalize("NFC", name)


def is_below(name: str) -> bool:
    """Whether a name leads to something below the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


class Listing:
    """The files below a folder, found by name; each folder is listed once, when it is first asked for.

    Args:
        folder: names are relative to it; `a/b` leads to a subfolder, and nothing leads out of it.
        extensions: names are without extension, and the file has one of these, the first where there are several, in either
            case. None: names are those of the files.
    """

    def __init__(self, folder: Path, extensions: Sequence[str] | None = None):
        self.folder, self.extensions = folder, extensions
        self._listed: dict[tuple[Path, bool], dict[str, str]] = {}

    def find(self, name: str) -> Path | None:
        """The file, under the name that it has on disk; None where there is none."""
        if not is_below(name):
            return None
        *folders, last = PurePosixPath(name).parts
        place = self.folder
        for part in folders:
            if (entry := _match(self._list(place, False), part)) is None:
                return None
            place /= entry
        entry = _match(self._list(place, self.extensions is not None), last)
        return None if entry is None else place / entry

    def _list(self, folder: Path, by_stem: bool) -> dict[str, str]:
        """Name -> entry of the folder; a composed name leads there too, unless there are two of them."""
        if (folder, by_stem) not in self._listed:
            try:
                entries = sorted(os.listdir(folder))
            except (OSError, ValueError):
                entries = []
            if by_stem:
                ranks = {extension: rank for rank, extension in enumerate(self.extensions)}
                split = [(*os.path.splitext(entry), entry) for entry in entries]
                split = [(stem, ranks[end.lower()], entry) for stem, end, entry in split if end.lower() in ranks]
                named = [(stem, entry) for stem, _, entry in sorted(split, key=lambda item: item[1], reverse=True)]
            else:
                named = [(entry, entry) for entry in entries]
            exact = dict(named)
            several = Counter(map(composed, exact))
            alike = {composed(name): entry for name, entry in exact.items() if several[composed(name)] == 1}
            self._listed[folder, by_stem] = alike | exact
        return self._listed[folder, by_stem]


def _match(entries: dict[str, str], name: str) -> str | None:
    return entries.get(name, entries.get(composed(name)))
