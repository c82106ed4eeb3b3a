"""DetOFA's Algorithm 1 as an NNablaNAS runner: supernet training for the target task, with a path filter.

Read `DetOFASearcher.run` beside the paper's Algorithm 1; the numbers are the paper's lines.
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
from ..networks import centernet
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.metrics import baseline_scores, kendall_tau, per_bucket
from ..path_filter.model import PathFilter, PathScorer
from ..runs.phases import slug
from ..runs.result_files import detector, found_paths
from ..search.evolution import between, search
from ..space.costs import CostModel, cost_range
from ..space.paths import Path, PathBatch
from ..space.pruning import HashedPaths, KeptPaths, UniformPaths, operation_scores, path_thresholds, prune_operations
from ..space.search_space import SearchSpace
from ..training.loop import OnePath, PathSampler
from ..training.runner import SupernetRunner
from ..training.start_up import start

SHOWN_PHOTOGRAPHS = 6
SHOWN_SCORE = 0.3
"""What TensorBoard shows of the test split, and the least score of an object there."""


class DetOFASearcher(SupernetRunner):
    """Algorithm 1, then the search for the best path under each budget (section 3.3).

    Its inputs are named by the config: pre-trained supernet weights (`network.centernet_ofa_resnet50.weights`), a pre-trained
    path filter (`hparams.filter.weights`), the training data (`dataloader`), and r_op and r_path (`hparams`).
    """

    lines = {"fullnet": "2", "warm-up": "3", "fine-tuning": "8 to 17"}
    loss_names = ("loss", "heat map", "offset", "size")

    def run(self) -> dict:
        """Run Algorithm 1 to the end; what it found is in summary.json, and returned."""
        space = self.space  # 1: initialise the search space with A
        self.train_fullnet(space)  # 2
        self.warm_up(space)  # 3
        first = self.evaluate_sampled("paths", space)  # 4
        scorer = self.train_filter("path filter", self.new_filter(), first, self.filter_is_given)  # 5
        space = self.prune_operations(space, scorer)  # 6
        thresholds = self.path_thresholds(space, scorer)  # 7
        sampler = self.kept_paths(space, scorer, thresholds)  # 11 to 14: draws until g(a) reaches the threshold
        self.fine_tune(sampler)  # 8 to 17

        return self.find_subnets(space, scorer.filter, (first,))

    def find_subnets(self, space: SearchSpace, path_filter: PathFilter, seen: Sequence[EvaluatedPaths] = ()) -> dict:
        """Section 3.3: re-train the filter on the final supernet, search, and evaluate what was found."""
        paths = self.evaluate_sampled("paths again", space)
        scorer = self.train_filter("path filter again", path_filter, paths, bool(seen) or self.filter_is_given)
        self.hold_out(space, scorer, (*seen, paths))
        return self.evaluate(self.search(space, scorer))

    # --- Training ---------------------------------------------------------------------------------------------------

    def train_fullnet(self, space: SearchSpace) -> None:
        """Line 2: fine-tune the largest path alone, and evaluate it as the paper's "Fullnet"."""
        phase = self.training["fullnet"]
        with self.phase("fullnet"):
            self.train_phase(phase, OnePath(space.largest), self.new_optimizer(phase))
            self.results["fullnet"] = self.evaluate_path("fullnet", space.largest)

    def warm_up(self, space: SearchSpace) -> None:
        """Line 3: train uniformly drawn paths of A; the schedule is that of warm-up and fine-tuning together."""
        phase = self.training["warm-up"]
        self.optimizer["train"] = self.new_optimizer(phase)
        with self.phase("warm-up"):
            self.train_phase(phase, UniformPaths(space, self.rng("warm-up")), self.optimizer["train"])

    def fine_tune(self, sampler: PathSampler) -> None:
        """Lines 8 to 17: train the paths that the filter keeps."""
        with self.phase("fine-tuning"):
            self.train_phase(self.training["fine-tuning"], sampler, self.optimizer["train"])
        self.results["refused_share"] = sampler.refused_share
        self.log(f"refused {sampler.refused_share:.1%} of {sampler.draws} draws")

    # --- Path filter ------------------------------------------------------------------------------------------------

    def evaluate_sampled(self, name: str, space: SearchSpace) -> EvaluatedPaths:
        """Line 4: sample m paths for each FLOPs bucket and take their validation losses."""
        with self.phase(name):
            return self.evaluate_paths(name, self.sample_paths(name, self.config.hparams.paths_per_bucket, space))

    # --- Pruning ----------------------------------------------------------------------------------------------------

    def prune_operations(self, space: SearchSpace, scorer: PathScorer) -> SearchSpace:
        """Line 6: score every operation and take the weak ones out of the space."""
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
        self.remember("operations", {**scores.to_json(), **pruned.to_json(), "space": smaller.to_json()})
        for operation, rule in pruned.spared:
            self.log(f"kept {operation}: {rule}")
        self.log(str(smaller))
        self.log(
            f"pruned {len(pruned.removed)} of {len(scores.operations)} operations; "
            f"{smaller.size():.3g} of {space.size():.3g} paths are left"
        )
        return smaller

    def path_thresholds(self, space: SearchSpace, scorer: PathScorer) -> np.ndarray:
        """Line 7: for each bucket the score below which paths are pruned."""
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
        """Lines 11 to 14: the sampler of the pruned space that refuses weak paths."""
        rng, hparams = self.rng("fine-tuning"), self.config.hparams
        if hparams.path_pruning == "none":
            return UniformPaths(space, rng)
        if hparams.path_pruning == "uniform":
            return HashedPaths(space, hparams.r_path, self.config.args.seed, rng)
        return KeptPaths(space, scorer, thresholds, lambda paths: self.buckets.index(self.cost.flops(paths)), rng)

    # --- Search and evaluation --------------------------------------------------------------------------------------

    def hold_out(self, space: SearchSpace, scorer: PathScorer, seen: Sequence[EvaluatedPaths]) -> None:
        """Kendall's tau between path score and measured loss, on fresh paths that the filter did not train on."""
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
        self.remember("scores", {"scores": scores.tolist()})
        self.log("Kendall's tau in each bucket: " + ", ".join(map(str, self.results["kendall_tau"])))
        for ranked_by, values in {"path filter": self.results["kendall_tau"], **taus}.items():
            for bucket, tau in enumerate(values, 1):
                if tau is not None:
                    self.show(f"Kendall's tau of each bucket/{ranked_by}", tau, bucket)

    def taus(self, scores: np.ndarray, paths: EvaluatedPaths) -> list[float | None]:
        """Kendall's tau of scores and losses in each bucket; None where fewer than two paths, or equal scores, give none."""
        found = per_bucket(kendall_tau, scores, paths.losses, paths.buckets)
        values = [found.get(bucket, np.nan) for bucket in range(self.config.hparams.buckets)]
        return [None if np.isnan(value) else round(value, 4) for value in values]

    def search(self, space: SearchSpace, scorer: PathScorer) -> list[tuple[float, Path]]:
        """Section 3.3: for each budget, the path with the best score that costs no more (Eq. 3)."""
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
        """The config's budgets, or the upper edges of the FLOPs buckets."""
        return self.config.hparams.search.budgets or tuple(float(edge) for edge in self.buckets.edges[1:])

    def callback_on_start(self) -> None:
        """Say what is trained, and refuse before the training what would fail after it.

        Raises:
            UserError: no path of A is within a budget, or a result that the run goes on with is damaged.
        """
        super().callback_on_start()
        check_budgets(self.config, self.space, self.cost)
        self.new_filter()
        self.found_before()
        self.evaluated_before("fullnet", self.space.largest)
        for number in range(len(self.budgets)):
            self.evaluated_before(f"subnet {number + 1}")

    def best_path(self, space: SearchSpace, scorer: PathScorer, budget: float) -> Path:
        """The best path of `space` with at most `budget` FLOPs; see `config.Search.across_buckets`."""
        if self.config.hparams.search.across_buckets == "score":
            return self.evolve(space, scorer, -np.inf, budget)
        winners = [self.evolve(space, scorer, least, most) for least, most in self.buckets.below(budget, space)]
        evaluated = self.evaluate_paths("winners", PathBatch.from_paths(winners, space.geometry))
        losses = {item.path: item.loss for item in evaluated.items}
        return min(winners, key=losses.get)

    def evolve(self, space: SearchSpace, scorer: PathScorer, least: float, most: float) -> Path:
        """The path of `space` with the best score among those with `least` to `most` FLOPs, found by evolution."""
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
        self.remember("search", self.found_before() | {f"{least} {most}": path.to_ofa(space.geometry)})
        return path

    def found_before(self) -> dict[str, dict]:
        """Paths that were found for ranges of FLOPs, in OFA's notation."""
        return self.recall("search", {}, lambda content: found_paths(content, self.space.geometry))

    def evaluate(self, found: list[tuple[float, Path]]) -> dict:
        """Evaluate the found subnets on the test split, without any fine-tuning of them, and write the summary."""
        with self.phase("evaluation"):
            subnets = [
                {"budget": budget, **self.evaluate_path(f"subnet {number}", path)}
                for number, (budget, path) in enumerate(found, 1)
            ]
        summary = {**self.results, "subnets": subnets, "seconds": self.seconds}
        self.remember("summary", summary)
        for name, row in (("fullnet", summary["fullnet"]), *((f"<= {row['budget'] / 1e9:.4g} G", row) for row in subnets)):
            aps = ", ".join(f"{AP_TITLES[key]} {row[key]:.3f}" for key in ap_keys(row))
            self.log(f"{name}: {row['flops'] / 1e9:.4g} GFLOPs, {row['params'] / 1e6:.4g} M parameters, {aps}")
        return summary

    def evaluate_path(self, name: str, path: Path) -> dict:
        """FLOPs, parameters, validation loss and AP on the test split, under the present weights; kept as <name>.json.

        FLOPs are those of `hparams.cost_scope`, parameters the whole detector's.
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
        self.remember(slug(name), result)
        return result

    def evaluated_before(self, name: str, path: Path | None = None) -> dict | None:
        """What `evaluate_path` kept as `name`; a UserError if it is damaged, or of another than `path`."""
        return self.recall(slug(name), check=lambda content: detector(content, self.space.geometry, path))

    def show_detections(self, name: str, detections: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Some test photographs with what was found in them, for TensorBoard."""
        test, classes = self.sets.test, self.sets.classes
        for number, index in enumerate(np.linspace(0, len(test) - 1, min(SHOWN_PHOTOGRAPHS, len(test))).astype(int)):
            image = test.load(int(index)).image
            found = in_pixels(detections[index], classes, *image.shape[:2], SHOWN_SCORE)
            self.show_picture(f"detections of {name}/{number + 1}", draw(image, found, classes))


def check_budgets(config: Config, space: SearchSpace, cost: CostModel) -> None:
    """Raise UserError if no path of the space is within one of the config's budgets."""
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
    """Run Algorithm 1 by `config`, or a baseline of it; what was done before in `output` is not done again."""
    model, sets, cost = build(config)
    return start(searcher, model, sets, cost, config, device, output, restart)


def build(config: Config, pretrained: bool = True) -> tuple[centernet.SearchNet, DetectionSets, CostModel]:
    """The supernet, the data sets and the cost model of a config.

    Args:
        pretrained: start from the config's pre-trained weights.

    Raises:
        UserError: a data set or the weights are missing or broken, or do not fit.
    """
    network = config.network
    sets = open_sets(config, network.head_geometry(1).output_stride(network.geometry))
    classes = len(sets.classes)
    model = make_model(config, classes, network.weights if pretrained else None)
    return model, sets, make_cost(config, classes, sets.image_size)


def make_model(config: Config, num_classes: int, weights: str | None = None) -> centernet.SearchNet:
    """The detection supernet of a config, its backbone from the file `weights` where that is given.

    Raises:
        UserError: the config gives another number of classes, or the file does not fit.
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
    """What a path costs: its FLOPs are those of `hparams.cost_scope`."""
    head, scope = config.network.head_geometry(num_classes), config.hparams.cost_scope
    return CostModel(image_size, head.num_classes, scope, config.network.geometry, head)
