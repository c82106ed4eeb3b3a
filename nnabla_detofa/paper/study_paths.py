"""Evaluated paths of the filter study (Tables 3 and A3). They are evaluated once and stored with a profile's runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
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
from ..path_filter.model import PathFilter
from ..space.search_space import SearchSpace
from ..tools.image_count_study import ImageLosses, image_losses, noise_share
from ..tools.sampled_paths import evaluate_sampled_paths, open_supernet
from . import archives
from .filter_study import StudyInputs, digest
from .run import Run, profile_folder

NOISE_PATHS = 6
"""Paths of each FLOPs bucket from which the noise of an evaluation is measured."""
NOISE_SPLITS = 20
"""Random splits of the validation images into halves."""


def study_folder(run: Run) -> FilePath:
    """Return the folder of the filter study on a run's supernet."""
    if run.archive:
        return archives.unpacked(archives.archive(run.archive.parent, study_name(run)))
    return profile_folder(run.profile) / f"{study_name(run)}{run.variant}"


def study_name(run: Run) -> str:
    """Return the name of the study's folder and archive, which has no number for seed 0."""
    seed = f"-{run.seed}" if run.seed else ""
    return f"{run.key}-filter{seed}{run.suffix}"


def detection_paths(run: Run) -> StudyInputs:
    """Return paths of the supernet after warm-up: those that the run fitted its filter to, and new test paths."""
    fitted, weights, config = run.folder / "paths.jsonl", run.folder / "warm_up" / "weights.h5", run.config
    test = evaluated(run, config, weights, "test", run.profile.filter_study.test_paths_per_bucket, [fitted])
    return StudyInputs(
        label=f"{run.data_set.title}, detection supernet after warm-up",
        train=EvaluatedPaths.read(fitted, config.network.geometry),
        test=test,
        options=run.hparams.filter,
        pretraining=pretraining_paths(run),
        buckets=run.hparams.buckets,
        noise=noise_of(config, weights, test),
        pruned_by=own_scores(run, test),
    )


def classification_paths(run: Run) -> StudyInputs:
    """Return paths of the classification supernet: as many to fit and to test as of the detection supernet, all of them new."""
    source, pretraining = run.data_set.pretraining, pretraining_paths(run)
    config, hparams = source.load()
    train = evaluated(run, config, source.supernet, "classification_train", run.hparams.paths_per_bucket, [pretraining.file])
    count = run.profile.filter_study.test_paths_per_bucket
    test = evaluated(run, config, source.supernet, "classification_test", count, [pretraining.file, train.file])
    return StudyInputs(
        label=f"{config.name}, classification supernet",
        train=train,
        test=test,
        options=hparams.filter,
        pretraining=pretraining,
        buckets=hparams.buckets,
        noise=noise_of(config, source.supernet, test),
    )


def own_scores(run: Run, test: EvaluatedPaths) -> np.ndarray | None:
    """Return the (n,) scores of test paths by the path filter with which the run pruned.

    They are stored in the study's folder, since archives hold no weights; None if an archive lacks them.
    """
    file, of = study_folder(run) / "own_filter.json", digest(test)
    known = read_json(file, "the scores of the run's own filter") if file.exists() else {}
    if not run.archive:
        path_filter = PathFilter.load(run.folder / "path_filter.h5", geometry=test.geometry, buckets=run.hparams.buckets)
        scores = {"paths": of, "scores": path_filter.score(test.batch, test.buckets).tolist()}
        if known != scores:
            known = scores
            write_json(file, known)
    return np.array(known["scores"], float) if known.get("paths") == of else None


def pretraining_paths(run: Run) -> EvaluatedPaths:
    """Return the paths of the classification supernet that the filter is pre-trained on; all seeds share them."""
    source = run.data_set.pretraining
    config, _ = source.load()
    if source.paths is not None:
        return EvaluatedPaths.read(source.paths, config.network.geometry)
    count = run.profile.filter_study.pretraining_paths_per_bucket
    return evaluated(replace(run, seed=0), config, source.supernet, "pretraining", count, [])


def noise_of(config: configs.Config, weights: str | FilePath, paths: EvaluatedPaths) -> float:
    """Return the share of the variance of losses inside a FLOPs bucket that is noise of the validation images.

    The first `NOISE_PATHS` paths of each bucket are evaluated image by image, and their losses on disjoint halves of the images
    are compared. The noise of all images is half as large as that of a half. The share is measured once and stored.

    Args:
        config: config of the supernet.
        weights: its weights file.
        paths: its evaluated paths.
    """
    file = FilePath(paths.file).with_name(f"noise_{FilePath(paths.file).stem}.json")
    known = read_json(file, "the noise of evaluated paths") if file.exists() else {}
    if known.get("weights") == paths.header["weights"]:
        return float(known["share"])
    model, sets, _ = open_supernet(config, weights)
    buckets, images = paths.buckets, EvaluationImages.choose(sets, config.hparams, config.args.seed)
    evaluator = PathEvaluator.on(model, images, config.args.evaluation_processes)
    first = np.concatenate([np.flatnonzero(buckets == bucket)[:NOISE_PATHS] for bucket in np.unique(buckets)])

    def losses_of(index: int) -> ImageLosses:
        path = paths.items[index].path
        own = evaluator.at(path)
        statistics = reestimate(model, path, own.statistics_batches)
        return image_losses(model, path, statistics, own.validation_batches)

    processes = min(os.cpu_count() or 1, len(first)) if nn.get_current_context().backend == ["cpu:float"] else 1
    found = []
    with ProgressBar(desc="noise of the losses", total=len(first), unit="path") as bar:
        for losses in map_forked(losses_of, list(first), processes):
            found.append(losses)
            bar.update()
    share = _noise_share(found, buckets[first], config)
    count = len(found[0].counts)
    write_json(file, {"weights": paths.header["weights"], "share": share, "paths": len(first), "images": count})
    return share


def _noise_share(found: Sequence[ImageLosses], buckets: np.ndarray, config: configs.Config) -> float:
    """Return the mean share of noise over `NOISE_SPLITS` random splits of the images.

    Args:
        found: losses of each path, image by image.
        buckets: FLOPs bucket of each path.
        config: config with the seed and the batch size.
    """
    images, shares = len(found[0].counts), []
    for split in range(NOISE_SPLITS):
        order = rng_for(config.args.seed, f"halves {split}").permutation(images)
        halves = np.sort(order[: images // 2]), np.sort(order[images // 2 : 2 * (images // 2)])
        one, other = (np.array([losses.loss(half, config.hparams.bn_batch) for losses in found]) for half in halves)
        shares.append(noise_share(one, other, buckets))
    half = float(np.clip(np.mean(shares), 0, 1))
    return half / (2 - half)


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
    """Evaluate paths of each FLOPs bucket of a supernet into <name>.jsonl in the study's folder; stored paths are reused.

    Args:
        run: run to which the study belongs.
        config: config of the supernet.
        weights: its weights file.
        name: name of the paths, which also determines their random numbers.
        per_bucket: number of paths of each FLOPs bucket.
        exclude, space, ap: see `sampled_paths.evaluate_sampled_paths`.
    """
    if run.archive:
        return EvaluatedPaths.read(study_folder(run) / f"{name}.jsonl", config.network.geometry)
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
    """Evaluate paths like `evaluated`, into a given file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with ProgressBar(desc=f"{name} paths", unit="path") as bar:

        def on_path(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        return evaluate_sampled_paths(
            config, weights, file, per_bucket, name, exclude, space, ap=ap, progress=on_path, note=bar.write
        )
