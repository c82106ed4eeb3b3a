"""Ordered parallel `map` over forked processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, cast

from ..backend.launch import STOP_SIGNALS
from ..common.errors import UserError

PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl that sets the signal sent to a process when its parent ends."""


def map_forked(function: Callable, items: Iterable, processes: int) -> Iterator:
    """Yield the results of `map(function, items)` in order, computed by forked processes.

    Forked processes share the weights and images of this process, without copying or pickling. If `processes` is 1,
    the results are computed in this process.

    Raises:
        UserError: a forked process was killed, for example because memory ran out.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    items = list(items)
    context, workers = multiprocessing.get_context("fork"), {}
    try:
        with _stop_signals_blocked():
            for _ in range(min(processes, len(items))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(function, items, theirs, os.getpid()), daemon=True)
                process.start()
                theirs.close()  # before the next fork, which would inherit it: only then is the process' end detected
                workers[ours] = process
        yield from _in_order(list(workers), len(items))
    finally:
        for process in workers.values():
            process.kill()
        for process in workers.values():
            process.join()


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Mask the `STOP_SIGNALS` in this thread inside the `with` block, and restore its signal mask afterwards.

    A forked process inherits the signal handlers of its parent and must not run them before `_work` has set its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_order(workers: Sequence[Connection], count: int) -> Iterator:
    """Assign item indices to idle processes, and yield the results in the order of the items."""
    waiting: deque[int] = deque(range(count))
    results: dict[int, Any] = {}
    for worker in workers:
        worker.send(waiting.popleft())
    for number in range(count):
        while number not in results:
            for worker in cast(list[Connection], connection.wait(list(workers))):
                try:
                    done, result, error = worker.recv()
                except (EOFError, ConnectionError):
                    raise UserError(
                        "a process that evaluated paths was killed, possibly because memory ran out: set "
                        "args.evaluation_processes to a smaller number"
                    ) from None
                if error is not None:
                    raise error
                results[done] = result
                if waiting:
                    worker.send(waiting.popleft())
        yield results.pop(number)


def _work(function: Callable, items: Sequence, parent_end: Connection, parent: int) -> None:
    """Apply the function to the requested items until the parent ends; runs in a forked process.

    Stop signals other than SIGTERM are ignored, because the parent handles them and ends its processes itself.
    """
    if sys.platform == "linux":  # elsewhere, the closed pipe ends this process after the current item
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent was killed before prctl
        return
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while True:
        number = parent_end.recv()
        result, failure = None, None
        try:
            result = function(items[number])
        except Exception as error:
            failure = error
        parent_end.send((number, result, failure))
