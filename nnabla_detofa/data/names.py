"""Lookup of the files that a dataset lists by name, shared by the data check, training and dataset conversion."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ..common.errors import UserError
from ..common.reading import read_bytes

MAX_LIST = 1 << 28
"""Largest size of a file that lists images, in bytes."""


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), because macOS and some archives store decomposed names."""
    return normalize("NFC", name)


def is_below(name: str) -> bool:
    """Return whether a relative name stays below the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def below(name: str, folder: Path) -> str:
    """Return an absolute name of a file in `folder`, as some tools write them, relative to it; other names are unchanged."""
    for root in (os.path.abspath(folder), os.path.realpath(folder)):
        if name.startswith(f"{root}/"):
            return name[len(root) + 1 :]
    return name


def listed_names(file: Path) -> list[str]:
    """Return the non-blank lines of a file that lists images, as they are: names may begin and end with spaces.

    Raises:
        UserError: the file cannot be read, or it is not UTF-8.
    """
    try:
        lines = re.split(r"\r\n|\r|\n", read_bytes(file, "the list of images", MAX_LIST).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} must be a text file in UTF-8 with one image per line: {error}") from error
    return [line for line in lines if line.strip()]


class Listing:
    """Finds files below a folder by name. Each folder is listed once, on its first lookup.

    Args:
        folder: the folder that names are relative to, unless they are absolute. `a/b` is a file in a subfolder; names that
            leave the folder are not found.
        extensions: if given, names have no extension, and a file matches with any of these extensions in lower or upper case;
            if several files match, the extension that comes first here wins. None: names include the extension.
    """

    def __init__(self, folder: Path, extensions: Sequence[str] | None = None):
        self.folder = folder
        self._ranks = None if extensions is None else {extension: rank for rank, extension in enumerate(extensions)}
        self._listed: dict[tuple[Path, bool], dict[str, str]] = {}  # (folder, without extensions) -> name -> entry

    def find(self, name: str) -> Path | None:
        """Return the path of a file, spelled as on disk, or None if it does not exist."""
        name = below(name, self.folder)
        if not is_below(name):
            return None
        *folders, last = PurePosixPath(name).parts
        place = self.folder
        for part in folders:
            if (entry := _match(self._list(place, by_stem=False), part)) is None:
                return None
            place /= entry
        entry = _match(self._list(place, by_stem=self._ranks is not None), last)
        return None if entry is None else place / entry

    def _list(self, folder: Path, by_stem: bool) -> dict[str, str]:
        """Map names to directory entries; the composed form of a name is a key too, unless two names share it."""
        if (folder, by_stem) not in self._listed:
            try:
                entries = sorted(os.listdir(folder))
            except (OSError, ValueError):
                entries = []
            exact = self._by_stem(entries) if by_stem else {entry: entry for entry in entries}
            several = Counter(map(composed, exact))
            alike = {composed(name): entry for name, entry in exact.items() if several[composed(name)] == 1}
            self._listed[folder, by_stem] = alike | exact
        return self._listed[folder, by_stem]

    def _by_stem(self, entries: list[str]) -> dict[str, str]:
        """Map names without extension to directory entries; of several entries, the one with the first extension wins."""
        ranks = self._ranks or {}
        split = [(*os.path.splitext(entry), entry) for entry in entries]
        ranked = [(ranks[end.lower()], stem, entry) for stem, end, entry in split if end.lower() in ranks]
        return {stem: entry for _, stem, entry in sorted(ranked, key=lambda item: item[0], reverse=True)}


def _match(entries: dict[str, str], name: str) -> str | None:
    return entries.get(name, entries.get(composed(name)))
