"""Table 1: sizes of the search spaces, as printed in the paper, by its formulas, and counted exactly."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path as FilePath

from ..common.files import whole_text, write_text
from ..runs.provenance import revision
from ..space.geometry import OFA_RESNET50, Geometry
from ..space.search_space import SearchSpace, compofa, ofa_resnet50
from ..tools.report import markdown_row

COLUMNS = (
    "search space",
    "paper's number",
    "paper's formula",
    "value of the formula",
    "canonical paths",
    "with a fixed stem",
    "reason for the difference",
)
STAGES = 4
"""The exponent in the paper's formula."""


def ofa_formula() -> int:
    """Return the value of the paper's formula for OFA, as printed."""
    return ((3**2 + 3**2) * (3**3 + 3**3) * (3**4 + 3**4)) ** STAGES


def compofa_formula(exponent: int = 1) -> int:
    """Return the value of the paper's formula for CompOFA*, as printed or with an exponent, which it lacks."""
    return (3**2 + 3**3 + 3**4) ** exponent


def stage_sizes(space: SearchSpace) -> tuple[int, ...]:
    """Return the number of choices of each stage: the sum over its pairs (D, W) of E's choices for all active layers."""
    return tuple(
        sum(len(ratios) ** (base + depth) for (depth, _), ratios in pairs.items())
        for pairs, base in zip(space.pairs, space.geometry.base_depths)
    )


def rows(geometry: Geometry = OFA_RESNET50) -> list[tuple[str, ...]]:
    """Return the rows of the table, in the order of `COLUMNS`."""

    def row(space: SearchSpace, fixed: SearchSpace, printed: str, formula: str, value: str, reason: str) -> tuple[str, ...]:
        stems = len(space.stem_depths) * len(space.stem_widths[0]) * len(space.stem_widths[1])
        product = " x ".join(map(str, stage_sizes(space)))
        name = "OFA" if space.name == "A" else space.name
        exact = f"{reason}; exact count: {stems} stems x {product}"
        return name, printed, formula, value, str(space.size()), str(fixed.size()), exact

    return [
        row(
            ofa_resnet50(geometry),
            ofa_resnet50(geometry, elastic_stem=False),
            "10^20",
            "((3^2 + 3^2) (3^3 + 3^3) (3^4 + 3^4))^4",
            f"{ofa_formula()} = {ofa_formula():.1e}",
            "a stage has one of three D, so their numbers of choices add up, but the formula multiplies them; it also has one "
            "of three W: 3 (3^2 + 3^3 + 3^4); the third stage has 4 to 6 layers",
        ),
        row(
            compofa(geometry),
            compofa(geometry, elastic_stem=False),
            "10^8",
            "(3^2 + 3^3 + 3^4)",
            f"{compofa_formula()}; to the power of {STAGES}: {compofa_formula(STAGES)} = {compofa_formula(STAGES):.1e}",
            "the formula is that of one stage, and only its fourth power gives the printed number; the third stage has 4 to 6 "
            "layers",
        ),
    ]


def markdown() -> str:
    """Return the Markdown file: table, notes, and the command that made it."""
    *columns, reason_column = COLUMNS
    lines = [markdown_row(columns), markdown_row(["---"] * 3 + ["---:"] * 3)]
    reasons = [f"{reason_column[0].upper()}{reason_column[1:]}:", ""]
    for *cells, reason in rows():
        lines.append(markdown_row(cells))
        reasons.append(f"- {cells[0]}: {reason}.")
    note = (
        "Paths are canonical: the E of an inactive layer does not count, because it does not change the network. The choices "
        "of the stem (its residual convolution and two widths) are not in the paper's table, but in OFA's published supernet."
    )
    return "\n".join([*lines, "", *reasons, "", note, "", f"Made by `make table1` at {revision()}.", ""])


def write(output: FilePath) -> Sequence[FilePath]:
    """Write table1.md and table1.csv into a folder, and return these files."""
    output.mkdir(parents=True, exist_ok=True)
    files = output / "table1.md", output / "table1.csv"
    write_text(files[0], markdown())
    with whole_text(files[1]) as opened:
        csv.writer(opened).writerows([COLUMNS, *rows()])
    return files
