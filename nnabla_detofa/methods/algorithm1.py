"""DetOFA's Algorithm 1, supernet training for the target task with a path filter, as an NNablaNAS runner."""

from __future__ import annotations

from pathlib import Path as FilePath

import numpy as np

from ..backend.compat import Device
from ..config import Config
from ..path_filter.model import PathScorer
from ..runs.phases import training_phases
from ..space.pruning import (
    HashedPaths,
    KeptPaths,
    UniformPaths,
    operation_scores,
    path_thresholds,
    prune_operations,
)
from ..space.search_space import SearchSpace
from ..training.loop import OnePath
from ..training.start_up import start
from .build import build
from .subnet_search import SubnetSearcher


class DetOFASearcher(SubnetSearcher):
    """Runs Algorithm 1, then searches for the best path under each budget (section 3.3).

    The config specifies the inputs of Algorithm 1: the pre-trained supernet weights
    (`network.centernet_ofa_resnet50.weights`), the pre-trained path filter (`hparams.filter.weights`), the training data
    (`dataloader`), and the pruning ratios r_op and r_path (`hparams`).
    """

    method = "detofa"
    lines = {"fullnet": "2", "warm-up": "3", "fine-tuning": "8 to 17"}

    def run(self) -> dict:
        """Run Algorithm 1, whose lines the comments number, and the search; write summary.json, and return its content."""
        space = self.space  # 1: initialize the pruned search space with A
        self.train_fullnet(space)  # 2
        self.warm_up(space)  # 3
        paths = self.validate_sampled_paths("paths", space)  # 4
        scorer = self.fit_filter("path filter", self.new_filter(), paths, self.filter_is_given)  # 5
        space = self.prune_operations(space, scorer)  # 6
        thresholds = self.path_thresholds(space, scorer)  # 7
        self.fine_tune(self.path_sampler(space, scorer, thresholds))  # 8 to 17

        return self.find_subnets(space, scorer.filter, (paths,))

    def train_fullnet(self, space: SearchSpace) -> None:
        """Fine-tune only the largest path (line 2), and evaluate it as the paper's "Fullnet"."""
        phase = self.training["fullnet"]
        with self.phase("fullnet"):
            self.train_phase(phase, OnePath(space.largest), self.new_optimizer(phase))
            self.results["fullnet"] = self.evaluate_detector("fullnet", space.largest)

    def warm_up(self, space: SearchSpace) -> None:
        """Train uniformly sampled paths of the full search space (line 3); warm-up and fine-tuning share one schedule."""
        phase = self.training["warm-up"]
        self.optimizer["train"] = self.new_optimizer(phase)
        with self.phase("warm-up"):
            self.train_phase(phase, UniformPaths(space, self.rng("warm-up")), self.optimizer["train"])

    def prune_operations(self, space: SearchSpace, scorer: PathScorer) -> SearchSpace:
        """Score all operations, and return the search space without the weak ones (line 6)."""
        hparams, pruning = self.hparams, self.hparams.operation_pruning

        with self.phase("operation pruning"):
            rng, paths = self.rng("operation scores"), hparams.paths_per_operation
            mapped = self.log.watched(self.comm.map, "operation pruning", "operation")
            scores = operation_scores(space, scorer, self.cost.stage_flops, paths, rng, map_operations=mapped)
            rng, ratios = self.rng("operation pruning"), (pruning.r_op, pruning.r_op1, pruning.r_op2)
            pruned = prune_operations(scores, pruning.strategy, space.largest, rng, *ratios, hparams.buckets)
            smaller = space.without(pruned.removed)
        self.results["pruned_operations"] = len(pruned.removed)
        self.results["total_operations"] = len(scores.operations)
        self.results["removed_operations"] = [str(operation) for operation in sorted(pruned.removed)]
        self.files.write("operations", {**scores.to_json(), **pruned.to_json(), "space": smaller.to_json()})
        for operation, rule in pruned.spared:
            self.log(f"kept {operation}: {rule}")
        self.log(str(smaller))
        self.log(
            f"pruned {len(pruned.removed)} of {len(scores.operations)} operations; "
            f"{smaller.size():.3g} of {space.size():.3g} paths are left"
        )
        return smaller

    def path_thresholds(self, space: SearchSpace, scorer: PathScorer) -> np.ndarray:
        """Compute for each FLOPs bucket the score below which paths are pruned (line 7); -inf prunes none."""
        hparams = self.hparams
        with self.phase("path thresholds"):
            rng, paths = self.rng("path thresholds"), hparams.threshold_paths
            mapped = self.log.watched(self.comm.map, "path thresholds", "bucket")
            thresholds = path_thresholds(scorer, space, self.buckets, hparams.r_path, paths, rng, mapped)
        self.results["thresholds"] = [float(t) if np.isfinite(t) else None for t in thresholds]
        self.log("thresholds: " + ", ".join(f"{t:.4f}" for t in thresholds))
        return thresholds

    def path_sampler(self, space: SearchSpace, scorer: PathScorer, thresholds: np.ndarray) -> UniformPaths:
        """Create the sampler that samples a until g(a) reaches the threshold of a's bucket (lines 11 to 14)."""
        rng, hparams = self.rng("fine-tuning"), self.hparams
        if hparams.path_pruning == "none":
            return UniformPaths(space, rng)
        if hparams.path_pruning == "uniform":
            return HashedPaths(space, hparams.r_path, self.config.args.seed, rng)
        return KeptPaths(space, scorer, thresholds, lambda paths: self.buckets.index(self.cost.flops(paths)), rng)

    def fine_tune(self, sampler: UniformPaths) -> None:
        """Train one path of the sampler in each step of each epoch (lines 8 to 17; see `loop.train` for a step)."""
        with self.phase("fine-tuning"):
            self.train_phase(self.training["fine-tuning"], sampler, self.optimizer["train"])
        self.results["rejected_share"] = sampler.rejected_share
        self.log(f"rejected {sampler.rejected_share:.1%} of {sampler.sampled} sampled paths")


def run(
    config: Config,
    device: Device,
    output: FilePath,
    restart: bool = False,
    searcher: type[SubnetSearcher] = DetOFASearcher,
) -> dict:
    """Run Algorithm 1 or a baseline, resuming the run in the output folder if there is one.

    Args:
        config: config of the run.
        device: device to run on.
        output: folder of the run.
        restart: discard the run in the folder and start from the beginning.
        searcher: class of the runner, which determines the method.

    Returns:
        The content of summary.json.

    Raises:
        UserError: the config, the data, the weights or the folder cannot be used.
    """
    model, sets, cost = build(config)
    return start(searcher, model, sets, cost, config, training_phases(config), device, output, restart)
