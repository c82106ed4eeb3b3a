"""Pre-training of the classification supernet f^pre (Eq. 1; section 3, step 1) and of a path filter on its paths.

The run writes supernet.h5 and path_filter.h5 to its folder, from which `algorithm1` starts.
"""

from __future__ import annotations

import re
from pathlib import Path as FilePath

import numpy as np

from ..backend.compat import Device, nn
from ..common.errors import UserError
from ..config import Config, PretrainHparams
from ..data.compact import put
from ..evaluation.reestimation import reestimate
from ..networks import weights
from ..networks.distillation import Distillation
from ..networks.layers import GivenStatistics
from ..networks.resnet50 import check_sortable, sort_middle_channels
from ..path_filter.metrics import taus_of
from ..runs.phases import TrainingPhase, training_phases
from ..runs.run_folder import read_result, run_config
from ..space.paths import Path, PathBatch
from ..space.pruning import UniformPaths
from ..training.loop import Objective, OnePath
from ..training.runner import SupernetRunner
from ..training.start_up import start
from .build import build


class PretrainSearcher(SupernetRunner):
    """Trains a classification supernet, and fits a path filter to the validation losses of its paths.

    The largest path is trained first, then all paths. These are either sampled uniformly from the full search space in one
    phase, or trained by progressive shrinking, in phases with growing search spaces. In the latter case, smaller paths are
    also distilled from the frozen fullnet, as in OFA and in NNablaNAS' recipe for its ResNet50.
    """

    method = "pretrain"
    hparams: PretrainHparams

    def run(self) -> dict:
        """Run all phases; write the results to summary.json, and return them."""
        hparams = self.hparams
        fullnet, *supernet = self.training.values()
        if any(phase.sorted_ratios for phase in supernet):
            check_sortable(self.model)
        with self.phase(fullnet.name):
            self.train_phase(fullnet, OnePath(self.space.largest), self.new_optimizer(fullnet))
        for phase in supernet:
            with self.phase(phase.name):
                if phase.sorted_ratios:  # harmless on resumption: the checkpoint overwrites all weights
                    sort_middle_channels(self.model, phase.sorted_ratios, phase.sorted_widths)
                sampler = UniformPaths(phase.space, self.rng(phase.name))
                self.train_phase(phase, sampler, self.new_optimizer(phase), self.objective(phase))
        if self.comm.rank == 0:
            weights.save(self.model, self.folder / "supernet.h5")
        few = PathBatch.concatenate(
            [PathBatch.from_paths([self.space.largest], self.space.geometry), self.space.sample_many(self.rng("shown"), 4)]
        )
        self.results["accuracy"] = list(self.comm.map(self.accuracy, few))
        self.log("accuracy of the largest and of four random paths: " + ", ".join(f"{a:.3f}" for a in self.results["accuracy"]))
        if hparams.paths:
            with self.phase("paths"):
                sampled = self.sample_paths("paths", hparams.paths // hparams.buckets, self.space)
                paths = self.validate_paths("paths", sampled)
            scorer = self.fit_filter("path filter", self.new_filter(), paths, self.filter_is_given)
            scores = scorer(paths.batch)
            self.results["kendall_tau_on_fitted_paths"] = taus_of(scores, paths.losses, paths.buckets)
        self.results["seconds"] = self.costs.seconds
        self.files.write("summary", self.results)
        return self.results

    def objective(self, phase: TrainingPhase) -> Objective | None:
        """Return the distillation objective of a phase, or None if it has none.

        The teacher is the largest path with the weights at the end of the first phase.
        """
        if not phase.kd_ratio:
            return None
        trained = weights.read(self.folder / next(iter(self.training)) / "weights.h5")
        return Distillation(self.model, self.space.largest, trained, phase.kd_ratio)

    def accuracy(self, path: Path) -> float:
        """Compute the accuracy in [0, 1] of a path on the validation images."""
        evaluator = self.evaluator
        given = GivenStatistics(reestimate(self.model, path, evaluator.statistics_batches))
        right = total = 0
        for images, labels in evaluator.validation_batches:
            inputs = nn.Variable(images.shape)
            put(inputs, images)
            logits = self.model(inputs, path, given)
            logits.forward(clear_buffer=True)
            right += int(np.sum(logits.d.argmax(axis=1) == labels[:, 0]))
            total += len(labels)
        return right / total


def run(
    config: Config,
    device: Device,
    output: FilePath,
    restart: bool = False,
    searcher: type[PretrainSearcher] = PretrainSearcher,
) -> dict:
    """Run the pre-training of `config` with a class of runners, resuming the run in `output` if there is one.

    Returns:
        The content of summary.json.
    """
    model, sets, cost = build(config)
    return start(searcher, model, sets, cost, config, training_phases(config), device, output, restart)


def export_weights(run_folder: FilePath, folder: FilePath, name: str) -> list[FilePath]:
    """Copy the weights of a finished pre-training in half precision, for distribution with the configs.

    Args:
        run_folder: folder of the run.
        folder: folder of the copies.
        name: first part of their file names, of letters, digits, - and _.

    Returns:
        The files <folder>/<name>_supernet.h5, or <name>_fullnet.h5 if only the largest path was trained, and
        <name>_path_filter.h5 if the run fitted a filter.

    Raises:
        UserError: the run is not finished or not a pre-training, or the name is invalid.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"--name must be letters, digits, - or _, got {name!r}")
    read_result(run_folder, "summary")
    config = run_config(run_folder)
    if not isinstance(config.hparams, PretrainHparams):
        raise UserError(f"{run_folder} must be a run of the runner pretrain, got {config.args.runner}")
    trained = [phase for phase in training_phases(config) if phase.epochs]  # empty if the supernet's weights were given
    fullnet = trained and all(phase.largest_only for phase in trained)
    kinds = {"supernet": "fullnet" if fullnet else "supernet"}
    if config.hparams.paths:
        kinds["path_filter"] = "path_filter"
    copies = []
    for source, kind in kinds.items():
        copies.append(folder / f"{name}_{kind}.h5")
        weights.convert(run_folder / f"{source}.h5", copies[-1], np.float16)
    return copies
