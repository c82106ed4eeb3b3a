"""Other constraints for the search: energy as a function of paths, and a bound on two costs taken together.

A constraint is a name, a function of a `PathBatch` (three arrays of small integers, thousands of paths at once) and a bound. No
path of the result is above the bound, whatever the function is. Where the cost adds up over layers, as energy does here, an
`AdditiveCost` lets the search sample its first paths within the bound; for a plain function, sampled paths are tested.

    python examples/energy_budget.py [--millijoules E] [--generations N]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from nnabla_detofa.evolution import Constraint, search
from nnabla_detofa.space.costs import AdditiveCost, CostModel
from nnabla_detofa.space.paths import PathBatch
from nnabla_detofa.space.search_space import ofa_resnet50

PJ_PER_MAC, PJ_PER_BYTE = 4.6, 160.0
"""Energy of a float32 multiply-accumulate, and of a byte from DRAM (45 nm: Horowitz, ISSCC 2014: 0.9 + 3.7, and 640 for 4)."""


def energy(model: CostModel) -> AdditiveCost:
    """pJ of one image: every multiply-accumulate, and every weight fetched once. A sum of two tables is a table."""
    macs, params = model.flops, model.params

    def total(of_macs: np.ndarray, of_params: np.ndarray) -> np.ndarray:
        return np.round(PJ_PER_MAC * of_macs + 4 * PJ_PER_BYTE * of_params).astype(np.int64)

    return replace(
        macs,
        name="energy",
        unit="mJ",
        scale=1e9,
        stem=total(macs.stem, params.stem),
        first=tuple(map(total, macs.first, params.first)),
        other=tuple(map(total, macs.other, params.other)),
        head=total(macs.head, params.head),
    )


def pressure(model: CostModel, flops: float, memory: float):
    """How much of a device a path takes: its share of the FLOPs there are, plus its share of the memory."""

    def cost(paths: PathBatch) -> np.ndarray:
        return model.flops(paths) / flops + model.memory(paths) / memory

    return cost


def width(paths: PathBatch) -> np.ndarray:
    """Stands in for the path filter, so that the example needs no weights: the more channels and layers, the better."""
    return paths.widths.sum(axis=1) + 0.3 * paths.ratios.sum(axis=1)


def main(millijoules: float = 80.0, generations: int = 60) -> dict:
    """The best path under an energy bound, then under a joint bound besides, in the paper's space at its size for VOC."""
    space, model = ofa_resnet50(), CostModel(384, 20, "detector")
    joules = energy(model)
    ranges = (cost.reachable(space) for cost in (joules, model.flops, model.memory))
    print(f"paths of {space.name} take {', '.join(ranges)}")

    results = {}
    joint = Constraint("share of FLOPs + share of memory", pressure(model, flops=20e9, memory=20e6), 1.4)
    for name, more in (("energy", ()), ("energy and joint bound", (joint,))):
        rng = np.random.default_rng(0)
        found = search(space, width, joules, millijoules * 1e9, rng, generations=generations, population=50, constraints=more)
        paths = PathBatch.from_paths([found.path])
        results[name] = found
        print(
            f"{name:<23} score {found.score:5.1f}, {joules.text(found.cost)}, {model.flops(paths)[0] / 1e9:.2f} GFLOPs, "
            f"{model.memory(paths)[0] / 1e6:.1f} MB, joint {joint.cost(paths)[0]:.2f}"
        )
    # The same bound on a plain function: the search only tries paths, so a tight bound may find none.
    bound = Constraint("energy", lambda paths: joules(paths), millijoules * 1e9)
    plain = search(space, width, model, np.inf, np.random.default_rng(0), generations, 50, constraints=[bound])
    print(f"{'energy, plain function':<23} score {plain.score:5.1f}, {joules.text(joules([plain.path])[0])}")
    return {"space": space, "model": model, "joules": joules, "joint": joint, "plain": plain, **results}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millijoules", type=float, default=80.0, help="the energy of one image (default: %(default)s)")
    parser.add_argument("--generations", type=int, default=60, help="of each search (default: %(default)s)")
    main(**vars(parser.parse_args()))
