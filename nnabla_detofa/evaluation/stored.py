"""Evaluation of paths into files: each path of a supernet is evaluated once, and its result is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from ..backend.compat import Mo
from ..backend.ranks import Communicator
from ..config import Args
from ..data.sets import DetectionSets
from ..networks import weights
from ..path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from ..space.costs import CostModel
from ..space.counting import Buckets
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace
from .images import EvaluationImages, Hparams, Sets
from .validation import Evaluation, PathEvaluator


@dataclass(frozen=True)
class StoredEvaluation:
    """Evaluates paths and stores the results in files; a path that is already in the file is not evaluated again.

    Attributes:
        evaluator: evaluates the paths.
        cost: cost model of paths.
        buckets: FLOPs buckets of the full search space.
        settings: all values, other than weights and geometry, on which the results depend.
    """

    evaluator: PathEvaluator
    cost: CostModel
    buckets: Buckets
    settings: dict[str, object]

    @classmethod
    def of(
        cls,
        net: Mo.Module,
        sets: Sets,
        args: Args,
        hparams: Hparams,
        cost: CostModel,
        buckets: Buckets,
        ap_metric: str | None = None,
        comm: Communicator | None = None,
    ) -> StoredEvaluation:
        """Create it for a supernet.

        Args:
            net: supernet.
            sets: datasets of the run.
            args: seed, number type and number of processes.
            hparams: numbers of images.
            cost, buckets: see `StoredEvaluation`.
            ap_metric: metric of AP50, which is then also measured.
            comm: ranks among which the paths are distributed.
        """
        images = EvaluationImages.choose(sets, hparams, args.seed)
        evaluator = PathEvaluator.on(net, images, args.evaluation_processes, ap_metric, comm)
        return cls(evaluator, cost, buckets, evaluation_settings(images, evaluator, buckets, args.type_config))

    def open(self, file: str | PathLike) -> EvaluatedPaths:
        """Open or create the file for results under the network's current weights.

        Raises:
            UserError: the file belongs to other weights or settings, or is damaged.
        """
        digest = weights.digest(self.evaluator.net.get_parameters())
        return EvaluatedPaths.open(file, digest, self.settings, self.buckets.space.geometry)

    def missing(self, stored: EvaluatedPaths, paths: PathBatch) -> PathBatch:
        """Return the paths that are not in the file, without duplicates."""
        first = np.sort(np.unique(paths.keys, return_index=True)[1])
        return paths[[index for index in first if paths[int(index)] not in stored]]

    def add(self, stored: EvaluatedPaths, paths: PathBatch, progress: Callable[[], None] = lambda: None) -> list[Evaluation]:
        """Evaluate paths that are not in the file, and append their results to it.

        Each result is on disk before `progress` is called. The paths are distributed among the ranks, but only rank 0
        appends results to its `stored`.

        Args:
            stored: the file.
            paths: paths to evaluate.
            progress: called after each path.
        """
        flops, params, evaluations = self.cost.flops(paths), self.cost.params(paths), []
        rows = zip(paths, self.buckets.index(flops).tolist(), flops.tolist(), params.tolist())
        for row, evaluation in zip(rows, self.evaluator.evaluations(paths)):
            if self.evaluator.comm.rank == 0:
                stored.append(EvaluatedPath(*row, evaluation.loss, evaluation.ap))
            evaluations.append(evaluation)
            progress()
        return evaluations


def evaluation_settings(
    images: EvaluationImages, evaluator: PathEvaluator, buckets: Buckets, number_type: str
) -> dict[str, object]:
    """Return the settings of an `EvaluatedPaths`: all values, other than weights and geometry, on which its results depend.

    Args:
        images: images of the evaluator.
        evaluator: evaluates the paths.
        buckets: FLOPs buckets of the full search space.
        number_type: `args.type_config`.
    """
    sets = images.sets
    return {
        "bn_images": len(images.statistics),
        "bn_batch": images.batch,
        "val_images": len(images.validation),
        "image_size": list(sets.image_size),
        "centre_share": None if isinstance(sets, DetectionSets) else sets.center_share,  # the key of existing files
        "max_objects": sets.max_objects if isinstance(sets, DetectionSets) else None,
        "classes": len(sets.classes),
        "images": images.fingerprints(),
        "number_type": number_type,
        "ap_metric": evaluator.truth.metric if evaluator.truth else None,
        "bucket_edges": buckets.edges.tolist(),
    }


def paths_in(files: Sequence[str | PathLike], space: SearchSpace) -> set[Path]:
    """Read the paths in several files of evaluated paths.

    Raises:
        UserError: a file cannot be read, or contains paths of a supernet other than that of `space`.
    """
    return {item.path for file in files for item in EvaluatedPaths.read(file, space.geometry).items}
