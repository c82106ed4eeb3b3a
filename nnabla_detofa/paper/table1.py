"""Table 1: the sizes of the search spaces, as the paper prints them, as its formulas give them, and counted exactly."""

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
    "paper's entry",
    "paper's formula",
    "its value",
    "canonical paths",
    "with one stem",
    "why they differ",
)
STAGES = 4  # the paper's exponent


def ofa_formula() -> int:
    """The value of Table 1's formula for OFA, as it is printed."""
    return ((3**2 + 3**2) * (3**3 + 3**3) * (3**4 + 3**4)) ** STAGES


def compofa_formula(exponent: int = 1) -> int:
    """The value of Table 1's formula for CompOFA*: as it is printed, or with the exponent that it lacks."""
    return (3**2 + 3**3 + 3**4) ** exponent


def stage_sizes(space: SearchSpace) -> tuple[int, ...]:
    """How many ways each stage has: over its pairs (D, W), the allowed E to the power of the active layers."""
    return tuple(
        sum(len(ratios) ** (base + depth) for (depth, _), ratios in pairs.items())
        for pairs, base in zip(space.pairs, space.geometry.base_depths)
    )


def rows(geometry: Geometry = OFA_RESNET50) -> list[tuple[str, ...]]:
    """The rows of the table, for `COLUMNS`."""

    def row(space: SearchSpace, fixed: SearchSpace, entry: str, formula: str, value: str, why: str) -> tuple[str, ...]:
        stems = len(space.stem_depths) * len(space.stem_widths[0]) * len(space.stem_widths[1])
        product = " x ".join(map(str, stage_sizes(space)))
        name = "OFA" if space.name == "A" else space.name
        return name, entry, formula, value, str(space.size()), str(fixed.size()), f"{why}; {stems} stems x {product}"

    return [
        row(
            ofa_resnet50(geometry),
            ofa_resnet50(geometry, elastic_stem=False),
            "10^20",
            "((3^2 + 3^2) (3^3 + 3^3) (3^4 + 3^4))^4",
            f"{ofa_formula()} = {ofa_formula():.1e}",
            "a stage has one D of three, whose ways add up where the formula multiplies them, and one W of three: "
            "3 (3^2 + 3^3 + 3^4); the third stage has 4 to 6 layers",
        ),
        row(
            compofa(geometry),
            compofa(geometry, elastic_stem=False),
            "10^8",
            "(3^2 + 3^3 + 3^4)",
            f"{compofa_formula()}; to the power of {STAGES}: {compofa_formula(STAGES)} = {compofa_formula(STAGES):.1e}",
            "the formula is that of one stage and gives the entry only to the power of 4; the third stage has 4 to 6 layers",
        ),
    ]


def markdown() -> str:
    """The table with a note and what made it."""
    *columns, why = COLUMNS
    lines = [markdown_row(columns), markdown_row(["---"] * 3 + ["---:"] * 3)]
    reasons = [f"{why[0].upper()}{why[1:]}:", ""]
    for *cells, reason in rows():
        lines.append(markdown_row(cells))
        reasons.append(f"- {cells[0]}: {reason}.")
    note = (
        "Canonical paths: the E of a layer that is not active does not count, since it does not change the network. The stem's "
        "choices (its residual convolution and two widths) are not in the paper's table, but in the published supernet."
    )
    return "\n".join([*lines, "", *reasons, "", note, "", f"Made by `make table1` at {revision()}.", ""])


def write(output: FilePath) -> Sequence[FilePath]:
    """Write table1.md and table1.csv into the folder.

    Returns:
        the files.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = output / "table1.md", output / "table1.csv"
    write_text(files[0], markdown())
    with whole_text(files[1]) as opened:
        csv.writer(opened).writerows([COLUMNS, *rows()])
    return files
