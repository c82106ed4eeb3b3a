"""`map` over forked processes, in order."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection

from ..backend.launch import STOP_SIGNALS
from ..common.errors import UserError

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent ends."""


def map_forked(function: Callable, items: Iterable, processes: int) -> Iterator:
    """`map(function, items)` over forked processes, in order; in this process where `processes` is 1.

    A forked process has the weights and the images of this one without copying or pickling them.
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
                theirs.close()  # so that its end is noticed, and before another process is forked that would keep it open
                workers[ours] = process
        yield from _in_order(workers, len(items))
    finally:
        for process in workers.values():
            process.kill()
        for process in workers.values():
            process.join()


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Block the `STOP_SIGNALS` in this thread while the block lasts; its signal mask is then what it was before.

    A forked process starts with the signal handlers of its parent: it must not run them before `_work` has set its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_order(workers: Mapping, count: int) -> Iterator:
    """Hand the numbers of items to whichever process is free, and yield the results in the order of the items."""
    waiting, results = deque(range(count)), {}
    for worker in workers:
        worker.send(waiting.popleft())
    for number in range(count):
        while number not in results:
            for worker in connection.wait(list(workers)):
                try:
                    done, result, error = worker.recv()
                except (EOFError, ConnectionError):
                    raise UserError(
                        "a process that evaluated paths was ended from outside, perhaps for want of memory: fewer "
                        "args.evaluation_processes need less"
                    ) from None
                if error is not None:
                    raise error
                results[done] = result
                if waiting:
                    worker.send(waiting.popleft())
        yield results.pop(number)


def _work(function: Callable, items: Sequence, parent_end, parent: int) -> None:
    """Runs in a forked process: apply the function to the items that are asked for, and end with the parent.

    Signals are the parent's business: it ends its processes itself.
    """
    if sys.platform == "linux":  # elsewhere the pipe's end says it, once the item at hand is done
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        return
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while True:
        number = parent_end.recv()
        try:
            answer = number, function(items[number]), None
        except Exception as error:
            answer = number, None, error
        parent_end.send(answer)
