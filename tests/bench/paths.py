"""Evaluating (P3), searching (P5), counting (P6) and scoring (P8) paths, and fitting the path filter to them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path as FilePath

import numpy as np
from timing import ratio, seconds, spread, turns

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
    single, ensemble = PathFilter(rng=rng), PathFilter(pooling="concat", linear_skip=True, ensemble=4, rng=rng)
    times, others = (
        turns([partial(path_filter.score, batch, buckets), bare_products(path_filter)], 5) for path_filter in (single, ensemble)
    )
    return {**ratio(*times.T), "seconds": round(float(np.median(times[:, 0])), 3), "ensemble": ratio(*others.T)["value"]}


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


FITTED = 28
"""Paths of each bucket to which a filter is fitted."""


def fit(options) -> dict:
    """Fits from random weights, to paths of a pilot of the filter study, with another seed in each round."""
    from nnabla_detofa import config as configs
    from nnabla_detofa.paper import archives, filter_curves, filter_study
    from nnabla_detofa.path_filter import fitting
    from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPaths

    config = configs.load("configs/digits_detofa.json")
    with tempfile.TemporaryDirectory() as folder:
        archives.restore(archives.archive(FilePath("results", "demo"), filter_curves.NAME), FilePath(folder))
        files = (FilePath(folder, "digits-pilots", "11", f"{name}.jsonl") for name in ("fit", "test"))
        train, test = (EvaluatedPaths.read(file, config.network.geometry) for file in files)
    inputs = filter_study.StudyInputs("", filter_curves.first_of_each_bucket(train, FITTED), test, config.hparams.filter)
    given = inputs.train.batch, inputs.train.buckets, inputs.train.losses

    def fit_once(name: str, seed: int) -> None:
        (setting,) = (setting for setting in filter_study.SETTINGS if setting.name == name)
        path_filter, rng = filter_study.fresh(inputs, setting, seed), filter_study.seeded(seed, "fine-tuning")
        fitting.fit(path_filter, *given, rng, fitting.fit_options(setting.options(inputs.options)))

    names = filter_study.CONFIGURED_FRESH, "block encoding, FLOPs-bounded loss"
    times = np.array([[seconds(partial(fit_once, name, seed)) for name in names] for seed in range(3)])
    return {**ratio(*times.T), "seconds": round(float(np.median(times[:, 0])), 1)}
