"""Branching of runs: phases that several runs have in common are trained once.

A branch starts from copies of the files that these phases wrote. Its results are the same to the last bit as without
branching, because every random number depends only on the seed and on the name of a phase.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import config as configs
from ..common.files import write_json
from ..runs import provenance, result_files
from ..runs.lock import differences
from ..runs.run_folder import read_result
from .experiments import DETOFA
from .run import Run


@dataclass(frozen=True)
class SharedPhases:
    """First phases that runs can have in common.

    Attributes:
        phases: names of the phases.
        files: files and folders of the run's folder that the phases write.
        runners: values of args.runner that begin with these phases.
        ignored: keys of the config, or its sections, that do not affect these phases.
    """

    phases: tuple[str, ...]
    files: tuple[str, ...]
    runners: tuple[str, ...]
    ignored: tuple[str, ...]


IGNORED_UP_TO_FILTER = (
    "hparams.operation_pruning",
    "hparams.path_pruning",
    "hparams.r_path",
    "hparams.paths_per_operation",
    "hparams.threshold_paths",
    "hparams.heldout_paths_per_bucket",
    "hparams.search",
    "hparams.shrinking_sort",
    "hparams.shrinking_spaces",
)
IGNORED_UP_TO_PATHS = (*IGNORED_UP_TO_FILTER, "hparams.filter", "hparams.paths_per_bucket")
FULLNET_FILES = ("fullnet", "fullnet.json", "fullnet_detections.json")
SHARED = (
    SharedPhases(
        ("fullnet",),
        FULLNET_FILES,
        ("detofa", *configs.BASELINES),
        (*IGNORED_UP_TO_PATHS, "hparams.warmup_epochs", "hparams.epochs"),
    ),
    SharedPhases(("fullnet", "warm-up"), (*FULLNET_FILES, "warm_up"), ("detofa", "ofa"), IGNORED_UP_TO_PATHS),
    SharedPhases(
        ("fullnet", "warm-up", "paths", "path filter"),
        (*FULLNET_FILES, "warm_up", "paths.jsonl", "path_filter.h5"),
        ("detofa",),
        IGNORED_UP_TO_FILTER,
    ),
)
"""All possibilities, from the fewest shared phases to the most."""


def shared_phases(one: configs.Config, other: configs.Config) -> SharedPhases | None:
    """Return the most first phases that the runs of two configs have in common, or None."""
    differing = [key for key in differences(one.to_dict(), other.to_dict()) if not configs.without_effect(key)]

    def equal(shared: SharedPhases) -> bool:
        ignored = (*shared.ignored, "args.runner")
        runners = {one.args.runner, other.args.runner} <= set(shared.runners)
        return runners and all(any(key == entry or key.startswith(entry + ".") for entry in ignored) for key in differing)

    return next((shared for shared in reversed(SHARED) if equal(shared)), None)


def branches_off(run: Run) -> bool:
    """Return whether a run has first phases in common with the run of Algorithm 1."""
    return run.experiment.name != DETOFA.name and shared_phases(run.config, replace(run, experiment=DETOFA).config) is not None


def branch(run: Run, trunks: Sequence[Run]) -> SharedPhases | None:
    """Create a run's folder with copies of the phases that it has in common with a finished run.

    Args:
        run: the new run.
        trunks: finished runs. The one with the most common phases whose files still exist is used.

    Returns:
        The common phases; None if there are none, or if the run's folder already exists.
    """
    records = ("seconds", "ledger")
    common = [
        (shared, folder)
        for trunk in trunks
        if (folder := trunk.folder_with_weights)
        and (shared := shared_phases(run.config, trunk.config))
        and all((folder / name).exists() for name in (*shared.files, *(f"{name}.json" for name in records)))
    ]
    if run.folder.exists() or not common:
        return None
    shared, folder = max(common, key=lambda pair: len(pair[0].phases))
    seconds = read_result(folder, "seconds", result_files.seconds)
    ledger = read_result(folder, "ledger", result_files.ledger)
    ledger["phases"] = {phase: entry for phase, entry in ledger["phases"].items() if phase in shared.phases}
    fresh = run.folder.with_name(run.folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in shared.files:
        source = folder / name
        if source.is_dir():
            shutil.copytree(source, fresh / name)
        else:
            shutil.copy(source, fresh / name)
    write_json(fresh / "seconds.json", {phase: seconds[phase] for phase in shared.phases if phase in seconds})
    write_json(fresh / "ledger.json", ledger)
    if (folder / provenance.FILE).exists():  # the trunk's code and weights made the shared phases
        shutil.copy(folder / provenance.FILE, fresh / provenance.FILE)
    write_json(fresh / "shared.json", {"from": str(folder), "phases": list(shared.phases)})
    write_json(fresh / "config.json", run.config.to_dict())
    os.replace(fresh, run.folder)
    return shared
