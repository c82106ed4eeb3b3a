"""JSON schema of a config, for editors, and reference page of all keys: both generated from the dataclasses of the sections."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from ..common.files import write_json, write_text
from . import DATALOADERS, NETWORKS, RUNNERS, Args, Solvers
from .imported import IMPORT_PATH
from .values import expand_home

OWN = f"^{IMPORT_PATH.pattern}$"
"""Pattern of the import path of a class of the user's own."""
SCALARS = {int: "integer", float: "number", bool: "boolean", str: "string"}
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a config file.

    The schema checks each value separately. No key is required, since a file may leave out what its `base` contains, and only
    the program checks that `hparams` has the keys of the runner.
    """
    hparams = [_section_schema(kind) for kind in dict.fromkeys(runner.hparams for runner in RUNNERS.values())]
    sections = {
        "$schema": {"type": "string", "description": "path of this schema, for editors"},
        "about": {"description": "description for people", "anyOf": [{"type": "string"}, _array({"type": "string"})]},
        "base": {"type": "string", "description": "path of another config, relative to this file, that this one modifies"},
        "args": _section_schema(Args),
        "network": _one_of(NETWORKS) | {"patternProperties": {OWN: {"type": "object"}}},
        "dataloader": _one_of(DATALOADERS) | {"patternProperties": {OWN: {"type": "object"}}},
        "optimizer": _section_schema(Solvers),
        "hparams": {"anyOf": hparams},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A config of nnabla_detofa",
        **_object(sections),
    }


def markdown() -> str:
    """Return the reference page: for each section a table of all keys with allowed values, default and meaning."""
    lines = [
        "# Config reference",
        "",
        "Every key of a config, with its default. Generated from the schema in `nnabla_detofa/config` by `make reference`.",
        "Override a key on the command line by its dotted name: `hparams.search.generations=100`.",
        "",
    ]
    users: dict[type, list[str]] = {}
    for name, runner in RUNNERS.items():
        users.setdefault(runner.hparams, []).append(f"`{name}`")
    sections: list[tuple[str, str, type]] = [("args", "", Args)]
    sections += [(f"network.{name}", "", kind) for name, kind in NETWORKS.items()]
    sections += [(f"dataloader.{name}", "", kind) for name, kind in DATALOADERS.items()]
    sections += [("optimizer", "", Solvers)]
    sections += [("hparams", f" of the runners {', '.join(names)}", kind) for kind, names in users.items()]
    for prefix, suffix, kind in sections:
        lines += [f"## `{prefix}`{suffix}", "", _summary(kind), ""]
        lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(prefix, *entry) for entry in _keys(kind, "")]
        lines.append("")
    return "\n".join(lines)


def _row(prefix: str, key: str, annotation: Any, default: str, meaning: str) -> str:
    cells = [f"`{prefix}.{key}`", _allowed(annotation), default, meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _keys(kind: type, above: str, given: Any = None) -> Iterator[tuple[str, Any, str, str]]:
    """Yield the dotted key, annotation, default and meaning of each key in a section and in its nested sections.

    `given` is the section that is the default of the key that contains it, if there is one.
    """
    hints, meanings = get_type_hints(kind, include_extras=True), _meanings(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], f"{above}{field.name}"
        value = field.default if given is None else getattr(given, field.name)
        if _is_section(hint):
            yield from _keys(hint, f"{key}.", None if value is dataclasses.MISSING else value)
            continue
        default = "required" if value is dataclasses.MISSING else f"`{_as_json(value)}`"
        yield key, hint, default, meanings.get(field.name, "")
        inner, joint = _inner(hint)
        if inner:
            yield from _keys(inner, key + joint)


def _is_section(hint: Any) -> TypeGuard[type]:
    """Return whether an annotation is the dataclass of a section."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _inner(hint: Any) -> tuple[type | None, str]:
    """Return the dataclass inside `X | None` or `tuple[X, ...]`, if any, and the separator between the key and its keys."""
    origin, parts = get_origin(hint), get_args(hint)
    found = parts[0] if parts and _is_section(parts[0]) else None
    return found, "[]." if origin is tuple else "."


def _as_json(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_json, value))}]"
    return words[value] if value is None or isinstance(value, bool) else f"{value}"


def _summary(kind: type) -> str:
    """Return the first line of the docstring of a section."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _meanings(kind: type) -> dict[str, str]:
    """Parse the descriptions below "Attributes:" in the docstrings of a dataclass and its base classes."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        _, _, listed = (inspect.cleandoc(parent.__doc__ or "")).partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \S)", "\n" + listed)[1:]:
            names, _, text = " ".join(entry.split()).partition(": ")
            found |= dict.fromkeys(names.split(", "), text)
    return found


def _allowed(hint: Any) -> str:
    """Describe the values that an annotation allows."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        interval = [f" in {extra}" for extra in parts[1:] if isinstance(extra, str)]
        interval += [", or an import path, `package.module:Class`"] if IMPORT_PATH in parts else []
        return _allowed(parts[0]) + "".join(interval)
    if origin in (Union, types.UnionType):
        return f"{_allowed(parts[0])}, or null"
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return "a list" if _is_section(parts[0]) else f"a list: {_allowed(parts[0])}"
        return f"a list of {len(parts)}: {_allowed(parts[0])}"
    return WORDS.get(hint, "a mapping")


def _schema(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of the values that `common.checked.read` accepts for an annotation."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = _schema(parts[0])
        if IMPORT_PATH in parts:
            return {"anyOf": [inner, {"type": "string", "pattern": OWN}]}
        for interval in (extra for extra in parts[1:] if isinstance(extra, str)):
            inner |= _bounds(interval)
        converts = any(callable(extra) and extra is not expand_home for extra in parts[1:])
        return {"anyOf": [inner, {"type": ["string", "integer"]}]} if converts else inner
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(parts[0]), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return _array(_schema(parts[0]))
        return {"type": "array", "prefixItems": [_schema(part) for part in parts], "minItems": len(parts), "items": False}
    return _section_schema(hint) if _is_section(hint) else {"type": SCALARS[hint]}


def _bounds(interval: str) -> dict[str, float]:
    """Convert an interval such as "[0, 1)" to JSON schema: minimum 0 and exclusiveMaximum 1."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    bounds = {"minimum" if interval[0] == "[" else "exclusiveMinimum": low}
    if high != float("inf"):
        bounds["maximum" if interval[-1] == "]" else "exclusiveMaximum"] = high
    return bounds


def _section_schema(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a section."""
    hints, meanings = get_type_hints(kind, include_extras=True), _meanings(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        schema = _schema(hints[field.name])
        if text := meanings.get(field.name):
            schema = {"description": text} | schema
        if field.default is not dataclasses.MISSING and not _is_section(hints[field.name]):
            default: Any = field.default
            if dataclasses.is_dataclass(default) and not isinstance(default, type):
                default = dataclasses.asdict(default)
            schema |= {"default": default}
        properties[field.name] = schema
    return {"description": _summary(kind)} | _object(properties)


def _one_of(kinds: Mapping[str, type]) -> dict[str, Any]:
    return _object({name: _section_schema(kind) for name, kind in kinds.items()}) | {"maxProperties": 1}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


if __name__ == "__main__":
    write_json("configs/schema.json", json_schema())
    write_text("docs/reference/config.md", markdown())
