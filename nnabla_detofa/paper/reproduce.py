"""Making of the paper's tables and figures, each from the runs that it needs, with the paper's numbers beside the results.

Every target writes <target>.md, .csv and .png to the output folder. Most are made from result files alone; some evaluate paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path as FilePath

from ..common.errors import UserError
from . import (
    architectures,
    controls,
    figure3,
    figure4,
    figure5,
    figure6,
    figure7,
    figure8,
    figure9,
    figure10,
    figure_a1,
    figure_a2,
    table2,
    table3,
    table_a1,
    table_a2,
    table_a3,
)
from .execution import complete
from .run import Run
from .target import Request

TARGETS = {
    target.name: target
    for target in (
        table2.TARGET,
        table3.TARGET,
        table_a1.TARGET,
        table_a2.TARGET,
        table_a3.TARGET,
        figure3.TARGET,
        figure4.TARGET,
        figure5.TARGET,
        figure6.TARGET,
        figure7.TARGET,
        figure8.TARGET,
        figure9.TARGET,
        figure10.TARGET,
        figure_a1.TARGET,
        figure_a2.TARGET,
        controls.TARGET,
        architectures.TARGET,
    )
}
"""Targets by name. Table 1 needs no profile and has a command of its own, and Figures 1 and 2 are drawings."""


def reproduce(names: Sequence[str], request: Request, log: Callable[[str], None] = print) -> list[FilePath]:
    """Make targets, after the runs that they need.

    If the profile does not start runs, or if a run fails, the targets whose runs exist are made before the error is raised.

    Args:
        names: names of the targets.
        request: profile, output folder, seeds and resources.
        log: called with each message.

    Returns:
        The Markdown files.

    Raises:
        UserError: a target is unknown, or an input is missing, or a run failed.
    """
    for name in names:
        if name not in TARGETS:
            raise UserError(f"unknown table or figure {name}; known are {', '.join(TARGETS)}, and make table1")
    starts, runs = request.profile.starts_runs, {name: request.runs(TARGETS[name]) for name in names}

    def announce(files: Sequence[FilePath]) -> None:
        for file in files:
            log(f"written: {file}")

    waiting = [name for name in names if _waits(name, request, runs[name])]
    if not starts and waiting:
        announce(_make([name for name in names if name not in waiting], request, runs, log))
    _check_needs(names, waiting, request)
    if starts:
        request.output.mkdir(parents=True, exist_ok=True)  # an error should precede hours of runs
    once = {run.name: run for name in waiting for run in runs[name]}
    try:
        complete(list(once.values()), request.jobs, log, request.cores)
    except UserError as error:
        if starts and (possible := [name for name in names if not _waits(name, request, runs[name])]):
            log(f"{error}; making the targets that do not need it: {', '.join(possible)}")
            with suppress(UserError):  # the first error is the one to report
                announce(_make(possible, request, runs, log))
        raise
    return _make(names, request, runs, log)


def _waits(name: str, request: Request, runs: Sequence[Run]) -> bool:
    """Return whether a target has to wait for some of its runs."""
    needed = TARGETS[name].runs == "needed" or (request.profile.starts_runs and TARGETS[name].runs == "optional")
    return needed and not all(run.finished for run in runs)


def _check_needs(names: Sequence[str], waiting: Sequence[str], request: Request) -> None:
    """Raise UserError if a file is missing that targets, or the runs for which they wait, need."""
    profile = request.profile
    for key, data_set in profile.data_sets.items():
        if unknown := [name for need in data_set.needs for name in need.targets if name not in TARGETS]:
            raise UserError(
                f"targets in data_sets.{key}.needs of a profile must be among {', '.join(TARGETS)}, got {unknown[0]}"
            )
        concerned = [name for name in names if key in profile.chosen(TARGETS[name].keys)]
        if needing := [name for name in concerned if name in waiting or TARGETS[name].evaluates]:
            profile.check(data_set, request.overrides, needing)


def _make(names: Sequence[str], request: Request, runs: dict[str, list[Run]], log: Callable[[str], None]) -> list[FilePath]:
    """Write targets whose runs exist, and return their Markdown files."""
    made = []
    if names:
        request.output.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = TARGETS[name]
        log(f"{name} ({request.profile.name}): {target.title}")
        made += target.write(request, target, runs[name])
    return made
