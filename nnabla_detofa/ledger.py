"""What a run costs: device time of each phase, by what it is for (Table 2)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("fullnet", "training", "path evaluation", "path filter", "search's filter", "search", "reporting")
"""What time is for. The search's filter is that of section 3.3, with its paths: every method needs one. Reporting is what only
the tables need: held-out paths, and AP on the test split."""
KIND_OF = {
    "fullnet": "fullnet",
    "paths": "path evaluation",
    "path filter": "path filter",
    "operation pruning": "path filter",
    "path thresholds": "path filter",
    "paths again": "search's filter",
    "path filter again": "search's filter",
    "held-out paths": "reporting",
    "search": "search",
    "evaluation": "reporting",
}
"""Phase -> kind; every other phase is training."""


@dataclass(frozen=True)
class DeviceClock:
    """Seconds that a device was busy with this process.

    A GPU is taken as busy all the time. A core is busy while this process, or one that it forked and has ended, computes: so
    runs that share a machine do not count each other's work.

    Attributes:
        on_gpu: which of the two.
        processes: that train together, each with a device of its own.
    """

    on_gpu: bool
    processes: int = 1

    @property
    def unit(self) -> str:
        return "GPU seconds" if self.on_gpu else "core seconds"

    def __call__(self) -> float:
        """Seconds so far; only differences mean something."""
        return self.processes * (time.perf_counter() if self.on_gpu else sum(os.times()[:4]))


def kind_of(phase: str) -> str:
    """The one of `KINDS` that a phase's time is for."""
    return KIND_OF.get(phase, "training")


def entry(phase: str, seconds: float) -> dict:
    """A phase in a run's ledger.json."""
    return {"kind": kind_of(phase), "seconds": round(seconds, 3)}


def totals(ledger: Mapping) -> dict[str, float]:
    """Seconds of each of `KINDS` in the content of a ledger.json, in its unit.

    The kinds are those of the phases' names: what a ledger calls them may be older than `KIND_OF`.
    """
    phases = ledger["phases"].items()
    return {kind: sum(item["seconds"] for name, item in phases if kind_of(name) == kind) for kind in KINDS}
