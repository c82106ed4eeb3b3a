"""Search of a finished run for the best path under bounds on FLOPs, latency, parameters and memory (section 3.3)."""

from __future__ import annotations

import math
import numbers
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from .. import config as configs
from ..common.checked import listed
from ..common.errors import UserError
from ..common.reading import short, shown
from ..common.seeds import rng_for
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
from ..space.costs import LayerCost, cost_range
from ..space.counting import Buckets
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace, ofa_resnet50
from . import measure_latency as latency
from .report import markdown_row

COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS: dict[str, dict[str, float]] = {
    "flops": COUNTS,
    "latency": {"us": 1e3, "ms": 1e6, "s": 1e9},
    "params": COUNTS,
    "memory": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9},
}
"""Cost -> unit of a bound -> its value in multiply-accumulates, nanoseconds, parameters or bytes."""
EXAMPLES = {"flops": "3G", "latency": "40ms", "params": "20M", "memory": "200MB"}

PLAIN = {"flops": "multiply-accumulates", "latency": "nanoseconds", "params": "parameters", "memory": "bytes"}
LEAST = 1000
"""Smallest bound without a unit; every network costs more."""


def parse_bound(name: str, text: str, called: str = "--{}") -> float:
    """Parse a bound such as "3G" or "40ms".

    Args:
        name: the cost, a key of `UNITS`.
        text: a number and a unit of `UNITS[name]`.
        called: format string of the bound's name in error messages.

    Returns:
        The bound in multiply-accumulates, nanoseconds, parameters or bytes.

    Raises:
        UserError: the text is not a positive number with a unit of `UNITS[name]`, or has no unit and is below `LEAST`.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): worth for unit, worth in UNITS[name].items()}
    bound = float(match[1]) * units.get(match[2].lower(), math.inf) if match else math.inf
    bound = float(f"{bound:.15g}")  # 0.00203 * 1e6 is slightly above 2030, and a bound may equal the cost of a path
    if not 0 < bound < math.inf:
        known = ", ".join(unit or "none" for unit in UNITS[name])
        what = f"{called.format(name)} must be a positive number with a unit ({known})"
        raise UserError(f"{what}, like {EXAMPLES[name]}, got {short(text)}")
    if not match[2] and bound < LEAST:
        raise UserError(
            f"{called.format(name)} {short(text)} without a unit is {bound:g} {PLAIN[name]}, which no path keeps: "
            f"give a unit, like {EXAMPLES[name]}"
        )
    return bound


def as_bound(name: str, value: str | float) -> float:
    """Convert a bound given from Python: a string for `parse_bound`, or a number in the base unit of the cost.

    Raises:
        UserError: the value is neither, or is not positive.
    """
    if isinstance(value, str):
        return parse_bound(name, value, "{}")
    try:
        bound = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.inf
    except OverflowError:
        bound = math.inf
    if not 0 < bound < math.inf:
        raise UserError(f"{name} must be a positive number, or a text like {EXAMPLES[name]}, got {shown(value)}")
    return bound


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a finished run of Algorithm 1 that a search needs.

    Attributes:
        folder: the run's folder.
        config: the run's config.
        space: the pruned space, or the space of a baseline.
        buckets: FLOPs buckets of the whole search space A.
        scorer: the path filter, as re-trained before the run's own search.
        costs: name of `UNITS` -> cost. "latency" exists only if a table was given. FLOPs have the config's `cost_scope`, as
            in the run; all other costs are of the whole detector, because the device runs all of it. More costs can be added
            under other names, `replace(run, costs={**run.costs, "energy": cost})`; they can be bounded and are listed too.
    """

    folder: FilePath
    config: configs.Config
    space: SearchSpace
    buckets: Buckets
    scorer: PathScorer
    costs: Mapping[str, LayerCost]


FIXED = ("hparams.buckets", "hparams.filter.", "dataloader.voc.image_size", "dataloader.coco.image_size")
"""Prefixes of settings that may not change: scores are meaningless for other FLOPs buckets or costs of other image sizes."""


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
    own, config = run_config(folder), run_config(folder, overrides, FIXED)
    check_has_subnets(folder, own, "a search")
    scope = own.hparams.cost_scope
    if config.hparams.cost_scope != scope:
        raise UserError(f"hparams.cost_scope must be the run's, {scope}, on which its path filter was trained")
    classes = trained_classes(folder)
    space = searched_space(folder, config)
    if space.geometry != config.network.geometry:
        raise UserError(f"{folder} searched {space.geometry}; the config with these overrides has {config.network.geometry}")
    file = folder / "path_filter_again.h5"
    if not file.exists():
        raise UserError(f"{folder} is not the folder of a finished run: {file.name} is missing")
    side = config.dataloader.image_size
    model = make_cost(config, len(classes), (side, side))
    whole = replace(model, scope="detector")
    everything = ofa_resnet50(config.network.geometry, config.network.elastic_stem)
    buckets = Buckets(everything, model.flops, config.hparams.buckets)
    costs: dict[str, LayerCost] = {"flops": model.flops, "params": whole.params, "memory": whole.memory}
    if latency_table is not None or (folder / "latency.json").exists():
        costs["latency"] = latency.read(latency_table or folder / "latency.json", whole)
    path_filter = PathFilter.load(file, buckets=config.hparams.buckets, geometry=config.network.geometry)
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

    Like `algorithm1.best_path` for a FLOPs budget: scores rank only paths of the same FLOPs bucket, so each bucket with an
    allowed path is searched by score, and the winners are compared by validation loss under the run's final weights. They
    are compared by score (Eq. 3) if the weights or the data are missing, with `by_score`, or if the config's
    `search.across_buckets` is "score".

    The whole search space A is searched if a bound is below every path of the pruned space, as in the run's own search, or
    if no path of the pruned space is found within all bounds together. `note` reports it.

    For bounds on FLOPs and memory alone, whether a path exists is known exactly. With bounds on parameters or latency, a
    bucket counts as empty if neither sampling nor evolution finds a path in it. `note` reports it.

    Args:
        run: the run.
        bounds: name of `run.costs` -> largest allowed cost, inclusive.
        by_score: compare the winners of the buckets by score.
        whole_front: return the Pareto front of FLOPs and score of each bucket instead of one winner; nothing is compared.
        generations: number of generations of each search; None is the run's `hparams.search.generations`.
        progress: called after each generation.
        note: called with messages for the user.

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
    for name in bounds:
        if name not in run.costs:
            if name == "latency":
                raise UserError(
                    "a bound on latency needs a table of this device, which measure-latency writes: "
                    "it is named by --latency-table, or in Python by latency_table"
                )
            raise UserError(f"a bound must be on {listed(run.costs, 'or')}, got {name}")
    start = time.perf_counter()
    constraints = {name: at_most(run.costs[name], most) for name, most in bounds.items()}
    if missed := _unreachable(run, bounds):
        run = replace(run, space=run.buckets.space)
        if _unreachable(run, bounds):
            raise _no_path(run, constraints)
        missed = " or ".join(str(constraints[name]) for name in missed)
        note(f"every path with {missed} was pruned: {run.space.name} is searched")
    by_score = by_score or run.config.hparams.search.across_buckets == "score"
    others = [bound for name, bound in constraints.items() if name != "flops"]
    options = run.config.hparams.search.evolution | ({} if generations is None else {"generations": generations})
    score, most_flops = TimedScore(run.scorer), bounds.get("flops", math.inf)
    settings = (score, most_flops, others, options, whole_front, progress, note)
    rows, scored = _searched(run, *settings)
    if not rows and run.space.operations != run.buckets.space.operations:
        wanted = " and ".join(map(str, constraints.values()))
        note(f"no path of {run.space.name} was found with {wanted}: {run.buckets.space.name} is searched")
        run = replace(run, space=run.buckets.space)
        rows, scored = _searched(run, *settings)
    seconds = time.perf_counter() - start
    if not rows:
        raise _no_path(run, constraints)
    result = {
        "bounds": dict(bounds),
        "flops_of": run.config.hparams.cost_scope,
        "space": run.space.name,
        "seconds": seconds,
        "scoring_share": score.seconds / seconds,
        "scored": scored,
    }
    if whole_front:
        return result | {"rows": rows}
    losses = None if by_score else _losses(run, rows, note)
    if losses is not None:
        rows = [row | {"loss": loss} for row, loss in zip(rows, losses)]
    best = max(rows, key=lambda row: row["score"]) if losses is None else min(rows, key=lambda row: row["loss"])
    return best | result | {"compared_by": "score" if losses is None else "loss", "rows": rows}


def _searched(
    run: FinishedRun,
    score: Callable[[PathBatch], np.ndarray],
    most_flops: float,
    others: Sequence[Constraint],
    options: Mapping[str, Any],
    whole_front: bool,
    progress: Callable[[], None],
    note: Callable[[str], None],
) -> tuple[list[dict], int]:
    """Return the rows of the winner or the Pareto front of each FLOPs bucket, and the number of scored paths; see `find`."""
    rows, scored = [], 0
    for least, most in run.buckets.below(most_flops, run.space):
        within = [between(run.costs["flops"], least, most), *others]
        rng = rng_for(run.config.args.seed, f"search up to {most / 1e9:.4g} GFLOPs")
        try:
            if whole_front:
                chosen = {name: options[name] for name in ("generations", "population", "mutate_prob")}
                found = front(
                    run.space,
                    score,
                    run.costs["flops"],
                    rng,
                    constraints=within,
                    progress=lambda *news: progress(),
                    **chosen,
                )
                paths, scores = found.paths, found.scores.tolist()
            else:
                found = search(
                    run.space,
                    score,
                    run.costs["flops"],
                    most,
                    rng,
                    constraints=within,
                    progress=lambda *news: progress(),
                    **options,
                )
                paths, scores = PathBatch.from_paths([found.path], run.space.geometry), [found.score]
        except NoPath as error:
            if len(others) > 0:
                note(f"a FLOPs bucket is left out: {error}")
            continue
        scored += found.scored
        rows += _rows(run, paths, scores)
    return rows, scored


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
        model, sets, _ = build(run.config, pretrained=False)
        weights.load(model, final_weights(run.folder, run.config))
    except UserError as error:
        note(f"winners are compared by score, not by validation loss: {error}")
        return None
    check_classes(run.folder, sets.classes)
    images = EvaluationImages.choose(sets, run.config.hparams, run.config.args.seed)
    evaluator = PathEvaluator.on(model, images, run.config.args.evaluation_processes)
    return evaluator.losses([Path.from_ofa(row["path"], run.space.geometry) for row in rows]).tolist()


def _no_path(run: FinishedRun, constraints: Mapping[str, Constraint]) -> NoPath:
    """Make the error for bounds without a path, with the reachable range of each cost."""
    reachable = ", ".join(f"{cost.name} {cost.reachable(run.space)}" for cost in run.costs.values())
    wanted = " and ".join(map(str, constraints.values())) or "no bound"
    return NoPath(f"no path of {run.folder} was found with {wanted}; reachable, each alone, are {reachable}")


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
    columns, scales = columns | dict(zip(own, own)), scales | dict.fromkeys(own, 1)
    costs = [name for name in columns if name in rows[0]]
    judged = [name for name in ("score", "loss") if name in rows[0]]
    titles = ["FLOPs bucket", *(columns[name] for name in costs), *judged, ""]
    lines = [markdown_row(titles), markdown_row(["---:"] * (len(titles) - 1) + ["---"])]
    for row in rows:
        values = [*(f"{row[name] / scales[name]:.4g}" for name in costs), *(f"{row[name]:.4f}" for name in judged)]
        best = "best" if row["path"] == result.get("path") else ""
        lines.append(markdown_row([str(row["bucket"] + 1), *values, best]))
    lines += [
        "",
        f"searched {result['space']} for {result['seconds']:.1f} seconds, {result['scoring_share']:.0%} of them scoring "
        f"{result['scored']} paths; scores compare inside a FLOPs bucket only"
        + ("" if result["flops_of"] == "detector" else "; all but FLOPs are the whole detector's")
        + (f", the winners were compared by {result['compared_by']}" if "compared_by" in result else ""),
    ]
    return "\n".join(lines)
