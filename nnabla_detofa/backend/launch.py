"""Several processes that do one job together ("ranks"): who launched them, how to launch them, how they end.

Importing this needs no nnabla, nor anything else that is slow; `ranks.py` has how they talk.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from ..common.errors import UserError

LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI's mpirun
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),  # MVAPICH
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI, and srun --mpi=pmi2
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),  # srun alone: a batch script has no step's number
)
"""Where a launcher says how many ranks there are, which one this is, and how many are on this machine. The first counts:
mpirun inside a Slurm job starts one daemon on each machine with srun, whose numbers its ranks see too."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""SIGHUP comes where a terminal is closed or a connection is lost; where it is ignored, as nohup has it, it stays so. SIGUSR1
is the one that Open MPI's mpirun passes on to its ranks, and that Slurm sends ahead of a time limit."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where a container (cgroup 2) says how many microseconds of cores it may use in how many, such as "200000 100000"."""
GRACE = 3.0
"""Seconds that ranks other than 0 leave it to say what went wrong, where the same went wrong on all."""


def launched(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(number of this process, how many a launcher started together); (0, 1) for one that was started alone."""
    for size, rank, _ in LAUNCHERS:
        if environ.get(size, "").isdigit():
            number = environ.get(rank, "")
            return (int(number) if number.isdigit() else 0), max(1, int(environ[size]))
    return 0, 1


def launched_here(environ: Mapping[str, str] = os.environ) -> int:
    """How many of the ranks are on this machine, as far as the launcher says so."""
    if launched(environ)[1] == 1:
        return 1
    found = (re.match(r"\d+", environ.get(here, "")) for _, _, here in LAUNCHERS)  # Slurm's are like 4(x2)
    return next((int(match[0]) for match in found if match), 1)


@contextmanager
def handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Have the `STOP_SIGNALS` go to `handler` while the block lasts.

    What is printed after SIGHUP has no terminal to go to. Python lets only the main thread set handlers: in another thread
    the signals keep the handlers that they have.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def hang_up(number: int, frame) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)
        handler(number, frame)

    handlers = dict.fromkeys(STOP_SIGNALS, handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    else:
        handlers[signal.SIGHUP] = hang_up
    before = {number: signal.signal(number, chosen) for number, chosen in handlers.items()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Stopped(KeyboardInterrupt):
    """All ranks stop, at the same point."""


def end(message: str, status: int) -> NoReturn:
    """End this rank, and by its status all of them. Others may wait for it: so without MPI's orderly end, which waits for them.

    Args:
        message: for stderr. What goes wrong on all ranks is said by rank 0, whose launcher ends the others meanwhile.
    """
    if launched()[0] > 0:
        time.sleep(GRACE)
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def cores() -> int:
    """How many cores this process may use: those of its affinity, and fewer where its container has a smaller quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # there is no such file, or it says "max"
        quota, period = QUOTA.read_text().split()
        count = min(count, int(quota) // int(period))
    return max(1, count)


def mpirun() -> str | None:
    """The launcher beside this Python, or else on the PATH; None where there is neither."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def can_launch() -> bool:
    """Whether processes on CPUs can be launched, and talk to each other."""
    return mpirun() is not None and importlib.util.find_spec("mpi4py") is not None


def launch(processes: int, command: Sequence[str]) -> int:
    """Run a command as so many ranks on this machine, and wait for their end.

    The first of the `STOP_SIGNALS` is passed on as SIGUSR1, upon which ranks save and stop: mpirun itself would kill them half
    a second after it had told them. A second one is passed on as SIGTERM.

    Returns:
        the exit status: that of the first rank that failed.

    Raises:
        UserError: there is no mpirun.
    """
    launcher = mpirun()
    if launcher is None:
        raise UserError(
            f"{processes} processes need mpirun, which is neither beside {sys.executable} nor on the PATH: "
            "run make setup, install nnabla-detofa[mpi], or start one process"
        )
    options = ["-n", str(processes)]
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
    if "Open MPI" in version or "OpenRTE" in version:
        # In a container the user is root, and a machine with few cores counts as full.
        options += ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    job, told = None, []

    def pass_on(number: int, frame) -> None:
        if job is not None:
            job.send_signal(signal.SIGTERM if told and number != signal.SIGHUP else signal.SIGUSR1)
        if number != signal.SIGHUP:  # it may come with another, from one cause
            told.append(number)

    with handling(pass_on):
        job = subprocess.Popen([launcher, *options, *command], start_new_session=True)
        status = job.wait()
    return status if status >= 0 else 128 - status
