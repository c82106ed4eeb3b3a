"""JSON files of a running run: stored results, and the time that each phase took."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

from ..backend.ranks import Communicator
from ..common.errors import UserError
from ..common.files import write_json
from ..common.reading import parse_json
from ..runs import result_files
from ..runs.cost_ledger import DeviceClock, entry

RECORD_EVERY = 10.0
"""Seconds between updates of the cost records outside training; a killed run loses at most the cost of this interval."""


class ResultFiles:
    """JSON files in the folder of a run, written by rank 0 and read by all ranks.

    Attributes:
        folder: folder of the run.
        comm: ranks of the run.
    """

    def __init__(self, folder: FilePath, comm: Communicator):
        self.folder, self.comm = folder, comm

    def write(self, name: str, content: Any) -> None:
        """Write content to <name>.json; only rank 0 writes."""
        if self.comm.rank == 0:
            write_json(self.folder / f"{name}.json", content)

    def read(
        self,
        name: str,
        default: Any = None,
        check: Callable[[Any], Any] = lambda content: content,
        remedy: str = "compute it again",
    ) -> Any:
        """Read the content of <name>.json. All ranks must call this.

        Args:
            name: name of the file without its suffix.
            default: value to return if there is no file.
            check: validates the content, one of the functions of `result_files`.
            remedy: effect of removing the file, for the error message.

        Raises:
            UserError: the file is damaged.
        """
        file = self.folder / f"{name}.json"

        def read() -> Any:
            try:
                return check(parse_json(file.read_text("utf-8"))) if file.exists() else default
            except ValueError as error:
                raise UserError(f"{file} is damaged ({error}): remove it to {remedy}") from error

        return self.comm.once(read)


class PhaseCosts:
    """Cost of each phase of a run, summed over all starts of the run, in seconds.json and ledger.json.

    Args:
        files: files of the run, from which the costs so far are read.
        clock: clock of the devices.
        log: called with a message if the ledger has another unit than the clock and is therefore discarded.

    Attributes:
        phase: name of the phase that is being measured.
        seconds: phase -> seconds of wall time.
        ledger: content of ledger.json, see `cost_ledger`.
    """

    def __init__(self, files: ResultFiles, clock: DeviceClock, log: Callable[[str], None]):
        self._files, self._clock = files, clock
        remedy = "restart the measurement of costs"
        self.seconds: dict[str, float] = files.read("seconds", {}, result_files.seconds, remedy)
        empty = {"unit": clock.unit, "phases": {}}
        self.ledger: dict[str, Any] = files.read("ledger", empty, result_files.ledger, remedy)
        if self.ledger["unit"] != clock.unit:
            log(f"ledger.json counts {self.ledger['unit']} and this device {clock.unit}; it is started over")
            self.ledger = empty
        self.start("")

    def start(self, phase: str) -> None:
        """Start to measure a phase."""
        self.phase, self._wall, self._device = phase, time.perf_counter(), self._clock()

    def record(self) -> None:
        """Add the cost of the phase since its start or the last record to both files."""
        wall, device = self._wall, self._device
        self.start(self.phase)
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + self._wall - wall
        self._files.write("seconds", self.seconds)
        spent = self.ledger["phases"].get(self.phase, {"seconds": 0.0})["seconds"]
        self.ledger["phases"][self.phase] = entry(self.phase, spent + self._device - device)
        self._files.write("ledger", self.ledger)

    def seconds_so_far(self) -> dict[str, float]:
        """Return `seconds` including the current phase up to now."""
        return self.seconds | {self.phase: self.seconds.get(self.phase, 0.0) + time.perf_counter() - self._wall}

    def record_if_due(self) -> None:
        """Record the cost if the last record is more than `RECORD_EVERY` seconds old."""
        if time.perf_counter() - self._wall > RECORD_EVERY:
            self.record()
