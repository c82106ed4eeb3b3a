"""Safe reading of untrusted files: bounded in size and depth, or rejected with a one-sentence error."""

import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

MAX_BYTES = 1 << 24
"""Largest size of a text file: config, results, annotations of one image."""
MAX_LEVELS = 64
"""Largest depth of nested mappings and lists: this package's files have fewer than ten levels, and a few hundred would
overflow Python's stack."""


def read_bytes(file: str | os.PathLike, what: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file; devices and pipes are rejected, since they may be endless.

    Args:
        file: path of the file.
        what: name of the file in error messages, like "the config".
        max_bytes: largest allowed size.

    Raises:
        UserError: the file is missing, not a regular file, too large, or not readable.
    """
    try:
        state = os.stat(file)
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"cannot read {what} {file}: it is not a file")
        if state.st_size > max_bytes:
            raise UserError(f"cannot read {what} {file}: it must have at most {max_bytes} bytes, and has {state.st_size}")
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {what} {short(str(file))}: {error.strerror}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"cannot read {what} {str(file)!r}: no file can have such a name") from error


def read_text(file: str | os.PathLike, what: str, max_bytes: int = MAX_BYTES) -> str:
    """Read a UTF-8 text file, without the byte order mark that some editors write; arguments are as in `read_bytes`.

    Raises:
        UserError: the file cannot be read, or it is not UTF-8.
    """
    try:
        return read_bytes(file, what, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {what} {file}: it is not UTF-8 text") from error


def parse_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse a JSON string.

    Args:
        text: the string.
        pairs: converts the key-value pairs of each object to a mapping; None: the last of equal keys is kept.

    Raises:
        ValueError: the string is not JSON, or it is nested deeper than `MAX_LEVELS`.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise too_deep() from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError if mappings and lists are nested deeper than `MAX_LEVELS`."""
    level = [value]
    for _ in range(MAX_LEVELS):
        inside = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level = [item for items in inside for item in items]
        if not level:
            return
    raise too_deep()


def too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MAX_LEVELS} levels deep")


def read_json(file: str | os.PathLike, what: str) -> Any:
    """Read and parse a JSON file.

    Args:
        file: path of the file.
        what: name of the file in error messages.

    Raises:
        UserError: the file cannot be read, is not JSON, or is nested too deep.
    """
    text = read_text(file, what)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{what} {file} is not JSON ({error})") from error


def whole_lines(content: bytes) -> bytes:
    """Return JSON lines without an incomplete last line, as a killed process leaves; a missing final newline is added."""
    end = content.rfind(b"\n") + 1
    try:
        return content + b"\n" if isinstance(parse_json(content[end:].decode()), dict) else content[:end]
    except ValueError:
        return content[:end]


def short(text: str, length: int = 120) -> str:
    """Shorten a string for an error message: omit the middle if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 40]}...{text[-37:]}"


def one_line(text: str) -> str:
    """Escape line breaks and terminal control characters, which names from a user's files may contain."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shown_names(names: Sequence[str], limit: int = 20) -> str:
    """Join names for a log message: at most `limit` of them, and their total number if there are more."""
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(map(short, names[:limit])) + more


def shown(value: Any) -> str:
    """Return a `repr` for error messages whose length and cost are bounded for any value."""
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
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print more than 4,300 digits
    return short(repr(value[:200] if isinstance(value, (str, bytes)) else value))
