"""Device time of a run, by phase and by kind of work (Table 2)."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

KINDS = ("fullnet", "training", "path evaluation", "path filter", "search's filter", "search", "reporting")
"""Kinds of work. "search's filter" is the path filter that is re-trained before the search (section 3.3), with its paths; every
method needs one. "reporting" is work that only the tables need: held-out paths, and AP on the test split."""
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
"""Kind of each phase; every other phase is training."""


@dataclass(frozen=True)
class DeviceClock:
    """Clock of the time that the devices of a run are busy.

    A GPU counts as busy all the time. A core counts as busy while a process of the run, or one that this process forked,
    computes, so runs that share a machine do not count each other's work.

    Attributes:
        on_gpu: measure GPU seconds; otherwise core seconds.
        processes: number of processes that train together, each with its own device.
        others: ids of the run's other processes on this machine; processes on other machines are assumed to be as busy.
    """

    on_gpu: bool
    processes: int = 1
    others: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        return "GPU seconds" if self.on_gpu else "core seconds"

    def __call__(self) -> float:
        """Return the seconds so far; only differences are meaningful."""
        if self.on_gpu:
            return self.processes * time.perf_counter()
        children = (child.pid for child in multiprocessing.active_children() if child.pid is not None)
        at_work = sum(map(_core_seconds, (*self.others, *children)))
        return self.processes / (1 + len(self.others)) * (at_work + sum(os.times()[:4]))


def _core_seconds(pid: int) -> float:
    """Return the core seconds of a running process; 0 if it has ended (`os.times` then counts it) or there is no /proc."""
    try:
        fields = FilePath(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kind_of(phase: str) -> str:
    """Return the kind, one of `KINDS`, of a phase."""
    return KIND_OF.get(phase, "training")


def entry(phase: str, seconds: float) -> dict:
    """Return the value of a phase in ledger.json; `seconds` are device seconds."""
    return {"kind": kind_of(phase), "seconds": round(seconds, 3)}


def totals(ledger: Mapping) -> dict[str, float]:
    """Sum the seconds of each of `KINDS` in the content of a ledger.json, in its unit.

    Kinds are derived from the names of the phases, since the kinds in the file may be older than `KIND_OF`.
    """
    phases = ledger["phases"].items()
    return {kind: sum(item["seconds"] for name, item in phases if kind_of(name) == kind) for kind in KINDS}
