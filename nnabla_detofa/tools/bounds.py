"""Bounds on the cost of a path: strings with units, such as "3G" or "40ms", and numbers."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping

from ..common.errors import UserError
from ..common.reading import short, shown

COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS: dict[str, dict[str, float]] = {
    "flops": COUNTS,
    "latency": {"us": 1e3, "ms": 1e6, "s": 1e9},
    "params": COUNTS,
    "memory": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9},
}
"""Cost -> unit of a bound -> its value in multiply-accumulates, nanoseconds, parameters or bytes."""
EXAMPLES = {"flops": "3G", "latency": "40ms", "params": "20M", "memory": "200MB"}

PLAIN = {"flops": "multiply-accumulates", "latency": "nanoseconds", "params": "parameters", "memory": "bytes"}
LEAST = 1000
"""Smallest bound without a unit; every network costs more."""


def parse_bound(name: str, text: str, called: str = "--{}") -> float:
    """Parse a bound such as "3G" or "40ms".

    Args:
        name: the cost, a key of `UNITS`.
        text: a number and a unit of `UNITS[name]`.
        called: format string of the bound's name in error messages.

    Returns:
        The bound in multiply-accumulates, nanoseconds, parameters or bytes.

    Raises:
        UserError: the text is not a positive number with a unit of `UNITS[name]`, or has no unit and is below `LEAST`.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    number, unit = (match[1], match[2].lower()) if match else ("inf", "")
    bound = float(number) * {unit.lower(): worth for unit, worth in UNITS[name].items()}.get(unit, math.inf)
    bound = float(f"{bound:.15g}")  # 0.00203 * 1e6 is slightly above 2030, and a bound may equal the cost of a path
    if not 0 < bound < math.inf:
        known = ", ".join(unit or "none" for unit in UNITS[name])
        what = f"{called.format(name)} must be a positive number with a unit ({known})"
        raise UserError(f"{what}, such as {EXAMPLES[name]}, got {short(text)}")
    if not unit and bound < LEAST:
        raise UserError(
            f"{called.format(name)} {short(text)} without a unit is {bound:g} {PLAIN[name]}, less than any path costs; add a "
            f"unit, as in {EXAMPLES[name]}"
        )
    return bound


def as_bound(name: str, value: str | float) -> float:
    """Convert a bound given from Python: a string for `parse_bound`, or a number in the base unit of the cost.

    Raises:
        UserError: the value is neither, or is not positive.
    """
    if isinstance(value, str):
        return parse_bound(name, value, "{}")
    try:
        bound = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.inf
    except OverflowError:
        bound = math.inf
    if not 0 < bound < math.inf:
        raise UserError(f"{name} must be a positive number, or a string such as {EXAMPLES[name]!r}, got {shown(value)}")
    return bound


def result_name(texts: Mapping[str, str], front: bool = False) -> str:
    """Name the file of a search's result by its bounds, such as found_flops_90M_memory_2MB.json.

    Args:
        texts: the cost of each bound -> the valid text of the bound.
        front: whether the result is a Pareto front.
    """
    bounds = [f"_{name}_{''.join(text.split())}" for name, text in texts.items()]
    return f"{'front' if front else 'found'}{''.join(bounds)}.json"
