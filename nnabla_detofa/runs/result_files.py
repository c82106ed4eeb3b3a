"""Schemas of the JSON files in a run's folder, checked when a run resumes and when a finished run is read.

Each function checks the parsed content of one file, and returns the content (`thresholds`: that value) or raises a UserError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from ..common import checked
from ..common.errors import UserError
from ..common.reading import shown
from ..space.geometry import Geometry
from ..space.operations import operation_list
from ..space.paths import Path
from ..space.search_space import ofa_resnet50

SECONDS, COST, SHARE = "[-1e12, 1e12]", "[0, 1e18]", "[0, 1.001]"
"""Intervals of times, of FLOPs and parameters, and of average precisions, whose sums cannot overflow. Core seconds are
differences that may be negative, and average precisions may have rounding errors."""
MEASURED = {"flops": COST, "params": COST, "loss": "", "ap50": SHARE}
"""Measurement of an evaluated detector -> its interval; the loss may be NaN or infinite if the training has diverged."""
SCORE, TAU = "[-1e6, 1e6]", "[-1.001, 1.001]"
INTERVALS = {
    **MEASURED,
    **dict.fromkeys(("budget", "pruned_operations", "total_operations"), COST),
    **dict.fromkeys(("ap", "ap50_11point", "ap50_area", "coco", "accuracy", "rejected_share", "refused_share"), SHARE),
    **dict.fromkeys(("ap_per_class", "ap50_per_class", "ap50_11point_per_class", "ap50_area_per_class"), SHARE),
    **dict.fromkeys(("kendall_tau", "kendall_tau_of_baselines", "kendall_tau_on_fitted_paths"), TAU),
    "seconds": SECONDS,
    "thresholds": SCORE,
}
"""Key of a result -> interval of its number, or of all numbers below it; the numbers below other keys are not restricted."""


def seconds(content: Any) -> dict[str, float]:
    """Check seconds.json: the seconds of each phase."""
    for name, value in _mapping(content, "it").items():
        _number(value, f"the time of {name}", SECONDS)
    return content


def ledger(content: Any) -> dict:
    """Check ledger.json: the device seconds of each phase (see `cost_ledger.entry`), and their unit."""
    checked.read(str, _entry(content, "unit", "it"), "unit")
    for name, entry in _mapping(_entry(content, "phases", "it"), "phases").items():
        _number(_entry(entry, "seconds", f"phases.{name}"), f"phases.{name}.seconds", SECONDS)
    return content


def found_paths(content: Any, geometry: Geometry) -> dict[str, dict]:
    """Check search.json: the path found for each range of FLOPs."""
    for name, path in _mapping(content, "it").items():
        _path(path, name, geometry)
    return content


def detector(content: Any, geometry: Geometry, path: Path | None = None, where: str = "it") -> dict:
    """Check the evaluation result of a detector, such as subnet_1.json.

    Args:
        content: the content.
        geometry: geometry of the supernet.
        path: path that the detector must have; None: any.
        where: name of the content in error messages.
    """
    for name, interval in MEASURED.items():
        _number(_entry(content, name, where), f"{where}.{name}", interval, finite=name != "loss")
    _mapping(_entry(content, "ap50_per_class", where), f"{where}.ap50_per_class")
    for key in ("ap50_11point", "ap50_area"):
        if key in content:
            _number(content[key], f"{where}.{key}", SHARE)
            _mapping(_entry(content, f"{key}_per_class", where), f"{where}.{key}_per_class")
    if "coco" in content:
        _number(_entry(content["coco"], "AP", f"{where}.coco"), f"{where}.coco.AP", SHARE)
    if _path(_entry(content, "path", where), f"{where}.path", geometry) != path and path is not None:
        raise UserError(f"{where}.path differs from that of this run".removeprefix("it."))
    return content


def bounded(content: Any) -> Any:
    """Check the numbers in the result of a run or of a detector that any version has written; values may be missing."""

    def check(value: Any, where: str, interval: str | None) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                check(inner, f"{where}.{key}", INTERVALS.get(key) if interval is None else interval)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                check(inner, f"{where}[{number}]", interval)
        elif interval is not None and value is not None:
            _number(value, where, interval, finite=bool(interval))

    check(content, "it", None)
    return content


def measured(content: Any, geometry: Geometry) -> dict:
    """Check what every version has written of an evaluated detector, whose path, if recorded, must be one of the supernet."""
    for name in ("flops", "params", "loss"):
        _number(_entry(content, name, "it"), name, MEASURED[name], finite=name != "loss")
    bounded(content)
    if "path" in content:
        _path(content["path"], "path", geometry)
    return content


def scores(content: Any) -> list[float]:
    """Check scores.json, and return the path scores of the held-out paths."""
    found = _list(content, "scores")
    for number, value in enumerate(found):
        _number(value, f"scores[{number}]", SCORE)
    return found


def summary(content: Any, geometry: Geometry, budgets: int) -> dict:
    """Check summary.json of Algorithm 1 or a baseline: the fullnet, and the subnet found for each of `budgets` budgets."""
    detector(_entry(content, "fullnet", "it"), geometry, where="fullnet")
    for number, subnet in enumerate(_list(content, "subnets", budgets)):
        _number(_entry(subnet, "budget", f"subnets[{number}]"), f"subnets[{number}].budget")
        detector(subnet, geometry, where=f"subnets[{number}]")
    return content


def rejected_share(summary: Mapping) -> float | None:
    """Return the share of sampled paths that path pruning rejected, as in summary.json; None if no path was pruned."""
    return summary.get("rejected_share", summary.get("refused_share"))  # older runs have the second key


def thresholds(content: Any, buckets: int) -> list[float | None]:
    """Check and return the thresholds in summary.json of Algorithm 1, one per FLOPs bucket; None: no path is pruned."""
    found = _list(content, "thresholds", buckets)
    for number, value in enumerate(found):
        checked.read(float | None, value, f"thresholds[{number}]")
    return found


def operations(content: Any, geometry: Geometry) -> dict:
    """Check operations.json: the scores and FLOPs of all operations of the search space A, and the pruned operations."""
    every = {tuple(operation_list(operation)) for operation in ofa_resnet50(geometry).operations}
    for name in ("operations", "removed"):
        for entry in _list(content, name):
            kinds = (int, float, str) if isinstance(entry, list) and len(entry) == 2 else (int, float)
            if not isinstance(entry, list) or not all(isinstance(value, kinds) for value in entry):
                raise UserError(f"{name} must hold lists of numbers, got {shown(entry)}")
            if tuple(entry) not in every:
                raise UserError(f"{name} holds {shown(entry)}, which is not an operation of A")
    if len(content["operations"]) != len(every):
        raise UserError(f"operations must be the {len(every)} of A, got {len(content['operations'])}")
    for name in ("scores", "flops"):
        for number, value in enumerate(_list(content, name, len(every))):
            _number(value, f"{name}[{number}]")
    for number, value in enumerate(_list(content, "spared")):
        checked.read(str, value, f"spared[{number}]")
    return content


def _list(content: Any, name: str, length: int | None = None) -> list:
    found = _entry(content, name, "it")
    if not isinstance(found, list):
        raise UserError(f"{name} must be a list, got {checked.kind_of(found)}")
    if length not in (None, len(found)):
        raise UserError(f"{name} must be a list of {length} values, got {len(found)}")
    return found


def mini_batch(content: Any) -> dict:
    """Check mini_batch.json of a run whose mini-batches are not those of one process."""
    checked.read(Annotated[int, "[1, inf)"], _entry(content, "mini_batch", "it"), "mini_batch")
    return content


def origin(content: Any) -> dict:
    """Check origin.json of a fine-tuning: the run, detector and path that it starts from, and the digest of their weights."""
    for name, kind in {"run": str, "detector": str, "path": dict, "weights": str}.items():
        if not isinstance(value := _entry(content, name, "it"), kind):
            raise UserError(f"{name} is {checked.kind_of(value)}")
    return content


def provenance(content: Any) -> dict:
    """Check provenance.json: the code that computed a run, and the digests of its initial weights files and its data."""
    for number, code in enumerate(_list(content, "code")):
        checked.read(str, code, f"code[{number}]")
    for name, digest in _mapping(_entry(content, "weights", "it"), "weights").items():
        checked.read(str, digest, f"weights.{name}")
    if "data" in content:
        checked.read(str, content["data"], "data")
    return content


def _mapping(content: Any, where: str) -> dict:
    if not isinstance(content, dict):
        raise UserError(f"{where.removeprefix('it.')} must be a mapping, got {checked.kind_of(content)}")
    return content


def _entry(content: Any, name: str, where: str) -> Any:
    if name not in _mapping(content, where):
        raise UserError(f"{where}.{name} is missing".removeprefix("it."))
    return content[name]


def _number(value: Any, where: str, interval: str = "", finite: bool = True) -> None:
    if finite or not (isinstance(value, float) and not math.isfinite(value)):
        checked.read(float, value, where.removeprefix("it."), interval)


def _path(content: Any, where: str, geometry: Geometry) -> Path:
    where = where.removeprefix("it.")
    try:
        return Path.from_ofa(_mapping(content, where), geometry)
    except (UserError, TypeError) as error:
        raise UserError(f"{where} is not a path ({error})") from error
