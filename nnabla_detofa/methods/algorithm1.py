"""DetOFA's Algorithm 1, supernet training for the target task with a path filter, as an NNablaNAS runner.

`DetOFASearcher.run` follows the paper's Algorithm 1; the numbers in its comments are lines of the algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np

from ..backend.compat import Device
from ..common.drawing import draw, in_pixels
from ..common.errors import UserError
from ..config import Config
from ..data.sets import DetectionSets, open_sets
from ..evaluation.detections import BoxDetector, average_precision, save_detections
from ..evaluation.metrics import AP_TITLES, ap_keys
from ..evaluation.reestimation import reestimate
from ..evaluation.validation import validation_loss
from ..evolution import between, search
from ..networks import centernet
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.metrics import baseline_scores, kendall_tau, per_bucket
from ..path_filter.model import PathFilter, PathScorer
from ..runs.phases import slug
from ..runs.result_files import detector, found_paths
from ..space.costs import CostModel, cost_range
from ..space.paths import Path, PathBatch
from ..space.pruning import HashedPaths, KeptPaths, UniformPaths, operation_scores, path_thresholds, prune_operations
from ..space.search_space import SearchSpace
from ..training.loop import OnePath, PathSampler
from ..training.runner import SupernetRunner
from ..training.start_up import start

SHOWN_PHOTOGRAPHS = 6
SHOWN_SCORE = 0.3
"""Number of test images shown in TensorBoard, and minimum score of the detections shown."""


class DetOFASearcher(SupernetRunner):
    """Runs Algorithm 1, then searches for the best path under each budget (section 3.3).

    The config specifies the inputs of Algorithm 1: the pre-trained supernet weights
    (`network.centernet_ofa_resnet50.weights`), the pre-trained path filter (`hparams.filter.weights`), the training data
    (`dataloader`), and the pruning ratios r_op and r_path (`hparams`).
    """

    lines = {"fullnet": "2", "warm-up": "3", "fine-tuning": "8 to 17"}
    loss_names = ("loss", "heat map", "offset", "size")

    def run(self) -> dict:
        """Run Algorithm 1 and the search; write the results to summary.json, and return them."""
        space = self.space  # 1: initialize the pruned search space with the full one
        self.train_fullnet(space)  # 2
        self.warm_up(space)  # 3
        first = self.evaluate_sampled("paths", space)  # 4
        scorer = self.train_filter("path filter", self.new_filter(), first, self.filter_is_given)  # 5
        space = self.prune_operations(space, scorer)  # 6
        thresholds = self.path_thresholds(space, scorer)  # 7
        sampler = self.kept_paths(space, scorer, thresholds)  # 11 to 14: samples paths until g(a) reaches the threshold
        self.fine_tune(sampler)  # 8 to 17

        return self.find_subnets(space, scorer.filter, (first,))

    def find_subnets(self, space: SearchSpace, path_filter: PathFilter, seen: Sequence[EvaluatedPaths] = ()) -> dict:
        """Re-train the filter on the final supernet, search, and evaluate the best paths (section 3.3).

        Args:
            space: search space of the final supernet.
            path_filter: filter to start from.
            seen: evaluated paths to which the filter was fitted before.
        """
        paths = self.evaluate_sampled("paths again", space)
        scorer = self.train_filter("path filter again", path_filter, paths, bool(seen) or self.filter_is_given)
        self.hold_out(space, scorer, (*seen, paths))
        return self.evaluate(self.search(space, scorer))

    # --- Training ---------------------------------------------------------------------------------------------------

    def train_fullnet(self, space: SearchSpace) -> None:
        """Fine-tune only the largest path (line 2), and evaluate it as the paper's "Fullnet"."""
        phase = self.training["fullnet"]
        with self.phase("fullnet"):
            self.train_phase(phase, OnePath(space.largest), self.new_optimizer(phase))
            self.results["fullnet"] = self.evaluate_path("fullnet", space.largest)

    def warm_up(self, space: SearchSpace) -> None:
        """Train uniformly sampled paths of the full search space (line 3); warm-up and fine-tuning share one schedule."""
        phase = self.training["warm-up"]
        self.optimizer["train"] = self.new_optimizer(phase)
        with self.phase("warm-up"):
            self.train_phase(phase, UniformPaths(space, self.rng("warm-up")), self.optimizer["train"])

    def fine_tune(self, sampler: PathSampler) -> None:
        """Train the paths that the path filter keeps (lines 8 to 17)."""
        with self.phase("fine-tuning"):
            self.train_phase(self.training["fine-tuning"], sampler, self.optimizer["train"])
        self.results["rejected_share"] = sampler.rejected_share
        self.log(f"rejected {sampler.rejected_share:.1%} of {sampler.sampled} sampled paths")

    # --- Path filter ------------------------------------------------------------------------------------------------

    def evaluate_sampled(self, name: str, space: SearchSpace) -> EvaluatedPaths:
        """Sample m paths of each FLOPs bucket and measure their validation losses (line 4)."""
        with self.phase(name):
            return self.evaluate_paths(name, self.sample_paths(name, self.config.hparams.paths_per_bucket, space))

    # --- Pruning ----------------------------------------------------------------------------------------------------

    def prune_operations(self, space: SearchSpace, scorer: PathScorer) -> SearchSpace:
        """Score all operations and remove the weak ones from the search space (line 6)."""
        hparams, pruning = self.config.hparams, self.config.hparams.operation_pruning

        def pruned_by_score():
            scores = operation_scores(
                space, scorer, self.cost.stage_flops, hparams.paths_per_operation, self.rng("operation scores")
            )
            return scores, prune_operations(
                scores,
                pruning.strategy,
                space.largest,
                self.rng("operation pruning"),
                pruning.r_op,
                pruning.r_op1,
                pruning.r_op2,
                hparams.buckets,
            )

        with self.phase("operation pruning"):
            scores, pruned = self.comm.once(pruned_by_score)
            smaller = space.without(pruned.removed)
        self.results["pruned_operations"] = len(pruned.removed)
        self.results["total_operations"] = len(scores.operations)
        self.results["removed_operations"] = [str(operation) for operation in sorted(pruned.removed)]
        self.write_result("operations", {**scores.to_json(), **pruned.to_json(), "space": smaller.to_json()})
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
        hparams = self.config.hparams
        with self.phase("path thresholds"):
            rng = self.rng("path thresholds")
            thresholds = self.comm.once(
                lambda: path_thresholds(scorer, space, self.buckets, hparams.r_path, hparams.threshold_paths, rng)
            )
        self.results["thresholds"] = [float(t) if np.isfinite(t) else None for t in thresholds]
        self.log("thresholds: " + ", ".join(f"{t:.4f}" for t in thresholds))
        return thresholds

    def kept_paths(self, space: SearchSpace, scorer: PathScorer, thresholds: np.ndarray) -> PathSampler:
        """Create the sampler of the pruned search space that rejects weak paths (lines 11 to 14)."""
        rng, hparams = self.rng("fine-tuning"), self.config.hparams
        if hparams.path_pruning == "none":
            return UniformPaths(space, rng)
        if hparams.path_pruning == "uniform":
            return HashedPaths(space, hparams.r_path, self.config.args.seed, rng)
        return KeptPaths(space, scorer, thresholds, lambda paths: self.buckets.index(self.cost.flops(paths)), rng)

    # --- Search and evaluation --------------------------------------------------------------------------------------

    def hold_out(self, space: SearchSpace, scorer: PathScorer, seen: Sequence[EvaluatedPaths]) -> None:
        """Compute Kendall's tau between path score and loss, of the filter and of baselines, on held-out paths.

        Args:
            space: search space to sample from.
            scorer: path filter.
            seen: evaluated paths to which the filter was fitted, the most recent ones last. They are excluded.
        """
        name = "held-out paths"
        with self.phase(name):
            fresh = self.sample_paths(name, self.config.hparams.heldout_paths_per_bucket, space)
            fresh = fresh[[not any(path in paths for paths in seen) for path in fresh]]
            paths = self.evaluate_paths(name, fresh)
        scores, fitted = scorer(paths.batch), seen[-1]
        rivals = {}
        if len(paths):
            rivals = baseline_scores(
                scorer.filter.tokenizer, fitted.batch, fitted.losses, paths.batch, paths.flops, self.rng("random scores")
            )
        taus = {rival: self.taus(values, paths) for rival, values in {"path filter": scores, **rivals}.items()}
        self.results["kendall_tau"] = taus.pop("path filter")
        self.results["kendall_tau_of_baselines"] = taus
        self.write_result("scores", {"scores": scores.tolist()})
        self.log("Kendall's tau in each bucket: " + ", ".join(map(str, self.results["kendall_tau"])))
        for ranked_by, values in {"path filter": self.results["kendall_tau"], **taus}.items():
            for bucket, tau in enumerate(values, 1):
                if tau is not None:
                    self.show(f"Kendall's tau of each bucket/{ranked_by}", tau, bucket)

    def taus(self, scores: np.ndarray, paths: EvaluatedPaths) -> list[float | None]:
        """Compute Kendall's tau of scores and losses in each bucket; None if undefined (under two paths, or equal scores)."""
        found = per_bucket(kendall_tau, scores, paths.losses, paths.buckets)
        values = [found.get(bucket, np.nan) for bucket in range(self.config.hparams.buckets)]
        return [None if np.isnan(value) else round(value, 4) for value in values]

    def search(self, space: SearchSpace, scorer: PathScorer) -> list[tuple[float, Path]]:
        """Find for each budget the path with the best score within the budget (section 3.3, Eq. 3).

        The full search space is searched for a budget below all paths of the pruned space.

        Returns:
            (budget in FLOPs, path) for each budget.
        """
        least, _ = cost_range(space, self.cost.flops)
        found = []
        with self.phase("search"):
            for budget in self.budgets:
                if budget < least:
                    self.log(f"every path of at most {budget / 1e9:.4g} GFLOPs was pruned: that budget is searched in A")
                found.append((budget, self.best_path(space if budget >= least else self.space, scorer, budget)))
        return found

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets in FLOPs: those of the config, or else the upper edges of the FLOPs buckets."""
        return self.config.hparams.search.budgets or tuple(float(edge) for edge in self.buckets.edges[1:])

    def callback_on_start(self) -> None:
        """Log the search space, and check before training everything that would otherwise fail after it.

        Raises:
            UserError: no path of the full search space is within a budget, or a stored result needed to resume is damaged.
        """
        super().callback_on_start()
        check_budgets(self.config, self.space, self.cost)
        self.new_filter()
        self.found_before()
        self.evaluated_before("fullnet", self.space.largest)
        for number in range(len(self.budgets)):
            self.evaluated_before(f"subnet {number + 1}")

    def best_path(self, space: SearchSpace, scorer: PathScorer, budget: float) -> Path:
        """Find the best path of `space` with at most `budget` FLOPs.

        Path scores are comparable only within a FLOPs bucket (Eq. 5). Depending on `hparams.search.across_buckets`, all
        buckets are searched together by score ("score", as in Eq. 3), or each bucket is searched by score and the path with
        the lowest validation loss is chosen ("loss"; the paper is silent).
        """
        if self.config.hparams.search.across_buckets == "score":
            return self.evolve(space, scorer, -np.inf, budget)
        winners = [self.evolve(space, scorer, least, most) for least, most in self.buckets.below(budget, space)]
        evaluated = self.evaluate_paths("winners", PathBatch.from_paths(winners, space.geometry))
        losses = {item.path: item.loss for item in evaluated.items}
        return min(winners, key=losses.get)

    def evolve(self, space: SearchSpace, scorer: PathScorer, least: float, most: float) -> Path:
        """Search by evolution for the path of `space` with the best score and `least` to `most` FLOPs.

        A result stored in search.json is reused.
        """
        options, name = self.config.hparams.search, f"search up to {most / 1e9:.4g} GFLOPs"
        if (known := self.found_before().get(f"{least} {most}")) is not None:
            return Path.from_ofa(known, space.geometry)

        def found() -> Path:
            with self.progress(name, options.generations, unit="generation") as bar:

                def on_generation(generation: int, score: float) -> None:
                    bar.update()
                    bar.set_postfix(score=f"{score:.4f}")
                    self.pause(alone=True)

                return search(
                    space,
                    scorer,
                    self.cost.flops,
                    most,
                    self.rng(name),
                    **options.evolution,
                    constraints=[between(self.cost.flops, least, most)],
                    progress=on_generation,
                ).path

        path = self.comm.once(found)
        self.write_result("search", self.found_before() | {f"{least} {most}": path.to_ofa(space.geometry)})
        return path

    def found_before(self) -> dict[str, dict]:
        """Read the search results so far: "least most" FLOPs -> path in OFA's notation."""
        return self.read_result("search", {}, lambda content: found_paths(content, self.space.geometry))

    def evaluate(self, found: list[tuple[float, Path]]) -> dict:
        """Evaluate the subnets (budget, path) on the test split without fine-tuning, and write and return the summary."""
        with self.phase("evaluation"):
            subnets = [
                {"budget": budget, **self.evaluate_path(f"subnet {number}", path)}
                for number, (budget, path) in enumerate(found, 1)
            ]
        summary = {**self.results, "subnets": subnets, "seconds": self.seconds}
        self.write_result("summary", summary)
        for name, row in (("fullnet", summary["fullnet"]), *((f"<= {row['budget'] / 1e9:.4g} G", row) for row in subnets)):
            aps = ", ".join(f"{AP_TITLES[key]} {row[key]:.3f}" for key in ap_keys(row))
            self.log(f"{name}: {row['flops'] / 1e9:.4g} GFLOPs, {row['params'] / 1e6:.4g} M parameters, {aps}")
        return summary

    def evaluate_path(self, name: str, path: Path) -> dict:
        """Evaluate a path under the current weights, and store the result as <name>.json; reuse a stored result.

        Returns:
            Dictionary with "flops" (multiply-accumulates of `hparams.cost_scope`), "params" (of the whole detector),
            "loss" on the validation images, AP on the test split (see `metrics.summarize`), and "path" in OFA's notation.
        """
        if (known := self.evaluated_before(name, path)) is not None:
            return known
        statistics = reestimate(self.model, path, self.evaluator.statistics_batches)
        hparams = self.config.hparams
        detector = BoxDetector(self.model, path, statistics, flip=hparams.flip_test)
        batch = PathBatch.from_paths([path], self.space.geometry)
        with self.progress(f"test images of {name}", len(self.sets.test), unit="image") as bar:
            ap, detections = average_precision(
                detector,
                self.sets,
                hparams.bn_batch,
                self.config.dataloader.ap_metric,
                bar.update,
                scales=hparams.test_scales,
                multiple=self.space.geometry.total_stride,
                comm=self.comm,
            )
        result = {
            "flops": int(self.cost.flops(batch)[0]),
            "params": int(replace(self.cost, scope="detector").params(batch)[0]),
            "loss": validation_loss(self.model, path, statistics, self.evaluator.validation_batches),
            **ap,
            "path": path.to_ofa(self.space.geometry),
        }
        if self.comm.rank == 0:
            save_detections(self.folder / f"{slug(name)}_detections.json", self.sets, detections)
            self.show_detections(name, detections)
        self.show(f"AP50 on the test split/{name}", result["ap50"], result["flops"] // 10**6)
        self.write_result(slug(name), result)
        return result

    def evaluated_before(self, name: str, path: Path | None = None) -> dict | None:
        """Read the result that `evaluate_path` stored as `name`; None if there is none.

        Raises:
            UserError: the file is damaged, or belongs to a path other than `path`.
        """
        return self.read_result(slug(name), check=lambda content: detector(content, self.space.geometry, path))

    def show_detections(self, name: str, detections: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Add some test images with their detections to TensorBoard."""
        test, classes = self.sets.test, self.sets.classes
        for number, index in enumerate(np.linspace(0, len(test) - 1, min(SHOWN_PHOTOGRAPHS, len(test))).astype(int)):
            image = test.load(int(index)).image
            found = in_pixels(detections[index], classes, *image.shape[:2], SHOWN_SCORE)
            self.show_picture(f"detections of {name}/{number + 1}", draw(image, found, classes))


def check_budgets(config: Config, space: SearchSpace, cost: CostModel) -> None:
    """Raise a UserError if one of the config's budgets is below all paths of the space."""
    for budget in config.hparams.search.budgets:
        if budget < cost_range(space, cost.flops)[0]:
            raise UserError(
                f"hparams.search.budgets holds {budget / 1e9:.10g} GFLOPs, which is below the smallest path; "
                f"reachable are {cost.flops.reachable(space)}"
            )


def run(
    config: Config,
    device: Device,
    output: FilePath,
    restart: bool = False,
    searcher: type[DetOFASearcher] = DetOFASearcher,
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
    return start(searcher, model, sets, cost, config, device, output, restart)


def build(config: Config, pretrained: bool = True) -> tuple[centernet.SearchNet, DetectionSets, CostModel]:
    """Create the supernet, the datasets and the cost model of a config.

    Args:
        config: config of a run that trains detectors.
        pretrained: load the backbone from the config's weights file, if it names one.

    Raises:
        UserError: a dataset or the weights are missing or damaged, or do not match the config.
    """
    network = config.network
    sets = open_sets(config, network.head_geometry(1).output_stride(network.geometry))
    classes = len(sets.classes)
    model = make_model(config, classes, network.weights if pretrained else None)
    return model, sets, make_cost(config, classes, sets.image_size)


def make_model(config: Config, num_classes: int, weights: str | None = None) -> centernet.SearchNet:
    """Create the detection supernet of a config.

    Args:
        config: config of a run that trains detectors.
        num_classes: number of classes of the dataset.
        weights: weights file from which the backbone is loaded. Default: random weights.

    Raises:
        UserError: the config specifies another number of classes, or the weights do not match.
    """
    network = config.network
    if network.num_classes not in (None, num_classes):
        raise UserError(
            f"network.centernet_ofa_resnet50.num_classes must be the data set's {num_classes}, got {network.num_classes}"
        )
    return centernet.SearchNet(
        num_classes,
        network.width_scale,
        network.strides,
        network.elastic_stem,
        network.zero_init_residual,
        network.deconv_channels,
        network.head_channels,
        network.heat_map_std,
        weights,
        np.random.default_rng((config.args.seed, 1)),
        config.dataloader.normalization,
    )


def make_cost(config: Config, num_classes: int, image_size: int | tuple[int, int]) -> CostModel:
    """Create the cost model of paths; FLOPs are counted for the part of the detector that `hparams.cost_scope` selects."""
    head, scope = config.network.head_geometry(num_classes), config.hparams.cost_scope
    return CostModel(image_size, head.num_classes, scope, config.network.geometry, head)
