"""Text output of the description of a run's folder."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluation.metrics import AP_TITLES, ap_keys
from ..space.geometry import RESOLUTION


class _Page:
    """Lines of text, wrapped to a width."""

    def __init__(self, width: int):
        self.width = width
        self.lines: list[str] = []

    def say(self, line: str = "", indent: int = 0, hang: int = 2) -> None:
        """Add a paragraph; following lines are indented by `hang` more, and parentheses are not broken."""
        whole = re.sub(r"\([^)]*\)", lambda group: group[0].replace(" ", "\0"), line)
        wrapped = textwrap.wrap(
            whole,
            self.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hang),
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.lines += [part.replace("\0", " ") for part in wrapped or [""]]

    def table(self, rows: Sequence[Sequence[str]], left: int) -> None:
        """Add the rows of a table; the first `left` columns are left-aligned, the others right-aligned."""
        wide = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide))]
            self.lines.append("  " + "  ".join(cells).rstrip())


def text(found: Mapping, width: int | None = None) -> str:
    """Format the result of `describe` as text.

    Args:
        found: the result.
        width: largest length of a line in characters, which long words may exceed; None is the width of the terminal.
    """
    page = _Page(width or shutil.get_terminal_size().columns)
    _say_state(page, found)
    _say_phases(page, found)
    _say_filter(page, found)
    if found["detectors"]:
        _say_detectors(page, found["detectors"])
    if found["accuracy"]:
        page.say()
        page.say(f"accuracy of the largest path and of random paths: {_numbers(found['accuracy'], 3)}")
    page.say()
    page.say("files")
    for what, place in found["files"].items():
        page.say(f"{what}: {place}", 2)
    return "\n".join(page.lines)


def _say_state(page: _Page, found: Mapping) -> None:
    """Add the lines about the kind and the state of the run, and how to resume it."""
    tuned, phases = found["fine_tuning"], found["phases"]
    what = f"runner {found['runner']}"
    resume = f"detofa train {found['run']}/config.json -o {found['run']}"
    if tuned:
        what = f"fine-tuning of {tuned['detector']} of the run {tuned['run']}, epochs: {tuned['epochs']}"
        resume = f"detofa finetune with the same arguments (--detector {tuned['detector']} -o {found['run']} ...)"
    state = "finished"
    if not found["finished"]:
        done = sum(phase["state"] == "done" for phase in phases)
        state = (
            f"not finished: {done} of {len(phases)} phases are done, last written {duration(found['written'])} ago; "
            f"if it was interrupted, resume it with {resume}"
        )
    page.say(f"{found['run']}: {what}, {state}")
    if found["code"]:
        page.say(f"computed by {', then '.join(found['code'])}")


def _say_phases(page: _Page, found: Mapping) -> None:
    """Add the table of phases and the device time."""
    page.say()
    page.say("phases")
    rows, details = [("", "", "time", "device time")], []
    for phase in found["phases"]:
        share = phase.get("share")
        percent = "" if share is None else f" {share:.0%}"
        times = ["" if value is None else duration(value) for value in (phase["seconds"], phase["device_seconds"])]
        rows.append((phase["name"], phase["state"] + percent, times[0], times[1]))
        details += [phase["detail"]] if phase.get("detail") else []
    page.table(rows, 2)
    for detail in details:
        page.say(f"under way: {detail}", 2)
    if spent := found["device_time"]:
        kinds = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in spent["kinds"].items())
        page.say(f"device time ({spent['unit']}): {duration(spent['total'])} in total: {kinds}", 2)


def _say_detectors(page: _Page, detectors: Sequence[Mapping]) -> None:
    """Add the table of detectors."""
    page.say()
    page.say("detectors (FLOPs are multiply-accumulates; AP is on the test split)")
    columns = ap_keys({key: None for row in detectors for key in row})
    rows = [["", "budget [G]", "GFLOPs", "M params", *(AP_TITLES[column] for column in columns)]]
    for row in detectors:
        budget = "" if row["budget"] is None else f"{row['budget'] / 1e9:.4g}"
        aps = ["-" if row.get(column) is None else f"{row[column]:.3f}" for column in columns]
        rows.append([row["name"], budget, f"{row['flops'] / 1e9:.4g}", f"{row['params'] / 1e6:.4g}", *aps])
    if any(pixels := [str(row.get("path", {}).get("named", {}).get(RESOLUTION, "")) for row in detectors]):
        rows = [[*row, cell] for row, cell in zip(rows, ["pixels", *pixels])]
    page.table(rows, 1)


def _say_filter(page: _Page, found: Mapping) -> None:
    """Add the lines about pruning and the path filter."""
    if pruned := found["pruned"]:
        page.say()
        page.say(
            f"pruned {pruned['removed']} of {pruned['total']} operations; {pruned['paths']:.3g} of {pruned['paths_of_a']:.3g} "
            "paths remain:"
        )
        for line in pruned["space"]:
            page.say(line.strip(), 2, 4)
    if found["thresholds"]:
        page.say(f"path-score thresholds of the FLOPs buckets: {_numbers(found['thresholds'], 3)}")
    if found["rejected_share"] is not None:
        page.say(f"rejected paths: {found['rejected_share']:.1%}")
    if found["kendall_tau"]:
        page.say(f"Kendall's tau of score and loss on held-out paths, per bucket: {_numbers(found['kendall_tau'], 2)}")


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
