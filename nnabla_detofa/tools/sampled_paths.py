"""Evaluation of paths sampled from a supernet, which creates or extends a file of evaluated paths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from ..common.errors import UserError
from ..config import Config
from ..config.detection import detection_sections
from ..data.sets import ClassificationSets, DetectionSets
from ..evaluation.images import with_images
from ..evaluation.path_sampling import distinct_in_buckets
from ..evaluation.stored import StoredEvaluation, paths_in
from ..evaluation.validation import timing
from ..methods.build import build
from ..networks import weights
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..space.costs import CostModel
from ..space.counting import Buckets
from ..space.search_space import SearchSpace


def open_supernet(config: Config, weights_file: str | PathLike) -> tuple[Any, DetectionSets | ClassificationSets, CostModel]:
    """Open the supernet of a config with the weights of a file, its datasets and its cost model.

    The weights file determines how images are normalized, not the config.

    Returns:
        (model, datasets, cost model), as `methods.build.build` returns them.

    Raises:
        UserError: the data or the weights are missing or do not fit.
    """
    arrays = weights.read(weights_file)
    data = replace(config.dataloader, normalization=weights.normalization_of(weights_file))
    built = build(replace(config, dataloader=data), pretrained=False)
    weights.load(built[0], weights_file, arrays)
    return built


def evaluate_sampled_paths(
    config: Config,
    weights_file: str | PathLike,
    output_file: str | PathLike,
    per_bucket: int,
    name: str = "paths",
    exclude: Sequence[str | PathLike] = (),
    space: SearchSpace | None = None,
    images: int | None = None,
    bn_images: int | None = None,
    ap: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> EvaluatedPaths:
    """Evaluate `per_bucket` distinct paths, sampled uniformly inside each FLOPs bucket, and save them to a file.

    The paths depend only on the seed, `name`, `space` and `exclude`, and a larger `per_bucket` adds to the same paths. So
    the same call resumes an interrupted one, and a larger `per_bucket` extends the file. nnabla's default context is used.

    Args:
        config: the config of the supernet and its data.
        weights_file: all weights of the supernet.
        output_file: the file of evaluated paths; paths that it contains are not evaluated again.
        per_bucket: number of paths of each FLOPs bucket.
        name: name of the random stream, which together with the seed determines the paths.
        exclude: files of evaluated paths, whose paths are left out.
        space: the space to sample from; None is the whole search space A. FLOPs buckets are always computed from A.
        images, bn_images: numbers of images for validation and for re-estimating BatchNorm statistics; None: the config's.
        ap: also measure AP50 on the validation images.
        progress, note: called with the numbers of finished and of all paths, and with messages for the user.

    Returns:
        All evaluated paths of the file, which may be more than the sampled ones.

    Raises:
        UserError: the data, the weights, a file or a number is missing or not valid, or `ap` is set for a classifier.
    """
    if per_bucket < 1:
        raise UserError(f"per_bucket must be 1 or more, got {per_bucket}")
    if ap and config.method == "pretrain":
        raise UserError(f"AP needs a detector, but the config {config.name} is for a classification supernet")
    hparams = with_images(config, images, bn_images)
    model, sets, cost = open_supernet(config, weights_file)
    left_out = paths_in(exclude, model.space)
    buckets = Buckets(model.space, cost.flops, hparams.buckets)
    metric = detection_sections(config).data.ap_metric if ap else None
    evaluation = StoredEvaluation.of(model, sets, config.args, hparams, cost, buckets, metric)
    kept = evaluation.open(output_file)
    paths = distinct_in_buckets(buckets, per_bucket, config.args.seed, name, space or model.space, left_out, note)
    missing = evaluation.missing(kept, paths)
    done = itertools.count(len(paths) - len(missing))

    def on_path() -> None:
        progress(next(done), len(paths))

    on_path()
    evaluations = evaluation.add(kept, missing, on_path)
    if evaluations:
        note(timing(evaluations, evaluation.evaluator.at_once))
    return kept
