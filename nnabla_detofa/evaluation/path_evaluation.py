"""Which paths are evaluated, on which images, and that what was measured is kept: for runs and for tools alike."""

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
"""Paths drawn at once where distinct ones are wanted: fixed, so that more paths begin with the same ones."""
CHUNKS = 200
"""How often that is done for one bucket before it counts as exhausted."""


def named_rng(seed: int, name: str) -> np.random.Generator:
    """The generator of everything random that is called `name` in the run of this seed."""
    return np.random.default_rng(named_seed(seed, name))


def named_seed(seed: int, name: str) -> tuple[int, int]:
    """The seed of everything random that is called `name` in the run of this seed."""
    return seed, zlib.crc32(name.encode())


# --- Images -----------------------------------------------------------------------------------------------------------


def statistics_indices(sets: Sets, config: configs.Config) -> np.ndarray:
    """The training images that batch normalisation is re-estimated from: whole batches of `bn_batch`, at least one."""
    count, batch = config.hparams.bn_images, config.hparams.bn_batch
    chosen = named_rng(config.args.seed, "statistics").permutation(len(sets.train))[:count]
    return chosen[: max(1, len(chosen) // batch) * batch]


def validation_indices(sets: Sets, config: configs.Config) -> np.ndarray:
    """The images of `val` that losses are taken on."""
    count = min(len(sets.val), config.hparams.val_images or len(sets.val))
    return np.sort(named_rng(config.args.seed, "validation").permutation(len(sets.val))[:count])


def statistics_images(sets: Sets, config: configs.Config) -> list[np.ndarray]:
    """The batches of training images, as they are seen at inference, for `reestimation.reestimate`."""
    chosen = statistics_indices(sets, config)
    return [arrays[0] for arrays in eval_batches(sets, sets.train, chosen, config.hparams.bn_batch)]


def path_evaluator(
    model, sets: Sets, config: configs.Config, ap: bool = False, comm: Communicator | None = None
) -> PathEvaluator:
    """Evaluates the paths of `model`, in several processes (`args.evaluation_processes`) where one rank computes on the CPU.

    Args:
        ap: measure AP50 too, by the config's `ap_metric`.
        comm: ranks that share out the paths.
    """
    comm = comm or Communicator()
    judged = validation_indices(sets, config)
    forks = comm.n_procs == 1 and nn.get_current_context().backend == ["cpu:float"]
    processes = (config.args.evaluation_processes or cores()) if forks else 1
    batches = list(eval_batches(sets, sets.val, judged, config.hparams.bn_batch))
    truth = _truth(sets, judged, config.dataloader.ap_metric) if ap else None
    return PathEvaluator(model, statistics_images(sets, config), batches, processes, truth, comm)


def _truth(sets: DetectionSets, indices: np.ndarray, metric: str) -> ValidationTruth:
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
    """What changes a path's figures besides the weights and the geometry: the settings of an `EvaluatedPaths`.

    The images are told by their pixels and annotations, not by their names: another data set, split, choice or order of
    images is other images, and the same ones from another folder are not.
    """
    detection = isinstance(sets, DetectionSets)
    return {
        "bn_images": sum(map(len, evaluator.statistics_batches)),
        "bn_batch": config.hparams.bn_batch,
        "val_images": sum(len(batch[0]) for batch in evaluator.validation_batches),
        "image_size": list(sets.image_size),
        "centre_share": None if detection else sets.centre_share,
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
    """A short hash of images and their labels, boxes included, in their order."""
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
    """`per_bucket` independent paths of each FLOPs bucket, uniform inside it (Alg. 1 line 4); an empty bucket gives none.

    Args:
        note: hears of empty buckets.
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
    """As `sample_in_buckets`, but all different and none of `exclude`; a larger `per_bucket` adds to the same paths.

    Args:
        seed, name: of what is random.
    """
    found: list[Path] = []
    for bucket in _filled(buckets, space, note):
        rng, here = named_rng(seed, f"{name} {bucket}"), {}
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
    """The buckets that hold a path of the space."""
    empty = [bucket for bucket in range(buckets.n) if not buckets.count(bucket, space)]
    for bucket in empty:
        note(f"FLOPs bucket {bucket + 1} is empty in the space {space.name}")
    return [bucket for bucket in range(buckets.n) if bucket not in empty]


# --- Evaluating -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class KeptEvaluation:
    """Evaluates paths into files; a path that a file holds already is not evaluated again.

    Attributes:
        evaluator: see `path_evaluator`. cost: what a path costs. buckets: FLOPs buckets of A.
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
        """Of a supernet, with the images that the config says; see `path_evaluator`."""
        evaluator = path_evaluator(model, sets, config, ap, comm)
        return cls(evaluator, cost, buckets, evaluation_settings(sets, config, buckets, evaluator))

    def open(self, file: str | PathLike) -> EvaluatedPaths:
        """The file for paths of the evaluator's net under its present weights.

        Raises:
            UserError: it belongs to other weights or settings.
        """
        digest = weights.digest(self.evaluator.net.get_parameters())
        return EvaluatedPaths.open(file, digest, self.settings, self.buckets.space.geometry)

    def missing(self, kept: EvaluatedPaths, paths: PathBatch) -> PathBatch:
        """Those of `paths` that are not in the file, each once."""
        first = np.sort(np.unique(paths.keys, return_index=True)[1])
        return paths[[index for index in first if paths[int(index)] not in kept]]

    def add(self, kept: EvaluatedPaths, paths: PathBatch, progress: Callable[[], None] = lambda: None) -> list[Evaluation]:
        """Evaluate paths that are not in the file; each is on disk before `progress` is called.

        Ranks share out the paths, and only the first one's `kept` gets them.
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
    """The config with other numbers of validation images and of images for re-estimation; None leaves its own.

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
    """The paths of several files of evaluated paths.

    Raises:
        UserError: a file cannot be read, or holds paths of another supernet than the space's.
    """
    return {item.path for file in files for item in EvaluatedPaths.read(file, space.geometry).items}
