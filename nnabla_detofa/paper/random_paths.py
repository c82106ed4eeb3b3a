"""Random paths of a run's final supernet with their AP, which Figures 4 and 6 show."""

from __future__ import annotations

from ..common.errors import UserError
from ..common.progress import ProgressBar
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..runs.run_folder import final_weights, searched_space
from .run import Run
from .run_results import ledger_of
from .study_paths import evaluated, study_folder

RANDOM_PATHS = 15
"""Random paths of each FLOPs bucket. In the paper, the caption of Figure 6 and section 4.2 differ on whether the number is that
of one bucket or of all five."""


def random_paths(run: Run) -> EvaluatedPaths:
    """Evaluate random paths of a run's final supernet, sampled from the space that it trained; stored paths are reused.

    Raises:
        UserError: the run is an archive, and the archives do not have random paths of its supernet.
    """
    weights, space = final_weights(run.folder, run.config), searched_space(run.folder, run.config)
    name = f"random_{run.experiment.name}"
    stored = (study_folder(run) / f"{name}.jsonl").exists()
    if run.archive and not stored:
        raise UserError(f"the archives of {run.profile.name} do not have the random paths of {run.name}")
    if not stored:
        ProgressBar.write(f"{run.name}: evaluating up to {RANDOM_PATHS * run.hparams.buckets} random paths, {_duration(run)}")
    found = evaluated(run, run.config, weights, name, RANDOM_PATHS, [], space, ap=True)
    own = run.folder / "paths_again.jsonl"
    if run.archive and own.is_file() and found.header["weights"] != EvaluatedPaths.read(own, found.geometry).header["weights"]:
        raise UserError(f"the random paths of {run.name} in the archives of {run.profile.name} are of another supernet")
    return found


def _duration(run: Run) -> str:
    """Describe how long the evaluation will take, judging by the paths that the run itself has evaluated."""
    ledger, before = ledger_of(run), EvaluatedPaths.read(run.folder / "paths_again.jsonl", run.config.network.geometry)
    if not len(before) or "paths again" not in ledger["phases"]:
        return "duration unknown to its ledger"
    each = ledger["phases"]["paths again"]["seconds"] / len(before)
    return f"about {RANDOM_PATHS * run.hparams.buckets * each / 60:.1f} {ledger['unit'].replace('seconds', 'minutes')}"
