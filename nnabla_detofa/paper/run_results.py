"""Result files of runs, as the tables and figures read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..common.errors import UserError
from ..common.reading import read_json
from ..runs import result_files
from ..runs.phases import training_phases
from ..runs.provenance import code_of
from ..runs.run_folder import points, read_result
from ..tools.data_facts import data_facts
from .run import Run

FACTS = "facts.json"
"""File with the facts about a run's data, in its archive."""


def summary_of(run: Run) -> dict:
    """Return the content of a finished run's summary.json."""
    budgets = len(run.hparams.search.budgets) or run.hparams.buckets
    geometry = run.config.network.geometry
    return read_result(run.folder, "summary", lambda content: result_files.summary(content, geometry, budgets))


def ledger_of(run: Run) -> dict:
    """Return the content of a run's ledger.json."""
    return read_result(run.folder, "ledger", result_files.ledger)


def operations_of(run: Run) -> dict:
    """Return the content of operations.json of a run of Algorithm 1."""
    geometry = run.config.network.geometry
    return read_result(run.folder, "operations", lambda content: result_files.operations(content, geometry))


def subnet_points(summary: Mapping) -> np.ndarray:
    """Return the AP of the subnet found for each budget, in points, from a summary.json."""
    return np.array([points(subnet) for subnet in summary["subnets"]])


def training_images(run: Run) -> int | None:
    """Return the number of a run's training images; None if neither its archive nor the data are available."""
    if (file := run.folder / FACTS).is_file():
        return int(read_json(file, "the facts about the data")["training images"])
    try:
        return data_facts(run.config).train
    except (UserError, OSError):
        return None


def supernet_steps(run: Run) -> int | None:
    """Return the training steps of a run's supernet, without the fullnet's; None if the epoch length is unknown."""
    images = training_images(run)
    if images is None and run.hparams.steps_per_epoch is None:
        return None
    phases = [phase for phase in training_phases(run.config) if not phase.largest_only]
    return sum(len(phase.epochs) * phase.steps_per_epoch(images or 0) for phase in phases)


def runs_and_code(runs: Sequence[Run]) -> str:
    """Describe where runs are and which code computed them."""
    by_code: dict[str, list[str]] = {}
    for run in runs:
        by_code.setdefault(code_of(run.folder), []).append(f"`{run.location}` (seed {run.seed})")
    return "; ".join(f"{', '.join(folders)}, computed by {code}" for code, folders in by_code.items())
