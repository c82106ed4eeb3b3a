"""Selection of paths and images for path evaluation, and evaluation into files, shared by runs and tools."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Container, Sequence
from os import PathLike

import numpy as np

from .. import config as configs
from ..backend.compat import nn
from ..backend.launch import cores
from ..backend.ranks import Communicator
from ..common.errors import UserError
from ..data.augment import letterbox_matrix
from ..data.sets import ClassificationSets, DetectionSets, eval_batches
from ..networks import weights
from ..path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from ..space.costs import CostModel
from ..space.counting import Buckets
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace
from .detections import ValidationTruth
from .validation import Evaluation, PathEvaluator

Sets = ClassificationSets | DetectionSets
CHUNK = 64
"""Paths sampled at a time by `distinct_in_buckets`. Constant, so that a larger request starts with the same paths."""
CHUNKS = 200
"""Maximum number of chunks that `distinct_in_buckets` samples from one bucket."""


def rng_for(seed: int, name: str) -> np.random.Generator:
    """Return the random generator for the purpose `name` in a run with this seed."""
    return np.random.default_rng(seed_for(seed, name))


def seed_for(seed: int, name: str) -> tuple[int, int]:
    """Return the seed of the random generator for the purpose `name` in a run with this seed."""
    return seed, zlib.crc32(name.encode())


# --- Images -----------------------------------------------------------------------------------------------------------


def statistics_indices(sets: Sets, config: configs.Config) -> np.ndarray:
    """Choose `bn_images` training images for batch normalization statistics, in whole batches of `bn_batch`, at least one."""
    count, batch = config.hparams.bn_images, config.hparams.bn_batch
    chosen = rng_for(config.args.seed, "statistics").permutation(len(sets.train))[:count]
    return chosen[: max(1, len(chosen) // batch) * batch]


def validation_indices(sets: Sets, config: configs.Config) -> np.ndarray:
    """Choose `val_images` validation images for the loss, by ascending index; all images if `val_images` is None."""
    count = min(len(sets.val), config.hparams.val_images or len(sets.val))
    return np.sort(rng_for(config.args.seed, "validation").permutation(len(sets.val))[:count])


def statistics_images(sets: Sets, config: configs.Config) -> list[np.ndarray]:
    """Return batches of training images (B, 3, H, W), transformed as for inference, for `reestimation.reestimate`."""
    chosen = statistics_indices(sets, config)
    return [arrays[0] for arrays in eval_batches(sets, sets.train, chosen, config.hparams.bn_batch)]


def path_evaluator(
    model, sets: Sets, config: configs.Config, ap: bool = False, comm: Communicator | None = None
) -> PathEvaluator:
    """Create the evaluator of the paths of `model`.

    A single rank on the CPU evaluates paths in several processes (`args.evaluation_processes`).

    Args:
        model: supernet.
        sets: datasets.
        config: config of the run.
        ap: also measure AP50, by the config's `ap_metric`.
        comm: ranks among which the paths are distributed.
    """
    comm = comm or Communicator()
    judged = validation_indices(sets, config)
    forks = comm.n_procs == 1 and nn.get_current_context().backend == ["cpu:float"]
    processes = (config.args.evaluation_processes or cores()) if forks else 1
    batches = list(eval_batches(sets, sets.val, judged, config.hparams.bn_batch))
    truth = _truth(sets, judged, config.dataloader.ap_metric) if ap else None
    return PathEvaluator(model, statistics_images(sets, config), batches, processes, truth, comm)


def _truth(sets: DetectionSets, indices: np.ndarray, metric: str) -> ValidationTruth:
    """Load the ground truth of validation images."""
    samples = [sets.val.load(int(index)) for index in indices]
    return ValidationTruth(
        [(sample.boxes, sample.labels, sample.difficult) for sample in samples],
        np.stack([letterbox_matrix(sample.image.shape[:2], sets.image_size) for sample in samples]),
        sets.stride,
        sets.classes,
        metric,
        [sets.val.areas(int(index)) for index in indices] if metric == "coco" else None,
    )


def evaluation_settings(sets: Sets, config: configs.Config, buckets: Buckets, evaluator: PathEvaluator) -> dict[str, object]:
    """Return the settings of an `EvaluatedPaths`: all values, other than weights and geometry, on which its results depend.

    Images are identified by a hash of their pixels and annotations, not by their names. The hash changes with the dataset,
    the split, and the selection and order of images, but not with the location of the same images.
    """
    detection = isinstance(sets, DetectionSets)
    return {
        "bn_images": sum(map(len, evaluator.statistics_batches)),
        "bn_batch": config.hparams.bn_batch,
        "val_images": sum(len(batch[0]) for batch in evaluator.validation_batches),
        "image_size": list(sets.image_size),
        "centre_share": None if detection else sets.center_share,  # the key of existing files
        "max_objects": sets.max_objects if detection else None,
        "classes": len(sets.classes),
        "images": {
            "statistics": _digest(sets.train, statistics_indices(sets, config)),
            "validation": _digest(sets.val, validation_indices(sets, config)),
        },
        "number_type": config.args.type_config,
        "ap_metric": evaluator.truth.metric if evaluator.truth else None,
        "bucket_edges": buckets.edges.tolist(),
    }


def _digest(dataset, indices: np.ndarray) -> str:
    """Compute a short hash of images and their labels and boxes, in the order of `indices`."""
    total = hashlib.sha256()
    for index in indices:
        sample = dataset.load(int(index))
        fields = sample if isinstance(sample, tuple) else (sample.image, sample.boxes, sample.labels, sample.difficult)
        for value in map(np.ascontiguousarray, fields):
            total.update(str(value.shape).encode())
            total.update(value.tobytes())
    return total.hexdigest()[:16]


# --- Paths ------------------------------------------------------------------------------------------------------------


def sample_in_buckets(
    buckets: Buckets, per_bucket: int, rng: np.random.Generator, space: SearchSpace, note: Callable[[str], None]
) -> PathBatch:
    """Sample paths uniformly and independently from each FLOPs bucket that is not empty (Alg. 1 line 4).

    Args:
        buckets: FLOPs buckets.
        per_bucket: paths per bucket.
        rng: random generator.
        space: search space to sample from.
        note: called with a message for each empty bucket.
    """
    found = [buckets.sample(bucket, per_bucket, rng, space) for bucket in _filled(buckets, space, note)]
    return PathBatch.concatenate(found)


def distinct_in_buckets(
    buckets: Buckets,
    per_bucket: int,
    seed: int,
    name: str,
    space: SearchSpace,
    exclude: Container[Path],
    note: Callable[[str], None],
) -> PathBatch:
    """Sample distinct paths from each FLOPs bucket that is not empty.

    A larger `per_bucket` adds paths to those of a smaller one. A bucket yields fewer paths if `CHUNKS` chunks of samples
    do not contain enough distinct ones.

    Args:
        buckets, per_bucket, space: see `sample_in_buckets`.
        seed, name: determine the random generator, see `rng_for`.
        exclude: paths to leave out.
        note: called with a message for each bucket that is empty or yields fewer paths.
    """
    found: list[Path] = []
    for bucket in _filled(buckets, space, note):
        rng, here = rng_for(seed, f"{name} {bucket}"), {}
        for _ in range(CHUNKS):
            drawn = buckets.sample(bucket, CHUNK, rng, space)
            here |= dict.fromkeys(path for path in drawn if path not in exclude)
            if len(here) >= per_bucket:
                break
        else:
            note(f"FLOPs bucket {bucket + 1} of the space {space.name} gave {len(here)} of {per_bucket} paths")
        found += list(here)[:per_bucket]
    return PathBatch.from_paths(found, space.geometry)


def _filled(buckets: Buckets, space: SearchSpace, note: Callable[[str], None]) -> list[int]:
    """Return the buckets that contain a path of the space; report the others to `note`."""
    empty = [bucket for bucket in range(buckets.n) if not buckets.count(bucket, space)]
    for bucket in empty:
        note(f"FLOPs bucket {bucket + 1} is empty in the space {space.name}")
    return [bucket for bucket in range(buckets.n) if bucket not in empty]


# --- Evaluating -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class KeptEvaluation:
    """Evaluates paths and stores the results in files; a path that is already in the file is not evaluated again.

    Attributes:
        evaluator: see `path_evaluator`.
        cost: cost model of paths.
        buckets: FLOPs buckets of the full search space.
        settings: see `evaluation_settings`.
    """

    evaluator: PathEvaluator
    cost: CostModel
    buckets: Buckets
    settings: dict[str, object]

    @classmethod
    def of(
        cls,
        model,
        sets: Sets,
        config: configs.Config,
        cost: CostModel,
        buckets: Buckets,
        ap: bool = False,
        comm: Communicator | None = None,
    ) -> KeptEvaluation:
        """Create it for a supernet, with the images selected by the config; for `ap` and `comm` see `path_evaluator`."""
        evaluator = path_evaluator(model, sets, config, ap, comm)
        return cls(evaluator, cost, buckets, evaluation_settings(sets, config, buckets, evaluator))

    def open(self, file: str | PathLike) -> EvaluatedPaths:
        """Open or create the file for results under the network's current weights.

        Raises:
            UserError: the file belongs to other weights or settings, or is damaged.
        """
        digest = weights.digest(self.evaluator.net.get_parameters())
        return EvaluatedPaths.open(file, digest, self.settings, self.buckets.space.geometry)

    def missing(self, kept: EvaluatedPaths, paths: PathBatch) -> PathBatch:
        """Return the paths that are not in the file, without duplicates."""
        first = np.sort(np.unique(paths.keys, return_index=True)[1])
        return paths[[index for index in first if paths[int(index)] not in kept]]

    def add(self, kept: EvaluatedPaths, paths: PathBatch, progress: Callable[[], None] = lambda: None) -> list[Evaluation]:
        """Evaluate paths that are not in the file, and append their results to it.

        Each result is on disk before `progress` is called. The paths are distributed among the ranks, but only rank 0
        appends results to its `kept`.

        Args:
            kept: the file.
            paths: paths to evaluate.
            progress: called after each path.
        """
        flops, params, evaluations = self.cost.flops(paths), self.cost.params(paths), []
        rows = zip(paths, self.buckets.index(flops).tolist(), flops.tolist(), params.tolist())
        for row, evaluation in zip(rows, self.evaluator.evaluations(paths)):
            if self.evaluator.comm.rank == 0:
                kept.append(EvaluatedPath(*row, evaluation.loss, evaluation.ap))
            evaluations.append(evaluation)
            progress()
        return evaluations


def with_images(config: configs.Config, images: int | None = None, bn_images: int | None = None) -> configs.Config:
    """Return the config with other numbers of images for path evaluation.

    Args:
        config: config to copy.
        images: validation images. Default: `hparams.val_images`.
        bn_images: images for batch normalization statistics. Default: `hparams.bn_images`.

    Raises:
        UserError: a number is not positive.
    """
    numbers = {"val_images": images, "bn_images": bn_images}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{name} must be 1 or more, got {number}")
    chosen = {name: number for name, number in numbers.items() if number is not None}
    return dataclasses.replace(config, hparams=dataclasses.replace(config.hparams, **chosen))


def paths_of(files: Sequence[str | PathLike], space: SearchSpace) -> set[Path]:
    """Read the paths in several files of evaluated paths.

    Raises:
        UserError: a file cannot be read, or contains paths of a supernet other than that of `space`.
    """
    return {item.path for file in files for item in EvaluatedPaths.read(file, space.geometry).items}
