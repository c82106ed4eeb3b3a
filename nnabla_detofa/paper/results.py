"""Tables, figures, claims and the HTML page of a profile, made from the archived files of its runs alone.

The small files of existing runs are first packed into archives (`archives`), which belong to the repository. The results are
then made from the archives, so the runs, the data and the weights need not exist on this machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np

from ..common.errors import UserError
from ..common.files import write_json
from ..common.reading import read_json
from ..runs.provenance import revision
from . import archives, claims_page, control_paths, standard_errors, table3
from .claims import Evidence
from .control_paths import RunResults, results_of
from .experiments import DETOFA, Experiment
from .filter_scores import PRECISION, RATIO, title, weakest_of
from .filter_study import PRUNED_BY
from .page import write_page
from .profiles import Profile
from .reproduce import TARGETS
from .run import Run, profile_folder
from .run_results import FACTS, training_images
from .study_paths import study_folder, study_name
from .target import Request

CLAIMS = "claims"
PAGES = {"study": FilePath("docs", "results", "claims.md")}
"""Profile -> page of its claims, if it is not claims.md among the results."""


def make_results(
    profile: Profile, names: Sequence[str] = (), seeds: int = 3, collecting: bool = True, log: Callable[[str], None] = print
) -> list[FilePath]:
    """Archive the existing runs, and make targets from the archives.

    Args:
        profile: the scale.
        names: names of targets, or "claims"; empty: everything that can be made, and the HTML page.
        seeds: number of seeds to look for: 0, 1, ...
        collecting: archive existing runs; otherwise only existing archives are used.
        log: called with each message.

    Returns:
        The Markdown files of the targets and of the claims, and the page.

    Raises:
        UserError: a name is unknown, a named target cannot be made, or there are no archives.
    """
    for name in names:
        if name not in (*TARGETS, CLAIMS):
            raise UserError(f"unknown result {name}; known are {', '.join(TARGETS)} and {CLAIMS}")
    if CLAIMS in names and len(profile.data_sets) != 1:
        raise UserError(f"claims need a profile with one data set; {profile.name} has {len(profile.data_sets)}")
    folder = profile.results / "runs"
    if collecting:
        changed = collect(profile, seeds, log)
        log(f"{len(changed)} new or changed archives in {folder}: {', '.join(file.name for file in changed) or '-'}")
    if not folder.is_dir():
        raise UserError(
            f"there are no archives in {folder}, and no run of the profile {profile.name} has finished: start its runs, for "
            f"example with detofa paper figure5 --profile {shlex.quote(profile.source)}"
        )
    archived = replace(profile, starts_runs=False, archives=folder)
    made: list[FilePath] = []
    for name in TARGETS:
        if not names or name in names:
            try:
                made += _make_target(name, Request(archived, profile.results, seeds))
            except UserError as error:
                if names:
                    raise UserError(f"{name} cannot be made: {error}") from error
                log(f"skipping {name}: {error}")
    if (not names or CLAIMS in names) and len(profile.data_sets) == 1:
        made += write_claims(archived, seeds)
    if not names and made:
        made.append(profile.results / "report.html")
        write_page(profile, profile.results, made[-1])
    return made


def _make_target(name: str, request: Request) -> list[FilePath]:
    """Make a target with as many seeds as have archived runs, and return its Markdown files.

    Raises:
        UserError: an archive or one of its files is missing, or it is damaged.
    """
    target = TARGETS[name]
    while request.seeds and not all(run.finished for run in request.runs(target)) and target.runs != "none":
        request = replace(request, seeds=request.seeds - 1)
    if not request.seeds:
        lacking = next(run for run in replace(request, seeds=1).runs(target) if not run.finished)
        file = archives.archive(request.profile.results / "runs", lacking.name)
        if file.is_file():
            again = replace(lacking, profile=replace(lacking.profile, starts_runs=True, archives=None)).command
            raise UserError(
                f"{file} has no finished run of the present config: restore that config, or repeat the run with {again}"
            )
        raise UserError(f"there is no archive file {file} of its run")
    return target.write(request, target, request.runs(target))


def write_claims(archived: Profile, seeds: int) -> list[FilePath]:
    """Write claims.json, its pictures, and the page of the claims.

    Args:
        archived: a profile with archives.
        seeds: number of seeds of the controls.
    """
    page = PAGES.get(archived.name, archived.results / f"{CLAIMS}.md")
    origin = f"`make claims PROFILE={shlex.quote(archived.source)} SEEDS={seeds}` at {revision()}"
    return claims_page.write(evidence(archived, seeds), archived.results, page, origin)


def evidence(archived: Profile, seeds: int) -> Evidence:
    """Return the results on which the claims are judged; for the arguments see `write_claims`."""
    key = next(iter(archived.data_sets))

    def precisions_of(run: Run) -> dict[str, np.ndarray]:
        found = table3.studies_of([run])
        names = (*(row.name for row in table3.ROWS), PRUNED_BY)
        return {
            title(name): weakest_of(results, name, RATIO)[:, PRECISION]
            for results in found.values()
            for name in names
            if name in results.scores
        }

    def controls_of(experiment: Experiment) -> list[RunResults]:
        runs = [Run(archived, key, experiment, seed) for seed in range(seeds)]
        return [item for item in results_of([run for run in runs if run.finished]) if item.measured]

    return Evidence(archived, key, precisions_of, controls_of)


def known_experiments(profile: Profile) -> list[Experiment]:
    """Return the experiments of all targets, each once."""
    once: dict[str, Experiment] = {}
    for target in TARGETS.values():
        for experiment in target.of(profile):
            once.setdefault(experiment.name, experiment)
    return list(once.values())


def collect(profile: Profile, seeds: int, log: Callable[[str], None] = print) -> list[FilePath]:
    """Archive the small files of the profile's finished runs, what was measured of them, and the filter studies.

    A run that was repeated with the same config and results keeps the files of its archive, so the times of a method's seeds
    stay those of the machine that first ran them. A filter study replaces an archived one only if it lacks nothing.

    Returns:
        The archives that are new or have changed.
    """
    changed, folder = [], profile.results / "runs"
    for key in profile.data_sets:
        for experiment in known_experiments(profile):
            for seed in range(seeds):
                run = Run(profile, key, experiment, seed)
                if run.finished:
                    file = archives.archive(folder, run.name)
                    before = archives.unpacked(file)
                    kept = before if run.is_equal(before) and _results(before) == _results(run.folder) else run.folder
                    changed += [file] * archives.pack(file, archives.run_files(kept) | dict(_measured(run, before)))
        for studied in (Run(profile, key, DETOFA, seed) for seed in range(seeds)):
            file, files = archives.archive(folder, study_name(studied)), archives.study_files(study_folder(studied))
            if archives.as_complete(files, archives.study_files(archives.unpacked(file))):
                changed += [file] * archives.pack(file, files)
            elif files:
                log(f"{file} is kept, because the filter study in {study_folder(studied)} is less complete")
    return changed


def _results(folder: FilePath) -> dict | None:
    """Return what a run found, without times; None if the folder has no finished run."""
    file = folder / "summary.json"
    if not file.is_file():
        return None
    return {key: value for key, value in read_json(file, "the summary").items() if key != "seconds"}


def _measured(run: Run, before: FilePath) -> Iterator[tuple[str, FilePath]]:
    """Yield files that belong to a run but are not in its folder.

    What is not measured yet, or only in part, is taken from the files of the run's archive, `before`, if that is of the same
    run.
    """
    facts = profile_folder(run.profile) / "facts" / f"{run.folder.name}.json"
    if (images := training_images(run)) is not None:
        facts.parent.mkdir(parents=True, exist_ok=True)
        write_json(facts, {"training images": images})
    standard_errors.standard_errors_of(run)
    same = _results(before) == _results(run.folder)
    for name, made in (
        (FACTS, facts),
        (standard_errors.FILE, standard_errors.stored_file(run)),
        (control_paths.FILE, control_paths.stored_file(run)),
    ):
        found = [made] if made.is_file() and run.is_older_than(made) else []
        found += [before / name] if same and (before / name).is_file() else []
        if found:
            yield name, max(found, key=lambda file: len(read_json(file, "what was measured of a run")))
