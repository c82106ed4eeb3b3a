"""How fast the parts are, as ratios to what bounds them: `make bench` prints a table and writes results/bench.json.

P1  a supernet step / the step of the path cut out as a static network, whose graph is built once
P2  a supernet step / the same step of NNablaNAS' own supernet (--upstream: a source checkout, which its wheel is not)
P3  evaluating a path / evaluating it the straightforward way, and Kendall's tau between the losses of both
P4  a training step with path pruning / without
P5  search, 500 generations of 100, with a score that costs nothing and with the path filter's
P6  the FLOPs of a million paths
P7  steps of two processes / steps of one
P8  scoring paths / its bare matrix products
loader  images that one process decodes, augments and batches in a second

What is compared takes turns, so that whatever else the machine does slows both sides. Times are medians of CPU seconds of one
core, P7's of wall time. Each measure is a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NNabla is loaded

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

import numpy as np

ROUNDS = 7
BUSY = 0.1
"""Share of the cores' time in use by others, above which the machine counts as busy."""


# --- Measuring --------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    work()
    return clock() - start


def turns(sides: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> np.ndarray:
    """(rounds, sides) CPU seconds, after one round that does not count; every other round goes the other way."""
    for side in sides:
        side()
    found = np.empty((rounds, len(sides)))
    for number in range(rounds):
        for side in range(len(sides))[:: -1 if number % 2 else 1]:
            found[number, side] = seconds(sides[side])
    return found


def spread(values: np.ndarray) -> list[float]:
    """The first and third quartile."""
    return [float(f"{value:.4g}") for value in np.quantile(values, [0.25, 0.75])]


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """Median and quartiles of the ratios of each round."""
    return {"value": float(f"{np.median(ours / theirs):.4g}"), "spread": spread(ours / theirs)}


def busy_share(interval: float = 1.0) -> float:
    """Share of the cores' time that is in use now, by Linux' counters; 0 where there are none."""

    def counters() -> np.ndarray:
        return np.array(FilePath("/proc/stat").read_text().split("\n")[0].split()[1:], float)

    try:
        before = counters()
        time.sleep(interval)
        passed = counters() - before
    except OSError:
        return 0.0
    return float(1 - (passed[3] + passed[4]) / max(1.0, passed.sum()))


# --- Steps ------------------------------------------------------------------------------------------------------------

SIDE, BATCH, CLASSES, PATHS = 128, 4, 1000, 3
"""Of P1 and P2: the classification supernet at full width."""


def stepper(net, parameters, build: Callable, inputs: Sequence, once: bool) -> tuple[Callable, Callable]:
    """What does a training step on given inputs, without and with the update; `once` builds the graph only now."""
    import nnabla.solvers as S

    solver = S.Adam(1e-5)
    solver.set_parameters(parameters)
    kept = build() if once else None

    def gradients() -> None:
        loss = kept or build()
        solver.zero_grad()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        float(loss.d)

    def update() -> None:
        solver.update()

    return gradients, update


def step_ratio(theirs: Callable) -> dict:
    """Our supernet's step over that of `theirs(path, inputs)`, which gives a network's parameters, builder and `once`."""
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

        sides = [stepper(net, net.get_parameters(grad_only=True), build, inputs, False), stepper(*theirs(net, path, inputs))]
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

        return cut_out, cut_out.get_parameters(grad_only=True), build, inputs, True

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
        def build():
            # In training each call samples a path; the same for both sides here.
            theirs.set_active_subnet(**path.to_ofa(net.space.geometry))
            loss = theirs.loss([theirs(inputs[0])], inputs[1:])
            loss.persistent = True
            return loss

        return theirs, theirs.get_parameters(grad_only=True), build, inputs, False

    type(theirs).sample_active_subnet = lambda self: None
    return step_ratio(upstream)


# --- Evaluating paths -------------------------------------------------------------------------------------------------

PRETRAINED = "configs/digits_pretrain.json", "configs/weights/digits_supernet.h5"
STRAIGHT_IMAGES, TAU_PATHS = 2000, 8


def p3(options) -> dict:
    import nnabla as nn
    import nnabla.functions as F

    from nnabla_detofa import config as configs
    from nnabla_detofa.data.sets import eval_batches
    from nnabla_detofa.evaluation.images import EvaluationImages
    from nnabla_detofa.evaluation.validation import PathEvaluator
    from nnabla_detofa.methods.build import build
    from nnabla_detofa.networks import weights
    from nnabla_detofa.networks.layers import EPSILON, Plain, slice_channels
    from nnabla_detofa.path_filter.metrics import kendall_tau

    file, trained = PRETRAINED
    config = configs.load(file)
    net, sets, _ = build(config, pretrained=False)
    weights.load(net, trained)
    images = EvaluationImages.choose(sets, config.hparams, config.args.seed)
    evaluator = PathEvaluator.on(net, images, config.args.evaluation_processes)

    class Running(Plain):
        """NNabla's batch normalization as it comes, with or without batch statistics."""

        def __init__(self):
            self.kept: dict = {}

        def __call__(self, layer, convolve, weight, gamma, beta, relu=False):
            x = convolve(weight)
            gamma, beta = (slice_channels(p, x.shape[1]) for p in (gamma, beta))
            if layer.name in self.kept:
                mean, var = map(nn.Variable.from_numpy_array, self.kept[layer.name])
                y = F.batch_normalization(x, beta, gamma, mean, var, eps=EPSILON, batch_stat=False)
            else:
                mean, var = nn.Variable(beta.shape), nn.Variable(beta.shape)
                y, *found = F.batch_normalization(x, beta, gamma, mean, var, eps=EPSILON, batch_stat=True, output_stat=True)
                self.found[layer.name] = found
                for variable in found:
                    variable.persistent = True
            return self.relu(y) if relu else y

    def straightforward(path) -> float:
        running, batch = Running(), config.hparams.bn_batch
        running.found, sums = {}, {}
        chosen = np.arange(STRAIGHT_IMAGES // batch * batch) % len(sets.train)
        for images, *_ in eval_batches(sets, sets.train, chosen, batch):
            output = net.trunk(nn.Variable.from_numpy_array(np.asarray(images)), path, running)
            output.forward(clear_buffer=True)
            for name, found in running.found.items():
                sums[name] = [total + each.d.astype(float) for total, each in zip(sums.get(name, (0.0, 0.0)), found)]
        running.kept = {name: [np.float32(total * batch / len(chosen)) for total in pair] for name, pair in sums.items()}
        total = 0.0
        for images, *targets in eval_batches(sets, sets.val, np.arange(len(sets.val)), batch):
            outputs = net(nn.Variable.from_numpy_array(np.asarray(images)), path, running)
            loss = net.loss(outputs, [nn.Variable.from_numpy_array(np.asarray(target)) for target in targets])
            loss.forward(clear_buffer=True)
            total += len(images) * float(loss.d)
        return total / len(sets.val)

    losses, times = [], []
    for path in net.space.sample_many(np.random.default_rng(0), TAU_PATHS):
        found: list[float] = []
        sides = (lambda: evaluator.evaluate(path).loss), (lambda: straightforward(path))  # noqa: B023 - both run now
        times.append([seconds(lambda: found.append(side())) for side in sides])  # noqa: B023
        losses.append(found)
    ours, theirs = np.array(times).T
    tau = kendall_tau(-np.array(losses)[:, 0], np.array(losses)[:, 1])
    return {**ratio(ours, theirs), "tau": round(float(tau), 3), "seconds": round(float(np.median(ours)), 3)}


# --- The demo's step --------------------------------------------------------------------------------------------------

DEMO = "configs/digits_detofa.json"


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
                program = [sys.executable, "-W", "ignore", __file__, "--rank", str(file), "--steps", str(steps)]
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


# --- Paths without images ---------------------------------------------------------------------------------------------


def p5(options) -> dict:
    from nnabla_detofa.evolution import search
    from nnabla_detofa.path_filter.model import PathFilter, PathScorer
    from nnabla_detofa.space.costs import CostModel
    from nnabla_detofa.space.counting import Buckets
    from nnabla_detofa.space.search_space import ofa_resnet50

    space, cost = ofa_resnet50(), CostModel(384, 20, "detector")
    buckets = Buckets(space, cost)
    budget = float(buckets.edges[2])
    scorer = PathScorer(PathFilter(rng=np.random.default_rng(0)), cost.flops, buckets.index)

    def run(score, generations: int) -> None:
        search(space, score, cost.flops, budget, np.random.default_rng(1), generations=generations, population=100)

    free = turns([lambda: run(lambda batch: batch.widths.sum(axis=1) + batch.depths.sum(axis=1), 500)], 3)[:, 0]
    scored = np.array([seconds(lambda: run(scorer, 500))])
    return {"seconds": round(float(np.median(free)), 3), "scoring": round(float(scored[0]), 2), "spread": spread(free)}


def p6(options) -> dict:
    from nnabla_detofa.space.costs import CostModel
    from nnabla_detofa.space.search_space import ofa_resnet50

    many, cost = ofa_resnet50().sample_many(np.random.default_rng(0), 1_000_000), CostModel(384, 20, "detector")
    times = turns([lambda: cost.flops(many)])[:, 0]
    return {"seconds": round(float(np.median(times)), 3), "spread": spread(times)}


SCORED = 5000


def p8(options) -> dict:
    from nnabla_detofa.path_filter.model import PathFilter
    from nnabla_detofa.space.search_space import ofa_resnet50

    rng = np.random.default_rng(0)
    batch, buckets = ofa_resnet50().sample_many(rng, SCORED), np.arange(SCORED) % 5
    path_filter = PathFilter(rng=rng)
    times = turns([lambda: path_filter.score(batch, buckets), bare_products(path_filter)], 5)
    return {**ratio(*times.T), "seconds": round(float(np.median(times[:, 0])), 3)}


def bare_products(path_filter) -> Callable[[], None]:
    """What runs every affine layer (without bias) and batched product that scores `SCORED` paths, and nothing else."""
    import nnabla as nn
    import nnabla.functions as F

    from nnabla_detofa.path_filter.model import CHUNKS

    rng, plan, left_over = np.random.default_rng(0), [], SCORED
    for size in CHUNKS:
        count, left_over = divmod(left_over, size)
        count += size == CHUNKS[-1] and left_over > 0  # padded
        graphs: list = []

        def visit(function, graphs=graphs) -> None:
            if function.name in ("Affine", "BatchMatmul"):
                left, right = (
                    nn.Variable.from_numpy_array(rng.normal(size=variable.shape).astype(np.float32))
                    for variable in function.inputs[:2]
                )
                transposed = function.info.args.get("transpose_b", False)
                product = F.affine(left, right) if function.name == "Affine" else F.batch_matmul(left, right, False, transposed)
                graphs.append(product)

        if count:
            path_filter(nn.Variable((size, path_filter.tokenizer.length)), nn.Variable((size,))).visit(visit)
        plan.append((count, graphs))

    def run() -> None:
        for count, graphs in plan:
            for _ in range(count):
                for graph in graphs:
                    graph.forward()

    return run


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


MEASURES = {"P1": p1, "P2": p2, "P3": p3, "P4": p4, "P5": p5, "P6": p6, "P7": p7, "P8": p8, "loader": loader}
SAID = dict(line.split("  ", 1) for line in __doc__.splitlines() if line.startswith(("P", "loader  ")))


# --- The table --------------------------------------------------------------------------------------------------------


def alone(name: str, options) -> dict | None:
    """A measure in a process of its own: what it found, with its peak memory and the command that repeats it."""
    with tempfile.TemporaryDirectory() as folder:
        file = FilePath(folder, "found.json")
        program = [sys.executable, "-W", "ignore", __file__, "--single", str(file), "--only", name]
        program += ["--upstream", str(options.upstream)] if options.upstream else []
        subprocess.run(program, check=True)
        found = json.loads(file.read_text())
    upstream = " UPSTREAM=CHECKOUT" if name == "P2" else ""
    return found and {**found, "command": f'make bench ONLY="{name}"{upstream}'}


def single(name: str, file: FilePath, options) -> None:
    """Runs in that process."""
    logging.disable(logging.INFO)
    found = MEASURES[name](options)
    if found is not None:
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        found["memory_mib"] = round(peak / 1024)
    file.write_text(json.dumps(found))


def row(name: str, found: dict) -> str:
    others = [key for key in found if key not in ("value", "spread", "command", "memory_mib", "busy")]
    shown = ", ".join(f"{key} {found[key]:g}" for key in others)
    first = f"{found['value']:.3f}" if "value" in found else ""
    quartiles = " to ".join(f"{value:.4g}" for value in found["spread"])
    return f"{name:<8}{first:>7}  {shown:<32}{quartiles:>18}{found['memory_mib']:>7}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="P1", help="these measures alone"
    )
    parser.add_argument("--upstream", type=FilePath, metavar="CHECKOUT", help="NNablaNAS' sources, for P2")
    parser.add_argument("-o", "--output", type=FilePath, default=FilePath("results/bench.json"))
    parser.add_argument("--single", type=FilePath, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=FilePath, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.upstream and not (options.upstream / "nnabla_nas").is_dir():
        parser.error(f"--upstream must be a checkout of nnabla-nas with a folder nnabla_nas, got {options.upstream}")
    if options.rank:
        as_rank(options.rank, options.steps)
        return 0
    if options.single:
        single(options.only[0], options.single, options)
        return 0
    busy = busy_share()
    if busy > BUSY:
        print(f"the machine is busy ({busy:.0%} of its cores' time is in use by others): measure again when it is idle")
    print(f"{'':<8}{'ratio':>7}  {'':<32}{'quartiles':>18}{'MiB':>7}")
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name in options.only:
        found = alone(name, options)
        if found is None:
            print(f"{name:<8}not measured: needs --upstream CHECKOUT (make bench UPSTREAM=CHECKOUT)")
            continue
        found["busy"] = round(busy, 2)
        print(row(name, found), flush=True)
        results[name] = found
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print()
    for name in options.only:
        print(f"{name:<8}{SAID[name].strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
