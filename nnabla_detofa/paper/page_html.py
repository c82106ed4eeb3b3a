"""HTML of the page of results: style, tables, embedded pictures, and conversion of Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path as FilePath
from urllib.parse import unquote

from markdown_it import MarkdownIt
from PIL import Image

from ..common.errors import UserError

WIDE = 800
"""Width in pixels above which a picture scrolls sideways on a phone, because its text would be too small otherwise."""
PHOTOS = ("detections.png",)
"""Pictures that are always shown whole."""

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
nav ul { columns: 24rem; list-style: none; max-width: none; padding: 0; }
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
    """A section of the page.

    Attributes:
        anchor: target of links to it.
        title, body: HTML.
    """

    anchor: str
    title: str
    body: str

    def html(self) -> str:
        """Return the section as HTML."""
        return f'<section>\n<h2 id="{escape(self.anchor)}">{self.title}</h2>\n{self.body}</section>\n'


TABLE_OPEN = '<div class="table" tabindex="0"><table>\n'
TABLE_CLOSE = "</table></div>\n"


def _markdown() -> MarkdownIt:
    """Return a converter of CommonMark with tables; HTML in the Markdown is escaped."""
    made = MarkdownIt("commonmark", {"html": False}).enable("table")
    made.add_render_rule("table_open", lambda *_: TABLE_OPEN)
    made.add_render_rule("table_close", lambda *_: TABLE_CLOSE)
    return made


MARKDOWN = _markdown()


def code(text: str) -> str:
    """Return text in a <code> element with places where lines may break."""
    return "<code>" + re.sub(r"([._/])", r"\1<wbr>", escape(text)) + "</code>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, whose cells are HTML, in a box that scrolls sideways."""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows]
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"{TABLE_OPEN}<thead><tr>{top}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n{TABLE_CLOSE}"


def read_text(file: FilePath) -> str:
    """Return the text of a result file.

    Raises:
        UserError: the file is not UTF-8, or empty.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged: it is not UTF-8 text") from error
    if not text.strip():
        raise UserError(f"{file} is damaged: it is empty")
    return text


def from_markdown(file: FilePath, title: str, pictures: Sequence[str]) -> Section:
    """Convert a Markdown file with its pictures.

    Args:
        file: the file.
        title: title of the section if the file has no heading.
        pictures: names of pictures in the same folder that are appended if they exist and the text does not show them.
    """
    tokens, heading = MARKDOWN.parse(read_text(file)), escape(title)
    if tokens and (tokens[0].type, tokens[0].tag) == ("heading_open", "h1"):
        heading = MARKDOWN.renderer.render(tokens[1:2], MARKDOWN.options, {})
        tokens = tokens[3:]
    if variant := file.stem.partition("_")[2]:
        heading += f" ({escape(variant)})"
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
            body += image(file, name)
    return Section(file.stem, heading, body)


def image(file: FilePath, name: str) -> str:
    """Return a paragraph with a PNG from the folder of a result file."""
    attributes = " ".join(f'{key}="{value}"' for key, value in picture(file, name).items())
    return f'<p><img {attributes} alt="{escape(FilePath(name).stem)}"></p>\n'


def picture(file: FilePath, name: str) -> dict[str, str | int | float]:
    """Return the attributes of <img> for a PNG from the folder of a result file; the PNG is embedded as a data URI.

    Raises:
        UserError: the PNG is missing or damaged.
    """
    source = file.parent / name
    if not source.is_file():
        raise UserError(f"{file} shows {name}, but {source} is missing: make the result again")
    content = source.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as opened:
            opened.load()
            wide = opened.width > WIDE and FilePath(name).name not in PHOTOS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{source} is damaged: it is not a complete PNG file") from error
    found: dict[str, str | int | float] = {"src": "data:image/png;base64," + base64.b64encode(content).decode()}
    return found | ({"class": "wide"} if wide else {})


def document(title: str, about: Sequence[str], sections: Sequence[Section], lead: Section | None = None) -> str:
    """Return the whole page.

    Args:
        title: plain text.
        about: paragraphs before the contents, HTML.
        sections: the sections.
        lead: section before the contents.
    """
    contents = "".join(f'<li><a href="#{escape(part.anchor)}">{part.title}</a></li>\n' for part in sections)
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
{lead.html() if lead else ""}<nav aria-label="Contents"><ul>
{contents}</ul></nav>
<main>
{"".join(part.html() for part in sections)}</main>
</body>
</html>
"""
