"""The evaluated paths that Tables 3 and A3 are made of, measured once and kept with a profile's runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path as FilePath

import numpy as np

from .. import config as configs
from ..backend.compat import nn
from ..common.files import write_json
from ..common.progress import ProgressBar
from ..common.reading import read_json
from ..common.seeds import rng_for
from ..evaluation.forked import map_forked
from ..evaluation.images import EvaluationImages
from ..evaluation.reestimation import reestimate
from ..evaluation.validation import PathEvaluator
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..space.search_space import SearchSpace
from ..tools.image_count_study import ImageLosses, image_losses, noise_share
from ..tools.sampled_paths import evaluate_sampled_paths, open_supernet
from . import archives
from .filter_study import StudyInputs
from .run import Run, profile_folder

NOISE_PATHS = 6
"""Of each FLOPs bucket, from which the noise of an evaluation is measured."""


def study_folder(run: Run) -> FilePath:
    """Where what is measured and fitted for the tables is kept."""
    if run.profile.archives:
        return archives.unpacked(archives.archive(run.profile.archives, study_name(run)))
    return profile_folder(run.profile) / f"{study_name(run)}{run.variant}"


def study_name(run: Run) -> str:
    """What the study's folder and archive are called."""
    return f"{run.key}-filter{run.suffix}"


def detection_paths(run: Run) -> StudyInputs:
    """Paths of the supernet after warm-up: those that Algorithm 1 fitted its filter to, and others to test it on."""
    fitted, config = run.folder / "paths.jsonl", run.config
    count = run.profile.filter_study.test_paths_per_bucket
    test = evaluated(run, config, run.folder / "warm_up" / "weights.h5", "test", count, [fitted])
    label = f"{run.data_set.title}, detection supernet after warm-up"
    train = EvaluatedPaths.read(fitted, config.network.geometry)
    noise = noise_of(config, run.folder / "warm_up" / "weights.h5", test)
    options, buckets = config.hparams.filter, config.hparams.buckets
    known = {
        "noise": noise,
        "pruned_by": None if run.profile.archives else run.folder / "path_filter.h5",
    }  # weights are not kept
    return StudyInputs(label, train, test, options, pretraining_paths(run), buckets, **known)


def classification_paths(run: Run) -> StudyInputs:
    """Paths of the classification supernet: as many to fit and to test as of the detection supernet, and those before."""
    source, pretraining = run.data_set.pretraining, pretraining_paths(run)
    config = source.load()
    count = run.config.hparams.paths_per_bucket
    train = evaluated(run, config, source.supernet, "classification_train", count, [pretraining.file])
    count = run.profile.filter_study.test_paths_per_bucket
    test = evaluated(run, config, source.supernet, "classification_test", count, [pretraining.file, train.file])
    label = f"{config.name}, classification supernet"
    noise = noise_of(config, source.supernet, test)
    return StudyInputs(label, train, test, config.hparams.filter, pretraining, config.hparams.buckets, noise=noise)


def pretraining_paths(run: Run) -> EvaluatedPaths:
    """Paths of the classification supernet that the filter is pre-trained on."""
    source = run.data_set.pretraining
    config = source.load()
    if source.paths is not None:
        return EvaluatedPaths.read(source.paths, config.network.geometry)
    count = run.profile.filter_study.pretraining_paths_per_bucket
    return evaluated(run, config, source.supernet, "pretraining", count, [])


def noise_of(config: configs.Config, weights: str | FilePath, paths: EvaluatedPaths) -> float:
    """The share of the paths' variance inside a FLOPs bucket that is noise of the validation images, measured once.

    The first `NOISE_PATHS` paths of each bucket are evaluated image by image; losses on disjoint halves of the images say
    how large the noise of a half is, and that of all images is half as large.
    """
    file = FilePath(paths.file).with_name(f"noise_{FilePath(paths.file).stem}.json")
    known = read_json(file, "the noise of evaluated paths") if file.exists() else {}
    if known.get("weights") == paths.header["weights"]:
        return known["share"]
    model, sets, cost = open_supernet(config, weights)
    buckets, images = paths.buckets, EvaluationImages.choose(sets, config.hparams, config.args.seed)
    evaluator = PathEvaluator.on(model, images, config.args.evaluation_processes)
    first = np.concatenate([np.flatnonzero(buckets == bucket)[:NOISE_PATHS] for bucket in np.unique(buckets)])

    def losses_of(index: int) -> ImageLosses:
        path = paths.items[index].path
        statistics = reestimate(model, path, evaluator.statistics_batches)
        return image_losses(model, path, statistics, evaluator.validation_batches)

    processes = min(os.cpu_count() or 1, len(first)) if nn.get_current_context().backend == ["cpu:float"] else 1
    found = []
    with ProgressBar(desc="noise of the losses", total=len(first), unit="path") as bar:
        for losses in map_forked(losses_of, list(first), processes):
            found.append(losses)
            bar.update()
    images, shares = len(found[0].counts), []
    for _ in range(20):
        order = rng_for(config.args.seed, f"halves {len(shares)}").permutation(images)
        halves = np.sort(order[: images // 2]), np.sort(order[images // 2 : 2 * (images // 2)])
        pair = [np.array([losses.loss(half, config.hparams.bn_batch) for losses in found]) for half in halves]
        shares.append(noise_share(*pair, buckets[first]))
    half = float(np.clip(np.mean(shares), 0, 1))
    share = half / (2 - half)
    write_json(file, {"weights": paths.header["weights"], "share": share, "paths": len(first), "images": images})
    return share


def evaluated(
    run: Run,
    config: configs.Config,
    weights: str | FilePath,
    name: str,
    per_bucket: int,
    exclude: Sequence[FilePath],
    space: SearchSpace | None = None,
    ap: bool = False,
) -> EvaluatedPaths:
    """Paths of each FLOPs bucket of a supernet, evaluated into a file of the study's folder.

    Args:
        exclude, space, ap: see `sampled_paths.evaluate_sampled_paths`.
    """
    if run.profile.archives:
        return EvaluatedPaths.read(study_folder(run) / f"{name}.jsonl")
    return evaluated_into(study_folder(run) / f"{name}.jsonl", config, weights, name, per_bucket, exclude, space, ap)


def evaluated_into(
    file: FilePath,
    config: configs.Config,
    weights: str | FilePath,
    name: str,
    per_bucket: int,
    exclude: Sequence[FilePath],
    space: SearchSpace | None = None,
    ap: bool = False,
) -> EvaluatedPaths:
    """As `evaluated`, into this file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with ProgressBar(desc=f"{name} paths", unit="path") as bar:

        def on_path(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        return evaluate_sampled_paths(
            config, weights, file, per_bucket, name, exclude, space, ap=ap, progress=on_path, note=bar.write
        )
