"""The training loop. All methods train with `train` and differ only in the path sampler that they pass to it.

A training step calls three functions: `build` creates the graph of the path, `load` copies a mini-batch into its inputs, and
`step` computes the gradients. The optimizer then updates the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Protocol

import numpy as np

from ..backend import kernels
from ..backend.compat import Mo, Optimizer, nn
from ..backend.cpu_adam import CpuAdam
from ..backend.device_memory import bounded_by
from ..backend.ranks import Communicator
from ..common.errors import UserError
from ..config import Solver
from ..data.compact import AnyArray, put
from ..data.loader import Loader
from ..networks.layers import BATCH
from ..runs.schedule import Schedule
from ..space import paths as search_space
from .resolution import at_resolution, resized, resolutions_of


class PathSampler(Protocol):
    """Source of the path of each training step, such as `pruning.KeptPaths`, `pruning.UniformPaths` or `OnePath`."""

    def next(self) -> search_space.Path: ...

    def state(self) -> dict: ...

    def restore(self, state: dict) -> None: ...


@dataclass
class OnePath:
    """Sampler that always returns the same path, for fullnet training (Alg. 1 line 2)."""

    path: search_space.Path

    def next(self) -> search_space.Path:
        return self.path

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Do nothing; this sampler has no state."""


def new_optimizer(net: Mo.Module, solver: Solver, schedule: Schedule) -> Optimizer:
    """Create an optimizer of the network's trainable parameters."""
    rate = {"alpha" if solver.name.startswith("Adam") else "lr": solver.lr}
    decay = {"weight_decay": solver.weight_decay} if solver.weight_decay else {}
    if solver.name == "AdamW":  # has an argument of its own, whose default in NNabla is 1e-4
        decay = {"wd": solver.weight_decay}
    optimizer = Optimizer(name=solver.name, lr_scheduler=schedule, **decay, **rate)
    if solver.name == "Adam" and kernels.on_cpu():
        optimizer._solver = CpuAdam(optimizer._solver)
    optimizer.set_parameters(net.get_parameters(grad_only=True))
    return optimizer


# --- One step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """The graph of one training step.

    Attributes:
        inputs: input variables: the images, then the targets.
        losses: scalar losses. The first one is minimized; the others are for logs.
        scale: factor from these losses to the losses of a whole batch, for losses that are a mini-batch's share of them.
    """

    inputs: Sequence[nn.Variable]
    losses: Sequence[nn.Variable]
    scale: int = 1


class Objective(Protocol):
    """Training objective that replaces the network's own loss, such as `distillation.Distillation`.

    It is called with a path's outputs, the images and the targets, and returns scalar losses, the first of which is
    minimized. `names` are the names of the losses in logs.
    """

    names: tuple[str, ...]

    def __call__(self, outputs: Any, images: nn.Variable, targets: Sequence[nn.Variable]) -> Sequence[nn.Variable]: ...


def build(
    net: Mo.Module,
    path: search_space.Path,
    inputs: Sequence[nn.Variable],
    parts: int = 1,
    objective: Objective | None = None,
    counts: Sequence[nn.Variable] = (),
) -> Graph:
    """Build the graph of the loss of `path` on a mini-batch.

    Args:
        net: supernet.
        path: path to train.
        inputs: variables of the images, then of the targets of `net.losses`, at each resolution that paths choose from.
        parts: number of mini-batches whose gradients are added.
        objective: training objective. Default: `net.losses`.
        counts: normalizers of the whole batch, see `count`. Without them, the loss of the batch is the mean over its
            mini-batches.
    """
    inputs = at_resolution(net, inputs, path.resolution)
    images, targets = resized(inputs[0], path.resolution), inputs[1:]
    outputs = net(images, path, BATCH)
    if objective:
        losses = objective(outputs, images, targets)
    else:
        losses = net.losses(outputs, targets, counts) if counts else net.losses(outputs, targets)
        _check_losses(net, losses)
    for loss in losses:
        loss.persistent = True
    total = losses[0] / parts if parts > 1 and not counts else losses[0]
    return Graph(inputs, (total, *losses), parts if counts else 1)


def _check_losses(net: Mo.Module, losses: Any) -> None:
    """Raise UserError unless `losses` can be those of a network, which may be the user's own."""
    names = net.loss_names
    listed = isinstance(losses, (tuple, list))
    if not listed or [getattr(loss, "shape", None) for loss in losses] != [()] * len(names):
        got = (
            ", ".join(f"{getattr(loss, 'shape', type(loss).__name__)}" for loss in losses) if listed else type(losses).__name__
        )
        raise UserError(
            f"losses of {type(net).__name__} must return one scalar variable for each of loss_names {list(names)}, got {got}"
        )


def load(graph: Graph, batch: Sequence[AnyArray]) -> None:
    """Copy the arrays of a mini-batch into the graph's inputs."""
    for variable, array in zip(graph.inputs, batch, strict=True):
        put(variable, array)


def fit_shapes(inputs: Sequence[nn.Variable], batch: Sequence[AnyArray]) -> None:
    """Reshape the inputs to the shapes of a mini-batch's arrays, because the image size may change from step to step."""
    for variable, array in zip(inputs, batch, strict=True):
        if variable.shape != array.shape:
            variable.reset_shape(array.shape, True)


def step(graph: Graph) -> None:
    """Run forward and backward on the loaded mini-batch, which adds its gradients to the parameters' gradients."""
    graph.losses[0].forward(clear_no_need_grad=True)
    graph.losses[0].backward(clear_buffer=True)


def own_counts(net: Mo.Module, targets: Sequence[AnyArray]) -> Sequence[float]:
    """Count what the losses of these targets are divided by; empty if the network has no `counts`.

    A detector divides its losses by numbers of objects. If each mini-batch were divided by its own number of objects, an
    object in a mini-batch with few objects would have a larger weight than in the undivided batch. Networks whose losses are
    means over images have no `counts`, because all mini-batches have the same size.
    """
    return net.counts(targets) if hasattr(net, "counts") else ()


def normalizers(counts: Sequence[Sequence[float]]) -> tuple[nn.Variable, ...]:
    """Create the normalizers of the losses of a whole batch from the `own_counts` of all processes.

    Returns:
        Scalar variables for `net.losses`; empty if the network has no `counts`.
    """
    variables = tuple(nn.Variable.from_numpy_array(np.float32(total)) for total in np.sum(counts, axis=0))
    for variable in variables:
        variable.persistent = True  # read by all mini-batches of the step
    return variables


def touched(parameters: dict[str, nn.Variable]) -> dict[str, nn.Variable]:
    """Return the parameters used by the paths of this step, which are those with a gradient since `zero_grad`.

    NNabla's solvers check the same flag (`grad.zeroing`) and skip the other parameters: their weights, moments and update
    counts do not change, and no weight decay is applied. Reading or writing such a gradient would turn it into an array of
    zeros, with which the parameter would be updated. The result depends only on the paths of the step, so it is the same on
    all processes.
    """
    return {name: parameter for name, parameter in parameters.items() if not parameter.grad.zeroing}


class GradientSum:
    """Sums the gradients of mini-batches in order, each computed separately from zero.

    Several processes with one mini-batch each add their gradients in the same order and obtain bitwise the same sum as one
    process with all mini-batches. A parameter that no path of the step used has no gradient before or after (see `touched`).
    """

    def __init__(self, parameters: dict[str, nn.Variable]):
        self._parameters = parameters
        self._sums: dict[str, nn.NdArray] = {}

    def take(self) -> None:
        """Add the parameters' gradients to the sum, and reset them to zero."""
        for name, parameter in touched(self._parameters).items():
            if name in self._sums:
                self._sums[name] += parameter.grad
            else:
                self._sums[name] = nn.NdArray(parameter.shape)
                self._sums[name].copy_from(parameter.grad)
            parameter.grad.zero()

    def give(self) -> None:
        """Copy the sum into the parameters' gradients."""
        for name, gradient in self._sums.items():
            self._parameters[name].grad.copy_from(gradient)


class NotFinite(UserError):
    """The loss became NaN or infinite; another learning rate or other data may avoid it."""


@dataclass(frozen=True)
class Progress:
    """Report of `train` after each step."""

    step: int
    path: search_space.Path  # the last path of the step
    losses: tuple[float, ...]  # means over mini-batches and paths, in the order of `net.losses` or of the objective
    rate: float
    paths: dict  # state of the sampler, from which it returns the paths of the next step


@dataclass(frozen=True)
class Drawn:
    """What a step trains on: this process' part of the batch, the paths, and the normalizers of the losses by resolution.

    `state` is the state of the sampler before the paths were sampled.
    """

    batch: Sequence[AnyArray]
    paths: Sequence[search_space.Path]
    counts: dict[int | None, Sequence[nn.Variable]]
    state: dict


def draw(
    net: Mo.Module, paths: PathSampler, batches: Iterator, comm: Communicator, paths_per_step: int, counted: bool
) -> Drawn:
    """Take the next batch and sample the paths of the next step. All processes must call this.

    Args:
        net: supernet.
        paths: sampler, used on rank 0.
        batches: the loader's batches.
        comm: processes that share each batch.
        paths_per_step: number of paths to sample.
        counted: whether the losses are divided by the counts of the whole batch, see `own_counts`.
    """
    batch: Sequence = ()
    state, resolutions = paths.state(), resolutions_of(net)

    def here() -> tuple:
        nonlocal batch
        batch = next(batches)
        chosen = [paths.next() for _ in range(paths_per_step)] if comm.rank == 0 else []
        return chosen, [own_counts(net, at_resolution(net, batch, side)[1:]) if counted else () for side in resolutions]

    found = comm.each(here)  # one exchange between the processes
    totals = map(normalizers, zip(*(counts for _, counts in found)))
    return Drawn(batch, found[0][0], dict(zip(resolutions, totals)), state)


class _Step:
    """One step of training.

    Its graphs are built and its first mini-batch is loaded while a GPU computes the step before, whose losses are read after
    that, all at once. So the sampler is a step ahead of the weights; see `Progress.paths`.

    Args:
        net, objective: see `train`.
        in_turn: sets of inputs for the graphs; successive steps use different ones, since the device may still read them.
        accumulate: number of mini-batches that this process computes.
        parts: number of mini-batches in the batch of all processes.
        drawn: batch and paths of the step.
    """

    def __init__(
        self,
        net: Mo.Module,
        objective: Objective | None,
        in_turn: Iterator[Sequence[nn.Variable]],
        accumulate: int,
        parts: int,
        drawn: Drawn,
    ):
        self.drawn, self._net, self._size = drawn, net, len(drawn.batch[0]) // accumulate
        self._starts = range(0, self._size * accumulate, self._size)
        inputs = next(in_turn)
        fit_shapes(inputs, [array[: self._size] for array in drawn.batch])
        self._graphs = [build(net, path, inputs, parts, objective, drawn.counts[path.resolution]) for path in drawn.paths]
        self._load(0)

    def _load(self, start: int) -> None:
        several = {path.resolution: graph for path, graph in zip(self.drawn.paths, self._graphs)}
        for side, graph in several.items():  # the graphs of all paths at one resolution have the same inputs
            arrays = at_resolution(self._net, self.drawn.batch, side)
            load(graph, [array[start : start + self._size] for array in arrays])

    def run(self, parameters: dict[str, nn.Variable]) -> kernels.ScalarLog:
        """Compute the gradients of all mini-batches; return the losses of each mini-batch and path, which are not read yet."""
        gradients, seen = GradientSum(parameters), kernels.ScalarLog()
        for start in self._starts:
            if start:
                self._load(start)
            for graph in self._graphs:
                step(graph)
                seen.add(graph.losses[1:])
            if len(self._starts) > 1:
                gradients.take()
        if len(self._starts) > 1:
            gradients.give()
        return seen

    def losses(self, seen: kernels.ScalarLog, comm: Communicator) -> tuple[float, ...]:
        """Return the losses, as means over mini-batches, paths and processes. This waits for the device."""
        several = comm.gather((seen.read() * self._graphs[0].scale).tolist())
        return tuple(np.mean([values for part in several for values in part], axis=0).tolist())


def train(
    net: Mo.Module,
    optimizer: Optimizer,
    paths: PathSampler,
    loader: Loader,
    inputs: Sequence[nn.Variable],
    steps: range,
    *,
    accumulate: int = 1,
    paths_per_step: int = 1,
    objective: Objective | None = None,
    comm: Communicator | None = None,
    event: Any = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train `net`: each step samples a path and updates the weights that it uses (Alg. 1 lines 9 to 16).

    A layer that no path of the step used does not change, including its moments, for every solver, `accumulate`,
    `paths_per_step` and number of processes. If a path used a part of a layer, all weights of the layer are updated, because
    they are one array. The gradient of a batch does not depend on its division into mini-batches, except through batch
    normalization, which uses the statistics of one mini-batch at a time.

    Args:
        net: supernet.
        optimizer: holds the parameters to train, and a schedule that sets the learning rate.
        paths: sampler of the path of each step; with several processes, only the sampler of rank 0 is used.
        loader: loader of the training batches; step s uses its batch s, or this process' part of the batch.
        inputs: variables for one mini-batch: images, then targets. They are reshaped to each batch.
        steps: global step numbers to run.
        accumulate: number of mini-batches that this process' part of a batch is divided into, with one update for all.
        paths_per_step: number of paths sampled in each step. Each path is trained on the whole batch, and their gradients are
            added, not averaged, as in OFA's "dynamic batch size".
        objective: training objective. Default: `net.losses`.
        comm: processes that share each batch. Their weights must be equal at the start, and then remain equal.
        event: CUDA stream events of NNablaNAS, if any.
        on_step: called after each update, for logs and checkpoints.

    Raises:
        NotFinite: the loss is NaN or infinite. It is raised on all processes, and the weights are those before the update.
        UserError: a batch cannot be loaded, or device memory is exhausted. The weights are those of the last complete step.
    """
    if not steps:
        return
    comm, parameters = comm or Communicator(), optimizer.get_parameters()
    parts, in_turn = accumulate * comm.n_procs, cycle((inputs, [nn.Variable(variable.shape) for variable in inputs]))
    with closing(loader.batches(steps.start)) as batches, bounded_by("hparams.mini_batch", inputs[0].shape[0]):
        drawn = partial(draw, net, paths, batches, comm, paths_per_step, parts > 1 and not objective)
        prepared = partial(_Step, net, objective, in_turn, accumulate, parts)
        upcoming = prepared(drawn())
        for number in steps:
            current, following = upcoming, drawn() if number + 1 in steps else None
            state = following.state if following else paths.state()
            optimizer.zero_grad()
            seen, path = current.run(parameters), current.drawn.paths[-1]
            upcoming = prepared(following) if following else current
            losses, rate = current.losses(seen, comm), optimizer.get_learning_rate()
            _check_finite(losses[0], number, rate, path)
            _update(optimizer, parameters, comm, event)
            on_step(Progress(number, path, losses, rate, state))


def _check_finite(loss: float, number: int, rate: float, path: search_space.Path) -> None:
    if not math.isfinite(loss):
        raise NotFinite(
            f"the loss became {loss} at step {number}, learning rate {rate:.3g}, on the path {json.dumps(path.to_ofa())}: a "
            "lower optimizer.train.lr may help"
        )


def _update(optimizer: Optimizer, parameters: dict[str, nn.Variable], comm: Communicator, event: Any) -> None:
    """Add the gradients of all processes, and update the weights."""
    if comm.n_procs > 1:
        if event is not None:
            event.default_stream_synchronize()
        comm.all_reduce([parameter.grad for parameter in touched(parameters).values()], inplace=False)
    optimizer.update()
    if event is not None:
        event.add_default_stream_event()
