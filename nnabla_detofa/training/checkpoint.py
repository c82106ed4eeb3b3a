"""Atomic checkpoints of a training phase, verified when they are loaded."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as FilePath

import h5py

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
    """The last state of a training phase in a folder, and the previous state in <folder>.old.

    A state consists of the weights with their batch normalization statistics, the optimizer's moments, and JSON with
    everything else needed to resume. Saving is atomic: a state is written to another folder that is then renamed, so an
    interruption at any moment leaves the previous or the new state. A state contains the hashes of its files, so that damage
    is detected. Loading only reads numbers and JSON; it never executes code from the files.

    Attributes:
        folder: folder of the last state.
        log: called with a message if the last state is damaged and the previous one is loaded.
    """

    folder: FilePath
    log: Callable[[str], None] = logger.warning
    damaged: bool = field(default=False, init=False)  # whether `load` found the last state damaged

    def save(self, net: Mo.Module, optimizer: Optimizer, state: dict) -> None:
        """Save the weights, the optimizer's moments and `state` (JSON).

        Raises:
            OSError: the checkpoint cannot be written; existing states are unchanged.
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
            shutil.rmtree(fresh, ignore_errors=True)  # free the space if the disk is full
            raise
        if self.damaged:  # keep the previous state, which is intact
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(self.folder, old)
        os.replace(fresh, self.folder)
        sync_folder(self.folder.parent)
        self.damaged = False

    def load(self, net: Mo.Module, optimizer: Optimizer, restore: Callable[[dict], None] = lambda state: None) -> dict | None:
        """Load the weights and the optimizer's moments from the last state that is intact.

        Args:
            net: network whose weights are loaded.
            optimizer: optimizer whose moments are loaded.
            restore: restores the rest of the state from its JSON. If it raises an exception, the state counts as damaged.

        Returns:
            The JSON of the state; None if there is no checkpoint.

        Raises:
            UserError: a checkpoint exists, but all of its states are damaged.
        """
        problems: list[str] = []
        places = [place for place in (self.folder, self._beside("old")) if place.exists()]
        for place in places:
            try:
                state = _checked_state(place)
                weights.load(net, place / "weights.h5")
                read_moments(place / "optim_train.h5", optimizer)
                optimizer._iter = int(state.pop("optimizer")["current_iter"])
                restore(state)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
                problems.append(f"the checkpoint {place} cannot be read ({_message(error)})")
                continue
            if problems:
                self.damaged = True
                self.log(f"{problems[0]}: resuming from the previous one")
            return state
        if problems:
            names = " and ".join(map(str, places))
            raise UserError(f"{'; '.join(problems)}; remove {names} to start this phase over, or restore an intact copy")
        return None

    def remove(self) -> None:
        """Remove all states, when the phase is complete."""
        for place in (self.folder, self._beside("old"), self._beside("new")):
            shutil.rmtree(place, ignore_errors=True)

    def _beside(self, ending: str) -> FilePath:
        return self.folder.with_name(f"{self.folder.name}.{ending}")


def write_moments(file: FilePath, optimizer: Optimizer) -> None:
    """Write the optimizer's moments atomically, in the format of `nnabla.solvers.Solver.save_states`."""
    with new_hdf5(file) as opened:
        for index, (name, state) in enumerate(optimizer._solver.get_states().items()):
            group = opened.create_group(name)
            group.attrs["index"] = index
            weights.add_array(group, "t", state.t)
            for number, (key, moments) in enumerate(state.pstate.items()):
                weights.add_array(group, key, moments.d, index=number)


def read_moments(file: FilePath, optimizer: Optimizer) -> None:
    """Read the optimizer's moments, as `write_moments` or NNabla wrote them.

    Raises:
        KeyError, ValueError: the file lacks an array, or an array has another shape than its parameter.
    """
    states = optimizer._solver.get_states()
    with h5py.File(file, "r") as opened:
        for name, state in states.items():
            group = opened[name if name in opened else weights.older_name(name)]
            state.t = int(group["t"][()])
            for key, moments in state.pstate.items():
                if group[key].shape != moments.shape:
                    raise ValueError(f"{name}/{key} has the shape {group[key].shape}, not {moments.shape}")
                moments.d = group[key][...]
    optimizer._solver.set_states(states)


def _checked_state(place: FilePath) -> dict:
    """Read the JSON of a state and verify the hashes of its files; states of older versions contain no hashes.

    Raises:
        UserError: a file differs from the one that was written.
    """
    state = parse_json((place / STATE).read_text("utf-8"))
    if not isinstance(state, dict):
        raise UserError(f"{STATE} must be a mapping, got {kind_of(state)}")
    if state.pop("digest", None) != (_digest(state) if "digests" in state else None):
        raise UserError(f"{STATE} is damaged")
    for name, written in state.pop("digests", {}).items():
        if digest((place / name).read_bytes()) != written:
            raise UserError(f"{name} is damaged")
    return state


def _message(error: Exception) -> str:
    """Return the message of an error; the message of a KeyError is only the key."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _digest(state: dict) -> str:
    return digest(json.dumps(state, sort_keys=True).encode())
