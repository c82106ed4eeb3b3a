"""What a run costs: device time of each phase, by what it is for (Table 2)."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

KINDS = ("fullnet", "training", "path evaluation", "path filter", "search's filter", "search", "reporting")
"""What time is for. The search's filter is that of section 3.3, with its paths: every method needs one. Reporting is what only
the tables need: held-out paths, and AP on the test split."""
KIND_OF = {
    "fullnet": "fullnet",
    "start": "fullnet",
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

    A GPU is taken as busy all the time. A core is busy while a process of the run, or one that this process forked, computes:
    so runs that share a machine do not count each other's work.

    Attributes:
        on_gpu: which of the two.
        processes: that train together, each with a device of its own.
        others: numbers of those on this machine, without this one; those on other machines count as much as these.
    """

    on_gpu: bool
    processes: int = 1
    others: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        return "GPU seconds" if self.on_gpu else "core seconds"

    def __call__(self) -> float:
        """Seconds so far; only differences mean something."""
        if self.on_gpu:
            return self.processes * time.perf_counter()
        at_work = sum(map(_core_seconds, (*self.others, *(child.pid for child in multiprocessing.active_children()))))
        return self.processes / (1 + len(self.others)) * (at_work + sum(os.times()[:4]))


def _core_seconds(pid: int) -> float:
    """Core seconds of a process that is still at work; 0 where the system has no such file: `os.times` knows of it later."""
    try:
        fields = FilePath(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
