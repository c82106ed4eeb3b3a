"""What a run's folder holds, for whatever reads it afterwards: its config, its results, its weights, its space."""

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
    """One of the JSON files of a run's folder.

    Args:
        check: one of `result_files`, of the content.

    Raises:
        UserError: the folder is not that of a finished run, or the file is damaged.
    """
    file = run / f"{name}.json"
    if not file.exists():
        raise UserError(f"{run} is not the folder of a finished run: {file.name} is missing")
    content = read_json(file, "the result")
    try:
        return check(content)
    except UserError as error:
        raise UserError(f"{file} is damaged: it does not hold what a finished run leaves ({error})") from error


@contextmanager
def reading(file: FilePath) -> Iterator[None]:
    """Turn what goes wrong with the values of a result file, while the block uses them, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{file} is damaged: it does not hold what a finished run leaves ({short(repr(error))})") from error


def number(value: Any, finite: bool = False) -> int | float:
    """A number of a result file, as it is; what is none raises an error for `reading`.

    Args:
        finite: refuse infinity and NaN, which a loss may be and a duration may not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{short(repr(value))} is not a number")
    if not abs(float(value)) < math.inf and finite:  # float: an integer of 400 digits is no number for what reads it
        raise ValueError(f"{value} is not finite")
    return value


def refuse_pretraining(run: FilePath, config: configs.Config, what: str) -> None:
    """Raise UserError if a folder holds a pre-training, which has not got what `what` needs."""
    if config.args.runner == "pretrain":
        raise UserError(f"{run} is a pre-training's folder: {what} needs a run that trains detectors")


def refuse_other_kinds(run: FilePath, config: configs.Config, what: str) -> None:
    """Raise UserError if a folder holds a pre-training or a fine-tuning, which have not got what `what` needs."""
    refuse_pretraining(run, config, what)
    if fine_tuned(run):
        raise UserError(
            f"{run} is a fine-tuning's folder, which has one detector: {what} needs a run of Algorithm 1 or of a baseline"
        )


def trained_classes(run: FilePath) -> tuple[str, ...]:
    """The classes that a run's detectors were trained for, in their order."""
    name = "before" if fine_tuned(run) else "fullnet"
    with reading(run / f"{name}.json"):
        return tuple(map(str, dict(read_result(run, name)["ap50_per_class"])))


def refuse_other_classes(run: FilePath, classes: Sequence[str]) -> None:
    """Raise UserError if a run's detectors were not trained for these classes, in this order."""
    trained = trained_classes(run)
    if trained != tuple(classes):
        raise UserError(
            f"the detectors of {run} know the classes {', '.join(trained)}, in this order; the data have {', '.join(classes)}"
        )


def run_config(run: FilePath, overrides: Sequence[str] = (), fixed: Sequence[str] = ()) -> configs.Config:
    """The config of a run's folder, which need not be finished.

    Args:
        overrides: "key=value" entries to replace, such as the place of the data.
        fixed: beginnings of keys that may not be replaced, beside those of the network.

    Raises:
        UserError: the folder is not that of a run, or an override does not fit or describes another network than the run's.
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
            raise UserError(f"{key} must be the run's: what {run} trained is made for it; leave out the override")
    return config


def run_weights(run: FilePath, config: configs.Config, named: str | None = None) -> FilePath:
    """A weights file of a run.

    Args:
        named: a file in the run's folder, such as "warm_up/weights.h5", or any other; None is the last finished phase's.

    Raises:
        UserError: there is no such file, or no training phase has finished.
    """
    if named is not None:
        found = next((file for file in (run / named, FilePath(named)) if file.is_file()), None)
        if found is None:
            raise UserError(f"--weights must be a file in {run} or elsewhere, got {named}")
        return found
    files = [run / slug(phase.name) / "weights.h5" for phase in reversed(training_phases(config))]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{run} has no weights yet: no training phase has finished")
    return found


def searched_space(run: FilePath, config: configs.Config) -> SearchSpace:
    """The space that a detection run trains last and searches: what operation pruning left of A, or a baseline's own.

    Raises:
        UserError: the run has not got so far, or its file is damaged.
    """
    if config.args.runner != "detofa":
        return training_phases(config)[-1].space
    content = read_result(run, "operations")
    with reading(run / "operations.json"):
        try:
            return SearchSpace.from_json(content["space"])
        except UserError as error:
            raise UserError(f"{run} holds a damaged operations.json: {error}") from error


def fine_tuned(run: FilePath) -> dict:
    """What a fine-tuning's folder says of where it began (see `finetune.finetune`); empty for any other run's.

    Raises:
        UserError: its origin.json is damaged.
    """
    return read_result(run, "origin", result_files.origin) if (run / "origin.json").exists() else {}


def final_weights(run: FilePath, config: configs.Config) -> FilePath:
    """The weights file that the run's last training phase leaves."""
    if fine_tuned(run):
        return run / FINE_TUNED / "weights.h5"
    return run / slug(training_phases(config)[-1].name) / "weights.h5"


def points(result: Mapping) -> float:
    """AP of an evaluated path, times 100: COCO's own where it was measured, otherwise AP50."""
    return 100 * (result["coco"]["AP"] if "coco" in result else result["ap50"])


def metric(summary: Mapping) -> str:
    """What `points` are."""
    return "AP (COCO)" if "coco" in summary["fullnet"] else "AP50"
