"""Files from anybody: read whole, within bounds, or refused in one sentence."""

import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

MOST_BYTES = 1 << 24
"""Of a file that people or this package write by the line: configs, results, annotations of one image."""
MOST_LEVELS = 64
"""Of mappings and lists in each other; ours have fewer than ten, and a few hundred would end Python's stack."""


def read_bytes(file: str | os.PathLike, what: str, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file: never of a device or a pipe, which may have no end.

    Args:
        what: what the file is called in an error, like "the config".
        most: bytes that it may have.

    Raises:
        UserError: it is missing, is not a file, is larger, or cannot be read.
    """
    try:
        state = os.stat(file)
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"cannot read {what} {file}: it is not a file")
        if state.st_size > most:
            raise UserError(f"cannot read {what} {file}: it must have at most {most} bytes, and has {state.st_size}")
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {what} {short(str(file))}: {error.strerror}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"cannot read {what} {str(file)!r}: no file can have such a name") from error


def read_text(file: str | os.PathLike, what: str, most: int = MOST_BYTES) -> str:
    """As `read_bytes`, of a text in UTF-8."""
    try:
        return read_bytes(file, what, most).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {what} {file}: it is not UTF-8 text") from error


def parse_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        pairs: makes a mapping of its pairs; None: the last of equal keys counts.

    Raises:
        ValueError: it is not JSON, or nested deeper than `MOST_LEVELS`.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise too_deep() from None
    refuse_depth(value)
    return value


def refuse_depth(value: Any) -> None:
    """Raise ValueError if mappings and lists are nested deeper than `MOST_LEVELS`."""
    level = [value]
    for _ in range(MOST_LEVELS):
        inside = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level = [item for items in inside for item in items]
        if not level:
            return
    raise too_deep()


def too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MOST_LEVELS} levels deep")


def read_json(file: str | os.PathLike, what: str) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: as `read_text`, or as `parse_json`.
    """
    text = read_text(file, what)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{what} {file} is not JSON ({error})") from error


def whole_lines(content: bytes) -> bytes:
    """JSON lines without a torn last one, which is what a kill leaves behind; one that wants only its end gets it."""
    end = content.rfind(b"\n") + 1
    try:
        return content + b"\n" if isinstance(parse_json(content[end:].decode()), dict) else content[:end]
    except ValueError:
        return content[:end]


def short(text: str, most: int = 120) -> str:
    """A text for an error: the middle of a long one is left out."""
    return text if len(text) <= most else f"{text[: most - 40]}...{text[-37:]}"


def shown_names(names: Sequence[str], most: int = 20) -> str:
    """Names for a log: at most `most` of them, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(short, names[:most])) + more


def shown(value: Any) -> str:
    """`repr` for an error, of bounded length and cost, whatever the value holds."""
    if isinstance(value, (dict, list, tuple)) and value:
        items = list(value.items() if isinstance(value, dict) else value)[:8]
        more = ", ..." if len(value) > len(items) else ""
        if isinstance(value, dict):
            return short("{" + ", ".join(f"{_leaf(key)}: {_leaf(item)}" for key, item in items) + more + "}")
        inside = ", ".join(map(_leaf, items)) + more
        return short(f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})")
    return _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)) and value:
        return {dict: "{...}", list: "[...]", tuple: "(...)"}.get(type(value), "...")
    return short(repr(value[:200] if isinstance(value, (str, bytes)) else value))
