"""The one training loop: every method trains through `train`, and differs by the sampler of paths it passes.

A step is three functions: `build` makes the graph of this step's path, `load` fills in a batch, `step` updates the weights.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Protocol

import nnabla as nn
import numpy as np

from . import search_space, weights
from .checked import kind_of
from .compat import Mo, Optimizer
from .config import Solver
from .device_memory import bounded_by
from .errors import UserError
from .files import digest, new_hdf5, sync_folder, write_json
from .ranks import Communicator
from .reading import parse_json
from .supernet import BATCH


class PathSampler(Protocol):
    """Where the loop gets each step's path: `pruning.KeptPaths`, `pruning.UniformPaths`, `OnePath`, ..."""

    def next(self) -> search_space.Path: ...

    def state(self) -> dict: ...

    def restore(self, state: dict) -> None: ...


@dataclass
class OnePath:
    """The sampler that always answers with the same path: fullnet training (Alg. 1 line 2)."""

    path: search_space.Path

    def next(self) -> search_space.Path:
        return self.path

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """There is nothing to restore."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step; NNablaNAS' Optimizer asks it by `get_learning_rate`.

    Attributes:
        base: the learning rate before any decay.
        kind: "step" (times `gamma` at each milestone), "cosine" (to 0 at the last step) or "constant".
        steps: steps of the whole schedule.
        milestones: steps at which "step" decays.
        warmup_steps: the rate climbs linearly from 0 to `base` over this many steps.
    """

    base: float
    kind: str
    steps: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_steps: int = 0

    def get_learning_rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        rate = self.base * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.base
        if self.kind == "step":
            return rate * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "cosine":
            return rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return rate


def new_optimizer(net: Mo.Module, solver: Solver, schedule: Schedule) -> Optimizer:
    """A fresh solver over the network's trainable parameters."""
    rate = {"alpha" if solver.name.startswith("Adam") else "lr": solver.lr}
    decay = {"weight_decay": solver.weight_decay} if solver.weight_decay else {}
    if solver.name == "AdamW":  # its own decay, which NNabla would set to 1e-4
        decay = {"wd": solver.weight_decay}
    optimizer = Optimizer(name=solver.name, lr_scheduler=schedule, **decay, **rate)
    optimizer.set_parameters(net.get_parameters(grad_only=True))
    return optimizer


# --- One step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """The graph of one step: its input variables and the scalar losses, the first of which is minimised."""

    inputs: Sequence[nn.Variable]
    losses: Sequence[nn.Variable]


class Objective(Protocol):
    """What is minimised instead of the network's own loss: `distillation.Distillation`.

    It is called with a path's outputs, the images and the targets, and returns scalar losses, the first of which is
    minimised; `names` is what logs call them.
    """

    names: tuple[str, ...]

    def __call__(self, outputs, images: nn.Variable, targets: Sequence[nn.Variable]) -> Sequence[nn.Variable]: ...


def build(
    net: Mo.Module,
    path: search_space.Path,
    inputs: Sequence[nn.Variable],
    parts: int = 1,
    objective: Objective | None = None,
) -> Graph:
    """The loss of `path` on a mini-batch, one of `parts` whose gradients are added up.

    Args:
        inputs: the images, and then what `net.losses` takes as targets.
    """
    images, *targets = inputs
    outputs = net(images, path, BATCH)
    losses = objective(outputs, images, targets) if objective else net.losses(outputs, targets)
    for loss in losses:
        loss.persistent = True
    total = losses[0] / parts if parts > 1 else losses[0]
    return Graph(inputs, (total, *losses))


def load(graph: Graph, batch: Sequence[np.ndarray]) -> None:
    """Put a batch's arrays into the graph's inputs."""
    for variable, array in zip(graph.inputs, batch, strict=True):
        variable.d = array


def fit_shapes(inputs: Sequence[nn.Variable], batch: Sequence[np.ndarray]) -> None:
    """Give the inputs the shapes of a batch's arrays: the images' size may differ from step to step."""
    for variable, array in zip(inputs, batch, strict=True):
        if variable.shape != array.shape:
            variable.reset_shape(array.shape, True)


def step(graph: Graph) -> None:
    """Add the gradients of the loaded batch to those of the parameters."""
    graph.losses[0].forward(clear_no_need_grad=True)
    graph.losses[0].backward(clear_buffer=True)


class GradientSum:
    """Adds up the gradients of mini-batches, each taken from zero, in their order.

    Several processes that have a mini-batch each add up in the same order: so they get the same bits as one process that
    has them all.
    """

    def __init__(self, parameters: dict[str, nn.Variable]):
        self._parameters, self._sums = parameters, {}

    def take(self) -> None:
        """Add the parameters' gradients, which begin at zero again."""
        for name, parameter in self._parameters.items():
            if name in self._sums:
                self._sums[name] += parameter.grad
            else:
                self._sums[name] = nn.NdArray(parameter.shape)
                self._sums[name].copy_from(parameter.grad)
            parameter.grad.zero()

    def give(self) -> None:
        """The sum becomes the parameters' gradients."""
        for name, parameter in self._parameters.items():
            parameter.grad.copy_from(self._sums[name])


class NotFinite(UserError):
    """The loss became NaN or infinite: with another learning rate or other data it would not."""


@dataclass(frozen=True)
class Progress:
    """What `train` reports after each step."""

    step: int
    path: search_space.Path  # the last, where a step has several
    losses: tuple[float, ...]  # as `net.losses` or the objective orders them, mean over mini-batches and paths
    rate: float


def train(
    net: Mo.Module,
    optimizer: Optimizer,
    paths: PathSampler,
    loader,
    inputs: Sequence[nn.Variable],
    steps: range,
    *,
    accumulate: int = 1,
    paths_per_step: int = 1,
    objective: Objective | None = None,
    comm: Communicator | None = None,
    event=None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train `net`: each step draws a path, and updates the weights that it uses (Alg. 1 lines 9 to 16).

    Args:
        optimizer: holds the parameters to train; its schedule decides the learning rate.
        paths: gives the path of each step; of several processes only the first one's is asked.
        loader: `data.loader.Loader`; step s takes its batch s, or this process' part of it.
        inputs: variables for one mini-batch: images, then targets. They take the shapes of each batch's.
        steps: the global steps to do.
        accumulate: mini-batches that a batch, or this process' part of it, is cut into; their gradients make one update.
        paths_per_step: paths drawn in each step; all see its batch, and their gradients are added (not averaged), as OFA
            does with its "dynamic batch size".
        objective: what is minimised; by default `net.losses`.
        comm: processes that share each batch; their weights must be equal at the start, and then stay so.
        on_step: called after each update, for logs and checkpoints.

    Raises:
        NotFinite: the loss is NaN or infinite, on all processes if on one; the weights are those before that update.
        UserError: a batch cannot be loaded, or the device's memory is full; the weights are those of the last whole step.
    """
    comm = comm or Communicator()
    parts = accumulate * comm.n_procs
    with closing(loader.batches(steps.start)) as batches, bounded_by("hparams.mini_batch", inputs[0].shape[0]):
        for number in steps:
            optimizer.zero_grad()
            batch = next(batches)
            size = len(batch[0]) // accumulate
            fit_shapes(inputs, [array[:size] for array in batch])
            chosen = [comm.once(paths.next) for _ in range(paths_per_step)]
            graphs = [build(net, path, inputs, parts, objective) for path in chosen]
            gradients, seen = GradientSum(optimizer.get_parameters()), []
            for start in range(0, size * accumulate, size):
                for graph in graphs:
                    load(graph, [array[start : start + size] for array in batch])
                    step(graph)
                    seen.append([float(loss.d) for loss in graph.losses[1:]])
                if accumulate > 1:
                    gradients.take()
            if accumulate > 1:
                gradients.give()
            losses = tuple(np.mean([values for part in comm.gather(seen) for values in part], axis=0).tolist())
            if not math.isfinite(losses[0]):
                raise NotFinite(
                    f"the loss became {losses[0]} at step {number}, learning rate {optimizer.get_learning_rate():.3g}, on the "
                    f"path {json.dumps(chosen[-1].to_ofa())}: a lower optimizer.train.lr may help"
                )
            if comm.n_procs > 1:
                if event is not None:
                    event.default_stream_synchronize()
                comm.all_reduce([p.grad for p in optimizer.get_parameters().values()], inplace=False)
            rate = optimizer.get_learning_rate()
            optimizer.update()
            if event is not None:
                event.add_default_stream_event()
            on_step(Progress(number, chosen[-1], losses, rate))


# --- Checkpoints ------------------------------------------------------------------------------------------------------

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
            space = getattr(net, "space", None)
            weights.write(fresh / "weights.h5", net.get_parameters(), space and space.geometry.strides)
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
