"""State and progress of the phases of a run, read from its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

from ..common.errors import UserError
from ..common.reading import parse_json
from ..config import Config, DetofaHparams
from ..data.sets import open_sets
from ..runs import result_files
from ..runs.phases import FINE_TUNED, TUNING_PHASES, TrainingPhase, phase_names, slug, training_phases, tuning_phase
from ..runs.run_folder import fine_tuned, read_result
from ..space.search_space import ofa_resnet50

KEPT = {
    "path filter": "path_filter.h5",
    "operation pruning": "operations.json",
    "path filter again": "path_filter_again.h5",
    "evaluation": "summary.json",
    "before": "before.json",
}
"""Phase -> the file that exists when the phase is over.

Training phases have a folder with state.json instead. A phase without a file is over when the next phase has begun.
"""


def phase_states(run: FilePath, config: Config, log: str) -> list[dict]:
    """Return the state of each phase; see "phases" of `describe`.

    Args:
        log: the content of the run's logs.
    """
    names, training = _phases(run, config)
    seconds, ledger = phase_seconds(run), (read_ledger(run) or {"phases": {}})["phases"]
    begun = {name for _, name in re.findall(r"^\[(\d+)/\d+\] (.+)$", log, re.MULTILINE)} | seconds.keys()
    reached = max((index for index, name in enumerate(names) if name in begun), default=-1)
    states = []
    for index, name in enumerate(names):
        kept = KEPT.get(name, f"{slug(name)}/state.json" if name in training else "")
        over = index < reached or (run / "summary.json").exists() or bool(kept) and (run / kept).exists()
        state = "done" if over else "under way" if index == reached else "to come"
        entry = {
            "name": name,
            "state": state,
            "seconds": seconds.get(name),
            "device_seconds": ledger.get(name, {}).get("seconds"),
        }
        if state == "under way":
            share, detail = _progress(run, config, log, name, training)
            entry |= {"share": share, "detail": detail}
        states.append(entry)
    return states


def _phases(run: FilePath, config: Config) -> tuple[tuple[str, ...], dict[str, TrainingPhase]]:
    """Return the names of all phases, and a dict from name to training phase."""
    if fine_tuned(run):
        return TUNING_PHASES, {FINE_TUNED: tuning_phase(config, ofa_resnet50(config.network.geometry))}
    training = training_phases(config)
    return phase_names(config, training), {phase.name: phase for phase in training}


def _progress(
    run: FilePath, config: Config, log: str, name: str, training: Mapping[str, TrainingPhase]
) -> tuple[float | None, str]:
    """Return the finished share of a phase, None if unknown, and a description of its progress."""
    if name in training:
        return _steps(run, config, log, training[name], tuple(training.values()))
    hparams = config.hparams
    if name in ("paths", "paths again", "held-out paths"):
        if isinstance(hparams, DetofaHparams):
            per_bucket = hparams.heldout_paths_per_bucket if name == "held-out paths" else hparams.paths_per_bucket
        else:
            per_bucket = hparams.paths // hparams.buckets
        file, total = run / f"{slug(name)}.jsonl", per_bucket * hparams.buckets
        done = max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0  # the first line is a header
        return min(1.0, done / max(1, total)), f"{done} of at most {total} paths"
    if name == "evaluation" and isinstance(hparams, DetofaHparams):
        total = len(hparams.search.budgets) or hparams.buckets
        done = sum((run / f"subnet_{number}.json").exists() for number in range(1, total + 1))
        return done / total, f"{done} of {total} subnets"
    return None, ""


def _steps(
    run: FilePath, config: Config, log: str, phase: TrainingPhase, phases: Sequence[TrainingPhase]
) -> tuple[float | None, str]:
    """Return finished share and description of a training phase, from its checkpoint and the log."""
    saved = _saved_step(run / "checkpoint" / slug(phase.name))
    logged = re.findall(
        rf"^{re.escape(phase.name)} (?:step (\d+):|(?:goes on|resumes) at step (\d+) of \d+)", log, re.MULTILINE
    )
    step = max(saved or 0, int("".join(logged[-1])[:18]) if logged else 0)
    per_epoch = _steps_per_epoch(run, config, phase, phases)
    resumes = f"; checkpoint at step {saved}" if saved else ""
    if not per_epoch:
        return None, f"step {step}{resumes}"
    first, last = phase.epochs.start * per_epoch, phase.epochs.stop * per_epoch
    return (max(step, first) - first) / max(1, last - first), f"step {max(step, first)} of {last}{resumes}"


def _steps_per_epoch(run: FilePath, config: Config, phase: TrainingPhase, phases: Sequence[TrainingPhase]) -> int | None:
    """Return the steps per epoch, from a finished phase or else from the dataset; None if neither is available."""
    for other in phases:
        if other.batch_size == phase.batch_size and other.epochs and (step := _saved_step(run / slug(other.name))):
            return step // other.epochs.stop
    try:
        return phase.steps_per_epoch(len(open_sets(config, quiet=True).train))
    except UserError:
        return None


def _saved_step(folder: FilePath) -> int | None:
    """Return the step of the state.json in a folder, or None."""
    try:
        return int(parse_json((folder / "state.json").read_text("utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def phase_seconds(run: FilePath) -> dict[str, float]:
    """Return the wall-clock seconds of each phase so far."""
    if not (run / "seconds.json").exists():
        return {}
    return read_result(run, "seconds", result_files.seconds)


def read_ledger(run: FilePath) -> dict | None:
    """Return the content of ledger.json for `cost_ledger.totals`; None if the file does not exist yet."""
    if not (run / "ledger.json").exists():
        return None
    return read_result(run, "ledger", result_files.ledger)
