"""Reading of config files, JSON or YAML, with their bases."""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ..common.checked import kind_of
from ..common.errors import UserError
from ..common.files import real
from ..common.reading import check_depth, parse_json, read_text, short, shown, too_deep
from ..common.shipped import shipped_configs
from . import older

MAX_BASES = 16


class _YamlLoader(yaml.SafeLoader):
    """YAML loader with the scalars of JSON, without aliases and duplicate keys.

    YAML 1.1 reads 5e-4 as a string, 010 as 8, 1:30 as 90, no as false and 2026-01-02 as a date. Here numbers have the form
    they have in JSON, the only keywords are true, false and null, and all other scalars are strings.
    """

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if odd := [key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)]:
            raise ValueError(f"line {odd[0].start_mark.line + 1}: a key must be a word or a number")
        without_duplicates([(key.value, None) for key, _ in node.value])
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of nested aliases can expand to billions of values, and an alias of its own node is endless.
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise ValueError(f"line {alias.start_mark.line + 1}: the alias *{alias.anchor} is not allowed: write it out")
        return super().compose_node(parent, index)


for _tag, _form, _first in (
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(~|null|Null|NULL|)$", ("~", "n", "N", "")),
    ("int", r"[-+]?(0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list(_first))


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping of these pairs; for a parser of JSON or YAML.

    Raises:
        ValueError: two keys are equal.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is duplicated")
    return content


def read_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a config file and merge it into its base, which may have a base too: another file, or a shipped config's name.

    Args:
        path: the file.
        above: resolved paths of the files that are based on this one.

    Raises:
        UserError: a file cannot be read or parsed, or its `base` is not valid.
    """
    content = _parse(path)
    content.pop("$schema", None)  # for editors
    if real(path) in above:
        raise UserError(f"the config {path} is based on itself, through {above[-1]}")
    if len(above) > MAX_BASES:
        raise UserError(f"the config {above[0]} must have at most {MAX_BASES} nested bases")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(
            f"base must be the path of a config, relative to {path.name}, or the name of a shipped one, got {shown(base)}"
        )
    below = read_config(shipped_configs().get(base, path.parent / base), (*above, real(path)))
    below.pop("about", None)  # it describes the base
    for section in ("network", "dataloader"):
        entries, based = content.get(section), below.get(section)
        if isinstance(entries, dict) and isinstance(based, dict) and based.keys().isdisjoint(entries):
            del below[section]  # replaced by another network or dataset, since a config has only one
    return merged(below, content)


def merged(base: Any, content: Any) -> Any:
    """Return `base` with the values of `content`: mappings are merged key by key, other values are replaced."""
    if not isinstance(base, dict) or not isinstance(content, dict):
        return content
    return base | {key: merged(base.get(key), value) for key, value in content.items()}


def _parse(path: Path) -> dict[str, Any]:
    """Parse one config file."""
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise UserError(f"a config's name must end in .json, .yaml or .yml, got {path}")
    source = read_text(path, "the config")
    try:
        content = parse_json(source, without_duplicates) if path.suffix == ".json" else parse_yaml(source)
    except json.JSONDecodeError as error:
        raise UserError(f"the config {path} cannot be parsed: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"the config {path} cannot be parsed: {short(' '.join(str(error).split()), 400)}") from error
    if not isinstance(content, dict):
        raise UserError(f"the config {path} must hold a mapping of sections, got {kind_of(content)}")
    return older.current(content)


def parse_yaml(source: str) -> Any:
    """Parse a YAML string of plain values.

    Raises:
        ValueError: the string is not YAML, contains an alias or a tag of another type, or is nested too deeply.
    """
    try:
        value = yaml.load(source, _YamlLoader)
    except RecursionError:
        raise too_deep() from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (LookupError, AttributeError, TypeError) as error:  # "!!bool x" is a KeyError
        raise ValueError(f"a value does not match its tag: {error}") from error
    check_depth(value)
    return value
