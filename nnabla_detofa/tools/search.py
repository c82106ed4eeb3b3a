"""Search of a finished run for the best path under bounds on FLOPs, latency, parameters and memory (section 3.3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np

from ..common.checked import listed
from ..common.errors import UserError
from ..common.seeds import rng_for
from ..config import Config, DetofaHparams
from ..config.detection import detection_sections
from ..evaluation.images import EvaluationImages
from ..evaluation.validation import PathEvaluator
from ..evolution import Constraint, NoPath, at_most, between, front, search
from ..methods.build import build, make_cost
from ..networks import weights
from ..path_filter.model import PathFilter, PathScorer
from ..runs.run_folder import (
    check_classes,
    check_has_subnets,
    final_weights,
    run_config,
    searched_space,
    trained_classes,
)
from ..space.costs import cost_range
from ..space.counting import Buckets
from ..space.layer_costs import LayerCost
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace
from . import measure_latency as latency
from .report import markdown_row


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a finished run of Algorithm 1 that a search needs.

    Attributes:
        folder: the run's folder.
        config: the run's config.
        space: the pruned space, or the space of a baseline.
        buckets: FLOPs buckets of the whole search space A.
        scorer: the path filter, as re-trained before the run's own search.
        costs: name of `bounds.UNITS` -> cost. "latency" exists only if a table was given. FLOPs have the config's
            `cost_scope`, as in the run; all other costs are of the whole detector, because the device runs all of it. More
            costs can be added, `replace(run, costs={**run.costs, "energy": cost})`; they can be bounded and are listed too.
    """

    folder: FilePath
    config: Config
    space: SearchSpace
    buckets: Buckets
    scorer: PathScorer
    costs: Mapping[str, LayerCost]

    @property
    def hparams(self) -> DetofaHparams:
        """The hyperparameters of the run's config."""
        return detection_sections(self.config).hparams


FIXED = ("hparams.buckets", "hparams.filter.")
"""Prefixes of settings that may not change, besides `image_size`: scores are meaningless for other FLOPs buckets or costs."""


def load_run(folder: FilePath, overrides: Sequence[str] = (), latency_table: FilePath | None = None) -> FinishedRun:
    """Read a run's folder for a search, without opening its data or its weights.

    Args:
        folder: the run's folder.
        overrides: "key=value" strings that replace settings of the run's config, such as the data folder.
        latency_table: a file that `measure-latency` wrote; None is latency.json in the run's folder, if it exists.

    Raises:
        UserError: the folder does not hold a run that has re-trained its path filter, an override does not fit the run, or
            the latency table is damaged or does not fit the run.
    """
    own = run_config(folder)
    config = run_config(folder, overrides, (*FIXED, f"dataloader.{own.dataloader_name}.image_size"))
    check_has_subnets(folder, own, "a search")
    scope, hparams = detection_sections(own).hparams.cost_scope, detection_sections(config).hparams
    if hparams.cost_scope != scope:
        raise UserError(
            f"hparams.cost_scope must be {scope}, for which the run's path filter was trained, got {hparams.cost_scope}"
        )
    classes = trained_classes(folder)
    space = searched_space(folder, config)
    if space.geometry != config.network.geometry:
        raise UserError(
            f"{folder} searched {space.geometry}, but the config with these overrides has {config.network.geometry}"
        )
    file = folder / "path_filter_again.h5"
    if not file.exists():
        raise UserError(f"{folder} is not the folder of a finished run: {file.name} is missing")
    side = config.dataloader.image_size
    model = make_cost(config, len(classes), (side, side))
    whole = replace(model, scope="detector")
    everything = config.network.space
    buckets = Buckets(everything, model.flops, hparams.buckets)
    costs: dict[str, LayerCost] = {"flops": model.flops, "params": whole.params, "memory": whole.memory}
    if latency_table is not None or (folder / "latency.json").exists():
        costs["latency"] = latency.read(latency_table or folder / "latency.json", whole)
    path_filter = PathFilter.load(file, buckets=hparams.buckets, geometry=config.network.geometry)
    scorer = PathScorer(path_filter, model.flops, buckets.index)
    return FinishedRun(folder, config, space, buckets, scorer, costs)


class TimedScore:
    """Score function that measures its total duration in seconds."""

    def __init__(self, score: Callable[[PathBatch], np.ndarray]):
        self.score, self.seconds = score, 0.0

    def __call__(self, batch: PathBatch) -> np.ndarray:
        """Return the scores (n,) of n paths."""
        start = time.perf_counter()
        try:
            return self.score(batch)
        finally:
            self.seconds += time.perf_counter() - start


def find(
    run: FinishedRun,
    bounds: Mapping[str, float],
    by_score: bool = False,
    whole_front: bool = False,
    generations: int | None = None,
    progress: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict:
    """Find the best path of the pruned space within all bounds (section 3.3).

    Like `SubnetSearcher.search` for FLOPs: scores rank only paths of the same FLOPs bucket, so each bucket with an allowed
    path is searched by score, and the winners are compared by validation loss under the run's final weights. They are
    compared by score (Eq. 3) if the weights or the data are missing, with `by_score`, or if the config's
    `search.across_buckets` is "score".

    The whole search space A is searched if a bound is below every path of the pruned space, as in the run's own search, or
    if no path of the pruned space is found within all bounds together; `note` reports it. Whether a path exists is known
    exactly for bounds on FLOPs and memory. With bounds on parameters or latency, a bucket counts as empty, and `note` reports
    it, if neither sampling nor evolution finds a path in it.

    Args:
        run: the run.
        bounds: name of `run.costs` -> largest allowed cost, inclusive.
        by_score: compare the winners of the buckets by score.
        whole_front: return the Pareto front of FLOPs and score of each bucket instead of one winner; nothing is compared.
        generations: number of generations of each search; None is the run's `hparams.search.generations`.
        progress, note: called after each generation, and with messages for the user.

    Returns:
        A dict of plain JSON values: "bounds"; "flops_of" ("detector" or "backbone"; all other costs are of the detector);
        "space" (name of the searched space); "rows" (winners or Pareto fronts: paths with costs, bucket, score and, if
        measured, loss); "seconds" of the search; "scoring_share", the share of scoring in these seconds; "scored", the
        number of scored paths. Without `whole_front` also the items of the best row ("path", its costs, ...) and
        "compared_by", "score" or "loss".

    Raises:
        NoPath: no path within the bounds was found; the message gives the reachable range of each cost.
        UserError: the run has no such cost, the classes of the data are not those of the run, or `whole_front` is set and
            pymoo is not installed.
    """
    _check_names(run, bounds)
    start = time.perf_counter()
    constraints = {name: at_most(run.costs[name], most) for name, most in bounds.items()}
    run = _in_reachable_space(run, bounds, constraints, note)
    options = run.hparams.search.evolution | ({} if generations is None else {"generations": generations})
    score = TimedScore(run.scorer)
    others = [bound for name, bound in constraints.items() if name != "flops"]
    request = _Request(score, bounds.get("flops", math.inf), others, options, whole_front, progress, note)
    run, rows, scored = _search_spaces(run, request, constraints)
    seconds = time.perf_counter() - start
    result = {
        "bounds": dict(bounds),
        "flops_of": run.hparams.cost_scope,
        "space": run.space.name,
        "seconds": seconds,
        "scoring_share": score.seconds / seconds,
        "scored": scored,
    }
    return result | {"rows": rows} if whole_front else _with_best(run, result, rows, by_score, note)


def _with_best(run: FinishedRun, result: dict, rows: list[dict], by_score: bool, note: Callable[[str], None]) -> dict:
    """Add the rows, the items of the best row and "compared_by" to a result; see `find`."""
    losses = None if by_score or run.hparams.search.across_buckets == "score" else _losses(run, rows, note)
    if losses is None:
        return max(rows, key=lambda row: row["score"]) | result | {"compared_by": "score", "rows": rows}
    rows = [row | {"loss": loss} for row, loss in zip(rows, losses)]
    return min(rows, key=lambda row: row["loss"]) | result | {"compared_by": "loss", "rows": rows}


def _check_names(run: FinishedRun, bounds: Mapping[str, float]) -> None:
    """Raise UserError if a bound is on a cost that the run does not have."""
    for name in bounds:
        if name == "latency" and name not in run.costs:
            raise UserError(
                "a bound on latency needs a latency table of this device: write it with measure-latency, and pass it with "
                "--latency-table, or in Python as latency_table"
            )
        if name not in run.costs:
            raise UserError(f"a bound must be on {listed(run.costs, 'or')}, got {name}")


def _in_reachable_space(
    run: FinishedRun, bounds: Mapping[str, float], constraints: Mapping[str, Constraint], note: Callable[[str], None]
) -> FinishedRun:
    """Return the run, with the whole search space A if a bound is below every path of the pruned space.

    Raises:
        NoPath: a bound is below every path of A too.
    """
    missed = _unreachable(run, bounds)
    if not missed:
        return run
    run = replace(run, space=run.buckets.space)
    if _unreachable(run, bounds):
        raise _no_path(run, constraints)
    wanted = " or ".join(str(constraints[name]) for name in missed)
    note(f"every path with {wanted} was pruned; searching {run.space.name} instead")
    return run


class _Request(NamedTuple):
    """What to search for in each FLOPs bucket.

    Attributes:
        score: the score function.
        most_flops: largest allowed FLOPs.
        others: constraints on all other costs.
        options: keyword arguments of `evolution.search.search`.
        whole_front, progress, note: see `find`.
    """

    score: Callable[[PathBatch], np.ndarray]
    most_flops: float
    others: Sequence[Constraint]
    options: Mapping[str, Any]
    whole_front: bool
    progress: Callable[[], None]
    note: Callable[[str], None]


def _search_spaces(
    run: FinishedRun, request: _Request, constraints: Mapping[str, Constraint]
) -> tuple[FinishedRun, list[dict], int]:
    """Search the run's space and, if no path is found in it, the whole search space A.

    Returns:
        The run with the space in which paths were found, and the result of `_search_buckets`.

    Raises:
        NoPath: no path was found.
    """
    rows, scored = _search_buckets(run, request)
    if not rows and run.space.operations != run.buckets.space.operations:
        wanted = " and ".join(map(str, constraints.values()))
        request.note(f"no path of {run.space.name} was found with {wanted}; searching {run.buckets.space.name} instead")
        run = replace(run, space=run.buckets.space)
        rows, scored = _search_buckets(run, request)
    if not rows:
        raise _no_path(run, constraints)
    return run, rows, scored


def _search_buckets(run: FinishedRun, request: _Request) -> tuple[list[dict], int]:
    """Return the rows of the winner or the Pareto front of each FLOPs bucket, and the number of scored paths; see `find`."""
    rows, scored = [], 0
    for least, most in run.buckets.below(request.most_flops, run.space):
        try:
            paths, scores, count = _search_bucket(run, request, least, most)
        except NoPath as error:
            if request.others:
                request.note(f"skipping a FLOPs bucket: {error}")
            continue
        scored += count
        rows += _rows(run, paths, scores)
    return rows, scored


def _search_bucket(run: FinishedRun, request: _Request, least: float, most: float) -> tuple[PathBatch, list[float], int]:
    """Search the paths with FLOPs in (least, most]; return paths, their scores, and the number of scored paths."""
    flops, options = run.costs["flops"], dict(request.options)
    within = [between(flops, least, most), *request.others]
    rng = rng_for(run.config.args.seed, f"search up to {most / 1e9:.4g} GFLOPs")

    def on_generation(*news: float) -> None:
        request.progress()

    if request.whole_front:
        chosen = {name: options[name] for name in ("generations", "population", "mutate_prob")}
        found = front(run.space, request.score, flops, rng, constraints=within, progress=on_generation, **chosen)
        return found.paths, found.scores.tolist(), found.scored
    best = search(run.space, request.score, flops, most, rng, constraints=within, progress=on_generation, **options)
    return PathBatch.from_paths([best.path], run.space.geometry), [best.score], best.scored


def _unreachable(run: FinishedRun, bounds: Mapping[str, float]) -> list[str]:
    """Return the names of the bounds that are below the cost of every path of the run's space."""
    return [name for name, most in bounds.items() if most < cost_range(run.space, run.costs[name])[0]]


def _rows(run: FinishedRun, paths: PathBatch, scores: Sequence[float]) -> list[dict]:
    """Return bucket, costs, score and path, in OFA's notation, of each path."""
    costs = {name: cost(paths).tolist() for name, cost in run.costs.items()}
    found = run.buckets.index(np.array(costs["flops"])).tolist()
    return [
        {
            "bucket": found[index],
            **{name: values[index] for name, values in costs.items()},
            "score": float(scores[index]),
            "path": path.to_ofa(run.space.geometry),
        }
        for index, path in enumerate(paths)
    ]


def _losses(run: FinishedRun, rows: Sequence[dict], note: Callable[[str], None]) -> list[float] | None:
    """Return the validation losses of the rows' paths; None if weights or data are missing."""
    try:
        model, sets, _ = build(run.config, pretrained=False, quiet=True)
        weights.load(model, final_weights(run.folder, run.config))
    except UserError as error:
        note(f"comparing winners by score instead of validation loss: {error}")
        return None
    check_classes(run.folder, sets.classes)
    images = EvaluationImages.choose(sets, run.hparams, run.config.args.seed)
    evaluator = PathEvaluator.on(model, images, run.config.args.evaluation_processes)
    return evaluator.losses([Path.from_ofa(row["path"], run.space.geometry) for row in rows]).tolist()


def _no_path(run: FinishedRun, constraints: Mapping[str, Constraint]) -> NoPath:
    """Make the error for bounds without a path, with the reachable range of each cost."""
    reachable = ", ".join(f"{cost.name} {cost.reachable(run.space)}" for cost in run.costs.values())
    wanted = " and ".join(map(str, constraints.values())) or "no bound"
    return NoPath(f"no path of {run.folder} was found with {wanted}; the reachable range of each cost alone is {reachable}")


def table(result: dict) -> str:
    """Format the result of `find` as Markdown: one row per path, and the duration of the search."""
    columns = {
        "flops": f"GFLOPs of the {result['flops_of']}",
        "params": "M parameters",
        "memory": "memory [MB]",
        "latency": "latency [ms]",
    }
    scales = {"flops": 1e9, "params": 1e6, "memory": 1e6, "latency": 1e6}
    rows = result["rows"]
    own = [name for name in rows[0] if name not in {*columns, "bucket", "score", "loss", "path"}]
    columns, scales = columns | dict(zip(own, own)), scales | dict.fromkeys(own, 1.0)
    costs = [name for name in columns if name in rows[0]]
    measured = [name for name in ("score", "loss") if name in rows[0]]
    titles = ["FLOPs bucket", *(columns[name] for name in costs), *measured, ""]
    lines = [markdown_row(titles), markdown_row(["---:"] * (len(titles) - 1) + ["---"])]
    for row in rows:
        values = [*(f"{row[name] / scales[name]:.4g}" for name in costs), *(f"{row[name]:.4f}" for name in measured)]
        best = "best" if row["path"] == result.get("path") else ""
        lines.append(markdown_row([str(row["bucket"] + 1), *values, best]))
    lines += [
        "",
        f"the search of the space {result['space']} took {result['seconds']:.1f} seconds, {result['scoring_share']:.0%} of it "
        f"for the scores of {result['scored']} paths; scores are comparable only within a FLOPs bucket"
        + ("" if result["flops_of"] == "detector" else "; all costs but FLOPs are of the whole detector")
        + (f"; the best paths of the buckets were compared by {result['compared_by']}" if "compared_by" in result else ""),
    ]
    return "\n".join(lines)
