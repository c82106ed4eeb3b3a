"""What the examples share: the digits data set, a few steps of the package's training loop on it, a small path filter."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path

import nnabla as nn
import numpy as np

from nnabla_detofa.backend.compat import Optimizer
from nnabla_detofa.data.augment import Augmentation
from nnabla_detofa.data.digits import DIGIT_CLASSES, write_digits
from nnabla_detofa.data.loader import CachedDataset, Loader
from nnabla_detofa.data.sets import DetectionSets
from nnabla_detofa.data.voc import VOCDataset
from nnabla_detofa.evaluation.validation import PathEvaluator
from nnabla_detofa.path_filter.fitting import FitOptions, fit
from nnabla_detofa.path_filter.model import PathFilter, PathScorer
from nnabla_detofa.runs.phases import Schedule
from nnabla_detofa.space.costs import AdditiveCost
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.space.paths import PathBatch
from nnabla_detofa.space.pruning import UniformPaths
from nnabla_detofa.training.loop import train

MADE = Path(__file__).parent.parent / "data" / "digits"


@contextmanager
def digits(image_size: int, stride: int = 4, kind: type[DetectionSets] = DetectionSets):
    """The data set that `make data/digits` writes; where it is missing, a small one in a folder that is removed afterwards.

    Args:
        image_size: side of the network's input, at least 60. stride: input pixels per cell of the detector's output.
        kind: decides the targets.
    """
    with tempfile.TemporaryDirectory() as folder:
        few = {"train": 32, "val": 16, "test": 16, "crops_train": 1, "crops_val": 1}
        root = MADE if MADE.is_dir() else write_digits(Path(folder) / "digits", image_size=image_size, **few)
        splits = (CachedDataset(VOCDataset(root, split, DIGIT_CLASSES)) for split in ("train", "val", "test"))
        whole = Augmentation(scale=(1.0, 1.0), crop=False, flip=0.0)
        yield kind(DIGIT_CLASSES, *splits, (image_size, image_size), stride, max_objects=8, augmentation=whole)


def train_steps(net, space, sets: DetectionSets, steps: int, batch: int = 8, rate: float = 2e-3) -> list[float]:
    """Train uniformly drawn paths, one a step, and return the loss of each step."""
    optimizer = Optimizer(name="Adam", alpha=rate, lr_scheduler=Schedule(rate, "cosine", steps, warmup_steps=5))
    optimizer.set_parameters(net.get_parameters(grad_only=True))
    inputs = [nn.Variable((batch, *shape)) for shape in ((3, *sets.image_size), *sets.target_shapes())]
    losses: list[float] = []
    train(
        net,
        optimizer,
        UniformPaths(space, np.random.default_rng(1)),
        Loader(sets.train, sets.train_item, batch, seed=0),
        inputs,
        range(steps),
        on_step=lambda progress: losses.append(progress.losses[0]),
    )
    print(f"loss {np.mean(losses[:5]):.2f} -> {np.mean(losses[-5:]):.2f} in {steps} steps")
    return losses


def fitted_scorer(net, sets: DetectionSets, cost: AdditiveCost, buckets: Buckets, rng, per_bucket: int = 8) -> PathScorer:
    """Evaluate a few paths of each FLOPs bucket, and fit a small path filter to their losses (Alg. 1 lines 4 and 5)."""
    paths = PathBatch.concatenate([buckets.sample(bucket, per_bucket, rng) for bucket in range(buckets.n)])
    batch = [np.stack(arrays) for arrays in zip(*(sets.eval_item(sets.val, index) for index in range(16)))]
    losses = PathEvaluator(net, [batch[0]], [batch]).losses(paths)
    path_filter = PathFilter(paths.geometry, buckets.n, dim=16, heads=2, layers=1, feed_forward=16, rng=rng)
    fit(path_filter, paths, buckets.index(cost(paths)), losses, rng, FitOptions(epochs=60, lr=3e-3))
    print(f"the path filter was fitted to {len(paths)} paths with losses from {losses.min():.2f} to {losses.max():.2f}")
    return PathScorer(path_filter, cost, buckets.index)
