"""Description of a run's folder, finished or not: progress, cost, pruning and results."""

from __future__ import annotations

import re
import shutil
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from .. import config as configs
from ..common.errors import UserError
from ..common.reading import parse_json
from ..config import DetofaHparams
from ..evaluation.metrics import AP_TITLES, ap_keys
from ..runs import result_files
from ..runs.cost_ledger import totals
from ..runs.phases import FINE_TUNED, TUNING_PHASES, TrainingPhase, phase_names, slug, training_phases, tuning_phase
from ..runs.provenance import recorded
from ..runs.run_folder import final_weights, fine_tuned, number, read_result, reading, run_config, searched_space
from ..space.search_space import PrunedSpace, ofa_resnet50

KEPT = {
    "path filter": "path_filter.h5",
    "operation pruning": "operations.json",
    "path filter again": "path_filter_again.h5",
    "evaluation": "summary.json",
    "before": "before.json",
}
"""Phase -> the file that exists when the phase is over.

Training phases have a folder with state.json instead. A phase without a file is over when the next phase has begun.
"""


def describe(run: FilePath) -> dict:
    """Describe a run as plain JSON values; results that the run has not reached yet are missing, empty or None.

    Args:
        run: the folder of a run, a pre-training or a fine-tuning.

    Returns:
        A dict with these items:

        - "run", "runner", "about": folder, runner and description.
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


# --- Progress ---------------------------------------------------------------------------------------------------------


def phase_states(run: FilePath, config: configs.Config, log: str) -> list[dict]:
    """Return the state of each phase; see "phases" of `describe`.

    Args:
        log: the content of the run's log.txt.
    """
    names, training = _phases(run, config)
    seconds, ledger = _seconds(run), (_ledger(run) or {"phases": {}})["phases"]
    begun = {name for _, name in re.findall(r"^\[(\d+)/\d+\] (.+)$", log, re.MULTILINE)} | seconds.keys()
    reached = max((index for index, name in enumerate(names) if name in begun), default=-1)
    states = []
    for index, name in enumerate(names):
        kept = KEPT.get(name, f"{slug(name)}/state.json" if name in training else "")
        over = index < reached or (run / "summary.json").exists() or bool(kept) and (run / kept).exists()
        state = "done" if over else "under way" if index == reached else "to come"
        entry = {
            "name": name,
            "state": state,
            "seconds": seconds.get(name),
            "device_seconds": ledger.get(name, {}).get("seconds"),
        }
        if state == "under way":
            share, detail = _progress(run, config, log, name, training)
            entry |= {"share": share, "detail": detail}
        states.append(entry)
    return states


def _phases(run: FilePath, config: configs.Config) -> tuple[tuple[str, ...], dict[str, TrainingPhase]]:
    """Return the names of all phases, and a dict from name to training phase."""
    if fine_tuned(run):
        return TUNING_PHASES, {FINE_TUNED: tuning_phase(config, ofa_resnet50(config.network.geometry))}
    training = training_phases(config)
    return phase_names(config, training), {phase.name: phase for phase in training}


def _progress(
    run: FilePath, config: configs.Config, log: str, name: str, training: Mapping[str, TrainingPhase]
) -> tuple[float | None, str]:
    """Return the finished share of a phase, None if unknown, and a description of its progress."""
    if name in training:
        return _steps(run, config, log, training[name], training.values())
    hparams, per_bucket = config.hparams, None
    if name == "held-out paths":
        per_bucket = hparams.heldout_paths_per_bucket
    elif name in ("paths", "paths again"):
        detection = isinstance(hparams, DetofaHparams)
        per_bucket = hparams.paths_per_bucket if detection else hparams.paths // hparams.buckets
    if per_bucket is not None:
        file, total = run / f"{slug(name)}.jsonl", per_bucket * hparams.buckets
        done = max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0  # the first line is a header
        return min(1.0, done / max(1, total)), f"{done} of at most {total} paths"
    if name == "evaluation":
        total = len(hparams.search.budgets) or hparams.buckets
        done = sum((run / f"subnet_{number}.json").exists() for number in range(1, total + 1))
        return done / total, f"{done} of {total} subnets"
    return None, ""


def _steps(
    run: FilePath, config: configs.Config, log: str, phase: TrainingPhase, phases: Sequence[TrainingPhase]
) -> tuple[float | None, str]:
    """Return finished share and description of a training phase, from its checkpoint and the log."""
    saved = _saved_step(run / "checkpoint" / slug(phase.name))
    said = re.findall(rf"^{re.escape(phase.name)} (?:step (\d+):|(?:resumes|goes on) at step (\d+) of \d+)", log, re.MULTILINE)
    step = max(saved or 0, int("".join(said[-1])[:18]) if said else 0)
    per_epoch = _steps_per_epoch(run, config, phase, phases)
    resumes = f"; a checkpoint at step {saved}" if saved else ""
    if not per_epoch:
        return None, f"step {step}{resumes}"
    first, last = phase.epochs.start * per_epoch, phase.epochs.stop * per_epoch
    return (max(step, first) - first) / max(1, last - first), f"step {max(step, first)} of {last}{resumes}"


def _steps_per_epoch(
    run: FilePath, config: configs.Config, phase: TrainingPhase, phases: Sequence[TrainingPhase]
) -> int | None:
    """Return the steps per epoch, from a finished phase or else from the dataset; None if neither is available."""
    for other in phases:
        if other.batch_size == phase.batch_size and other.epochs and (step := _saved_step(run / slug(other.name))):
            return step // other.epochs.stop
    from ..data.sets import open_sets

    try:
        return phase.steps_per_epoch(len(open_sets(config).train))
    except UserError:
        return None


def _saved_step(folder: FilePath) -> int | None:
    """Return the step of the state.json in a folder, or None."""
    try:
        return int(parse_json((folder / "state.json").read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


# --- Results ----------------------------------------------------------------------------------------------------------


def _read_log(run: FilePath) -> str:
    """Return the content of log.txt, or an empty string."""
    file = run / "log.txt"
    return file.read_text(errors="replace") if file.exists() else ""


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
    summary = read_result(run, "summary")
    with reading(run / "summary.json"):
        found: dict[str, Any] = {"seconds": dict(summary["seconds"])}
        for name in {"thresholds", "kendall_tau", "accuracy"} & summary.keys():
            found[name] = [value if value is None else number(value) for value in summary[name]]
        if (share := result_files.rejected_share(summary)) is not None:
            found["rejected_share"] = number(share)
        found["budgets"] = [number(subnet["budget"]) for subnet in summary.get("subnets", ())]
    return found


def _seconds(run: FilePath) -> dict[str, float]:
    """Return the wall-clock seconds of each phase so far."""
    if not (run / "seconds.json").exists():
        return {}
    seconds = read_result(run, "seconds")
    with reading(run / "seconds.json"):
        return {name: number(value, finite=True) for name, value in seconds.items()}


def _ledger(run: FilePath) -> dict | None:
    """Return the content of ledger.json for `cost_ledger.totals`; None if the file does not exist yet."""
    if not (run / "ledger.json").exists():
        return None
    ledger = read_result(run, "ledger")
    with reading(run / "ledger.json"):
        phases = {name: {"seconds": number(entry["seconds"], finite=True)} for name, entry in ledger["phases"].items()}
        return {"unit": str(ledger["unit"]), "phases": phases}


def _device_time(run: FilePath) -> dict | None:
    """Return "device_time" of `describe`."""
    if (ledger := _ledger(run)) is None:
        return None
    kinds = {kind: seconds for kind, seconds in totals(ledger).items() if seconds}
    return {"unit": ledger["unit"], "total": sum(kinds.values()), "kinds": kinds}


def _pruned(run: FilePath, config: configs.Config) -> dict | None:
    """Return "pruned" of `describe`."""
    if config.args.runner != "detofa" or not (run / "operations.json").exists():
        return None
    space = searched_space(run, config)
    everything = ofa_resnet50(config.network.geometry, config.network.elastic_stem)
    return {
        "removed": len(everything.operations - space.operations),
        "total": len(everything.operations),
        "paths": space.size(),
        "paths_of_a": everything.size(),
        "space": str(space).splitlines()[1:] if isinstance(space, PrunedSpace) else [],
    }


def _detectors(run: FilePath, config: configs.Config, summary: Mapping) -> list[dict]:
    """Return "detectors" of `describe`."""
    if not isinstance(config.hparams, DetofaHparams):
        return []
    budgets = summary.get("budgets") or list(config.hparams.search.budgets)
    names = [f"subnet_{index}" for index in range(1, 1 + (len(budgets) or config.hparams.buckets))]
    named = dict.fromkeys(("fullnet", *names)) | dict(zip(names, budgets))
    if fine_tuned(run):
        named = dict.fromkeys(("before", FINE_TUNED))
    return [_detector(run, name, budget) for name, budget in named.items() if (run / f"{name}.json").exists()]


def _detector(run: FilePath, name: str, budget: float | None) -> dict:
    """Return one row of "detectors" from <name>.json."""
    result = read_result(run, name)
    with reading(run / f"{name}.json"):
        row = {"name": name, "budget": budget, **{key: number(result[key]) for key in ("flops", "params", "loss")}}
        for key in ap_keys(result):
            row[key] = result[key] if result[key] is None else number(result[key])
        return row | ({"path": result["path"]} if "path" in result else {})


def _files(run: FilePath, config: configs.Config) -> Iterator[tuple[str, str]]:
    """Yield the description and place of each file or nonempty folder that exists."""
    trained = "detector" if fine_tuned(run) else "supernet"
    named = {
        "config": "config.json",
        "log": "log.txt",
        "curves, for TensorBoard": "tensorboard",
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
        "pictures of detections": "detections",
        "a table of latencies": "latency.json",
        "the last search": "found.json",
        "what it shares with another run": "shared.json",
    }
    for what, name in named.items():
        place = run / name
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            yield what, str(place)


# --- Text output ------------------------------------------------------------------------------------------------------


def text(found: Mapping, width: int | None = None) -> str:
    """Format the result of `describe` as text.

    Args:
        found: the result.
        width: largest length of a line in characters, which long words may exceed; None is the width of the terminal.
    """
    width = width or shutil.get_terminal_size().columns
    lines: list[str] = []

    def say(line: str, indent: int = 0, hang: int = 2) -> None:
        whole = re.sub(r"\([^)]*\)", lambda group: group[0].replace(" ", "\0"), line)  # no line break inside parentheses
        options = {"break_long_words": False, "break_on_hyphens": False}
        wrapped = textwrap.wrap(whole, width, initial_indent=" " * indent, subsequent_indent=" " * (indent + hang), **options)
        lines.extend(part.replace("\0", " ") for part in wrapped or [""])

    def rows(table: Sequence[Sequence[str]], left: int) -> None:
        """Add the rows of a table; the first `left` columns are left-aligned, the others right-aligned."""
        wide = [max(map(len, column)) for column in zip(*table)]
        for row in table:
            cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide))]
            lines.append("  " + "  ".join(cells).rstrip())

    tuned, phases = found["fine_tuning"], found["phases"]
    goes_on = f"-f {found['run']}/config.json -o {found['run']} goes on"
    if tuned:
        goes_on = f"finetune with the same arguments (--detector {tuned['detector']} -o {found['run']} ...) goes on"
    done = sum(phase["state"] == "done" for phase in phases)
    if found["finished"]:
        state = "finished"
    else:
        state = (
            f"not finished: {done} of {len(phases)} phases are done, last written {duration(found['written'])} ago; "
            f"if it was stopped, nnabla_nas {goes_on}"
        )
    what = f"runner {found['runner']}"
    if tuned:
        what = f"fine-tuning of {tuned['detector']} of the run {tuned['run']}, epochs: {tuned['epochs']}"
    say(f"{found['run']}: {what}, {state}")
    if found["code"]:
        say(f"computed by {', then '.join(found['code'])}")
    say("")
    say("phases")
    table = [("", "", "time", "device time", "")]
    for phase in phases:
        share = phase.get("share")
        percent = "" if share is None else f" {share:.0%}"
        times = ["" if value is None else duration(value) for value in (phase["seconds"], phase["device_seconds"])]
        table.append((phase["name"], phase["state"] + percent, *times, phase.get("detail", "")))
    rows([row[:4] for row in table], 2)
    for detail in filter(None, (row[4] for row in table)):
        say(f"under way: {detail}", 2)
    if spent := found["device_time"]:
        kinds = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in spent["kinds"].items())
        say(f"device time ({spent['unit']}): {duration(spent['total'])} in all: {kinds}", 2)
    _say_filter(found, say)
    if found["detectors"]:
        say("")
        say("detectors (FLOPs are multiply-accumulates; AP is on the test split)")
        columns = ap_keys(found["detectors"][0])
        table = [["", "budget [G]", "GFLOPs", "M params", *(AP_TITLES[column] for column in columns)]]
        for row in found["detectors"]:
            budget = "" if row["budget"] is None else f"{row['budget'] / 1e9:.4g}"
            aps = ["-" if row[column] is None else f"{row[column]:.3f}" for column in columns]
            table.append([row["name"], budget, f"{row['flops'] / 1e9:.4g}", f"{row['params'] / 1e6:.4g}", *aps])
        rows(table, 1)
    if found["accuracy"]:
        say("")
        say(f"accuracy of the largest and of random paths: {_numbers(found['accuracy'], 3)}")
    say("")
    say("files")
    for what, place in found["files"].items():
        say(f"{what}: {place}", 2)
    return "\n".join(lines)


def _say_filter(found: Mapping, say) -> None:
    """Add the lines about pruning and the path filter."""
    if pruned := found["pruned"]:
        say("")
        say(
            f"pruned {pruned['removed']} of {pruned['total']} operations: {pruned['paths']:.3g} of {pruned['paths_of_a']:.3g} "
            "paths are left; kept are"
        )
        for line in pruned["space"]:
            say(line.strip(), 2, 4)
    if found["thresholds"]:
        say(f"path-score thresholds of the FLOPs buckets: {_numbers(found['thresholds'], 3)}")
    if found["rejected_share"] is not None:
        say(f"rejected paths: {found['rejected_share']:.1%}")
    if found["kendall_tau"]:
        say(f"Kendall's tau of score and loss on held-out paths, in each bucket: {_numbers(found['kendall_tau'], 2)}")


def _numbers(values: Sequence[float | None], digits: int) -> str:
    """Format numbers with a fixed number of digits; None becomes "-"."""
    return ", ".join("-" if value is None else f"{value:.{digits}f}" for value in values)


def duration(seconds: float) -> str:
    """Format a duration, such as "8.2 s", "12 min 05 s", "3 h 20 min" or "2 d 04 h"."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for large, small, parts, most in (("min", "s", 60, 6000), ("h", "min", 3600, 360000), ("d", "h", 86400, np.inf)):
        whole, rest = divmod(round(seconds), parts)
        if seconds < most:
            return f"{whole} {large} {rest // {60: 1, 3600: 60, 86400: 3600}[parts]:02d} {small}"
    raise AssertionError
