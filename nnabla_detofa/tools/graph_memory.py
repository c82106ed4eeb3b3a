"""Memory of a training step, estimated from its graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np

from ..backend.compat import nn
from ..config import Config
from ..runs.phases import TrainingPhase
from ..training.loop import build
from .synthetic import shapes

STATES = {"Adam": 2, "AdamW": 2, "Momentum": 1, "Nesterov": 1, "Sgd": 0}
"""Solver -> number of state arrays that it keeps for every trained array."""


def size(variable: nn.Variable) -> int:
    """Return the size of a variable's values as 32-bit numbers, in bytes."""
    return 4 * int(np.prod(variable.shape))


class _Storage:
    """Maps variables to the variable whose memory they share: an output that is computed in place uses its input's."""

    def __init__(self, functions: Iterable[Any]):
        self._root: dict[nn.Variable, nn.Variable] = {}
        for function in functions:
            for index, variable in enumerate(function.inputs):
                if function.inplace_data(index):
                    self._root[function.outputs[function.inplace_data_with(index)]] = self.of(variable)

    def of(self, variable: nn.Variable) -> nn.Variable:
        """Return the variable that owns the memory of `variable`."""
        return self._root.get(variable, variable)

    def used(self, function: Any) -> set[nn.Variable]:
        """Return the owners of the memory that a function reads or writes."""
        return {self.of(variable) for variable in (*function.inputs, *function.outputs)}


def _needed_backward(functions: Iterable[Any], storage: _Storage) -> Iterator[nn.Variable]:
    """Yield the owners of the memory whose values the backward pass reads."""
    for function in functions:
        for index, variable in enumerate(function.inputs):
            if variable.need_grad:
                for other, read in enumerate(function.inputs):
                    if function.grad_depends_input_data(index, other):
                        yield storage.of(read)
                for other, read in enumerate(function.outputs):
                    if function.grad_depends_output_data(index, other):
                        yield storage.of(read)


def peak_bytes(loss: nn.Variable, parameters: Iterable[nn.Variable]) -> int:
    """Return the peak memory in bytes of the forward and backward pass of `loss`, as `training.loop.step` runs them.

    `forward(clear_no_need_grad=True)` frees values that the backward pass does not read, after their last use.
    `backward(clear_buffer=True)` frees values and gradients as it proceeds. Not counted are the parameters and their
    gradients, the workspaces of convolutions, and the reserve of the allocator.

    Args:
        loss: the scalar loss, whose graph is visited but not computed.
        parameters: variables that are not counted.
    """
    functions: list = []
    loss.visit(functions.append)
    storage, apart = _Storage(functions), set(parameters)
    kept = set(_needed_backward(functions, storage))
    last = {variable: number for number, function in enumerate(functions) for variable in storage.used(function)}
    values: dict[nn.Variable, int] = {}
    peak = 0
    for number, function in enumerate(functions):
        used = storage.used(function) - apart
        values |= {variable: size(variable) for variable in used}
        peak = max(peak, sum(values.values()))
        for variable in used - kept:
            if last[variable] == number and variable.parent is not None:
                del values[variable]
    gradients: dict[nn.Variable, int] = {}
    for function in reversed(functions):
        several = {*function.inputs, *function.outputs} - apart
        gradients |= {variable: size(variable) for variable in several if variable.need_grad}
        peak = max(peak, sum(values.values()) + sum(gradients.values()))
        still_read = {storage.of(variable) for variable in function.inputs}
        for variable in function.outputs:
            gradients.pop(variable, None)
            if storage.of(variable) not in still_read:
                values.pop(storage.of(variable), None)
    return peak


class StepMemory(NamedTuple):
    """Memory of a training step on one device in bytes, estimated from the graph.

    On a null GPU, which only counts allocations, the estimates are 5 to 8% below the peaks (`make test-null-gpu`).

    Attributes:
        image: peak of the largest path's values and gradients for one image.
        batch: number of images in the mini-batch of one process.
        kept: weights, their gradients (and sums of gradients over mini-batches), and the solver's states.
        teacher: weights of the fullnet as the teacher of distillation; 0 without distillation.
    """

    image: int
    batch: int
    kept: int
    teacher: int

    @property
    def total(self) -> int:
        """Sum of all parts for the whole mini-batch, in bytes."""
        return self.batch * self.image + self.kept + self.teacher


def step_memory(config: Config, num_classes: int, model: Any, phases: Sequence[TrainingPhase]) -> StepMemory:
    """Estimate the memory of a training step in the phase with the largest batch."""
    graph = build(model, model.space.largest, [nn.Variable(shape) for shape in shapes(config, num_classes)])
    image = peak_bytes(graph.losses[0], model.get_parameters().values())
    weights = sum(4 * int(np.prod(p.shape)) for p in model.get_parameters(grad_only=True).values())
    batch = config.hparams.mini_batch or max(phase.batch_size for phase in phases)
    kept = weights * (2 + STATES[config.optimizer.train.name] + bool(config.hparams.mini_batch))
    return StepMemory(image, batch, kept, weights * any(phase.kd_ratio for phase in phases))


def free_memory() -> int | None:
    """Return the available memory of the machine in bytes, or None if it is unknown."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", FilePath("/proc/meminfo").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    except OSError:
        return None
