"""The peak of memory of a training step's graph, against values worked out by hand."""

import nnabla as nn
import nnabla.functions as F

from nnabla_detofa.tools.graph_memory import peak_bytes


def variables():
    """An input and a parameter of 10 numbers, 40 bytes each."""
    return nn.Variable((10,)), nn.Variable((10,), need_grad=True)


def test_values_that_the_way_back_reads_stay_and_gradients_come_on_top():
    x, w = variables()
    a = x * w  # its gradient reads x
    b = F.exp(a)  # its gradient reads b, so a is freed
    # Forward: x, a and b are 120 bytes. Backward, at exp: x and b, and the gradients of a and b.
    assert peak_bytes(F.sum(b), [w]) == 4 * 40


def test_values_that_nobody_reads_are_freed():
    x, w = variables()
    y = x * w
    for _ in range(5):
        y = F.add_scalar(y, 1.0)  # its gradient reads nothing
    # Backward: x, and the gradients of two successive sums; the values of the sums are gone.
    assert peak_bytes(F.sum(y), [w]) == 3 * 40


def test_what_is_computed_in_place_takes_no_memory():
    x, w = variables()
    y = F.relu(x * w, inplace=True)
    # Forward: x and the product, which becomes the ReLU's output. Backward at the ReLU: those, and two gradients.
    assert peak_bytes(F.sum(y), [w]) == 4 * 40


def test_parameters_are_not_counted():
    _, w = variables()
    assert peak_bytes(F.sum(F.add_scalar(w, 1.0)), [w]) < peak_bytes(F.sum(F.add_scalar(w, 1.0)), [])
