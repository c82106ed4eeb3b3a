"""All results of a profile as one HTML page, from result files alone: the paper's tables and figures beside ours.

The page holds everything that it shows: pictures are inside it, it has no script, and tells the browser to load nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from PIL import Image

from .. import config as configs
from ..common.errors import UserError
from ..common.files import write_text
from ..runs.run_folder import run_config
from .experiments import DETOFA
from .profiles import Profile
from .reproduce import TARGETS, Order
from .run import Run

TABLE1 = "table1"
TITLES = {TABLE1: "Table 1: the sizes of the search spaces"} | {name: target.title for name, target in TARGETS.items()}
MAIN_RUN = "table"
MAIN_RUN_PICTURES = ("pareto.png", "scores.png", "detections.png")
SEED = re.compile(r"\(seed (\d+)\)")
COMPUTED = re.compile(r"computed by (.+?)(?=;|\. |\.?$)", re.MULTILINE)
FITS = re.compile(r"fitted with \d+ seeds? \((\d[\d, ]*)\)")
WIDE = 800  # pixels of a picture that scrolls sideways on a phone
ORIGIN = re.compile(r"Made by `(?P<command>[^`]+)` at (?P<revision>.+)\.$", re.MULTILINE)

STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #fff; --quiet: #5c6370; --line: #d5d9e0; --band: #f3f5f8;
  --link: #0b57c4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --back: #16181c; --quiet: #a2a9b4; --line: #3a3f48; --band: #20242a; --link: #8ab4f8; }
}
body { margin: 0 auto; max-width: 80rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); overflow-wrap: break-word; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; }
a { color: var(--link); }
nav ul { list-style: none; padding: 0; }
nav a { display: block; padding: .3rem 0; }
.table { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); /* a shadow on the right where there is more */
  background: linear-gradient(to left, var(--back) 50%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat; }
table { border-collapse: collapse; width: max-content; min-width: 100%; font-size: .875rem; }
th, td { max-width: 17rem; padding: .35rem .6rem; text-align: left; vertical-align: top; }
th { background: var(--band); vertical-align: bottom; }
tr + tr td, tbody td { border-top: 1px solid var(--line); }
th:first-child, td:first-child { position: sticky; left: 0; max-width: 8rem; background: var(--band);
  overflow-wrap: anywhere; }
p, ul { max-width: 62rem; }
li { margin: .25rem 0; }
pre { white-space: pre-wrap; }
code { font-size: .85em; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0; background: #fff; }
p:has(> .wide) { overflow-x: auto; }
.wide { min-width: 44rem; } /* its letters could not be read on a phone */
.quiet { color: var(--quiet); }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, and its title and its body as HTML."""

    anchor: str
    title: str
    body: str


def write_page(profile: Profile, results: FilePath, output: FilePath) -> int:
    """Write the page of the results in a folder, of Table 1 in the folder table1 beside it.

    Returns:
        how many of the paper's tables and figures are on it.

    Raises:
        UserError: there are no results, or a file of them is damaged.
    """
    if not results.is_dir():
        first = Order(profile, output=results).command("tableA1")
        raise UserError(f"there are no results in {results}; the first could be made by: {first}")
    files = {name: target_files(results, name) for name in in_paper_order(TITLES)}
    made = [name for name, several in files.items() if several]
    main_run = results / f"{MAIN_RUN}.md"
    missing = [(TITLES[name], [command(profile, results, name)]) for name in files if name not in made]
    sections = []
    if main_run.is_file():
        sections.append(result_section(main_run, "The run of Algorithm 1", MAIN_RUN_PICTURES))
    else:
        missing.insert(0, ("The run of Algorithm 1", main_run_commands(profile, results)))
    for name in made:
        sections += [result_section(file, TITLES[name], (f"{file.stem}.png",)) for file in files[name]]
    if missing:
        entries = [f"<li>{escape(title)}<br>{'<br>'.join(map(code, commands))}</li>\n" for title, commands in missing]
        sections.append(Section("missing", "What is missing, and what makes it", f"<ul>\n{''.join(entries)}</ul>\n"))
    sections.append(Section("settings", "Settings", settings(profile, results)))
    rows = [origin_row(file) for file in (main_run, *(file for name in made for file in files[name])) if file.is_file()]
    sections.append(
        Section("origins", "What made each", html_table(("file", "seeds", "code of the runs", "code of this", "command"), rows))
    )
    about = escape(" ".join(profile.about))
    in_paper = [name for name in files if re.search(r"\d", name)]  # others are beside it
    count = f"{len(set(made) & set(in_paper))} of the paper's {len(in_paper)} tables and figures are here."
    write_text(output, page(f"DetOFA: the results of the profile {profile.name}", [about, count], sections))
    return len(made)


def in_paper_order(names: Sequence[str]) -> list[str]:
    """Tables, figures, those of the appendix; each by number."""

    def place(name: str) -> tuple:
        number = re.sub(r"\D", "", name)  # what is beside the paper has none, and comes last
        return not number, "A" in name, name.startswith("figure"), int(number or 0)

    return sorted(names, key=place)


def target_files(results: FilePath, name: str) -> list[FilePath]:
    """The Markdown files that a target has left: its own first, then <name>_<of what>.md."""
    folder = results.parent / TABLE1 if name == TABLE1 else results
    return [file for file in (folder / f"{name}.md", *sorted(folder.glob(f"{name}_*.md"))) if file.is_file()]


def command(profile: Profile, results: FilePath, name: str) -> str:
    """What makes a target, into the folder of results."""
    return f"make {TABLE1}" if name == TABLE1 else Order(profile, output=results).command(name)


def main_run_commands(profile: Profile, results: FilePath) -> list[str]:
    """What runs Algorithm 1 on the profile's first data set, and reports it."""
    run = Run(profile, next(iter(profile.data_sets)), DETOFA, seed=0)
    return [run.command, f"detofa report {run.folder} -o {results}"]


# --- What the files say -----------------------------------------------------------------------------------------------


def read_text(file: FilePath) -> str:
    """The text of a result file."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged: it is not UTF-8 text") from error
    if not text.strip():
        raise UserError(f"{file} is damaged: it is empty")
    return text


def result_section(file: FilePath, title: str, pictures: Sequence[str]) -> Section:
    """A Markdown file with its pictures.

    Args:
        title: where the file has no heading of its own.
        pictures: of the same folder, shown at the end where they are there and the text does not show them.
    """
    tokens, heading = MARKDOWN.parse(read_text(file)), escape(title)
    if tokens and (tokens[0].type, tokens[0].tag) == ("heading_open", "h1"):
        heading = MARKDOWN.renderer.render(tokens[1:2], MARKDOWN.options, {})
        tokens = tokens[3:]
    if of_what := file.stem.partition("_")[2]:
        heading += f" ({escape(of_what)})"
    shown = set()
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"  # h2 is the section's
        for child in token.children or ():
            if child.type == "image":
                name = unquote(str(child.attrs["src"]))
                child.attrs |= picture(file, name)
                shown.add(name)
    body = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    for name in pictures:
        if name not in shown and (file.parent / name).is_file():
            attributes = " ".join(f'{key}="{value}"' for key, value in picture(file, name).items())
            body += f'<p><img {attributes} alt="{escape(FilePath(name).stem)}"></p>\n'
    return Section(file.stem, heading, body)


def picture(file: FilePath, name: str) -> dict[str, str]:
    """Attributes of <img> for a PNG beside a Markdown file: it is inside the page, as a data URI."""
    source = file.parent / name
    if not source.is_file():
        raise UserError(f"{file} shows {name}, which must be a PNG file in {file.parent} and is missing")
    content = source.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as opened:
            opened.load()
            wide = {"class": "wide"} if opened.width > WIDE else {}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{source} is damaged: it is not a whole PNG file") from error
    return {"src": "data:image/png;base64," + base64.b64encode(content).decode()} | wide


def origin_row(file: FilePath) -> tuple[str, ...]:
    """The file, seeds and code of its runs, its own code and the command, as its text has them.

    The seed of the main run is in its config.
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
    """What the main run's config, or else those of the profile, change of the defaults."""
    if (results / "config.json").is_file():
        known = {"The config of the run of Algorithm 1.": run_config(results)}
    else:
        known = {
            f"{data_set.title}: {data_set.config} as it is now; the results have no config.json of their run.": configs.load(
                data_set.config
            )
            for data_set in profile.data_sets.values()
        }
    parts = [
        '<p class="quiet">What differs from the defaults, which are the paper\'s values where it gives them. '
        "Other experiments change one thing of this; SET= in a command changes it for its target.</p>\n"
    ]
    for about, config in known.items():
        sections = {"args": config.args, f"network.{config.network_name}": config.network}
        sections |= {f"dataloader.{config.dataloader_name}": config.dataloader}
        sections |= {"optimizer": config.optimizer, "hparams": config.hparams}
        changed = [row for key, section in sections.items() for row in changes(section, key)]
        rows = [(code(key), code(json.dumps(value)), _default(default)) for key, value, default in changed]
        parts += [f"<p>{escape(about)} Seed {config.args.seed}.</p>\n", html_table(("entry", "value", "default"), rows)]
    return "".join(parts)


def _default(value: Any) -> str:
    """Format the default of an entry; an entry without one is required."""
    return "required" if value is dataclasses.MISSING else code(json.dumps(value))


def changes(section: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value, default) of each entry of a config's section that is not its default, MISSING for required ones."""
    for field in dataclasses.fields(section):
        key, value, default = f"{prefix}.{field.name}", getattr(section, field.name), field.default
        if value == default:
            continue
        if dataclasses.is_dataclass(value) and type(value) is type(default):
            yield from changes(value, key)
        else:
            yield key, *(dataclasses.asdict(one) if dataclasses.is_dataclass(one) else one for one in (value, default))


# --- HTML -------------------------------------------------------------------------------------------------------------

TABLE_OPEN = '<div class="table" tabindex="0"><table>\n'
TABLE_CLOSE = "</table></div>\n"


def markdown() -> MarkdownIt:
    """CommonMark with tables; HTML in the text is shown as text."""
    made = MarkdownIt("commonmark", {"html": False}).enable("table")
    made.add_render_rule("table_open", lambda *_: TABLE_OPEN)
    made.add_render_rule("table_close", lambda *_: TABLE_CLOSE)
    return made


MARKDOWN = markdown()


def code(text: str) -> str:
    """Text as it is typed, with places where a line may break."""
    return "<code>" + re.sub(r"([._/])", r"\1<wbr>", escape(text)) + "</code>"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML, in a box of its own that scrolls."""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows]
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"{TABLE_OPEN}<thead><tr>{top}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n{TABLE_CLOSE}"


def page(title: str, about: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: plain text.
        about: lines of HTML.
    """
    contents = "".join(f'<li><a href="#{escape(part.anchor)}">{part.title}</a></li>\n' for part in sections)
    parts = "".join(
        f'<section>\n<h2 id="{escape(part.anchor)}">{part.title}</h2>\n{part.body}</section>\n' for part in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{"".join(f"<p>{line}</p>" for line in about)}
<nav aria-label="Contents"><ul>
{contents}</ul></nav>
<main>
{parts}</main>
</body>
</html>
"""
