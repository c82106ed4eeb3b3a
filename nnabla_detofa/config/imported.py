"""Classes of the user's own, which a config names by their import path: "package.module:Class"."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from ..common.checked import nearest
from ..common.errors import UserError
from ..common.reading import short

IMPORT_PATH = re.compile(r"[\w.]+:\w+")
"""Form of an import path."""


def with_colon(value: Any) -> Any:
    """Return a value, which must not be an import path with a dot in place of the colon."""
    if isinstance(value, str) and re.fullmatch(r"[\w.]*\w\.\w+", value):
        raise UserError(f"an import path has the form package.module:Class, got {short(value)}")
    return value


def imported(key: str, name: str) -> Any:
    """Return what an import path names.

    Args:
        key: key of the config that holds it, for error messages.
        name: the import path.

    Raises:
        UserError: the module cannot be imported, or has no such attribute.
    """
    module, _, attribute = name.partition(":")
    try:
        found = import_module(module)
    except Exception as error:  # whatever the module raises
        reason = short(f"{type(error).__name__}: {error}")
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        what = "install its package or add its folder to PYTHONPATH" if missing or not module else "the fault is in the module"
        raise UserError(f"{key} {name}: the module {module} cannot be imported ({reason}); {what}") from error
    if not hasattr(found, attribute):
        raise UserError(f"{key} {name}: the module {module} has no class {attribute}{nearest(attribute, vars(found))}")
    return getattr(found, attribute)
