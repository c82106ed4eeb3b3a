"""Conversion of a mapping read from JSON to a frozen dataclass whose annotations define the allowed values.

- `int`, `float`, `bool`, `str`: a value of that type. A float must be finite and may be written as an integer.
- `Annotated[float, "[0, 1)"]`: a number in that interval.
- `Annotated[str, function]`: the result of `function`, which converts values with alternative spellings.
- `Literal["a", "b"]`: one of these. `X | None`: an X, or null. `tuple[X, ...]`: a list of X; `tuple[X, Y]`: two values.
- a dataclass: a mapping of its fields. Its `__post_init__` checks the fields together and raises a UserError that starts with
  the name of a field, with or without the name of the section before it.
"""

import dataclasses
import difflib
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError
from .reading import short, shown


def read(kind: Any, value: Any, where: str, interval: str = "") -> Any:
    """Check a value and convert it to the type of its annotation.

    Args:
        kind: the annotation.
        value: the value, as read from JSON.
        where: dotted key of the value, for error messages.
        interval: allowed numbers, like "[0, 1)"; empty for all.

    Returns:
        The converted value.

    Raises:
        UserError: a key is unknown or missing, or a value is not allowed.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for extra in parts[1:]:
            if isinstance(extra, re.Pattern):  # of strings that are allowed too
                if isinstance(value, str) and extra.fullmatch(value):
                    return value
            elif callable(extra):
                try:
                    value = extra(value)
                except UserError as error:  # the function does not know the key
                    raise UserError(f"{where}: {error}") from None
            else:
                interval = extra
        return read(parts[0], value, where, interval)
    if origin in (Union, types.UnionType):
        inner = [part for part in parts if part is not types.NoneType]
        if len(inner) > 1:
            raise UserError(_unknown(kind, where))
        return None if value is None else read(inner[0], value, where)
    if origin is Literal:
        if value not in parts:
            raise UserError(f"{where} must be {listed(parts, 'or')}, got {shown(value)}{nearest(value, parts)}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, got {string_or_kind(value)}")
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        if len(value) != len(parts):
            raise UserError(f"{where} must be a list of {len(parts)} values, got {len(value)}")
        return tuple(read(part, item, f"{where}[{index}]") for index, (part, item) in enumerate(zip(parts, value)))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _section(kind, value, where)
    return _scalar(kind, value, where, interval)


def _section(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping, got {string_or_kind(value)}")
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    check_keys(where, value, fields)
    for name, entry in fields.items():
        if name not in value and entry.default is dataclasses.MISSING:
            raise UserError(f"{where}.{name} is missing")
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for name in (name for name in fields if name in value):
        given = value[name]
        default: Any = fields[name].default
        if _is_instance(default) and isinstance(given, Mapping):
            # Missing keys have the defaults of this field, not those of its class.
            given = {**dataclasses.asdict(default), **given}
        values[name] = read(hints[name], given, f"{where}.{name}")
    try:
        return kind(**values)
    except UserError as error:  # from __post_init__, which does not know the full dotted key
        raise UserError(f"{where}.{str(error).removeprefix(where.rpartition('.')[2] + '.')}") from None


def _is_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _scalar(kind: type, value: Any, where: str, interval: str) -> Any:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    if kind not in names:
        raise UserError(_unknown(kind, where))
    accepted: Any = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} must be {names[kind]}{f' in {interval}' if interval else ''}, got {shown(value)}")
    if interval and not _inside(value, interval):
        raise UserError(f"{where} must be in {interval}, got {shown(value)}")
    if kind is float and not abs(value) <= sys.float_info.max:  # infinite, NaN, or too large an integer
        raise UserError(f"{where} must be finite, got {shown(value)}")
    if kind is int and abs(value) > sys.maxsize:
        raise UserError(f"{where} must be at most {sys.maxsize}, got {shown(value)}")
    if kind is str and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise UserError(f"{where} must be text without zero bytes and surrogate characters, got {shown(value)}")
    return kind(value)


def _unknown(kind: Any, where: str) -> str:
    """Return the message about a field of a dataclass that a config cannot hold."""
    kinds = "int, float, bool, str, Literal, tuple, a dataclass, or one of these | None"
    return f"{where} must be declared as {kinds}, and its class declares {short(str(kind))}"


def _inside(value: float, interval: str) -> bool:
    """Return whether `value` is in an interval written like "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def check_keys(where: str, content: Mapping, known: Iterable[str]) -> None:
    """Raise a UserError for the first key of `content` that is not in `known`; the message suggests the nearest known key."""
    known = list(known)
    for key in content:
        if key not in known:
            hint = nearest(key, known) or f"; known are {listed(known, 'and')}"
            name = short(key) if isinstance(key, str) else shown(key)
            raise UserError(f"{where}.{name} is not a key{hint}".removeprefix("."))


def nearest(value: Any, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known name, or "" if none is near."""
    if not isinstance(value, str) or len(value) >= 100:
        return ""
    if len(value) <= 3:  # gpu is no misspelled cpu
        known = [name for name in known if name[:1] == value[:1]]
    found = difflib.get_close_matches(value, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as "1 image" or "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Iterable[Any], last: str) -> str:
    """Join names as in a sentence, such as "a, b and c"; `last` is "and" or "or". No names are "none"."""
    *head, tail = [str(name) for name in names] or ["none"]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def kind_of(value: Any) -> str:
    """Return the type of a value in words, for errors about values of the wrong type."""
    kinds = {dict: "a mapping", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing"}
    return kinds.get(type(value)) or shown(value)


def string_or_kind(value: Any) -> str:
    """Return a string itself, and the type of another value, for errors about a key whose value has the wrong type."""
    return shown(value) if isinstance(value, str) else kind_of(value)
