"""Resource-constrained search with the path filter (section 3.3), shared by Algorithm 1 and the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..common.errors import UserError
from ..evaluation.metrics import AP_TITLES, ap_keys
from ..evolution import between, search
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.metrics import baseline_scores, taus_of
from ..path_filter.model import PathFilter, PathScorer
from ..runs.result_files import found_paths
from ..space.costs import CostModel, cost_range
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace
from .detectors import DetectorRunner

Range = tuple[float, float]
"""Least and most FLOPs of the paths of a search."""


class SubnetSearcher(DetectorRunner):
    """Runner that searches its trained supernet for the best path under each budget."""

    def find_subnets(self, space: SearchSpace, path_filter: PathFilter, seen: Sequence[EvaluatedPaths] = ()) -> dict:
        """Re-train the filter on the final supernet, search, and evaluate the best paths (section 3.3).

        Args:
            space: search space of the final supernet.
            path_filter: filter to start from.
            seen: evaluated paths to which the filter was fitted before.

        Returns:
            The content of summary.json.
        """
        paths = self.validate_sampled_paths("paths again", space)
        scorer = self.fit_filter("path filter again", path_filter, paths, bool(seen) or self.filter_is_given)
        self.measure_ranking(space, scorer, (*seen, paths))
        return self.evaluate_subnets(self.search(space, scorer))

    def validate_sampled_paths(self, name: str, space: SearchSpace) -> EvaluatedPaths:
        """Sample m paths from each FLOPs bucket and compute their validation losses (Alg. 1 line 4)."""
        with self.phase(name):
            return self.validate_paths(name, self.sample_paths(name, self.hparams.paths_per_bucket, space))

    def callback_on_start(self) -> None:
        """Log the search space, and check before training everything that would otherwise fail after it.

        Raises:
            UserError: no path of the full search space is within a budget, or a stored result needed to resume is damaged.
        """
        super().callback_on_start()
        check_budgets(self.hparams.search.budgets, self.space, self.cost)
        self.new_filter()
        self.stored_search()
        self.stored_evaluation("fullnet", self.space.largest)
        for number in range(len(self.budgets)):
            self.stored_evaluation(f"subnet {number + 1}")

    # --- Quality of the filter --------------------------------------------------------------------------------------

    def measure_ranking(self, space: SearchSpace, scorer: PathScorer, seen: Sequence[EvaluatedPaths]) -> None:
        """Compute Kendall's tau between path score and loss, of the filter and of baselines, on held-out paths.

        Args:
            space: search space to sample from.
            scorer: path filter.
            seen: evaluated paths to which the filter was fitted, the most recent ones last. They are excluded.
        """
        name = "held-out paths"
        with self.phase(name):
            sampled = self.sample_paths(name, self.hparams.heldout_paths_per_bucket, space)
            fresh = np.array([not any(path in paths for paths in seen) for path in sampled], bool)
            paths = self.validate_paths(name, sampled[fresh])
        scores, baselines = scorer(paths.batch), {}
        if len(paths):
            fitted, rng = seen[-1], self.rng("random scores")
            baselines = baseline_scores(scorer.filter.tokenizer, fitted.batch, fitted.losses, paths.batch, paths.flops, rng)
        taus = {ranking: self._taus(values, paths) for ranking, values in {"path filter": scores, **baselines}.items()}
        self.files.write("scores", {"scores": scores.tolist()})
        self.log("Kendall's tau in each bucket: " + ", ".join(map(str, taus["path filter"])))
        for ranking, values in taus.items():
            for bucket, tau in enumerate(values, 1):
                if tau is not None:
                    self.log.scalar(f"Kendall's tau of each bucket/{ranking}", tau, bucket)
        self.results["kendall_tau"] = taus.pop("path filter")
        self.results["kendall_tau_of_baselines"] = taus

    def _taus(self, scores: np.ndarray, paths: EvaluatedPaths) -> list[float | None]:
        """Compute Kendall's tau of scores and losses in each bucket; None if undefined."""
        found = taus_of(scores, paths.losses, paths.buckets)
        taus = [found.get(bucket) for bucket in range(self.hparams.buckets)]
        return [None if tau is None else round(tau, 4) for tau in taus]

    # --- Search -----------------------------------------------------------------------------------------------------

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets in FLOPs: those of the config, or else the upper edges of the FLOPs buckets."""
        return self.hparams.search.budgets or tuple(float(edge) for edge in self.buckets.edges[1:])

    def search(self, space: SearchSpace, scorer: PathScorer) -> list[tuple[float, Path]]:
        """Find for each budget the path with the best score within the budget (section 3.3, Eq. 3).

        The full search space is searched for a budget below all paths of the pruned space. Path scores are comparable only
        within a FLOPs bucket (Eq. 5). Depending on `hparams.search.across_buckets`, all buckets are searched together by score
        ("score", as in Eq. 3), or each bucket is searched by score and the path with the lowest validation loss is chosen
        ("loss"; the paper is silent).

        Returns:
            (budget in FLOPs, path) for each budget.
        """
        least, _ = cost_range(space, self.cost.flops)
        by_score = self.hparams.search.across_buckets == "score"
        with self.phase("search"):
            spaces: dict[Range, SearchSpace] = {}
            ranges: dict[float, list[Range]] = {}
            for budget in self.budgets:
                if budget < least:
                    self.log(
                        f"no path of the pruned space has at most {budget / 1e9:.4g} GFLOPs; this budget is searched in the "
                        "full space A"
                    )
                searched = space if budget >= least else self.space
                ranges[budget] = [(-np.inf, budget)] if by_score else self.buckets.below(budget, searched)
                spaces |= {flops: searched for flops in ranges[budget] if flops not in spaces}
            found = self.evolve(spaces, scorer)
            if by_score:
                return [(budget, found[ranges[budget][0]]) for budget in self.budgets]
            validated = self.validate_paths("winners", PathBatch.from_paths(list(found.values()), space.geometry))
            losses = {item.path: item.loss for item in validated.items}
            winners = {budget: [found[flops] for flops in ranges[budget]] for budget in self.budgets}
            return [(budget, min(winners[budget], key=lambda path: losses[path])) for budget in self.budgets]

    def evolve(self, spaces: Mapping[Range, SearchSpace], scorer: PathScorer) -> dict[Range, Path]:
        """Search by evolution for the path with the best score in each range of FLOPs; the ranges are shared by the ranks.

        A result stored in search.json is reused.

        Args:
            spaces: (least, most) FLOPs -> space of the paths.
            scorer: path filter.
        """
        options, geometry, stored = self.hparams.search, self.space.geometry, self.stored_search()
        found = {flops: Path.from_ofa(stored[key], geometry) for flops in spaces if (key := _key(flops)) in stored}
        missing = [flops for flops in spaces if flops not in found]

        def best(flops: Range) -> Path:
            least, most = flops
            return search(
                spaces[flops],
                scorer,
                self.cost.flops,
                most,
                self.rng(f"search up to {most / 1e9:.4g} GFLOPs"),
                **options.evolution,
                constraints=[between(self.cost.flops, least, most)],
                progress=on_generation,
            ).path

        own = -(-len(missing) // self.comm.n_procs)
        with self.log.progress("search", own * options.generations, unit="generation") as bar:

            def on_generation(generation: int, score: float) -> None:
                bar.update()
                bar.set_postfix(score=f"{score:.4f}")
                self.pause(alone=True)

            for flops, path in zip(missing, self.comm.map(best, missing)):
                found[flops], stored[_key(flops)] = path, path.to_ofa(geometry)
                self.files.write("search", stored)
        return found

    def stored_search(self) -> dict[str, dict]:
        """Read the search results so far: "least most" FLOPs -> path in OFA's notation."""
        return self.files.read("search", {}, lambda content: found_paths(content, self.space.geometry))

    # --- Evaluation -------------------------------------------------------------------------------------------------

    def evaluate_subnets(self, found: Sequence[tuple[float, Path]]) -> dict:
        """Evaluate the subnets (budget, path) on the test split, and write and return the content of summary.json."""
        with self.phase("evaluation"):
            subnets = [
                {"budget": budget, **self.evaluate_detector(f"subnet {number}", path)}
                for number, (budget, path) in enumerate(found, 1)
            ]
        summary = {**self.results, "subnets": subnets, "seconds": self.costs.seconds}
        self.files.write("summary", summary)
        for name, row in (("fullnet", summary["fullnet"]), *((f"<= {row['budget'] / 1e9:.4g} G", row) for row in subnets)):
            aps = ", ".join(f"{AP_TITLES[key]} {row[key]:.3f}" for key in ap_keys(row))
            self.log(f"{name}: {row['flops'] / 1e9:.4g} GFLOPs, {row['params'] / 1e6:.4g} M parameters, {aps}")
        return summary


def _key(flops: Range) -> str:
    """Return the key of a range of FLOPs in search.json."""
    return f"{flops[0]} {flops[1]}"


def check_budgets(budgets: Sequence[float], space: SearchSpace, cost: CostModel) -> None:
    """Raise a UserError if one of the budgets is below all paths of the space."""
    for budget in budgets:
        if budget < cost_range(space, cost.flops)[0]:
            raise UserError(
                f"hparams.search.budgets holds {budget / 1e9:.10g} GFLOPs, which is below the smallest path; "
                f"reachable are {cost.flops.reachable(space)}"
            )
