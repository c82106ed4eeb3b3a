"""Multiply-accumulates of a built graph, counted function by function: what the cost tables are held against."""

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
