"""Choice of the path filter's options by nested validation on the pilots of the learning curves.

The fitted paths of a pilot are divided into disjoint groups. A filter with each option of a small grid is fitted to each group,
and judged on the other fitted paths (validation) and on the test paths. For each pilot, the options are chosen by the
validation on the other pilots, and reported with the test on this one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.files import whole_text, write_text
from ..config import Filter
from ..evaluation.forked import map_forked
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.rankers import GAUSSIAN, SKIP
from ..runs.provenance import revision
from . import filter_study
from .experiments import DETOFA
from .filter_curves import MEASURES, first_of_each_bucket, pilots_folder, processes, subset, title
from .filter_study import CONFIGURED, CONFIGURED_FRESH, RIDGE, SETTINGS, Setting, StudyInputs
from .filter_tables import markdown_table, option_list
from .profiles import Profile
from .run import Run, profile_folder
from .score_file import ScoreFile
from .study_paths import study_name

NAME = "filter_options"
PRETRAINED, FRESH = (next(setting for setting in SETTINGS if setting.name == name) for name in (CONFIGURED, CONFIGURED_FRESH))
CHANGES: tuple[Mapping[str, Any], ...] = (
    {"margin": "score"},
    {"pairs": "bounded"},
    {"pairs": "all"},
    {"regression": 0.0},
    {"linear_skip": False},
    {"pooling": "mean"},
    {"weight_decay": 1e-3},
    {"dropout": 0.2},
)
"""Changes of the config's options, each compared with the config's for a single member."""
MEMBERS = (1, 2, 4)
"""Numbers of members that are compared with the config's other options."""
REFERENCES = (RIDGE, SKIP, GAUSSIAN)
"""Rankings without these options."""
PARTS = ("validation", "test")


@dataclass(frozen=True)
class Candidate:
    """Options of a filter that is fitted once to each group.

    Attributes:
        options: the options.
        setting: `PRETRAINED` or `FRESH`.
        rows: name of the result -> number of the filter's first members that give it.
    """

    options: Filter
    setting: Setting
    rows: Mapping[str, int]


def candidates(given: Filter, pretraining: bool) -> list[Candidate]:
    """Return the grid around the options of a config, `given`: each changes one option.

    Args:
        given: the options.
        pretraining: whether filters are pre-trained; one candidate then is not.
    """
    start, single = PRETRAINED if pretraining else FRESH, replace(given, ensemble=1)
    members = {f"config's options, {count} member{'s' if count > 1 else ''}": count for count in MEMBERS}
    found = [Candidate(replace(given, ensemble=max(MEMBERS)), start, members)]
    for change in CHANGES:
        if (options := replace(single, **change)) != single:
            found.append(Candidate(options, start, {option_list(change): 1}))
    if pretraining:
        found.append(Candidate(single, FRESH, {"not pre-trained": 1}))
    return found


Measured = Mapping[tuple[str, int], np.ndarray]
"""Name of a row and pilot -> (groups, 2, 2) numbers: of the `PARTS` by `MEASURES`."""


def choose_and_write(profile: Profile, output: FilePath, command: str, written: Callable[[list[FilePath]], None]) -> None:
    """Compare options on the middle number of paths of the learning curves.

    Args:
        profile: the scale.
        output: folder of the files.
        command: command line that makes them.
        written: called with the files of `write` when a group is complete.

    Raises:
        UserError: the paths of the pilots are missing, or there are stored results of others.
    """
    sizes, (key,) = profile.filter_study.pilot_paths, profile.chosen(("voc",))
    given, per_bucket = pilots(profile), sizes[len(sizes) // 2]

    def on_group(found: Measured) -> None:
        written(write(found, given, per_bucket, output, command))

    choose(given, per_bucket, pilots_folder(profile, key), on_group=on_group)


# --- Fits -------------------------------------------------------------------------------------------------------------


def pilots(profile: Profile) -> dict[int, StudyInputs]:
    """Return all paths of the pilots by their seeds; nothing is trained or evaluated.

    Raises:
        UserError: the paths are missing.
    """
    ((key, data_set),) = profile.chosen(("voc",)).items()
    first, found = Run(profile, key, DETOFA, 0), {}
    before, options = profile_folder(profile) / study_name(first) / "pretraining.jsonl", first.hparams.filter
    geometry = first.config.network.geometry
    pretraining = EvaluatedPaths.read(data_set.pretraining.paths or before, geometry) if options.weights else None
    for seed in profile.filter_study.pilots:
        folder = pilots_folder(profile, key) / f"{seed}"
        train, test = (EvaluatedPaths.read(folder / f"{name}.jsonl", geometry) for name in ("fit", "test"))
        found[seed] = StudyInputs(data_set.title, train, test, options, pretraining, first.hparams.buckets)
    return found


def choose(
    given: Mapping[int, StudyInputs],
    per_bucket: int,
    folder: FilePath,
    log: Callable[[str], None] = print,
    on_group: Callable[[Measured], None] = lambda found: None,
) -> Measured:
    """Fit every candidate to every group of every pilot's paths; stored results are reused.

    Args:
        given: all paths of each pilot, whose `train` is divided into groups.
        per_bucket: number of paths of each FLOPs bucket in a group.
        folder: folder of the pilots, where a folder with scores.jsonl is added for each.
        log: called with a line of text for each fit.
        on_group: called with the results so far when a group of all pilots is complete.

    Raises:
        UserError: there are stored results of other paths or options, or too few pilots or paths.
    """
    if len(given) < 2:
        raise UserError(f"options are chosen on all pilots but one, which needs two or more pilots, got {len(given)}")
    grid = candidates(next(iter(given.values())).options, all(inputs.pretraining for inputs in given.values()))
    parts: dict[str, dict] = {name: {} for name in REFERENCES}
    parts |= {name: _parts(item, count) for item in grid for name, count in item.rows.items()}
    groups = group_count(given, per_bucket)
    if not groups:
        raise UserError(
            f"the options are compared on groups of {per_bucket} paths of each FLOPs bucket, which the pilots do not have yet: "
            "first run detofa paper filter-study to its end"
        )
    stores = {seed: _store(folder / f"{seed}_options", inputs, per_bucket, parts) for seed, inputs in given.items()}

    def work(job: tuple[int, int, Candidate | None]) -> dict[str, list[float]]:
        seed, group, item = job
        inputs, checked = _of_group(given[seed], per_bucket, group)
        return {name: _measures(scores, inputs.test, checked) for name, scores in _scores(inputs, item, folder / NAME).items()}

    found: dict[tuple[str, int], np.ndarray] = {}
    for group in range(groups):
        jobs = [
            (seed, group, item)
            for seed, store in stores.items()
            for item in (None, *grid)
            if any((name, group) not in store.known for name in (item.rows if item else REFERENCES))
        ]
        for (seed, *_), rows in zip(jobs, map_forked(work, jobs, min(processes(), len(jobs)))):
            for name, values in rows.items():
                stores[seed].append(name, group, parts[name], np.array(values))
            log(f"group {group + 1} of {groups}, pilot {seed}: {', '.join(rows)}")
        for seed, store in stores.items():
            for name in parts:
                values = [store.known[name, number].reshape(len(PARTS), -1) for number in range(group + 1)]
                found[name, seed] = np.stack(values)
        on_group(found)
    return found


def group_count(given: Mapping[int, StudyInputs], per_bucket: int) -> int:
    """Return how many disjoint groups the paths of every pilot give."""
    counts = (np.bincount(inputs.train.buckets, minlength=inputs.buckets) for inputs in given.values())
    return min(int(count.min()) // per_bucket for count in counts)


def _parts(item: Candidate, count: int) -> dict:
    """Return what tells a row from others, as JSON values."""
    inputs = {name: getattr(item.options, name) for change in CHANGES for name in change}
    return {"setting": item.setting.name, "members": count, **inputs}


def _store(folder: FilePath, inputs: StudyInputs, per_bucket: int, parts: Mapping[str, Mapping]) -> ScoreFile:
    """Open the file of a pilot's results; its "scores" are the measures, and its "seed" is the group."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(PARTS) * len(MEASURES)
    return ScoreFile(folder / "scores.jsonl", inputs.fingerprint | {"group": per_bucket}, parts, count)


def _of_group(inputs: StudyInputs, per_bucket: int, group: int) -> tuple[StudyInputs, int]:
    """Return inputs that fit to a group and score the other fitted paths and then the test paths; the number of the former."""
    before, until = (first_of_each_bucket(inputs.train, per_bucket * number) for number in (group, group + 1))
    train = subset(inputs.train, [item for item in until.items if item.path not in before])
    others = [item for item in inputs.train.items if item.path not in train]
    return replace(inputs, train=train, test=subset(inputs.test, [*others, *inputs.test.items])), len(others)


def _scores(inputs: StudyInputs, item: Candidate | None, folder: FilePath) -> dict[str, np.ndarray]:
    """Return the (n,) scores of a candidate's rows, or without one of the references."""
    if item is None:
        return {name: scores for name, scores in filter_study.baselines(inputs, 0).items() if name in REFERENCES}
    path_filter, _ = filter_study.fitted(replace(inputs, options=item.options), item.setting, 0, folder.parent)
    batch, buckets, skip = inputs.test.batch, inputs.test.buckets, item.options.linear_skip
    return {name: path_filter.extended(count, skip).score(batch, buckets) for name, count in item.rows.items()}


def _measures(scores: np.ndarray, judged: EvaluatedPaths, checked: int) -> list[float]:
    """Return each measure of the first `checked` paths, which are for validation, and then of the others."""
    parts, losses, buckets = (slice(checked), slice(checked, None)), judged.losses, judged.buckets
    return [measure(scores[rows], losses[rows], buckets[rows]) for rows in parts for measure in MEASURES.values()]


# --- Choice -----------------------------------------------------------------------------------------------------------


def chosen(found: Measured, names: Sequence[str], pilot: int, measure: int) -> str:
    """Return the name of the row with the best mean validation on all pilots but one."""
    others = sorted({seed for _, seed in found if seed != pilot})
    return max(names, key=lambda name: np.mean([found[name, seed][:, 0, measure] for seed in others]))


def write(found: Measured, given: Mapping[int, StudyInputs], per_bucket: int, output: FilePath, command: str) -> list[FilePath]:
    """Write filter_options.md and .csv.

    Args:
        found: results of `choose`.
        given, per_bucket: its arguments.
        output: folder of the files.
        command: command line that makes them.

    Returns:
        The files.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"{NAME}.{kind}" for kind in ("md", "csv")]
    write_text(files[0], "\n".join(markdown(found, given, per_bucket, command)))
    with whole_text(files[1]) as opened:
        table = csv.writer(opened)
        table.writerow(("measure", "ranking", "pilot", "group", *PARTS))
        for (name, seed), values in found.items():
            for group, of_group in enumerate(values, 1):
                for text, row in zip(MEASURES, of_group.T):
                    table.writerow((text, title(name), seed, group, *(f"{value:.6g}" for value in row)))
    return files


def markdown(found: Measured, given: Mapping[int, StudyInputs], per_bucket: int, command: str) -> list[str]:
    """Return the lines of filter_options.md; for the arguments see `write`."""
    inputs, seeds = next(iter(given.values())), list(given)
    names = list(dict.fromkeys(name for name, _ in found))
    several = [name for item in candidates(inputs.options, inputs.pretraining is not None)[:1] for name in item.rows]
    base, single = several[0], [name for name in names if name not in (*REFERENCES, *several[1:])]
    groups, size = len(found[base, seeds[0]]), inputs.buckets * per_bucket
    lines = [f"# Options of the path filter by nested validation, {inputs.label}", ""]
    for number, text in enumerate(MEASURES):
        places = [f"{part}, pilot {seed}" for part in PARTS for seed in seeds]
        rows = []
        for name in names:
            means = np.array([found[name, seed].mean(axis=0)[:, number] for seed in seeds]).T
            gains = np.concatenate([(found[name, seed] - found[base, seed])[:, 1, number] for seed in seeds])
            gain = "" if name == base else f"{gains.mean():+.3f} ({np.sum(gains > 0)} of {len(gains)} above 0)"
            rows.append((title(name), *(f"{value:.3f}" for value in (*means.ravel(), means[1].mean())), gain))
        lines += [
            f"{text[0].upper()}{text[1:]}:",
            "",
            *markdown_table(("ranking", *places, "test, mean", f"minus {base}"), rows),
            "",
        ]
    for number, text in enumerate(MEASURES):
        lines += [f"Chosen by {text} of the validation on the other pilots; test: {' / '.join(MEASURES)}:", ""]
        lines += [*_choices(found, seeds, number, {"option": single, "members": several}), ""]
    return [
        *lines,
        f"- Pilots: seeds {', '.join(map(str, seeds))}. Filters are fitted to {groups} of {group_count(given, per_bucket)} "
        f"disjoint groups of {size} evaluated paths of each. Validation: the other {len(inputs.train) - size} paths to fit to; "
        f"test: the {len(inputs.test)} test paths. All numbers are means over the groups, inside the FLOPs buckets.",
        "- Options are compared for a single member, each as one change of the config's; then the number of members with the "
        "config's options. Changes of several options at once are not compared. Filters are pre-trained with the same options.",
        f"- The config's options: {option_list(inputs.fingerprint['options'])}.",
        f"- Made by `{command}` at {revision()}.",
        "",
    ]


def _choices(found: Measured, seeds: Sequence[int], measure: int, pools: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a Markdown table: the best row of each pool for each pilot, and what it reaches there, beside ridge.

    Args:
        found: see `write`.
        seeds: the pilots.
        measure: index of the measure by which rows are chosen.
        pools: names of rows by a description; the first and the last of a pool are the config's.
    """

    def test(name: str, seed: int) -> np.ndarray:
        return found[name, seed][:, 1].mean(axis=0)

    columns, rows, tests = ["held-out pilot"], [[str(seed)] for seed in seeds], []
    for text, pool in pools.items():
        picked = [chosen(found, pool, seed, measure) for seed in seeds]
        columns += [f"chosen {text}", "its test"]
        tests.append([test(name, seed) for name, seed in zip(picked, seeds)])
        for row, name, values in zip(rows, picked, tests[-1]):
            row += [name, _pair(values)]
    for name in (pools["option"][0], pools["members"][-1], RIDGE):
        columns.append(title(name))
        tests.append([test(name, seed) for seed in seeds])
        for row, values in zip(rows, tests[-1]):
            row.append(_pair(values))
    means = [_pair(np.mean(values, axis=0)) for values in tests]
    rows.append(["mean", "", means[0], "", means[1], *means[2:]])
    return markdown_table(columns, rows)


def _pair(values: np.ndarray) -> str:
    return " / ".join(f"{value:.3f}" for value in values)
