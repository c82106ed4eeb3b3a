"""Built graphs counted function by function: what the tables of costs are held against."""

import nnabla as nn
import numpy as np


def count_macs(output: nn.Variable) -> int:
    """Of one image: convolutions, transposed convolutions and affine layers."""
    total = 0

    def visit(function) -> None:
        nonlocal total
        kind = function.info.type_name
        if kind not in ("Convolution", "Deconvolution", "Affine"):
            return
        x, w = function.inputs[:2]
        if kind == "Convolution":  # every output pixel takes a whole kernel
            total += int(np.prod(w.shape)) * int(np.prod(function.outputs[0].shape[2:]))
        elif kind == "Deconvolution":  # every input pixel gives a whole kernel
            total += int(np.prod(w.shape)) * int(np.prod(x.shape[2:]))
        else:
            total += int(np.prod(w.shape))

    output.visit(visit)
    return total


IN_PLACE = ("BatchNormalization", "ReLU", "Add2", "Reshape")
"""Their output takes the place of their first input."""


def peak_memory(output: nn.Variable, image: nn.Variable) -> int:
    """Bytes of float32 activations that are alive at once, walking through the functions as NNabla runs them.

    A tensor lives from the function that makes it to the last one that reads it. What does not come from the image, such
    as sliced weights, is not an activation.
    """
    functions = []
    output.visit(functions.append)
    buffers = {image: 0}  # variable -> the buffer it is in
    sizes, last_use, made = [int(np.prod(image.shape))], {0: -1}, {0: -1}
    for step, function in enumerate(functions):
        read = [buffers[variable] for variable in function.inputs if variable in buffers]
        last_use.update(dict.fromkeys(read, step))
        if not read or function.info.type_name == "Sink":
            continue
        if function.info.type_name in IN_PLACE:
            buffers[function.outputs[0]] = read[0]
        else:
            (result,) = function.outputs
            buffers[result] = len(sizes)
            made[len(sizes)] = last_use[len(sizes)] = step
            sizes.append(int(np.prod(result.shape)))
    alive = [sum(size for b, size in enumerate(sizes) if made[b] <= step <= last_use[b]) for step in range(len(functions))]
    return 4 * max(alive)
