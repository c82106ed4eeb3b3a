"""A search space small enough to list, for tests that compare with a full enumeration."""

from functools import cache
from itertools import product

import numpy as np

from nnabla_detofa.space.geometry import Geometry
from nnabla_detofa.space.paths import Path, PathBatch
from nnabla_detofa.space.search_space import Operation, SearchSpace, ofa_resnet50

GEOMETRY = Geometry(
    depths=(0, 1),
    widths=(0.5, 1.0),
    ratios=(0.2, 0.25, 0.35),
    base_depths=(1, 2),
    stage_channels=(256, 512),
    strides=(1, 2),
)
SPACE = ofa_resnet50(GEOMETRY)
PRUNED = SPACE.without(
    [
        Operation(0, 1, 1.0, 0.35),
        *(Operation(1, 1, 0.5, ratio) for ratio in GEOMETRY.ratios),
        Operation(1, 1, 1.0, 0.2),
        Operation(1, 1, 1.0, 0.35),
    ]
)


def random_geometry(rng: np.random.Generator) -> Geometry:
    """A supernet of one to three stages with other choices, bases and strides."""
    stages = int(rng.integers(1, 4))

    def some(values: tuple, most: int) -> tuple:
        return tuple(sorted(rng.choice(values, rng.integers(1, most + 1), replace=False).tolist()))

    return Geometry(
        depths=some((0, 1, 2), 2 if stages < 3 else 1),
        widths=some((0.5, 0.65, 0.8, 1.0), 2),
        ratios=some((0.2, 0.25, 0.35), 2),
        base_depths=tuple(rng.integers(1, 3, stages).tolist()),
        stage_channels=tuple(rng.choice((32, 64, 256), stages).tolist()),
        strides=tuple(rng.integers(1, 3, stages).tolist()),
        stem_channels=int(rng.choice((8, 16, 64))),
        width_scale=float(rng.choice((0.125, 0.5, 1.0))),
    )


@cache
def every_path(space: SearchSpace) -> PathBatch:
    """All canonical paths of the space, in no meaningful order: OFA's notation run through, then filtered."""
    geometry = space.geometry
    notation = product(
        product(geometry.depths, repeat=geometry.stages + 1),
        product(geometry.ratios, repeat=geometry.layers),
        product(range(len(geometry.widths)), repeat=geometry.stages + 2),
        product(*(values for _, values in geometry.named)),
    )
    names = [name for name, _ in geometry.named]
    paths = {Path.from_ofa({"d": d, "e": e, "w": w, "named": dict(zip(names, n))}, geometry) for d, e, w, n in notation}
    return PathBatch.from_paths([path for path in paths if path in space], geometry)


@cache
def probabilities(space: SearchSpace) -> np.ndarray:
    """(n,) the probability of each of `every_path` under uniform sampling, from the definition."""
    batch = every_path(space)
    stem = len(space.stem_depths) * len(space.stem_widths[0]) * len(space.stem_widths[1])
    result = np.full(len(batch), 1 / stem / np.prod([len(values) for _, values in space.named]))
    for index, path in enumerate(batch):
        for pairs, depth, width, ratios in zip(space.pairs, path.stage_depths, path.stage_widths, path.expand_ratios):
            result[index] /= len(pairs) * len(pairs[depth, width]) ** len(ratios)
    return result


def detofa_config(root) -> dict:
    """A config of Algorithm 1 whose whole run takes seconds, on digits of 64 pixels in `root`."""
    return {
        "args": {"context": "cpu", "print_frequency": 2, "evaluation_processes": 2},
        "network": {
            "centernet_ofa_resnet50": {
                "width_scale": 0.0625,
                "strides": [1, 2, 2, 1],
                "deconv_channels": [8, 8],
                "head_channels": 8,
                "heatmap_std": 0.1,
            }
        },
        "dataloader": {
            "voc": {
                "root": str(root),
                "train": ["train"],
                "val": ["val"],
                "test": ["test"],
                "image_size": 64,
                "flip": False,
                "max_objects": 8,
            }
        },
        "optimizer": {"train": {"lr": 1e-3, "schedule": "cosine"}},
        "hparams": {
            "batch_size": 4,
            "fullnet_epochs": 1,
            "warmup_epochs": 1,
            "epochs": 2,
            "paths_per_bucket": 8,
            "paths_per_operation": 4,
            "threshold_paths": 40,
            "heldout_paths_per_bucket": 3,
            "bn_images": 8,
            "bn_batch": 8,
            "filter": {"dim": 16, "feed_forward": 16, "layers": 1, "epochs": 4},
            "search": {"generations": 4, "population": 10},
        },
    }


def pretrain_config(root) -> dict:
    """A config that pre-trains a supernet and a path filter in seconds, on the crops in `root`."""
    return {
        "args": {"context": "cpu", "runner": "pretrain", "evaluation_processes": 2},
        "network": {"ofa_resnet50": {"width_scale": 0.0625, "strides": [1, 2, 2, 1]}},
        "dataloader": {"image_folder": {"root": str(root), "image_size": 32}},
        "hparams": {
            "batch_size": 8,
            "epochs": 1,
            "paths": 40,
            "bn_images": 8,
            "bn_batch": 8,
            "filter": {"dim": 16, "feed_forward": 16, "layers": 1, "epochs": 4},
        },
    }
