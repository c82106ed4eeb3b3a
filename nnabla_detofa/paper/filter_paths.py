"""The evaluated paths that Tables 3 and A3 are made of, measured once and kept with a profile's runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath

from tqdm import tqdm

from .. import config as configs
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..space.search_space import SearchSpace
from ..tools.evaluate_paths import evaluate_sampled
from . import stored
from .experiments import Run, profile_folder
from .filter_study import StudyInputs


def study_folder(run: Run) -> FilePath:
    """Where what is measured and fitted for the tables is kept."""
    if run.profile.stored:
        return stored.unpacked(stored.archive(run.profile.stored, study_name(run)))
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
    return StudyInputs(label, train, test, config.hparams.filter, pretraining_paths(run), config.hparams.buckets)


def classification_paths(run: Run) -> StudyInputs:
    """Paths of the classification supernet: as many to fit and to test as of the detection supernet, and those before."""
    source, pretraining = run.data_set.pretraining, pretraining_paths(run)
    config = source.load()
    count = run.config.hparams.paths_per_bucket
    train = evaluated(run, config, source.supernet, "classification_train", count, [pretraining.file])
    count = run.profile.filter_study.test_paths_per_bucket
    test = evaluated(run, config, source.supernet, "classification_test", count, [pretraining.file, train.file])
    label = f"{config.name}, classification supernet"
    return StudyInputs(label, train, test, config.hparams.filter, pretraining, config.hparams.buckets)


def pretraining_paths(run: Run) -> EvaluatedPaths:
    """Paths of the classification supernet that the filter is pre-trained on."""
    source = run.data_set.pretraining
    config = source.load()
    if source.paths is not None:
        return EvaluatedPaths.read(source.paths, config.network.geometry)
    count = run.profile.filter_study.pretraining_paths_per_bucket
    return evaluated(run, config, source.supernet, "pretraining", count, [])


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
        exclude, space, ap: see `evaluate_paths.evaluate_sampled`.
    """
    file = study_folder(run) / f"{name}.jsonl"
    if run.profile.stored:
        return EvaluatedPaths.read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(desc=f"{name} paths", unit="path", dynamic_ncols=True) as bar:

        def on_path(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        return evaluate_sampled(
            config, weights, file, per_bucket, name, exclude, space, ap=ap, progress=on_path, note=bar.write
        )
