"""Execution of missing runs as child processes, several at a time."""

from __future__ import annotations

import fcntl
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath

from ..backend.launch import can_launch, handling
from ..common.errors import UserError
from ..common.progress import ProgressBar
from ..training.mini_batch import kept_mini_batch, most_processes
from .branching import branch, branches_off
from .experiments import DETOFA
from .run import Run, profile_folder


def complete(runs: Sequence[Run], jobs: int, log: Callable[[str], None] = print, cores: int = 1) -> None:
    """Start or resume all runs that have not finished, and wait for them.

    Each seed's run of Algorithm 1 comes before its other runs, because they branch off it. Earlier seeds come first, and a free
    core takes a run of the next seed.

    Args:
        runs: the runs, as returned by `run.plan`.
        jobs: number of runs at a time.
        log: called with each message.
        cores: number of cores that all runs together may use.

    Raises:
        UserError: a run failed, or runs are missing and the profile does not start runs.
    """
    missing = [run for run in runs if not run.finished]
    if not missing:
        return
    for run in missing:
        if run.variant:
            log(f"{run.usual_folder} holds a run with another config, weights or data and is kept; the new run is {run.folder}")
    profile = missing[0].profile
    if not profile.starts_runs:
        for run in missing:
            log(f"  {run.command}")
        raise UserError(
            f"{len(missing)} of {len(runs)} runs are missing, and the profile {profile.name} does not start runs: run the "
            "commands printed above first"
        )
    for run in missing:
        _check_startable(run)
    minutes = sum(profile.minutes.get("branch" if branches_off(run) else "whole run", 0) for run in missing)
    duration = f"about {minutes:.0f} minutes on two cores" if minutes else f"duration unknown to the profile {profile.name}"
    log(f"starting {len(missing)} of {len(runs)} runs, {duration}: {', '.join(run.name for run in missing)}")
    with ProgressBar(total=len(missing), desc="runs", unit="run") as bar:
        for run in _execute(missing, runs, jobs, cores, bar.write):
            bar.update()
            bar.set_postfix_str(run.name)


def _ready(waiting: Sequence[Run], started: Iterable[Run]) -> list[Run]:
    """Return the waiting runs that can start now, in the order of `complete`."""
    trunks = {run.seed for run in (*waiting, *started) if run.experiment == DETOFA}
    ready = [run for run in waiting if run.experiment == DETOFA or run.seed not in trunks]
    return sorted(ready, key=lambda run: (run.seed, run.experiment != DETOFA))


def _check_startable(run: Run) -> None:
    """Raise UserError if a missing run cannot be started or resumed."""
    if (mini := kept_mini_batch(run.folder)) is not None:
        raise UserError(
            f"{run.folder} holds a run with mini-batches of {mini} images that its config does not set: move the folder away, "
            "or set hparams.mini_batch"
        )
    source = run.data_set.pretraining
    if run.experiment.needs_fullnet and not FilePath(source.fullnet).is_file():
        raise UserError(
            f"{run.name} needs {source.fullnet}, the weights of a classifier of which only the largest path was trained, but "
            f"the file does not exist: {source.fullnet_command}"
        )


def _execute(runs: Sequence[Run], all_runs: Sequence[Run], jobs: int, cores: int, log: Callable[[str], None]) -> Iterator[Run]:
    """Run child processes, `jobs` at a time, and yield each run that has finished.

    Args:
        runs: runs to start.
        all_runs: runs from which new ones may branch off once they have finished.
        jobs: number of runs at a time.
        cores: number of cores, shared among the simultaneous runs.
        log: called with each message.

    Raises:
        UserError: a run failed. The other runs are stopped and can be resumed.
    """
    waiting = list(runs)
    started: dict[Run, subprocess.Popen] = {}
    with _stopping_all(started) as stop:
        while waiting or started:
            while len(started) < jobs and (ready := _ready(waiting, started)):
                run = ready[0]
                waiting.remove(run)
                trunks = [trunk for trunk in all_runs if trunk.finished]
                share = max(1, cores // min(jobs, len(started) + len(ready)))
                with stop.held():  # a process missing from `started` would outlive this one
                    started[run] = _start(run, share, trunks)
                log(f"{run.name} has started; its output is in {console(run)}")
            for run, process in list(started.items()):
                if process.poll() is not None:
                    del started[run]
                    if process.returncode:
                        raise UserError(f"{run.command} failed with status {process.returncode}: {_last_line(run)}")
                    yield run
            time.sleep(0.2)


def console(run: Run) -> FilePath:
    """Return the file to which a run's output is written."""
    return profile_folder(run.profile) / f"{run.name}.txt"


def _last_line(run: Run) -> str:
    """Return the last line that a run printed, without the block between dashed lines that mpirun appends."""
    lines = re.sub(r"^-{20,}\n.*?^-{20,}$", "", console(run).read_text(errors="replace"), flags=re.DOTALL | re.MULTILINE)
    return (lines.strip() or "no output").splitlines()[-1].removeprefix("error: ")


def _start(run: Run, cores: int, trunks: Sequence[Run] = ()) -> subprocess.Popen:
    """Start or resume a run with a number of cores; a new run branches off one of `trunks` if possible."""
    file = console(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nnabla_detofa", "run", "-f", run.data_set.config, *run.arguments]
    processes = most_processes(run.config, cores, run.folder) if cores > 1 and can_launch() else 1
    command += ["--processes", str(processes)] if processes > 1 else [f"args.evaluation_processes={cores}"]
    command += ["-o", str(run.folder)]
    with open(file, "a") as output:
        try:  # the child inherits the lock with its output, and holds it even if this process is killed
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is executing {run.name}: wait until it ends, or stop it; see {file}") from None
        branch(run, trunks)
        # In a session of its own, the child does not receive the terminal's signals: `_stopping_all` stops it.
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)


@dataclass
class _Stop:
    """Stop signals of this process: the first raises KeyboardInterrupt, after the block of `held` if inside one."""

    requested: bool = False
    holding: bool = False

    def hear(self, number: int, frame: object) -> None:
        """Handle a stop signal."""
        self.requested = True
        if not self.holding:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Defer stop signals to the end of the block."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def _stopping_all(started: dict[Run, subprocess.Popen]) -> Iterator[_Stop]:
    """Stop the processes of `started` when the block ends for any reason, and wait until they have saved their state."""
    stop = _Stop()
    with handling(stop.hear):
        try:
            yield stop
        finally:
            stop.holding = True  # until every process has been signaled
            for process in started.values():
                process.send_signal(signal.SIGINT)
            stop.holding = False
            for process in started.values():
                process.wait()
