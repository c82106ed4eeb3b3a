"""Peak memory of a training step, estimated from its graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import nnabla as nn
import numpy as np


def size(variable: nn.Variable) -> int:
    """Return the size of a variable's values as 32-bit numbers, in bytes."""
    return 4 * int(np.prod(variable.shape))


class _Storage:
    """Maps variables to the variable whose memory they share: an output that is computed in place uses its input's."""

    def __init__(self, functions: Iterable):
        self._root: dict[nn.Variable, nn.Variable] = {}
        for function in functions:
            for index, variable in enumerate(function.inputs):
                if function.inplace_data(index):
                    self._root[function.outputs[function.inplace_data_with(index)]] = self.of(variable)

    def of(self, variable: nn.Variable) -> nn.Variable:
        """Return the variable that owns the memory of `variable`."""
        return self._root.get(variable, variable)

    def used(self, function) -> set[nn.Variable]:
        """Return the owners of the memory that a function reads or writes."""
        return {self.of(variable) for variable in (*function.inputs, *function.outputs)}


def _needed_backward(functions: Iterable, storage: _Storage) -> Iterator[nn.Variable]:
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
