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
from ..path_filter.metrics import Weakest
from ..runs.provenance import revision
from . import archives, claims, controls, image_errors
from .experiments import Experiment
from .filter_paths import detection_paths, study_folder, study_name
from .filter_tables import PAPER_TABLE3, RATIO, title, weakest_of
from .page import write_page
from .profiles import Profile
from .reproduce import FACTS, TARGETS, Order, evidence_of_runs, kept_fits, study, summary_of, training_images
from .run import Run, profile_folder

CLAIMS = "claims"
PAGES = {"study": FilePath("docs", "results.md")}
"""Profile -> the page of its claims, where that is not claims.md among the results."""


def make_results(
    profile: Profile, names: Sequence[str] = (), seeds: int = 3, collecting: bool = True, log: Callable[[str], None] = print
) -> list[FilePath]:
    """Collect the runs that are there, and make targets again from what is kept.

    Args:
        names: of targets, or "claims"; none is everything that can be made, and the page.
        seeds: how many are looked for: 0, 1, ...
        collecting: look for runs; otherwise only what was kept before counts.

    Returns:
        the files: Markdown of the targets and of the claims.

    Raises:
        UserError: a name is unknown, or nothing is kept.
    """
    for name in names:
        if name not in (*TARGETS, CLAIMS):
            raise UserError(f"there is no result {name}; known are {', '.join(TARGETS)} and {CLAIMS}")
    folder = profile.results / "runs"
    if collecting:
        changed = collect(profile, seeds)
        log(f"{len(changed)} archives of {folder} are new or changed: {', '.join(file.name for file in changed) or '-'}")
    kept = replace(profile, starts_runs=False, archives=folder)
    if not folder.is_dir():
        raise UserError(f"nothing is kept in {folder}, and no run of the profile {profile.name} has finished: make its runs")
    made: list[FilePath] = []
    for name, target in TARGETS.items():
        if names and name not in names:
            continue
        order = Order(kept, profile.results, seeds)
        while order.seeds and not all(run.finished for run in order.runs(target)) and target.runs != "none":
            order = replace(order, seeds=order.seeds - 1)
        if not order.seeds:
            log(f"{name} is left out: not all of its runs are kept")
            continue
        try:
            made += target.write(order, target, name, order.runs(target))
        except UserError as error:
            log(f"{name} is left out: {error}")
    if (not names or CLAIMS in names) and len(profile.data_sets) == 1:
        made += write_claims(kept, seeds)
    if not names and made:
        write_page(profile, profile.results, profile.results / "report.html")
    return made


def write_claims(kept: Profile, seeds: int) -> list[FilePath]:
    """claims.json, its pictures, and the page of the claims."""
    order = Order(kept, kept.results, seeds)
    page = PAGES.get(kept.name, kept.results / f"{CLAIMS}.md")
    made_by = f"`make claims PROFILE={shlex.quote(kept.source)} SEEDS={seeds}` at {revision()}"
    return claims.write(evidence(kept, order), kept.results, page, made_by)


def evidence(profile: Profile, order: Order) -> claims.Evidence:
    """What the claims are made of."""
    key = next(iter(profile.data_sets))

    def precisions_of(run: Run) -> dict[str, np.ndarray]:
        if not kept_fits(run, "filter_study"):
            return {}
        results = study(run, "filter_study", detection_paths(run))
        place = Weakest._fields.index("precision")
        return {title(name): weakest_of(results, name, RATIO)[:, place] for name in PAPER_TABLE3 if name in results.scores}

    def controls_of(experiment: Experiment) -> list[controls.Evidence]:
        runs = [Run(profile, key, experiment, seed, order.overrides) for seed in range(order.seeds)]
        return [item for item in evidence_of_runs([run for run in runs if run.finished]) if item.measured]

    def steps_of(run: Run) -> int | None:
        return controls.training_steps(run, training_images(run))

    return claims.Evidence(profile, key, order.overrides, summary_of, steps_of, precisions_of, controls_of)


def known_experiments(profile: Profile) -> list[Experiment]:
    """The experiments of all targets, each once."""
    once: dict[str, Experiment] = {}
    for target in TARGETS.values():
        for experiment in target.of(profile):
            once.setdefault(experiment.name, experiment)
    return list(once.values())


def collect(profile: Profile, seeds: int) -> list[FilePath]:
    """Keep the small files of the profile's finished runs, of what was measured of them, and of the filter studies.

    Returns:
        the archives that are new or changed.
    """
    changed = []
    for key in profile.data_sets:
        for experiment in known_experiments(profile):
            for seed in range(seeds):
                run = Run(profile, key, experiment, seed)
                if run.finished:
                    file = archives.archive(profile.results / "runs", run.name)
                    files = archives.run_files(run.folder) | dict(_measured(run, file))
                    changed += [file] * archives.pack(file, files)
        first = Run(profile, key, known_experiments(profile)[0], 0)
        if files := archives.study_files(study_folder(first)):
            file = archives.archive(profile.results / "runs", study_name(first))
            changed += [file] * archives.pack(file, files)
    return changed


def _measured(run: Run, file: FilePath) -> Iterator[tuple[str, FilePath]]:
    """What belongs to a run and is not in its folder; where it cannot be had now, what its archive has of the same run."""
    before = archives.unpacked(file)
    same = (before / "summary.json").is_file()
    same = same and (before / "summary.json").read_bytes() == (run.folder / "summary.json").read_bytes()
    facts = profile_folder(run.profile) / "facts" / f"{run.folder.name}.json"
    if (images := training_images(run)) is not None:
        facts.parent.mkdir(parents=True, exist_ok=True)
        write_json(facts, {"training images": images})
    errors = profile_folder(run.profile) / "bootstrap" / f"{run.folder.name}.json"
    image_errors.errors_of(run)
    for name, made in ((FACTS, facts), (image_errors.FILE, errors), (controls.FILE, controls.controls_file(run))):
        if made.is_file():
            yield name, made
        elif same and (before / name).is_file():
            yield name, before / name
