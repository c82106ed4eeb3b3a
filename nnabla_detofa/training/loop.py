"""The one training loop: every method trains through `train`, and differs by the sampler of paths it passes.

A step is three functions: `build` makes the graph of this step's path, `load` fills in a batch, `step` updates the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..backend.compat import Mo, Optimizer, nn
from ..backend.device_memory import bounded_by
from ..backend.ranks import Communicator
from ..common.errors import UserError
from ..config import Solver
from ..networks.layers import BATCH
from ..runs.schedule import Schedule
from ..space import paths as search_space


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
    """The graph of one step: its input variables and the scalar losses, the first of which is minimised.

    Attributes:
        scale: what the losses must be multiplied by to have the size of a whole batch's: they may be shares of these.
    """

    inputs: Sequence[nn.Variable]
    losses: Sequence[nn.Variable]
    scale: int = 1


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
    counts: Sequence[nn.Variable] = (),
) -> Graph:
    """The loss of `path` on a mini-batch, one of `parts` whose gradients are added up.

    Args:
        inputs: the images, and then what `net.losses` takes as targets.
        counts: of the whole batch, see `count`; without them the batch's loss is the mean over its mini-batches.
    """
    images, *targets = inputs
    outputs = net(images, path, BATCH)
    if objective:
        losses = objective(outputs, images, targets)
    else:
        losses = net.losses(outputs, targets, counts) if counts else net.losses(outputs, targets)
    for loss in losses:
        loss.persistent = True
    total = losses[0] / parts if parts > 1 and not counts else losses[0]
    return Graph(inputs, (total, *losses), parts if counts else 1)


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


def count(net: Mo.Module, targets: Sequence[np.ndarray], comm: Communicator) -> tuple[nn.Variable, ...]:
    """What the losses of a whole batch are divided by, as scalars for `net.losses`: sums over all processes.

    A detector divides by numbers of objects. Were each mini-batch divided by its own number, an object in a mini-batch
    with few of them would count more than it does in the undivided batch. A network whose losses are means over images
    has no `counts`, since mini-batches are of equal size.

    Args:
        targets: of this process' part of the batch.
    """
    if not hasattr(net, "counts"):
        return ()
    totals = np.sum(comm.gather(net.counts(targets)), axis=0)
    variables = tuple(nn.Variable.from_numpy_array(np.float32(total)) for total in totals)
    for variable in variables:
        variable.persistent = True  # all mini-batches of the step read it
    return variables


def touched(parameters: dict[str, nn.Variable]) -> dict[str, nn.Variable]:
    """The parameters that a path of this step used: those with a gradient since `zero_grad`.

    NNabla's solvers ask the same question (`grad.zeroing`) and pass the other parameters over: their weights, their
    moments and their counts of updates stay, and they do not decay. Reading or writing such a gradient would make it an
    array of zeros, with which they are updated. The answer follows from the step's paths alone, so all processes give the
    same one.
    """
    return {name: parameter for name, parameter in parameters.items() if not parameter.grad.zeroing}


class GradientSum:
    """Adds up the gradients of mini-batches, each taken from zero, in their order.

    Several processes that have a mini-batch each add up in the same order: so they get the same bits as one process that
    has them all. A parameter that no path of the step used has no gradient before and after (see `touched`).
    """

    def __init__(self, parameters: dict[str, nn.Variable]):
        self._parameters, self._sums = parameters, {}

    def take(self) -> None:
        """Add the parameters' gradients, which begin at zero again."""
        for name, parameter in touched(self._parameters).items():
            if name in self._sums:
                self._sums[name] += parameter.grad
            else:
                self._sums[name] = nn.NdArray(parameter.shape)
                self._sums[name].copy_from(parameter.grad)
            parameter.grad.zero()

    def give(self) -> None:
        """The sum becomes the parameters' gradients."""
        for name, gradient in self._sums.items():
            self._parameters[name].grad.copy_from(gradient)


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

    A layer that no path of the step used stays as it is, moments included, with every solver, `accumulate`,
    `paths_per_step` and number of processes; of a layer that was used in part, all weights are updated, as it is one array.
    However a batch is cut, its gradient is the same, but for batch normalization, which sees a mini-batch at a time.

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
            counts = count(net, batch[1:], comm) if parts > 1 and not objective else ()
            graphs = [build(net, path, inputs, parts, objective, counts) for path in chosen]
            gradients, seen = GradientSum(optimizer.get_parameters()), []
            for start in range(0, size * accumulate, size):
                for graph in graphs:
                    load(graph, [array[start : start + size] for array in batch])
                    step(graph)
                    seen.append([float(loss.d) * graph.scale for loss in graph.losses[1:]])
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
                used = touched(optimizer.get_parameters())
                comm.all_reduce([parameter.grad for parameter in used.values()], inplace=False)
            rate = optimizer.get_learning_rate()
            optimizer.update()
            if event is not None:
                event.add_default_stream_event()
            on_step(Progress(number, chosen[-1], losses, rate))
