"""Description of a run's folder, finished or not: progress, cost, pruning and results."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ..config import Config, DetofaHparams
from ..evaluation.metrics import ap_keys
from ..runs import result_files
from ..runs.cost_ledger import totals
from ..runs.phases import FINE_TUNED
from ..runs.provenance import recorded
from ..runs.run_folder import final_weights, fine_tuned, number, read_result, reading, run_config, searched_space
from ..space.search_space import PrunedSpace
from .phase_states import phase_states, read_ledger


def describe(run: FilePath) -> dict:
    """Describe a run as plain JSON values; results that the run has not reached yet are missing, empty or None.

    Args:
        run: the folder of a run, a pre-training or a fine-tuning.

    Returns:
        A dict with these items:

        - "run", "runner", "about": folder, runner and description. "method": the built-in runner on which the runner is based.
        - "code": commits or versions that computed the run, in order.
        - "finished": whether the run is over. "written": seconds since the folder was last written to.
        - "phases": for each phase "name"; "state" ("done", "under way" or "to come"); wall-clock "seconds";
          "device_seconds"; and for the phase under way "share" in [0, 1], None if unknown, and "detail".
        - "device_time": "unit", "total", and "kinds" (kind -> time).
        - "thresholds": path-score threshold of each FLOPs bucket (Alg. 1 line 7). "rejected_share": share of sampled paths
          that the path filter rejected. "kendall_tau": Kendall's tau in each bucket.
        - "pruned": "removed" and "total" operations; "paths" left and "paths_of_a" (paths of A); "space", lines in the
          notation of Figure 3.
        - "detectors": for each "name", "budget", "flops", "params", "loss", the APs of `metrics.ap_keys`, and "path" if
          recorded. A fine-tuning has one before and one after.
        - "accuracy": of a pre-training, for the largest path and four random paths.
        - "fine_tuning": "run", "detector" and "epochs" of a fine-tuning; otherwise None.
        - "files": description -> file or folder.

    Raises:
        UserError: the folder is not the folder of a run, or a file in it is damaged.
    """
    config = run_config(run)
    log = _read_log(run)
    origin, summary = fine_tuned(run), _summary(run)
    result: dict[str, Any] = {
        "run": str(run),
        "runner": config.args.runner,
        "method": config.method,
        "about": list(config.about),
        "code": recorded(run)["code"],
        "finished": (run / f"{FINE_TUNED}.json").exists() if origin else bool(summary),
        "written": time.time() - _last_written(run),
        "phases": phase_states(run, config, log),
        "device_time": _device_time(run),
        "thresholds": summary.get("thresholds", _logged_numbers(log, r"^thresholds: (.+)$")),
        "rejected_share": summary.get("rejected_share", _logged_share(log)),
        "kendall_tau": summary.get("kendall_tau", _logged_numbers(log, r"^Kendall's tau in each bucket: (.+)$")),
        "pruned": _pruned(run, config),
        "detectors": _detectors(run, config, summary),
        "accuracy": summary.get("accuracy"),
        "fine_tuning": None,
        "files": dict(_files(run, config)),
    }
    if origin:
        result["fine_tuning"] = {"run": origin["run"], "detector": origin["detector"], "epochs": config.hparams.epochs}
    return result


def _last_written(run: FilePath) -> float:
    """Return the time of the latest write to the folder, in seconds since 1970."""
    times = [run.stat().st_mtime]
    for file in run.iterdir():
        with suppress(OSError):  # a dangling link, or a file that was renamed in the meantime
            times.append(file.stat().st_mtime)
    return max(times[1:] or times)


def _read_log(run: FilePath) -> str:
    """Return the content of all logs, or an empty string."""
    return "".join(file.read_text("utf-8", "replace") for file in _logs(run))


def _logs(run: FilePath) -> list[FilePath]:
    """Return the log of each start of the run, in order: log.txt, log.1.txt, log.2.txt, and so on."""
    numbers = itertools.chain([""], (f".{number}" for number in itertools.count(1)))
    return list(itertools.takewhile(FilePath.is_file, (run / f"log{number}.txt" for number in numbers)))


def _logged_numbers(log: str, pattern: str) -> list[float | None] | None:
    """Return the numbers of the last log line that matches a pattern, for runs without a summary."""
    found = re.findall(pattern, log, re.MULTILINE)
    if not found:
        return None

    def number(text: str) -> float | None:
        try:
            return float(text) if np.isfinite(float(text)) else None
        except ValueError:
            return None

    return [number(part) for part in found[-1].split(",")]


def _logged_share(log: str) -> float | None:
    """Return the last share of rejected paths in the log, or None."""
    found = re.findall(r"^(?:rejected|refused) (\d+\.?\d*)% of \d+ (?:sampled paths|draws)$", log, re.MULTILINE)
    return float(found[-1]) / 100 if found else None


def _summary(run: FilePath) -> dict:
    """Read the items of summary.json that a description needs; empty if the run is not over."""
    if not (run / "summary.json").exists():
        return {}
    summary = read_result(run, "summary", result_files.bounded)
    with reading(run / "summary.json"):
        found: dict[str, Any] = {"seconds": dict(summary["seconds"])}
        for name in {"thresholds", "kendall_tau", "accuracy"} & summary.keys():
            found[name] = [value if value is None else number(value) for value in summary[name]]
        if (share := result_files.rejected_share(summary)) is not None:
            found["rejected_share"] = number(share)
        found["budgets"] = [number(subnet["budget"]) for subnet in summary.get("subnets", ())]
    return found


def _device_time(run: FilePath) -> dict | None:
    """Return "device_time" of `describe`."""
    if (ledger := read_ledger(run)) is None:
        return None
    kinds = {kind: seconds for kind, seconds in totals(ledger).items() if seconds}
    return {"unit": ledger["unit"], "total": sum(kinds.values()), "kinds": kinds}


def _pruned(run: FilePath, config: Config) -> dict | None:
    """Return "pruned" of `describe`."""
    if config.method != "detofa" or not (run / "operations.json").exists():
        return None
    space = searched_space(run, config)
    everything = config.network.space
    return {
        "removed": len(everything.operations - space.operations),
        "total": len(everything.operations),
        "paths": space.size(),
        "paths_of_a": everything.size(),
        "space": str(space).splitlines()[1:] if isinstance(space, PrunedSpace) else [],
    }


def _detectors(run: FilePath, config: Config, summary: Mapping) -> list[dict]:
    """Return "detectors" of `describe`."""
    if not isinstance(config.hparams, DetofaHparams):
        return []
    budgets = summary.get("budgets") or list(config.hparams.search.budgets)
    names = [f"subnet_{index}" for index in range(1, 1 + (len(budgets) or config.hparams.buckets))]
    named: dict[str, float | None] = {"fullnet": None, **dict.fromkeys(names), **dict(zip(names, budgets))}
    if fine_tuned(run):
        named = {"before": None, FINE_TUNED: None}
    return [_detector(run, config, name, budget) for name, budget in named.items() if (run / f"{name}.json").exists()]


def _detector(run: FilePath, config: Config, name: str, budget: float | None) -> dict:
    """Return one row of "detectors" from <name>.json."""
    result = read_result(run, name, lambda content: result_files.measured(content, config.network.geometry))
    with reading(run / f"{name}.json"):
        row = {"name": name, "budget": budget, **{key: number(result[key]) for key in ("flops", "params", "loss")}}
        for key in ap_keys(result):
            row[key] = result[key] if result[key] is None else number(result[key])
        return row | ({"path": result["path"]} if "path" in result else {})


def _files(run: FilePath, config: Config) -> Iterator[tuple[str, str]]:
    """Yield the description and place of each file or nonempty folder that exists."""
    trained = "detector" if fine_tuned(run) else "supernet"
    named = {
        "config": "config.json",
        "log": "log.txt",
        **{f"log after it was resumed, {number}": file.name for number, file in enumerate(_logs(run)) if number},
        "learning curves, for TensorBoard": "tensorboard",
        "all results": "summary.json",
        "weights of the fullnet": "fullnet/weights.h5",
        "weights of the supernet after warm-up": "warm_up/weights.h5",
        f"weights of the {trained}": final_weights(run, config).relative_to(run).as_posix(),
        "pre-trained supernet": "supernet.h5",
        "path filter": "path_filter.h5",
        "path filter of the search": "path_filter_again.h5",
        "paths evaluated for the filter": "paths.jsonl",
        "paths evaluated before the search": "paths_again.jsonl",
        "held-out paths": "held_out_paths.jsonl",
        "operations, their scores, the pruned space": "operations.json",
        "detections of the fullnet on the test images": "fullnet_detections.json",
        "results before": "before.json",
        "results after": f"{FINE_TUNED}.json",
        "detections on the test images before": "before_detections.json",
        "detections on the test images after": f"{FINE_TUNED}_detections.json",
        "checkpoints": "checkpoint",
        "images with detections": "detections",
        "latency table": "latency.json",
        "phases shared with another run": "shared.json",
    }
    searches = sorted(file.name for kind in ("found", "front") for file in run.glob(f"{kind}*.json"))
    named |= {f"result of the search {name.removesuffix('.json')}": name for name in searches}
    for what, name in named.items():
        place = run / name
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            yield what, str(place)
