"""Speed of the path filter beside its bare matrix products, both run by NNabla on one core: `make bench-filter`.

The bare side runs every affine layer (without bias) and every batched product of a forward pass, in the shapes that `score`
uses, and nothing else: no normalisation, softmax or look-up, and its operands are not shuffled. Both sides take turns, so
that whatever else the machine does slows both; times are CPU seconds, the median of all rounds.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NNabla is loaded

import time
from collections.abc import Callable

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_detofa.path_filter.model import CHUNKS, POOLINGS, PathFilter
from nnabla_detofa.space.search_space import ofa_resnet50

PATHS, ROUNDS = 5000, 5
PRODUCTS = ("Affine", "BatchMatmul")


def products(path_filter: PathFilter, size: int) -> list[tuple[str, tuple[int, ...], tuple[int, ...], bool]]:
    """(function, shape, shape, second transposed?) of each matrix product that scores `size` paths, read off the graph."""
    scores = path_filter(nn.Variable((size, path_filter.tokenizer.length)), nn.Variable((size,)))
    found = []

    def visit(function) -> None:
        if function.name in PRODUCTS:
            left, right, *_ = (variable.shape for variable in function.inputs)
            found.append((function.name, left, right, function.info.args.get("transpose_b", False)))

    scores.visit(visit)
    return found


def multiplications(left: tuple[int, ...], right: tuple[int, ...], transposed: bool) -> int:
    """Multiply-accumulates of one product of these shapes."""
    return int(np.prod(left)) * right[-2 if transposed else -1]


def bare(path_filter: PathFilter) -> tuple[Callable[[], None], float]:
    """What runs the products for `PATHS` paths, and the multiply-accumulates of a path."""
    rng, plan, total, left_over = np.random.default_rng(0), [], 0, PATHS
    for size in CHUNKS:
        count, left_over = divmod(left_over, size)
        if size == CHUNKS[-1] and left_over:
            count += 1  # padded
        shapes = products(path_filter, size) if count else []
        total += count * sum(multiplications(*shape[1:]) for shape in shapes)
        graphs = []
        for name, *operands, transposed in shapes:
            left, right = (nn.Variable.from_numpy_array(rng.normal(size=shape).astype(np.float32)) for shape in operands)
            graphs.append(F.affine(left, right) if name == "Affine" else F.batch_matmul(left, right, transpose_b=transposed))
        plan.append((count, graphs))

    def run() -> None:
        for count, graphs in plan:
            for _ in range(count):
                for graph in graphs:
                    graph.forward()

    return run, total / PATHS


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    rng = np.random.default_rng(0)
    batch, buckets = ofa_resnet50().sample_many(rng, PATHS), np.arange(PATHS) % 5
    print(f"{PATHS} paths, one core, median of {ROUNDS}; a multiply-accumulate is two FLOPs")
    print(f"{'pooling':<9}{'score [s]':>11}{'products [s]':>14}{'ratio':>7}{'us a path':>11}{'MFLOP a path':>14}{'GFLOP/s':>9}")
    for pooling in POOLINGS:
        path_filter = PathFilter(pooling=pooling, rng=rng)
        run, each = bare(path_filter)
        sides = (lambda: path_filter.score(batch, buckets)), run  # noqa: B023 - both are used up in this round
        for side in sides:
            side()  # graphs and buffers are made now
        times = np.array([[seconds(side) for side in sides] for _ in range(ROUNDS)])
        ours, products_alone = np.median(times, axis=0)
        ratio = np.median(times[:, 0] / times[:, 1])
        print(
            f"{pooling:<9}{ours:>11.2f}{products_alone:>14.2f}{ratio:>7.2f}{ours / PATHS * 1e6:>11.0f}"
            f"{2 * each / 1e6:>14.2f}{2 * each * PATHS / products_alone / 1e9:>9.1f}"
        )


if __name__ == "__main__":
    main()
