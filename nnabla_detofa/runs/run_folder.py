"""Reading of a run's folder: config, results, weights and search space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

from .. import config as configs
from ..common.checked import kind_of
from ..common.errors import UserError
from ..common.reading import read_json, short
from ..space.search_space import SearchSpace
from . import result_files
from .lock import differences
from .phases import FINE_TUNED, slug, training_phases


def read_result(run: FilePath, name: str, check: Callable[[Any], Any] = lambda content: content) -> Any:
    """Read one of the JSON files of a run's folder.

    Args:
        run: the run's folder.
        name: name of the file without ".json".
        check: function of `result_files` that checks the content; its result is returned.

    Raises:
        UserError: the file does not exist, since the run is not finished, or it is damaged.
    """
    file = run / f"{name}.json"
    if not file.exists():
        raise UserError(f"{run} is not the folder of a finished run: {file.name} is missing")
    content = read_json(file, "the result")
    try:
        return check(content)
    except UserError as error:
        raise UserError(f"{file} is damaged: its content is not that of a finished run ({error})") from error


@contextmanager
def reading(file: FilePath) -> Iterator[None]:
    """Convert errors that the values of a result file cause inside the block into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{file} is damaged: its content is not that of a finished run ({short(repr(error))})") from error


def number(value: Any, finite: bool = False) -> int | float:
    """Return a number from a result file unchanged, or raise an error that `reading` converts.

    Args:
        value: the value from the file.
        finite: reject infinity and NaN, which are allowed for a loss but not for a duration.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` is not finite.
        OverflowError: `value` is an integer beyond the range of float.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{short(repr(value))} is not a number")
    if not abs(float(value)) < math.inf and finite:  # float() raises for an integer of 400 digits
        raise ValueError(f"{value} is not finite")
    return value


def check_has_detectors(run: FilePath, config: configs.Config, what: str) -> None:
    """Raise UserError if a folder holds a pre-training, which has no detectors; `what` needs them."""
    if config.method == "pretrain":
        raise UserError(f"{run} is a pre-training's folder: {what} needs a run that trains detectors")


def check_has_subnets(run: FilePath, config: configs.Config, what: str) -> None:
    """Raise UserError if a folder holds a pre-training or a fine-tuning; `what` needs Algorithm 1 or a baseline."""
    check_has_detectors(run, config, what)
    if fine_tuned(run):
        raise UserError(
            f"{run} is a fine-tuning's folder, which has one detector: {what} needs a run of Algorithm 1 or of a baseline"
        )


def trained_classes(run: FilePath) -> tuple[str, ...]:
    """Return the names of the classes that a run's detectors were trained for, in order."""
    name = "before" if fine_tuned(run) else "fullnet"
    with reading(run / f"{name}.json"):
        return tuple(map(str, dict(read_result(run, name)["ap50_per_class"])))


def check_classes(run: FilePath, classes: Sequence[str]) -> None:
    """Raise UserError if a run's detectors were not trained for these classes, in this order."""
    trained = trained_classes(run)
    if trained != tuple(classes):
        raise UserError(
            f"the detectors of {run} were trained for the classes {', '.join(trained)}, in this order; "
            f"the data have {', '.join(classes)}"
        )


def run_config(run: FilePath, overrides: Sequence[str] = (), fixed: Sequence[str] = ()) -> configs.Config:
    """Read the config of a run, which need not be finished.

    Args:
        run: the run's folder.
        overrides: "key=value" strings that replace values, such as the path of the data.
        fixed: prefixes of keys that must not be overridden, in addition to the keys of the network.

    Raises:
        UserError: the folder is not a run's folder, its config is damaged, or an override is invalid or changes a fixed key.
    """
    file = run / "config.json"
    if not file.is_file():
        raise UserError(f"{run} is not the folder of a run: config.json is missing")
    content = read_result(run, "config")
    if not isinstance(content, dict):
        raise UserError(f"{run} holds a damaged config.json: it is {kind_of(content)}, not a mapping")
    try:
        before = configs.from_run(content, run.name)
    except UserError as error:
        raise UserError(f"{run} holds a damaged config.json: {error}") from error
    config = configs.from_run(content, run.name, overrides)
    for key in differences(before.to_dict(), config.to_dict()):
        if key == "args.runner" or key.startswith(("network.", *fixed)) and not key.endswith(".weights"):
            raise UserError(f"{key} must not be overridden: the results of {run} depend on it")
    return config


def run_weights(run: FilePath, config: configs.Config, named: str | None = None) -> FilePath:
    """Return the path of a weights file of a run.

    Args:
        run: the run's folder.
        config: the run's config.
        named: a file in the run's folder, such as "warm_up/weights.h5", or any other file; None: the weights of the last
            finished training phase.

    Raises:
        UserError: the file does not exist, or no training phase has finished.
    """
    if named is not None:
        found = next((file for file in (run / named, FilePath(named)) if file.is_file()), None)
        if found is None:
            raise UserError(f"--weights must be an existing file, in {run} or elsewhere, got {named}")
        return found
    files = [run / slug(phase.name) / "weights.h5" for phase in reversed(training_phases(config))]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{run} has no weights yet: no training phase has finished")
    return found


def searched_space(run: FilePath, config: configs.Config) -> SearchSpace:
    """Return the space that a detection run trains last and searches: the pruned search space A, or the baseline's.

    Raises:
        UserError: the run has not pruned operations yet, or operations.json is damaged.
    """
    if config.method != "detofa":
        return training_phases(config)[-1].space
    content = read_result(run, "operations")
    with reading(run / "operations.json"):
        try:
            return SearchSpace.from_json(content["space"], type(config.network.geometry))
        except UserError as error:
            raise UserError(f"{run} holds a damaged operations.json: {error}") from error


def fine_tuned(run: FilePath) -> dict:
    """Return the content of a fine-tuning's origin.json (see `finetune.finetune`); empty for any other run.

    Raises:
        UserError: origin.json is damaged.
    """
    return read_result(run, "origin", result_files.origin) if (run / "origin.json").exists() else {}


def final_weights(run: FilePath, config: configs.Config) -> FilePath:
    """Return the path of the weights file of the run's last training phase; the file need not exist."""
    if fine_tuned(run):
        return run / FINE_TUNED / "weights.h5"
    return run / slug(training_phases(config)[-1].name) / "weights.h5"


def points(result: Mapping) -> float:
    """Return the AP of an evaluated path, times 100: COCO's AP if it was measured, otherwise AP50."""
    return 100 * (result["coco"]["AP"] if "coco" in result else result["ap50"])


def metric(summary: Mapping) -> str:
    """Return the name of the metric that `points` returns."""
    return "AP (COCO)" if "coco" in summary["fullnet"] else "AP50"
