"""The page of the claims, with their verdicts and pictures, and claims.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from ..common import figures
from ..common.files import write_json, write_text
from ..tools.report import markdown_row
from .claims import AP_MARGIN, CLAIMS, CONTROL, PRECISION_MARGIN, Claim, Evidence, Number
from .intervals import NOT_DECIDABLE, NOT_REPRODUCED, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "claims.json"
NOT_RUN = "not measured yet"
RULE = (
    "Rule: a number is *reproduced* if its 95% t interval over seeds lies on the side of no effect that the paper claims, "
    "however small the effect is. Otherwise it is *not reproduced* if the interval lies on the other side, or within the "
    f"margin around no effect ({AP_MARGIN:g} points of AP, {PRECISION_MARGIN:g} of precision or of a ratio of costs), and else "
    '*not decidable* at this scale, as always with one seed. For "at least as good", the interval must lie above minus the '
    'margin; for "alike", it must lie within the margin, and the number is not reproduced if it lies outside. C5 is tested as '
    '"at least as good" as the paper\'s precision, 0.79. On test paths, and in C6, there is one value for the '
    "supernet of each seed, the mean over the fits if there are several. Seeds are paired: all methods of a seed have the same "
    "data and random numbers and, except where C4 compares them, the same initial weights."
)
NOTES = (
    f"Numbers marked as *{CONTROL}* are not in the paper; their verdict says whether they agree with the claim. The intervals "
    "are not corrected for the number of comparisons: if no number had an effect, about one interval in twenty would still "
    "exclude it by chance. A number that is not decidable has the number of seeds that would decide it if mean and deviation "
    "stayed the same, and the verdict that it would have then. This is a rough guess, since the "
    "deviation of a few seeds varies.\n\n"
    "In the pictures, each point is a seed, and the diamond and the bar are the mean and its interval. The vertical line is "
    "the value without an effect (in C5 the paper's precision), and the gray band the margin."
)
MOST_SEEDS = 100
"""Seeds up to which `seeds_to_decide` looks."""


def outcome(numbers: Sequence[Number]) -> str:
    """Return the verdicts on a claim's numbers, each once."""
    return "; ".join(dict.fromkeys(number.verdict for number in numbers)) or NOT_RUN


def write(found: Evidence, output: FilePath, page: FilePath, origin: str) -> list[FilePath]:
    """Write claims.json, a picture of each claim, and the page.

    Args:
        found: results of the runs.
        output: folder of claims.json and the pictures.
        page: the Markdown file.
        origin: description of the command and the code that make them.

    Returns:
        The page and claims.json.
    """
    output.mkdir(parents=True, exist_ok=True)
    content, rows, lines = {}, [], []
    for claim in CLAIMS:
        numbers = list(claim.numbers(found))
        objects = [number.to_json(claim.text) for number in numbers]
        content[claim.name] = objects[0] if len(objects) == 1 else objects
        rows.append(markdown_row([f"[{claim.name}](#{claim.name.lower()})", claim.text, claim.source, outcome(numbers)]))
        lines += section(claim, numbers)
        if numbers:
            picture = output / f"{claim.name}.png"
            figures.save(draw(claim, numbers), picture, dpi=110)
            relative = FilePath(os.path.relpath(picture, page.parent)).as_posix()
            lines += [f"![{claim.name}]({relative})", ""]
    write_json(output / FILE, content)
    titles = ", ".join(data_set.title for data_set in found.profile.data_sets.values())
    head = [markdown_row(["", "claim", "in the paper", "verdict"]), markdown_row(["---"] * 4), *rows]
    page.parent.mkdir(parents=True, exist_ok=True)
    top = [f"# The paper's claims on {titles}", "", *head, "", RULE, "", NOTES, ""]
    write_text(page, "\n".join([*top, *lines, f"Made by {origin}.", ""]))
    return [page, output / FILE]


def section(claim: Claim, numbers: Sequence[Number]) -> list[str]:
    """Return the Markdown lines of a claim: its text and its numbers."""
    lines = [f"## {claim.name}", "", f"{claim.text[0].upper()}{claim.text[1:]} ({claim.source}).", ""]
    if not numbers:
        return [*lines, "No runs yet.", ""]
    rows = [[n.name, n.paper, f"{n.values.text()} {n.unit}", verdict_text(n)] for n in numbers]
    header = ["number", "paper", "here: mean [95% interval] (seeds)", "verdict"]
    return [*lines, markdown_row(header), markdown_row(["---"] * 4), *map(markdown_row, rows), ""]


def verdict_text(number: Number) -> str:
    """Return the verdict on a number with the reason."""
    interval = number.values.interval
    if interval is None:
        return f"{number.verdict}: single seed"
    if number.verdict == NOT_DECIDABLE:
        decided = seeds_to_decide(number)
        reason = f"about {decided[0]} seeds for {decided[1]}" if decided else f"{MOST_SEEDS} seeds would not decide it"
        return f"{number.verdict}: {reason}"
    if number.verdict == NOT_REPRODUCED:
        low, high = interval[0] - number.no_effect, interval[1] - number.no_effect
        small = number.direction in ("above", "below") and low <= 0 <= high
        reason = {"alike": "they differ", "not below": "it is lower"}.get(number.direction, "the opposite effect")
        return f"{number.verdict}: {'within the margin' if small else reason}"
    return number.verdict


def seeds_to_decide(number: Number) -> tuple[int, str] | None:
    """Return how many seeds with the mean and deviation of these would decide a number, and the verdict.

    The result is None if more than `MOST_SEEDS` would be needed.
    """
    for seeds in range(len(number.values.values) + 1, MOST_SEEDS + 1):
        found = verdict(number.values.interval_of(seeds), number.direction, number.no_effect, number.margin)
        if found != NOT_DECIDABLE:
            return seeds, found
    return None


def draw(claim: Claim, numbers: Sequence[Number]) -> Figure:
    """Plot each number: its seeds as points, its mean and interval, no effect as a line, and the margin as a band."""
    figure, axes = figures.subplots(
        len(numbers), 1, figsize=(8, 0.9 + 0.95 * len(numbers)), squeeze=False, layout="constrained"
    )
    for panel, number in zip(axes[:, 0], numbers):
        values = number.values
        panel.axvspan(number.no_effect - number.margin, number.no_effect + number.margin, color="0.93")
        panel.axvline(number.no_effect, color="0.4", linewidth=1)
        panel.scatter(values.values, [0] * len(values.values), s=24, color="C0", zorder=3)
        if values.interval:
            panel.plot(values.interval, [0.35, 0.35], color="C1", linewidth=3, solid_capstyle="butt")
        panel.scatter([values.mean], [0.35], marker="D", s=30, color="C1", zorder=4)
        panel.set(yticks=[], ylim=(-0.4, 0.8))
        panel.set_title(f"{number.name} [{number.unit}]: {number.verdict}", fontsize=8, loc="left")
        panel.tick_params(labelsize=8)
    figure.suptitle(f"{claim.name}: {claim.text}", fontsize=9, wrap=True)
    return figure
