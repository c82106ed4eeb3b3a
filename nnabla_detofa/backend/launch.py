"""Launching and ending of the processes ("ranks") that run one job together.

This module imports neither nnabla nor anything else that is slow to import. Communication between ranks is in `ranks.py`.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..common.errors import UserError

LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI's mpirun
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),  # MVAPICH
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI, and srun --mpi=pmi2
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),  # srun alone; a batch script has no step variables
)
"""Environment variables of each launcher: number of ranks, number of this rank, and number of ranks on this machine. The first
match is used: mpirun inside a Slurm job starts one daemon per machine with srun, and its ranks see srun's variables too."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Signals that stop a run. SIGHUP is sent when a terminal is closed or a connection is lost; if it is ignored, as under nohup,
it stays ignored. Open MPI's mpirun forwards SIGUSR1 to its ranks, and Slurm can send it ahead of a time limit."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""File with the CPU quota of a container (cgroup 2): microseconds of CPU time per period, such as "200000 100000"."""
GRACE = 3.0
"""Seconds that ranks other than 0 wait before they end, so that rank 0 reports an error that occurred on all ranks."""


def launched(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the rank of this process and the number of ranks that the launcher started; (0, 1) without a launcher."""
    for size, rank, _ in LAUNCHERS:
        if environ.get(size, "").isdigit():
            number = environ.get(rank, "")
            return (int(number) if number.isdigit() else 0), max(1, int(environ[size]))
    return 0, 1


def launched_here(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this machine, or 1 if the launcher does not set it."""
    if launched(environ)[1] == 1:
        return 1
    found = (re.match(r"\d+", environ.get(here, "")) for _, _, here in LAUNCHERS)  # Slurm writes "4(x2)"
    return next((int(match[0]) for match in found if match), 1)


class Stopped(KeyboardInterrupt):
    """Raised on all ranks at the same point when the run is stopped; an argument says what was saved just before."""


class _Terminal(io.FileIO):
    """A terminal whose output is discarded once it is closed: the run in it is stopped by SIGHUP, or continues if disowned."""

    def write(self, data: Any, /) -> int:
        """Write some of `data`, and return how many bytes; all of them if the terminal is gone."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def outlive_terminal() -> None:
    """Let this process discard what it prints after its terminal was closed, where it would get errors."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        is_terminal = isinstance(stream, io.TextIOWrapper) and stream.isatty()
        if is_terminal and not isinstance(getattr(stream.buffer, "raw", None), _Terminal):
            terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(terminal, stream.encoding, stream.errors, line_buffering=True))


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the `STOP_SIGNALS` with `handler` inside the block.

    A handler may raise KeyboardInterrupt. If the signal arrives while NNabla is calling back into Python, that surfaces as
    some other exception, so after a signal every exception that leaves the block counts as Stopped. Output to a closed terminal
    is discarded (`outlive_terminal`). Python allows only the main thread to set handlers: in another thread the signals keep
    their handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outlive_terminal()
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler(number, frame)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    before = {n: signal.signal(n, receive) for n in STOP_SIGNALS if not (ignored and n == signal.SIGHUP)}
    try:
        yield
    except Exception as error:
        if not received:
            raise
        raise Stopped from error
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end(message: str, status: int) -> NoReturn:
    """End this rank at once; the launcher then ends all ranks.

    MPI is not finalized, because that waits for the other ranks, which may be waiting for this one.

    Args:
        message: printed to stderr. If all ranks fail, rank 0 prints its message first and the launcher ends the others.
        status: exit status of this process.
    """
    if launched()[0] > 0:
        time.sleep(GRACE)
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def cores() -> int:
    """Return how many cores this process may use: the size of its CPU affinity, limited by the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # the file does not exist, or its quota is "max"
        quota, period = QUOTA.read_text().split()
        count = min(count, int(quota) // int(period))
    return max(1, count)


def mpirun() -> str | None:
    """Return the path of mpirun, beside this Python or else on the PATH; None if neither exists."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def can_launch() -> bool:
    """Return whether ranks on CPUs can be launched and communicate: mpirun and mpi4py are installed."""
    return mpirun() is not None and importlib.util.find_spec("mpi4py") is not None


def rank_environment() -> dict[str, str]:
    """Return the environment of ranks: this process's, with a HOME, without which Open MPI ends a process that imports it."""
    return {"HOME": tempfile.gettempdir(), **os.environ}


def launch(processes: int, command: Sequence[str]) -> int:
    """Run a command as several ranks on this machine, and wait until they end.

    The first of the `STOP_SIGNALS` is forwarded as SIGUSR1, upon which ranks save and stop: mpirun itself would kill them half
    a second after forwarding the signal. A second one is forwarded as SIGTERM.

    Args:
        processes: number of ranks.
        command: program and arguments of each rank.

    Returns:
        The exit status of the first rank that failed, otherwise 0.

    Raises:
        UserError: mpirun is not found.
    """
    launcher = mpirun()
    if launcher is None:
        raise UserError(
            f"{processes} processes need mpirun, which is neither beside {sys.executable} nor on the PATH: "
            "install nnabla-detofa[mpi], which make setup does, or start one process"
        )
    options = ["-n", str(processes)]
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, env=rank_environment()).stdout
    if "Open MPI" in version or "OpenRTE" in version:
        # In a container the user is root, and Open MPI regards a machine with few cores as full.
        options += ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    job: subprocess.Popen | None = None
    forwarded: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if job is not None:
            job.send_signal(signal.SIGTERM if forwarded and number != signal.SIGHUP else signal.SIGUSR1)
        if number != signal.SIGHUP:  # one event may cause SIGHUP and another signal
            forwarded.append(number)

    with handling(forward):
        job = subprocess.Popen([launcher, *options, *command], start_new_session=True, env=rank_environment())
        status = job.wait()
    return status if status >= 0 else 128 - status
