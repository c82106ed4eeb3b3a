"""Checkpoints of a training phase: written whole or not at all, checked when they are read."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from ..backend.compat import Mo, Optimizer
from ..common.checked import kind_of
from ..common.errors import UserError
from ..common.files import digest, new_hdf5, sync_folder, write_json
from ..common.reading import parse_json
from ..networks import weights

logger = logging.getLogger(__name__)
STATE = "state.json"


@dataclass
class Checkpoint:
    """A folder that holds the last complete state of a phase, and <folder>.old beside it, which holds the one before.

    Each has the weights with their batch-normalisation statistics, the optimiser's moments and, as JSON, what else is needed
    to go on. It is written beside and then renamed, so that a stop at any moment leaves the state before or the state after,
    and it knows the hashes of its files, so that damage is noticed. Loading reads numbers and JSON; it runs no code.

    Attributes:
        folder: of the last state.
        log: hears where the last state is damaged and the one before it is taken.
    """

    folder: FilePath
    log: Callable[[str], None] = logger.warning
    damaged: bool = field(default=False, init=False)  # what `load` found of the last state

    def save(self, net: Mo.Module, optimizer: Optimizer, state: dict) -> None:
        """Keep the weights, the optimiser's moments and `state` (JSON).

        Raises:
            OSError: it cannot be written; what was there is still there.
        """
        fresh, old = self._beside("new"), self._beside("old")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            weights.save(net, fresh / "weights.h5")
            write_moments(fresh / "optim_train.h5", optimizer)
            digests = {file.name: digest(file.read_bytes()) for file in sorted(fresh.iterdir())}
            state = {**state, "optimizer": {"current_iter": optimizer._iter}, "digests": digests}
            write_json(fresh / STATE, state | {"digest": _digest(state)})
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)  # a full disk needs the room
            raise
        if self.damaged:  # then the one before it is the good one
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(self.folder, old)
        os.replace(fresh, self.folder)
        sync_folder(self.folder.parent)
        self.damaged = False

    def load(self, net: Mo.Module, optimizer: Optimizer, restore: Callable[[dict], None] = lambda state: None) -> dict | None:
        """Bring weights and optimiser back and return the state; None where there is no checkpoint.

        Args:
            restore: brings back what else the state holds; where it raises, the state is damaged too.

        Raises:
            UserError: there is one and none is whole.
        """
        problems: list[str] = []
        places = [place for place in (self.folder, self._beside("old")) if place.exists()]
        for place in places:
            try:
                state = _checked_state(place)
                weights.load(net, place / "weights.h5")
                optimizer.load_checkpoint({**state.pop("optimizer"), "states_path": str(place / "optim_train.h5")})
                restore(state)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
                problems.append(f"the checkpoint {place} cannot be read ({_said(error)})")
                continue
            if problems:
                self.damaged = True
                self.log(f"{problems[0]}: going on from the one before it")
            return state
        if problems:
            names = " and ".join(map(str, places))
            raise UserError(f"{'; '.join(problems)}; remove {names} to start this phase over, or put a whole copy there")
        return None

    def remove(self) -> None:
        """The phase is over."""
        for place in (self.folder, self._beside("old"), self._beside("new")):
            shutil.rmtree(place, ignore_errors=True)

    def _beside(self, ending: str) -> FilePath:
        return self.folder.with_name(f"{self.folder.name}.{ending}")


def write_moments(file: FilePath, optimizer: Optimizer) -> None:
    """Write the optimiser's moments as `nnabla.solvers.Solver.save_states` would, but whole or not at all."""
    with new_hdf5(file) as opened:
        for index, (name, state) in enumerate(optimizer._solver.get_states().items()):
            group = opened.create_group(name)
            group.attrs["index"] = index
            group.create_dataset("t", data=state.t)
            for number, (key, moments) in enumerate(state.pstate.items()):
                group.create_dataset(key, data=moments.d).attrs["index"] = number


def _checked_state(place: FilePath) -> dict:
    """The JSON of a checkpoint whose files are those that were written; older ones knew no hashes.

    Raises:
        UserError: a file is another.
    """
    state = parse_json((place / STATE).read_text())
    if not isinstance(state, dict):
        raise UserError(f"{STATE} must hold a mapping, got {kind_of(state)}")
    if state.pop("digest", None) != (_digest(state) if "digests" in state else None):
        raise UserError(f"{STATE} is damaged")
    for name, written in state.pop("digests", {}).items():
        if digest((place / name).read_bytes()) != written:
            raise UserError(f"{name} is damaged")
    return state


def _said(error: Exception) -> str:
    """An error's text; that of a missing key is the key alone."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _digest(state: dict) -> str:
    return digest(json.dumps(state, sort_keys=True).encode())
