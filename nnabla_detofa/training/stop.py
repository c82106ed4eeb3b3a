"""Handling of stop signals during a run, which ends at the next safe point."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from ..backend.launch import Stopped, handling
from ..backend.ranks import Communicator


class StopRequest:
    """Context manager that converts the first of the `STOP_SIGNALS` into a KeyboardInterrupt.

    Files are written atomically, so a run can be interrupted at any moment. Inside `deferred`, and always if several ranks
    must stop at the same point, the first signal is only recorded, and `check` raises Stopped. A second signal then stops
    immediately; SIGHUP does not count, because it may be sent together with another signal for the same reason.

    Attributes:
        requested: whether this process received a stop signal.
        comm: ranks that stop together if any of them received a signal.
    """

    def __init__(self, comm: Communicator):
        self.requested, self.comm = False, comm
        self._signaled = False
        self._deferring = self._always = comm.n_procs > 1

    def __enter__(self) -> StopRequest:
        self._handling = handling(self._on_signal)
        self._handling.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handling.__exit__(kind, error, trace)

    def _on_signal(self, number: int, frame: object) -> None:
        """Record a stop signal, and raise KeyboardInterrupt unless the stop is deferred."""
        hung_up, self.requested = number == signal.SIGHUP, True
        at_once = not self._deferring or (self._signaled and not hung_up)
        self._signaled |= not hung_up
        if at_once:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record a first signal inside the `with` block, and call `check` at its end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = self._always
        self.check()

    def agreed(self) -> bool:
        """Whether any rank received a stop signal. All ranks must call this at the same point."""
        return any(self.comm.gather(self.requested))

    def check(self) -> None:
        """Raise Stopped if any rank received a stop signal. All ranks must call this at the same point."""
        if self.agreed():
            raise Stopped

    def check_here(self) -> None:
        """Raise Stopped if this process received a stop signal; for work that others await in `Communicator.once`."""
        if self.requested:
            raise Stopped
