"""The JSON schema of a config, for editors, and a reference page of every key: both generated from the dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from functools import reduce
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..common.files import write_json, write_text
from . import DATALOADERS, NETWORKS, RUNNERS, Args, Solvers
from .load import place

SCALARS = {int: "integer", float: "number", bool: "boolean", str: "string"}
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a config file.

    It checks each value by itself. A file may leave out what its `base` says, so nothing is required, and which hparams suit
    the runner is left to the program.
    """
    hparams = [_section_schema(kind) for kind in dict.fromkeys(runner.hparams for runner in RUNNERS.values())]
    sections = {
        "$schema": {"type": "string", "description": "the place of this schema, for editors"},
        "about": {"description": "for people", "anyOf": [{"type": "string"}, _array({"type": "string"})]},
        "base": {"type": "string", "description": "another config, relative to this file, that this one changes"},
        "args": _section_schema(Args),
        "network": _one_of(NETWORKS),
        "dataloader": _one_of(DATALOADERS),
        "optimizer": _section_schema(Solvers),
        "hparams": {"anyOf": hparams},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A config of nnabla_detofa",
        **_object(sections),
    }


def markdown() -> str:
    """The reference page: a table for each section, with every key, what it may be, its default, and what it does."""
    lines = [
        "# Config reference",
        "",
        "Every key of a config, with its default. Generated from the schema in `nnabla_detofa/config` by `make reference`.",
        "On the command line a key is replaced by its dotted name: `hparams.search.generations=100`.",
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
        lines += [f"## `{prefix}`{suffix}", "", (inspect.getdoc(kind) or "").partition("\n")[0], ""]
        lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(prefix, *entry) for entry in _keys(kind, "")]
        lines.append("")
    return "\n".join(lines)


def _row(prefix: str, key: str, annotation: Any, default: str, meaning: str) -> str:
    cells = [f"`{prefix}.{key}`", _allowed(annotation), default, meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _keys(kind: type, above: str) -> Iterator[tuple[str, Any, str, str]]:
    """Dotted key, annotation, default and meaning of all keys below a section."""
    hints, meanings = get_type_hints(kind, include_extras=True), _meanings(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], f"{above}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{key}.")
            continue
        default = "required" if field.default is dataclasses.MISSING else f"`{_as_json(field.default)}`"
        yield key, hint, default, meanings.get(field.name, "")
        inner, joint = _inner(hint)
        if inner:
            yield from _keys(inner, key + joint)


def _inner(hint: Any) -> tuple[type | None, str]:
    """The dataclass inside `X | None` or `tuple[X, ...]`, and what its keys are written behind; None where there is none."""
    origin, parts = get_origin(hint), get_args(hint)
    found = parts[0] if parts and dataclasses.is_dataclass(parts[0]) else None
    return found, "[]." if origin is tuple else "."


def _as_json(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_json, value))}]"
    return words[value] if value is None or isinstance(value, bool) else f"{value}"


def _meanings(kind: type) -> dict[str, str]:
    """What the "Attributes:" of a dataclass' docstring, and of those it inherits from, say of each."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        _, _, listed = (inspect.cleandoc(parent.__doc__ or "")).partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \S)", "\n" + listed)[1:]:
            names, _, text = " ".join(entry.split()).partition(": ")
            found |= dict.fromkeys(names.split(", "), text)
    return found


def _allowed(hint: Any) -> str:
    """An annotation in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        interval = [f" in {extra}" for extra in parts[1:] if isinstance(extra, str)]
        return _allowed(parts[0]) + "".join(interval)
    if origin in (Union, types.UnionType):
        return f"{_allowed(parts[0])}, or null"
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return "a list" if dataclasses.is_dataclass(parts[0]) else f"a list: {_allowed(parts[0])}"
        return f"a list of {len(parts)}: {_allowed(parts[0])}"
    return WORDS.get(hint, "a mapping")


def _schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of an annotation, as `common.checked.read` reads it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        schema = reduce(lambda found, interval: found | _bounds(interval), (e for e in parts[1:] if isinstance(e, str)), {})
        inner = _schema(parts[0]) | schema
        return (
            {"anyOf": [inner, {"type": ["string", "integer"]}]}
            if any(callable(extra) and extra is not place for extra in parts[1:])
            else inner
        )
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(parts[0]), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return _array(_schema(parts[0]))
        return {"type": "array", "prefixItems": [_schema(part) for part in parts], "minItems": len(parts), "items": False}
    return _section_schema(hint) if dataclasses.is_dataclass(hint) else {"type": SCALARS[hint]}


def _bounds(interval: str) -> dict[str, float]:
    """ "[0, 1)" -> minimum 0 and exclusiveMaximum 1."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    bounds = {"minimum" if interval[0] == "[" else "exclusiveMinimum": low}
    if high != float("inf"):
        bounds["maximum" if interval[-1] == "]" else "exclusiveMaximum"] = high
    return bounds


def _section_schema(kind: type) -> dict[str, Any]:
    hints, meanings = get_type_hints(kind, include_extras=True), _meanings(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        schema = _schema(hints[field.name])
        if text := meanings.get(field.name):
            schema = {"description": text} | schema
        if field.default is not dataclasses.MISSING and not dataclasses.is_dataclass(hints[field.name]):
            default = dataclasses.asdict(field.default) if dataclasses.is_dataclass(field.default) else field.default
            schema |= {"default": default}
        properties[field.name] = schema
    return {"description": (inspect.getdoc(kind) or "").partition("\n")[0]} | _object(properties)


def _one_of(kinds: dict[str, type]) -> dict[str, Any]:
    return _object({name: _section_schema(kind) for name, kind in kinds.items()}) | {"maxProperties": 1}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


if __name__ == "__main__":
    write_json("configs/schema.json", json_schema())
    write_text("docs/config.md", markdown())
