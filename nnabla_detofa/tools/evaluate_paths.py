"""Evaluated paths of any supernet in a file: as many of each FLOPs bucket as are wanted, made or extended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike

from .. import config as configs
from ..common.errors import UserError
from ..evaluation.path_evaluation import KeptEvaluation, distinct_in_buckets, paths_of, with_images
from ..evaluation.validation import timing
from ..methods import algorithm1, pretrain
from ..networks import weights
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..space.counting import Buckets
from ..space.search_space import SearchSpace


def open_supernet(config: configs.Config, weights_file: str | PathLike):
    """The supernet of a config with the weights of a file, its data sets and its cost model.

    Images are normalized as the file says, whatever the config does.

    Raises:
        UserError: the data or the weights are missing or do not fit.
    """
    arrays = weights.read(weights_file)
    data = replace(config.dataloader, normalization=weights.normalization_of(weights_file))
    runner = pretrain if config.args.runner == "pretrain" else algorithm1
    built = runner.build(replace(config, dataloader=data), pretrained=False)
    weights.load(built[0], weights_file, arrays)
    return built


def evaluate_sampled(
    config: configs.Config,
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
    """Evaluate `per_bucket` different paths of each FLOPs bucket, uniform inside it, and keep them in a file.

    The paths depend on the seed, `name`, `space` and `exclude` alone, and a larger `per_bucket` adds to them: the same call
    goes on where it was stopped, and another one extends the file. Computes in nnabla's default context.

    Args:
        config: of the supernet and its data.
        weights_file: the supernet's weights, all of them.
        output_file: evaluated paths; what it holds is not evaluated again.
        exclude: files whose paths are left out.
        space: of the paths; None is A. FLOPs buckets are always those of A.
        images, bn_images: validation images, and images for re-estimating statistics; None: the config's numbers.
        ap: measure AP50 on the validation images too.
        progress: hears how many paths are done, of how many. note: hears the seconds per path, and of poor buckets.

    Returns:
        what the file now holds, which may be more than these paths.

    Raises:
        UserError: the data, the weights or a file are missing or do not fit, or AP is asked of a classifier.
    """
    if per_bucket < 1:
        raise UserError(f"per_bucket must be 1 or more, got {per_bucket}")
    if ap and config.args.runner == "pretrain":
        raise UserError("AP is measured of detectors: this config describes a classification supernet")
    config = with_images(config, images, bn_images)
    model, sets, cost = open_supernet(config, weights_file)
    left_out = paths_of(exclude, model.space)
    buckets = Buckets(model.space, cost.flops, config.hparams.buckets)
    evaluation = KeptEvaluation.of(model, sets, config, cost, buckets, ap)
    kept = evaluation.open(output_file)
    paths = distinct_in_buckets(buckets, per_bucket, config.args.seed, name, space or model.space, left_out, note)
    missing = evaluation.missing(kept, paths)
    done = len(paths) - len(missing)
    progress(done, len(paths))

    def on_path() -> None:
        nonlocal done
        done += 1
        progress(done, len(paths))

    evaluations = evaluation.add(kept, missing, on_path)
    if evaluations:
        note(timing(evaluations, evaluation.evaluator.at_once))
    return kept
