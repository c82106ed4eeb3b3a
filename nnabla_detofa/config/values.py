"""Types of config values: numbers in an interval, FLOPs with a unit, and paths of files."""

import re
from pathlib import Path
from typing import Annotated, Any

from ..common.errors import UserError
from ..common.reading import short

UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

MAX_PATH, MAX_NAME = 4000, 255
"""Limits of Linux for the length of a path and of a name in it."""


def flops(value: Any) -> Any:
    """Convert a number of multiply-accumulates with a unit, such as "3G" or "250M", to a float; other values are unchanged."""
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([KMGT]?)\s*", value) if isinstance(value, str) else None
    try:
        return float(match[1]) * UNITS.get(match[2], 1.0) if match else value
    except ValueError:
        return value


def text(value: Any) -> Any:
    """Convert an integer to a string, since `args.device_id=1` on the command line is an integer in JSON."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def expand_home(value: Any) -> Any:
    """Expand a leading ~ in the path of a file or folder to the home folder, since no shell expands it inside a config.

    Raises:
        UserError: the user has no home folder, or no file can have such a long path.
    """
    if not isinstance(value, str):
        return value
    if len(value) > MAX_PATH or any(len(part.encode(errors="replace")) > MAX_NAME for part in value.split("/")):
        limits = f"at most {MAX_PATH} characters, with names of at most {MAX_NAME} bytes"
        raise UserError(f"a path must have {limits}, got {short(value)}")
    if not (value == "~" or value.startswith("~/")):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise UserError(f"{short(value)} needs a home folder, and there is none: set HOME, or write the whole path") from error


Count = Annotated[int, "[1, inf)"]
Natural = Annotated[int, "[0, inf)"]
Share = Annotated[float, "[0, 1)"]
UpToOne = Annotated[float, "(0, 1]"]
Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
PathStr = Annotated[str, expand_home]
# Values that determine memory are bounded far above any sensible value, so that a typing error is rejected at once.
Side = Annotated[int, "[32, 16384]"]
Channels = Annotated[int, "[1, 8192]"]
Classes = Annotated[int, "[1, 100000]"]
Paths = Annotated[int, "[1, 1000000]"]
Scale = Annotated[float, "(0, 8]"]
Window = Annotated[float, "[0.01, 8]"]
Crop = Annotated[float, "[0.001, 1]"]
# Durations are bounded so that numbers of steps, which are products of them, can be counted.
Epochs = Annotated[int, "[0, 1000000]"]
Rounds = Annotated[int, "[1, 1000000]"]
Steps = Annotated[int, "[0, 1000000000]"]
