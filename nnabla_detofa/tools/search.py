"""The best path of a finished run under any mix of hard bounds: FLOPs, latency, parameters, memory (section 3.3)."""

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
from ..evaluation.path_evaluation import named_rng, path_evaluator
from ..methods.algorithm1 import build, make_cost
from ..networks import weights
from ..path_filter.model import PathFilter, PathScorer
from ..runs.run_folder import (
    final_weights,
    refuse_other_classes,
    refuse_other_kinds,
    run_config,
    searched_space,
    trained_classes,
)
from ..search.evolution import Constraint, NoPath, at_most, between, front, search
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
"""What can be bounded, and the units of its bound: of multiply-accumulates, ns, parameters and bytes."""
EXAMPLES = {"flops": "3G", "latency": "40ms", "params": "20M", "memory": "200MB"}

PLAIN = {"flops": "multiply-accumulates", "latency": "nanoseconds", "params": "parameters", "memory": "bytes"}
LEAST = 1000
"""Of a bound without a unit: any network needs more."""


def parse_bound(name: str, text: str, called: str = "--{}") -> float:
    """A bound such as "3G" or "40ms" in the unit of its cost.

    Args:
        called: what an error calls it.

    Raises:
        UserError: it is not a positive number with a unit of `UNITS[name]`.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): worth for unit, worth in UNITS[name].items()}
    bound = float(match[1]) * units.get(match[2].lower(), math.inf) if match else math.inf
    bound = float(f"{bound:.15g}")  # 0.00203 * 1e6 is a little over 2030; a bound may be a path's very cost
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
    """A bound that a program gives: a text as `parse_bound` reads it, or a plain number in the unit of its cost.

    Raises:
        UserError: it is neither, or not positive.
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
    """What a search needs of a run of Algorithm 1.

    Attributes:
        folder: the run's folder. config: its config.
        space: the pruned space. buckets: FLOPs buckets of A.
        scorer: the path filter as it was re-trained before the run's own search.
        costs: by the names of `UNITS`; latency only where a table was given. FLOPs are those of the config's `cost_scope`,
            as in the run; all else is what the device must bear: that of the whole detector. A cost of one's own may be added
            under another name, `replace(run, costs={**run.costs, "energy": cost})`, and is bounded and listed like these.
    """

    folder: FilePath
    config: configs.Config
    space: SearchSpace
    buckets: Buckets
    scorer: PathScorer
    costs: Mapping[str, LayerCost]


FIXED = ("hparams.buckets", "hparams.filter.", "dataloader.voc.image_size", "dataloader.coco.image_size")
"""What the path filter of a run was trained with: its scores mean nothing for other buckets, or costs of other images."""


def load_run(folder: FilePath, overrides: Sequence[str] = (), latency_table: FilePath | None = None) -> FinishedRun:
    """Read a run's folder; neither its data nor its weights are opened.

    Args:
        overrides: "key=value" entries of the run's config to replace, such as the place of the data.
        latency_table: what `measure-latency` wrote; by default latency.json in the folder, if it is there.

    Raises:
        UserError: the folder is not that of a run that got so far, or the table does not fit it.
    """
    own, config = run_config(folder), run_config(folder, overrides, FIXED)
    refuse_other_kinds(folder, own, "a search")
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
    """A score that knows how many seconds it took so far."""

    def __init__(self, score: Callable[[PathBatch], np.ndarray]):
        self.score, self.seconds = score, 0.0

    def __call__(self, batch: PathBatch) -> np.ndarray:
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
    """The best path of the pruned space within all bounds, as `algorithm1.best_path` finds one for a FLOPs budget.

    Scores rank paths of one FLOPs bucket only, so each bucket with an allowed path is searched by score, and the winners
    are compared by validation loss, under the run's final weights. Where the weights or the data are not there, with
    `by_score`, and where the config's `search.across_buckets` is "score", they are compared by score, which is Eq. 3.

    Where a bound is below every path of the pruned space, A is searched, as in Algorithm 1's own search, and where no path of
    the pruned space was found within all bounds together; `note` hears it.

    A mix of bounds on FLOPs and memory alone is known exactly to hold paths or not. With bounds on parameters or latency as
    well, a bucket in which neither drawing nor breeding finds a path counts as empty, which `note` hears.

    Args:
        bounds: largest allowed costs, inclusive, by the names of `run.costs`.
        whole_front: for each bucket all trades of FLOPs against score instead of one winner; nothing is compared.
        generations: of each search; by default the run's `hparams.search.generations`.
        progress: called after each generation. note: hears what the user should know.

    Returns:
        plain JSON values: "bounds", "flops_of" ("detector" or "backbone"; all other costs are the detector's), "space"
        (which was searched), "rows" (paths with their costs, bucket, score and loss, winners or fronts), "seconds" of the
        search, "scoring_share" of them, "scored" paths; and without `whole_front` "path" and its costs, and "compared_by".

    Raises:
        NoPath: no path meets the bounds; the message gives the reachable range of each cost.
        UserError: a bound is of a cost that the run has not got.
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
    """The winner, or the front, of each FLOPs bucket of the run's space, and how many paths were scored; see `find`."""
    rows, scored = [], 0
    for least, most in run.buckets.below(most_flops, run.space):
        within = [between(run.costs["flops"], least, most), *others]
        rng = named_rng(run.config.args.seed, f"search up to {most / 1e9:.4g} GFLOPs")
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
    """The names of the bounds that are below every path of the run's space."""
    return [name for name, most in bounds.items() if most < cost_range(run.space, run.costs[name])[0]]


def _rows(run: FinishedRun, paths: PathBatch, scores: Sequence[float]) -> list[dict]:
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
    """Validation losses of the rows' paths; None where weights or data are missing."""
    try:
        model, sets, _ = build(run.config, pretrained=False)
        weights.load(model, final_weights(run.folder, run.config))
    except UserError as error:
        note(f"winners are compared by score, not by validation loss: {error}")
        return None
    refuse_other_classes(run.folder, sets.classes)
    evaluator = path_evaluator(model, sets, run.config)
    return evaluator.losses([Path.from_ofa(row["path"], run.space.geometry) for row in rows]).tolist()


def _no_path(run: FinishedRun, constraints: Mapping[str, Constraint]) -> NoPath:
    reachable = ", ".join(f"{cost.name} {cost.reachable(run.space)}" for cost in run.costs.values())
    wanted = " and ".join(map(str, constraints.values())) or "no bound"
    return NoPath(f"no path of {run.folder} was found with {wanted}; reachable, each alone, are {reachable}")


def table(result: dict) -> str:
    """Markdown: a row for each path of a result of `find`, and how long the search took."""
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
