"""Adam in NumPy gives the bits of NNabla's."""

import nnabla as nn
import nnabla.solvers as S
import numpy as np
import pytest

from nnabla_detofa.backend.cpu_adam import BLOCK, CpuAdam

SHAPES = {"one": (1,), "odd": (7,), "kernel": (3, 2, 3, 3), "block": (BLOCK,), "blocks": (2, BLOCK + 3)}


def parameters() -> dict[str, nn.Variable]:
    rng = np.random.default_rng(0)
    return {name: nn.Variable.from_numpy_array(rng.normal(size=shape), need_grad=True) for name, shape in SHAPES.items()}


def both() -> list[tuple]:
    pairs = []
    for solver in (S.Adam(1e-3), CpuAdam(S.Adam(1e-3))):
        solver.set_parameters(own := parameters())
        pairs.append((solver, own))
    return pairs


def step(solver, own, number: int, scale: float = 1.0) -> None:
    rng = np.random.default_rng(number)
    solver.zero_grad()
    solver.set_learning_rate(1e-2 / (number + 1))
    for name, parameter in own.items():
        gradient = rng.normal(size=parameter.shape) * scale
        if (name, number % 3) not in (("odd", 1), ("blocks", 2)):  # whatever has no gradient is not updated
            parameter.g = gradient
    solver.weight_decay(1e-4)
    solver.update()


def assert_same(one, other) -> None:
    (theirs, weights), (ours, own) = one, other
    states = ours.get_states()
    for name, state in theirs.get_states().items():
        np.testing.assert_array_equal(weights[name].d, own[name].d, err_msg=name)
        assert state.t == states[name].t
        for key, moments in state.pstate.items():
            np.testing.assert_array_equal(moments.d, states[name].pstate[key].d, err_msg=f"{name} {key}")


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-22, 0.0, 1e18, 1e25])
def test_weights_and_moments_have_the_bits_of_nnabla(scale):
    pairs = both()
    for number in range(40):
        for solver, own in pairs:
            step(solver, own, number, scale)
    assert_same(*pairs)


def test_each_continues_from_the_states_of_the_other():
    pairs = both()
    for number in range(5):
        for solver, own in pairs:
            step(solver, own, number)
    (theirs, weights), (ours, own) = pairs
    ours_next, theirs_next = CpuAdam(S.Adam(1e-3)), S.Adam(1e-3)
    ours_next.set_parameters(weights)
    ours_next.set_states(theirs.get_states())
    theirs_next.set_parameters(own)
    theirs_next.set_states(ours.get_states())
    pairs = [(theirs_next, own), (ours_next, weights)]
    for number in range(5, 9):
        for solver, parameters_ in pairs:
            step(solver, parameters_, number)
    assert_same(*pairs)
    assert ours_next.get_states()["kernel"].t == 9
