"""Estimate of the time until a run is finished, from the time that its phases have taken so far (ours).

Work is counted in images that pass through the network. A training step passes each image forward and backward, and the
evaluation of a path passes each image forward only, so both have a rate of their own. Fitting the path filter and the search
are left out, so that the estimate is somewhat low.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..config import Config, DetofaHparams
from .phases import TrainingPhase

EVALUATION_COST = 0.1
"""Seconds of an evaluated image over those of a trained one, while only one rate is known (measured on two cores)."""


class Work(NamedTuple):
    """Images that a phase passes through the network."""

    trained: float = 0
    evaluated: float = 0


def work(config: Config, training: Sequence[TrainingPhase], images: Mapping[str, int]) -> dict[str, Work]:
    """Count the work of each phase of a run.

    Args:
        config: config of the run.
        training: training phases of the run.
        images: numbers of images of the splits "train", "val" and, for detectors, "test".

    Returns:
        Phase -> work; phases that do not pass images through the network are left out.
    """
    hparams = config.hparams
    found = {}
    for phase in training:
        steps = len(phase.epochs) * phase.steps_per_epoch(images["train"])
        found[phase.name] = Work(trained=steps * phase.batch_size * phase.paths_per_step)
    judged = min(hparams.val_images or images["val"], images["val"])
    path = min(hparams.bn_images, images["train"]) + judged
    if not isinstance(hparams, DetofaHparams):
        return found | {"paths": Work(evaluated=hparams.paths * path)}
    tested = path + images["test"]
    if "fullnet" in found:
        found["fullnet"] = Work(found["fullnet"].trained, tested)
    if config.method == "fullnet":
        return found
    paths = Work(evaluated=hparams.buckets * hparams.paths_per_bucket * path)
    found |= {"paths": paths} if config.method == "detofa" else {}
    found["paths again"] = paths
    found["held-out paths"] = Work(evaluated=hparams.buckets * hparams.heldout_paths_per_bucket * path)
    budgets = len(hparams.search.budgets) or hparams.buckets
    found["evaluation"] = Work(evaluated=budgets * tested)
    return found


def seconds_left(planned: Mapping[str, Work], seconds: Mapping[str, float], phase: str, done: float) -> float | None:
    """Estimate the seconds until a run is finished.

    Args:
        planned: the work of each phase, in their order, see `work`.
        seconds: phase -> seconds that it has taken so far.
        phase: the current phase.
        done: finished fraction of the current phase, in [0, 1].

    Returns:
        The estimate; None before any work is done.
    """
    fractions = {name: done if name == phase else 1.0 for name in seconds}
    left = {name: 1.0 - fractions.get(name, 0.0) for name in planned}
    rates: list[float | None] = []
    for kind in range(2):
        timed = [name for name in planned if name in seconds and planned[name][kind] > planned[name][1 - kind]]
        units = sum(planned[name][kind] * fractions[name] for name in timed)
        rates.append(sum(seconds[name] for name in timed) / units if units else None)
    trained, evaluated = rates
    if trained is None and evaluated is None:
        return None
    trained = evaluated / EVALUATION_COST if trained is None and evaluated is not None else trained or 0.0
    evaluated = trained * EVALUATION_COST if evaluated is None else evaluated
    return sum(left[name] * (item.trained * trained + item.evaluated * evaluated) for name, item in planned.items())


def in_words(seconds: float) -> str:
    """Format a duration, rounded as an estimate: "40 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    if seconds < 95:
        return f"{max(10, round(seconds, -1)):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(5 * round(minutes / 5), 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
