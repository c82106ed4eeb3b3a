"""Pages docs/reference/cli.md and docs/reference/python.md, and the tables of README.md.

The pages are made of the parsers of the commands and of docstrings, the tables of the files in results/.
"""

from __future__ import annotations

import csv
import inspect
import os
import re
from pathlib import Path

import nnabla_detofa

from ..common.files import write_text
from ..common.reading import parse_json
from ..paper.claims import CLAIMS, Claim
from ..tools.report import COLUMNS, markdown_row
from .commands import OTHER_NAMES
from .program import _overview, _parser, all_commands

FILES = {"docs/reference/cli.md": "command_page", "docs/reference/python.md": "python_page"}
"""Page -> the function of this module that writes it."""
WIDTH = "88"


def command_page() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = WIDTH  # argparse wraps lines by it
    lines = ["# Command line", "", "Written by `make reference` from the program's help.", "", *_block(_overview("detofa"))]
    others = ", ".join(f"`{name}` (`{' '.join(place)}`)" for name, place in OTHER_NAMES.items())
    lines += [f"Other names of commands: {others}. A command line that starts with an option is `train`.", ""]
    for place, _ in all_commands():
        lines += [f"## {' '.join(place)}", "", *_block(_parser("detofa", place).format_help())]
    return "\n".join(lines)


def _block(text: str) -> list[str]:
    return ["```text", text.rstrip(), "```", ""]


def python_page() -> str:
    """The docstrings of the public functions."""
    lines = [
        "# Python",
        "",
        "Written by `make reference` from docstrings. [The guide](../guide/python.md) has more examples; in those here, "
        "`configs/demo.json` is a small config, and `runs/demo` its finished run.",
        "",
    ]
    lines += [inspect.getdoc(nnabla_detofa) or "", ""]
    for name in nnabla_detofa.__all__:
        function = getattr(nnabla_detofa, name)
        text = inspect.getdoc(function) or ""
        lines += [f"## {name}", "", *_block(f"{name}{inspect.signature(function)}"), *_described(text)]
    return "\n".join(lines)


def _described(text: str) -> list[str]:
    """A docstring as Markdown: examples become code, and sections become lists."""
    lines: list[str] = []
    for part in re.split(r"\n\n", text):
        title, _, body = part.partition("\n")
        if part.startswith(">>> "):
            lines += ["```pycon", part, "```", ""]
        elif title == "Returns:":
            lines += ["**Returns**", "", inspect.cleandoc(body), ""]
        elif title in ("Args:", "Raises:"):
            entries = re.sub(r"\n        +", " ", "\n" + body).strip().splitlines()
            lines += [f"**{title.rstrip(':')}**", "", *(f"- {_entry(entry.strip())}" for entry in entries), ""]
        else:
            lines += [part, ""]
    return lines


def _entry(entry: str) -> str:
    name, colon, text = entry.partition(": ")
    return f"`{name}`: {text}" if colon else entry


DEMO, STUDY = Path("results/demo/table.csv"), Path("results/study/claims.json")


def demo_table() -> list[str]:
    """The detectors of the demo with their main metric, from the report."""
    with DEMO.open(newline="") as opened:
        head, *rows = [row[: len(COLUMNS)] for row in csv.reader(opened)]
    return [markdown_row(head), markdown_row(["---"] + ["---:"] * (len(head) - 1)), *map(markdown_row, rows)]


def claims_table() -> list[str]:
    """The paper's claims with the verdicts of the study."""
    measured = parse_json(STUDY.read_text("utf-8")) if STUDY.is_file() else {}
    lines = [markdown_row(["", "claim", "in the paper", "verdict: what was measured, its mean and interval"])]
    lines.append(markdown_row(["---"] * 4))
    for claim in CLAIMS:
        found = measured.get(claim.name) or []
        entries = found if isinstance(found, list) else [found]
        here = "<br>".join(f"**{entry['verdict']}**: {_number(entry, claim)}" for entry in entries) or "not measured yet"
        lines.append(markdown_row([claim.name, claim.text, claim.source, here]))
    return lines


def _number(entry: dict, claim: Claim) -> str:
    """What an entry of claims.json measures, its mean and interval."""
    what = entry["claim"].removeprefix(f"{claim.text}: ").removesuffix(", mean over the budgets")
    mean, *ends = (f"{round(value, 2) + 0.0:.2f}" for value in (entry["mean"], *(entry["interval"] or ())))
    return f"{what} {mean} {f'[{ends[0]}, {ends[1]}]' if ends else '(one seed)'}"


def filled(readme: str) -> str:
    """README.md with both tables between their marks."""
    for mark, lines in (("demo", demo_table()), ("claims", claims_table())):
        begin, end = f"<!-- {mark} -->\n", "<!-- end -->"
        before, _, rest = readme.partition(begin)
        _, _, after = rest.partition(end)
        readme = before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after
    return readme


def main() -> None:
    """Write both pages and the tables to the working folder, the repository."""
    for file, function in FILES.items():
        write_text(file, globals()[function]())
    write_text("README.md", filled(Path("README.md").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
