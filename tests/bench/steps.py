"""Training steps: beside static networks (P1, P2), with path pruning (P4), by two processes (P7); and the loader."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

import numpy as np
from timing import ratio, seconds, spread, turns

SIDE, BATCH, CLASSES, PATHS = 128, 4, 1000, 3
"""Of P1 and P2: the classification supernet at full width."""


def adam():
    """The solver of our training loop on the CPU."""
    import nnabla.solvers as S

    from nnabla_detofa.backend.cpu_adam import CpuAdam

    return CpuAdam(S.Adam(1e-5))


def stepper(solver, parameters, build: Callable, once: bool) -> tuple[Callable, Callable]:
    """What computes the gradients of a training step, and what updates the weights; `once` builds the graph only now."""
    solver.set_parameters(parameters)
    kept = build() if once else None

    def gradients() -> None:
        loss = kept or build()
        solver.zero_grad()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        float(loss.d)

    return gradients, solver.update


def step_ratio(theirs: Callable) -> dict:
    """Our supernet's step over that of `theirs(net, path, inputs)`, which gives the arguments of `stepper`."""
    import nnabla as nn

    from nnabla_detofa.networks import layers, supernet

    rng = np.random.default_rng(0)
    net = supernet.SearchNet(CLASSES, rng=rng)
    inputs = [nn.Variable((BATCH, 3, SIDE, SIDE)), nn.Variable((BATCH, 1))]
    inputs[0].d, inputs[1].d = rng.normal(size=inputs[0].shape), rng.integers(0, CLASSES, (BATCH, 1))
    with_update, without = [], []
    for path in net.space.sample_many(rng, PATHS):

        def build(path=path):
            loss = net.losses(net(inputs[0], path, layers.BATCH), inputs[1:])[0]
            loss.persistent = True
            return loss

        ours = stepper(adam(), net.get_parameters(grad_only=True), build, False)
        sides = [ours, stepper(*theirs(net, path, inputs))]
        times = turns([work for side in sides for work in side], 3)
        without.append(times[:, [0, 2]])
        with_update.append(times[:, [0, 2]] + times[:, [1, 3]])
    whole, partly = np.concatenate(with_update), np.concatenate(without)
    return {**ratio(*whole.T), "without_update": ratio(*partly.T)["value"]}


def p1(options) -> dict:
    from nnabla_detofa.networks.layers import BATCH as BY_BATCH

    def static(net, path, inputs):
        cut_out = net.get_active_subnet(path)

        def build():
            loss = cut_out.losses(cut_out(inputs[0], BY_BATCH), inputs[1:])[0]
            loss.persistent = True
            return loss

        return adam(), cut_out.get_parameters(grad_only=True), build, True

    return step_ratio(static)


def p2(options) -> dict | None:
    if options.upstream is None:
        return None
    sys.path.insert(0, str(options.upstream))  # before anything imports nnabla_nas

    import nnabla_detofa.backend.compat  # noqa: F401, I001 - the first to import it
    from nnabla_nas.contrib.classification.ofa.networks import ofa_resnet50

    theirs = ofa_resnet50.OFAResNet50(
        CLASSES, drop_rate=0, depth_list=[0, 1, 2], expand_ratio_list=[0.2, 0.25, 0.35], width_mult_list=[0.65, 0.8, 1.0]
    )
    theirs.apply(training=True)

    def upstream(net, path, inputs):
        import nnabla.solvers as S

        def build():
            # In training each call samples a path; the same for both sides here.
            theirs.set_active_subnet(**path.to_ofa(net.space.geometry))
            loss = theirs.loss([theirs(inputs[0])], inputs[1:])
            loss.persistent = True
            return loss

        return S.Adam(1e-5), theirs.get_parameters(grad_only=True), build, False

    type(theirs).sample_active_subnet = lambda self: None
    return step_ratio(upstream)


DEMO = "configs/digits_detofa.json"
PROGRAM = FilePath(__file__).with_name("__main__.py")


class Given:
    """A loader that has one batch."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays

    def batches(self, start: int):
        return self

    def __next__(self):
        return self._arrays

    def close(self) -> None:
        """There is nothing to close."""


def demo_step(processes: int = 1, rank: int = 0, comm=None) -> tuple:
    """(net, its space, cost, what trains the demo's detector on a path for one step); a batch of 8 in mini-batches of 4."""
    import nnabla as nn

    from nnabla_detofa import config as configs
    from nnabla_detofa.data.sets import eval_batches
    from nnabla_detofa.methods.build import build
    from nnabla_detofa.runs.phases import training_phases
    from nnabla_detofa.training import loop as training

    config = configs.load(DEMO)
    net, sets, cost = build(config)
    (batch,) = eval_batches(sets, sets.train, np.arange(8), 8)
    batch = [array[rank * 8 // processes : (rank + 1) * 8 // processes] for array in batch]
    phase = training_phases(config)[-1]
    optimizer = training.new_optimizer(net, phase.solver, phase.schedule(1000))
    inputs = [nn.Variable(array[:4].shape) for array in batch]

    def step(sampler, steps: int = 1) -> None:
        training.train(net, optimizer, sampler, Given(batch), inputs, range(steps), accumulate=2 // processes, comm=comm)

    return net, cost, config, step


def p4(options) -> dict:
    from nnabla_detofa.path_filter.model import PathFilter, PathScorer
    from nnabla_detofa.space.counting import Buckets
    from nnabla_detofa.space.pruning import KeptPaths, UniformPaths, path_thresholds
    from nnabla_detofa.training.loop import OnePath

    net, cost, config, step = demo_step()
    space, buckets = net.space, Buckets(net.space, cost)
    scorer = PathScorer(PathFilter(space.geometry, rng=np.random.default_rng(0)), cost.flops, buckets.index)
    hparams = config.hparams
    thresholds = path_thresholds(scorer, space, buckets, hparams.r_path, hparams.threshold_paths, np.random.default_rng(1))
    kept = KeptPaths(space, scorer, thresholds, lambda paths: buckets.index(cost.flops(paths)), np.random.default_rng(2))
    uniform, count = UniformPaths(space, np.random.default_rng(3)), 500
    path = space.sample(np.random.default_rng(4))

    def draw(sampler) -> Callable[[], None]:
        return lambda: [sampler.next() for _ in range(count)]

    times = turns([lambda: step(OnePath(path), 4), draw(kept), draw(uniform)])
    alone = times[:, 0] / 4
    return ratio(alone + times[:, 1] / count, alone + times[:, 2] / count)


def p7(options) -> dict:
    steps, found = 12, {1: [], 2: []}
    for number in range(3):
        for processes in (1, 2) if number % 2 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                file = FilePath(folder, "seconds")
                program = [
                    sys.executable,
                    "-W",
                    "ignore",
                    str(FilePath(__file__).with_name("__main__.py")),
                    "--rank",
                    str(file),
                    "--steps",
                    str(steps),
                ]
                start = (
                    f"import sys; from nnabla_detofa.backend.launch import launch; sys.exit(launch({processes}, {program!r}))"
                )
                subprocess.run([sys.executable, "-W", "ignore", "-c", start], check=True)
                found[processes].append(float(file.read_text()))
    one, two = np.array(found[1]), np.array(found[2])
    return {**ratio(one, two), "seconds": round(float(np.median(one)) / steps, 4)}


def as_rank(file: FilePath, steps: int) -> None:
    """Runs in each process of P7: rank 0 writes the wall seconds of so many steps."""
    from nnabla_detofa.backend.compat import Device
    from nnabla_detofa.space.pruning import UniformPaths

    logging.disable(logging.INFO)
    comm = Device.open("cpu").comm
    net, _, _, step = demo_step(comm.n_procs, comm.rank, comm)
    sampler = UniformPaths(net.space, np.random.default_rng(0))
    step(sampler, 2)
    passed = seconds(lambda: step(sampler, steps), time.perf_counter)
    if comm.rank == 0:
        file.write_text(str(passed))


def loader(options) -> dict:
    from nnabla_detofa import config as configs
    from nnabla_detofa.data.sets import eval_batches, open_sets

    config = configs.load(DEMO)
    sets = open_sets(config, 4)
    count = min(200, len(sets.train))

    def read() -> None:
        for _ in eval_batches(sets, sets.train, np.arange(count), 8):
            pass

    rates = count / turns([read], 5)[:, 0]
    return {"images_per_second": round(float(np.median(rates)), 1), "spread": spread(rates)}
