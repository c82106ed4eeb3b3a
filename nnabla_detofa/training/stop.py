"""Stop signals during a run: the first one ends it at the next safe point."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ..backend.launch import Stopped, handling
from ..backend.ranks import Communicator


class StopRequest:
    """Turns the first of the `STOP_SIGNALS` into KeyboardInterrupt.

    Whatever is kept is kept whole or not at all, so that may be at any moment; but inside `deferred`, and always where several
    ranks must stop at the same point, the first one is only noted, and honoured by `check`. A second one stops at once, but for
    SIGHUP, which may come with another from one cause.

    Attributes:
        requested: of this process. comm: ranks that stop together, whichever of them got the signal.
    """

    def __init__(self, comm: Communicator):
        self.requested, self.comm = False, comm
        self._told = False
        self._deferring = self._always = comm.n_procs > 1

    def __enter__(self) -> StopRequest:
        self._handling = handling(self._hear)
        self._handling.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._handling.__exit__(*error)

    def _hear(self, number: int, frame) -> None:
        hung_up, self.requested = number == signal.SIGHUP, True
        at_once = not self._deferring or (self._told and not hung_up)
        self._told |= not hung_up
        if at_once:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only take note of a first signal while the block lasts."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = self._always
        self.check()

    def agreed(self) -> bool:
        """Was a stop asked for, of any rank? All must ask this at the same point."""
        return any(self.comm.gather(self.requested))

    def check(self) -> None:
        """Raise Stopped if a stop was asked for, of any rank."""
        if self.agreed():
            raise Stopped

    def check_here(self) -> None:
        """Raise Stopped if a stop was asked for of this process: where others wait in `Communicator.once` for what it does."""
        if self.requested:
            raise Stopped
