"""All results of a profile as one HTML page, made from result files alone.

The page embeds its pictures, has no scripts, and forbids the browser to load anything.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path as FilePath
from typing import Any

from .. import config as configs
from ..common.errors import UserError
from ..common.files import write_text
from ..common.reading import read_json
from ..runs.run_folder import reading, run_config
from .claims import CLAIMS
from .claims_page import FILE as CLAIMS_FILE
from .claims_page import NOT_RUN
from .experiments import DETOFA
from .page_html import Section, code, document, from_markdown, image, read_text, table
from .profiles import Profile
from .reproduce import TARGETS
from .run import Run
from .target import Request

TABLE1 = "table1"
TITLES = {TABLE1: "Table 1: sizes of the search spaces"} | {name: target.title for name, target in TARGETS.items()}
MAIN_RUN = "table"
"""Stem of the report of the run of Algorithm 1."""
MAIN_RUN_TITLE = "The run of Algorithm 1"
MAIN_RUN_PICTURES = ("pareto.png", "scores.png", "detections.png")
SEED = re.compile(r"\(seed (\d+)\)")
COMPUTED = re.compile(r"computed by (.+?)(?=;|\. |\.?$)", re.MULTILINE)
FITS = re.compile(r"fitted with \d+ seeds? \((\d[\d, ]*)\)")
ORIGIN = re.compile(r"Made by `(?P<command>[^`]+)` at (?P<revision>.+)\.$", re.MULTILINE)


def write_page(profile: Profile, results: FilePath, output: FilePath) -> int:
    """Write the page: verdicts on the paper's claims, the run of Algorithm 1, figures, tables, and what is missing.

    Args:
        profile: the scale.
        results: folder of the results. Table 1 is taken from the folder table1 beside it.
        output: the HTML file.

    Returns:
        The number of the paper's tables and figures on the page.

    Raises:
        UserError: there are no results, or one of their files is damaged.
    """
    if not results.is_dir():
        first = Request(profile, results).command(TARGETS["tableA1"])
        raise UserError(f"there are no results in {results}; to make the first one, run: {first}")
    files = {name: target_files(results, name) for name in in_order(TITLES)}
    made = [name for name, several in files.items() if several]
    main_run = results / f"{MAIN_RUN}.md"
    lead = verdicts(results / CLAIMS_FILE) if (results / CLAIMS_FILE).is_file() else None
    sections = []
    if main_run.is_file():
        sections.append(from_markdown(main_run, MAIN_RUN_TITLE, MAIN_RUN_PICTURES))
    for name in made:
        sections += [from_markdown(file, TITLES[name], (f"{file.stem}.png",)) for file in files[name]]
    missing = {TITLES[name]: [command(profile, results, name)] for name in files if name not in made}
    if not main_run.is_file():
        missing = {MAIN_RUN_TITLE: main_run_commands(profile, results)} | missing
    if missing:
        entries = (f"<li>{escape(title)}<br>{'<br>'.join(map(code, commands))}</li>\n" for title, commands in missing.items())
        sections.append(Section("missing", "Missing results and their commands", f"<ul>\n{''.join(entries)}</ul>\n"))
    sections.append(Section("settings", "Settings", settings(profile, results)))
    rows = [origin_row(file) for file in (main_run, *(file for name in made for file in files[name])) if file.is_file()]
    head = ("file", "seeds", "code of the runs", "code of the result", "command")
    sections.append(Section("origins", "Origin of each result", table(head, rows)))
    in_paper = [name for name in files if re.search(r"\d", name)]
    count = f"{len(set(made) & set(in_paper))} of the paper's {len(in_paper)} tables and figures are on this page."
    data_sets = " and ".join(data_set.title for data_set in profile.data_sets.values())
    title = f"DetOFA reproduction: results on {data_sets} (profile {profile.name})"
    write_text(output, document(title, [escape(" ".join(profile.about)), count], sections, lead))
    return len(made)


def in_order(names: Iterable[str]) -> list[str]:
    """Order targets: figures, tables, and those that the paper does not have; each by number, the appendix last."""

    def place(name: str) -> tuple[bool, bool, bool, int]:
        number = re.sub(r"\D", "", name)
        return not number, name.startswith("table"), "A" in name, int(number or 0)

    return sorted(names, key=place)


def target_files(results: FilePath, name: str) -> list[FilePath]:
    """Return the Markdown files of a target: <name>.md and <name>_<variant>.md."""
    folder = results.parent / TABLE1 if name == TABLE1 else results
    return [file for file in (folder / f"{name}.md", *sorted(folder.glob(f"{name}_*.md"))) if file.is_file()]


def command(profile: Profile, results: FilePath, name: str) -> str:
    """Return the command that makes a target in the folder of results."""
    return f"make {TABLE1}" if name == TABLE1 else Request(profile, results).command(TARGETS[name])


def main_run_commands(profile: Profile, results: FilePath) -> list[str]:
    """Return the commands that run Algorithm 1 on the profile's first data set, and report it."""
    run = Run(profile, next(iter(profile.data_sets)), DETOFA, seed=0)
    return [run.command, f"detofa report {run.folder} -o {results}"]


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def verdicts(file: FilePath) -> Section:
    """Return the section of the verdicts on the paper's claims, from claims.json and the pictures beside it.

    Raises:
        UserError: claims.json or a picture is damaged.
    """
    content = read_json(file, "the claims")
    rows: list[tuple[str, ...]] = []
    pictures = []
    with reading(file):
        for claim in CLAIMS:
            found = content[claim.name]
            numbers = [found] if isinstance(found, dict) else list(found)
            if not numbers:
                rows.append((claim.name, NOT_RUN, escape(claim.text), "", "", ""))
            for place, number in enumerate(numbers):
                verdict, *cells = verdict_cells(number, claim.text)
                name, text = (claim.name, escape(claim.text)) if place == 0 else ("", "")
                rows.append((name, verdict, text, *cells))
            if numbers and (file.parent / f"{claim.name}.png").is_file():
                pictures.append(image(file, f"{claim.name}.png"))
    head = ("", "verdict", "claim", "number", "here: mean [95% interval]", "paper")
    return Section("verdicts", "Verdicts on the paper's claims", table(head, rows) + "".join(pictures))


def verdict_cells(number: Mapping[str, Any], claim: str) -> tuple[str, str, str, str]:
    """Return the cells of a number of claims.json: verdict, name, mean with the interval, and the paper's number.

    Args:
        number: an object of the file.
        claim: text of the claim, which precedes the number's name.
    """
    name = str(number["claim"]).removeprefix(f"{claim}: ")
    low, high = number["interval"] or (None, None)
    bounds = "(single seed)" if low is None else f"[{low:+.2f}, {high:+.2f}]"
    value = f"{number['mean']:+.2f} {bounds} {number.get('unit', '')}"
    verdict = f"<strong>{escape(str(number['verdict']))}</strong>"
    return verdict, escape(name), escape(value), escape(str(number["paper"]))


# --- Origins and settings ---------------------------------------------------------------------------------------------


def origin_row(file: FilePath) -> tuple[str, ...]:
    """Return the file, the seeds and the code of its runs, its own code, and its command, as stated in its text.

    The seed of the run of Algorithm 1 is taken from its config.
    """
    text = read_text(file)
    found, seeds = ORIGIN.search(text), ", ".join(sorted(set(SEED.findall(text)), key=int)) or "-"
    if file.stem == MAIN_RUN and (file.parent / "config.json").is_file():
        seeds = str(run_config(file.parent).args.seed)
    if fits := FITS.search(text):
        seeds = "; ".join([*([seeds] if seeds != "-" else []), f"of the filter: {fits[1]}"])
    computed = "; ".join(dict.fromkeys(map(escape, COMPUTED.findall(text)))) or "-"
    if not found:
        return code(file.name), seeds, computed, "not recorded", "-"
    return code(file.name), seeds, computed, escape(found["revision"]), code(found["command"])


def settings(profile: Profile, results: FilePath) -> str:
    """Return HTML: the differences from the defaults, of the config of the run of Algorithm 1 or else of the profile."""
    if (results / "config.json").is_file():
        known = {"Config of the run of Algorithm 1.": run_config(results)}
    else:
        known = {
            f"{data_set.title}: current {data_set.config}, because the results have no config.json of their run.": configs.load(
                data_set.config
            )
            for data_set in profile.data_sets.values()
        }
    parts = [
        '<p class="quiet">Differences from the defaults, which are the paper\'s values if it gives them. Other experiments '
        "change these settings as their titles say; SET= in a command changes them for its target.</p>\n"
    ]
    for about, config in known.items():
        sections: dict[str, Any] = {"args": config.args, f"network.{config.network_name}": config.network}
        sections |= {f"dataloader.{config.dataloader_name}": config.dataloader}
        sections |= {"optimizer": config.optimizer, "hparams": config.hparams}
        changed = [row for key, section in sections.items() for row in changes(section, key)]
        rows = [(code(key), code(json.dumps(value)), _default(default)) for key, value, default in changed]
        parts += [f"<p>{escape(about)} Seed {config.args.seed}.</p>\n", table(("key", "value", "default"), rows)]
    return "".join(parts)


def _default(value: Any) -> str:
    """Format the default of a key; a key without one is required."""
    return "required" if value is dataclasses.MISSING else code(json.dumps(value))


def changes(section: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, value and default of each key of a config's section that differs from its default.

    The default of a required key is MISSING.
    """
    for field in dataclasses.fields(section):
        key, value, default = f"{prefix}.{field.name}", getattr(section, field.name), field.default
        if value == default:
            continue
        if dataclasses.is_dataclass(value) and type(value) is type(default):
            yield from changes(value, key)
        else:
            yield key, _plain(value), _plain(default)


def _plain(value: Any) -> Any:
    """Convert a nested section to a dictionary."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
