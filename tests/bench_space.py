"""Speed of costs, sampling and evolution beside plain Python that treats one path after the other: `make bench-space`.

The plain versions do what is usually done: walk the layers of each path, draw until a path fits, breed one child at a time.
Times are CPU seconds of one core; where the plain version would take too long, a part of it is timed and scaled up.
"""

from __future__ import annotations

import time
from functools import partial
from random import Random

import numpy as np

from nnabla_detofa.search.evolution import search
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.space.geometry import OFA_RESNET50 as NET
from nnabla_detofa.space.paths import Path, PathBatch
from nnabla_detofa.space.search_space import ofa_resnet50

SIZE, CLASSES = 384, 20
PLAIN_RANDOM = Random(0)
LAYERS = NET.layers_per_stage


def plain_flops(arch: dict) -> int:
    """Multiply-accumulates of a detector in OFA's notation, layer by layer."""
    side = SIZE // 2
    mid, out = NET.stem_mid(NET.widths[arch["w"][0]]), NET.stem_out(NET.widths[arch["w"][1]])
    total = 9 * side**2 * (3 * mid + mid * out)
    if arch["d"][0] == max(NET.depths):
        total += 9 * side**2 * mid * mid
    side, channels, start = side // 2, out, 0
    for stage, stride in enumerate(NET.strides):
        out = NET.stage_out(stage, NET.widths[arch["w"][stage + 2]])
        for place in range(NET.base_depths[stage] + arch["d"][stage + 1]):
            mid = NET.middle(out, arch["e"][start + place])
            total += channels * mid * side**2
            if place == 0:
                side //= stride
                total += channels * out * side**2
            total += (9 * mid * mid + mid * out) * side**2
            channels = out
        start += LAYERS[stage]
    for filters in (256, 256, 256):
        total += 16 * channels * filters * side**2
        channels, side = filters, side * 2
    return total + (3 * 9 * channels * 64 + 64 * (CLASSES + 2 + 2)) * side**2


def plain_sample() -> dict:
    """A uniformly drawn path in OFA's notation."""
    depths = [PLAIN_RANDOM.choice(NET.stem_depths), *(PLAIN_RANDOM.choice(NET.depths) for _ in LAYERS)]
    widths = [PLAIN_RANDOM.randrange(len(NET.widths)) for _ in range(len(LAYERS) + 2)]
    return {"d": depths, "e": [PLAIN_RANDOM.choice(NET.ratios) for _ in range(sum(LAYERS))], "w": widths}


def plain_child(parents: list[dict], mutant: bool) -> dict:
    """A mutant of a random parent, or a crossover of two."""
    first, second = PLAIN_RANDOM.choice(parents), plain_sample() if mutant else PLAIN_RANDOM.choice(parents)
    chance = 0.1 if mutant else 0.5
    return {key: [b if PLAIN_RANDOM.random() < chance else a for a, b in zip(first[key], second[key])] for key in first}


def plain_evolution(budget: float, generations: int, population: int = 100) -> list[tuple[float, dict]]:
    """OFA's search: the best quarter are parents, children are redrawn until they fit."""

    def fitting(draw) -> dict:
        while plain_flops(arch := draw()) > budget:
            pass
        return arch

    scored = [(plain_score(arch), arch) for arch in (fitting(plain_sample) for _ in range(population))]
    for _ in range(generations):
        scored = sorted(scored, key=lambda pair: -pair[0])[: population // 4]
        parents = [arch for _, arch in scored]
        children = [fitting(partial(plain_child, parents, mutant)) for mutant in [True, False] * (population // 2)]
        scored += [(plain_score(arch), arch) for arch in children]
    return scored


def plain_score(arch: dict) -> float:
    return sum(arch["w"]) + sum(arch["d"])


def score(batch: PathBatch) -> np.ndarray:
    """`plain_score` of many paths."""
    return batch.widths.sum(axis=1) + batch.depths.sum(axis=1)


def seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    space, rng = ofa_resnet50(), np.random.default_rng(0)
    model = CostModel(SIZE, CLASSES, "detector")
    few = [plain_sample() for _ in range(5000)]
    # The plain version is right, or the comparison means nothing.
    assert [plain_flops(arch) for arch in few[:200]] == model.flops([Path.from_ofa(arch) for arch in few[:200]]).tolist()

    rows = []
    many = space.sample_many(rng, 1_000_000)
    _ = model.flops, model._tables
    plain = seconds(lambda: [plain_flops(arch) for arch in few]) * len(many) / len(few)
    rows.append(("FLOPs of a million paths", seconds(lambda: model.flops(many)), plain))
    three = seconds(lambda: [cost(many) for cost in (model.flops, model.params, model.memory)])
    rows.append(("FLOPs, parameters and memory of a million paths", three, None))

    buckets = Buckets(space, CostModel(SIZE, CLASSES, "detector"))  # nothing of it is known yet
    ours = seconds(lambda: buckets.sample(4, 10_000, rng))
    one = seconds(lambda: [plain_flops(plain_sample()) for _ in few]) / len(few)
    rows.append(("10,000 paths of the top FLOPs bucket, tables included", ours, one * 10_000 / buckets.share(4)))

    budget = float(buckets.edges[2])
    ours = seconds(lambda: search(space, score, model, budget, rng, generations=500))
    plain = seconds(lambda: plain_evolution(budget, 10)) * 500 / 10
    rows.append(("500 generations of 100 under a FLOPs budget", ours, plain))

    print(f"{'':<56}{'seconds':>9}{'plain':>14}{'ratio':>14}")
    for name, ours, plain in rows:
        beside = "" if plain is None else f"{plain:>14,.1f}{plain / ours:>14,.0f}"
        print(f"{name:<56}{ours:>9.2f}{beside}")


if __name__ == "__main__":
    main()
