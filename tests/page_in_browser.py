"""The page of `make report` in a real browser, at the width of a phone and of a desk: `make test-page`.

Chromium shows the page, unchanged, in a frame of each width; the document around it measures what was laid out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path as FilePath

WIDTHS = (360, 1200)
NAMES = ("chromium", "chromium-browser", "google-chrome")
HELP = "no Chromium was found: install one (Debian and Ubuntu: apt-get install -y chromium) or name one with CHROMIUM=PROGRAM"
MAX_PIXELS = 16000  # height of a screenshot
MAX_SECONDS = 300  # of one start of the browser, which takes two where nothing else runs

FRAME = """<!DOCTYPE html><meta charset="utf-8"><style>
  html{{overflow:hidden}}body{{margin:-{above}px 0 0}}iframe{{border:0;width:{width}px;height:800px}}</style>
<iframe srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const frame = document.querySelector("iframe"), inside = frame.contentDocument, root = inside.documentElement;
  const measured = {{
    width: frame.contentWindow.innerWidth,
    contentWidth: root.scrollWidth,
    tooWide: [...inside.body.querySelectorAll("body *:not(.table *)")]
      .filter(e => !e.matches("p:has(> .wide) *"))
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 0.5).map(e => e.tagName + "." + e.className),
    height: root.scrollHeight,
    images: [...inside.images].map(image => image.naturalWidth),
    scripts: inside.scripts.length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource")
      .map(entry => entry.name).filter(name => !name.startsWith("data:")),
    scrolling: [...inside.querySelectorAll(".table, p:has(> .wide)")].filter(box => box.scrollWidth > box.clientWidth).length,
    text: inside.body.innerText,
  }};
  frame.style.height = measured.height + "px";
  const out = document.body.appendChild(document.createElement("pre"));
  out.hidden = true;
  out.id = "measured";
  out.textContent = JSON.stringify(measured);
}};
</script>
"""


@dataclass(frozen=True)
class Layout:
    """What the browser made of the page at one width.

    Attributes:
        width, content_width: of the window and of what is in it, in CSS pixels.
        too_wide: elements that reach over the right edge, other than what scrolls inside its own box.
        height: of the whole page.
        images: natural width of each; 0 where it did not load.
        scripts: how many there are.
        loaded: what was fetched from elsewhere.
        scrolling: boxes of tables and pictures that scroll sideways.
        text: what a reader sees.
        screenshots: pictures of it (PNG), from top to bottom.
    """

    width: int
    content_width: int
    too_wide: tuple[str, ...]
    height: int
    images: tuple[int, ...]
    scripts: int
    loaded: tuple[str, ...]
    scrolling: int
    text: str
    screenshots: tuple[FilePath, ...]


def find_chromium() -> str | None:
    """The program that CHROMIUM names, or else the first that is installed."""
    named = os.environ.get("CHROMIUM")
    return next(filter(None, map(shutil.which, [named] if named else NAMES)), None)


def measure(chromium: str, page: FilePath, width: int, screenshot: FilePath) -> Layout:
    """Lay the page out at a width, and save pictures of it: `screenshot`, and where it is long, <its stem>-2.png and so on.

    Raises:
        RuntimeError: the browser failed, or took too long.
    """
    with tempfile.TemporaryDirectory(dir=screenshot.parent) as folder:
        frame = FilePath(folder, "frame.html").resolve()
        content = escape(page.read_text(encoding="utf-8"))
        command = [chromium, "--headless=new", "--disable-gpu", f"--user-data-dir={folder}/user"]
        command += ["--virtual-time-budget=10000", "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else [])]

        def browse(*flags: str, above: int = 0) -> str:
            frame.write_text(FRAME.format(width=width, above=above, page=content), encoding="utf-8")
            whole = [*command, *flags, frame.as_uri()]
            try:
                done = subprocess.run(whole, capture_output=True, text=True, timeout=MAX_SECONDS)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{chromium} did not end within {MAX_SECONDS} seconds") from None
            if done.returncode:
                raise RuntimeError(f"{chromium} ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
            return done.stdout

        found = re.search(r'<pre hidden="" id="measured">(.*?)</pre>', browse("--dump-dom"), re.DOTALL)
        if not found:
            raise RuntimeError(f"{chromium} did not lay out {page}")
        values = json.loads(unescape(found[1]))
        screenshots = []
        for part, above in enumerate(range(0, values["height"], MAX_PIXELS), 1):
            screenshots.append(screenshot if part == 1 else screenshot.with_stem(f"{screenshot.stem}-{part}"))
            height = min(values["height"] - above, MAX_PIXELS)
            browse(f"--screenshot={screenshots[-1].resolve()}", f"--window-size={width},{height}", above=above)
    return Layout(
        values["width"],
        values["contentWidth"],
        tuple(values["tooWide"]),
        values["height"],
        tuple(values["images"]),
        values["scripts"],
        tuple(values["loaded"]),
        values["scrolling"],
        values["text"],
        tuple(screenshots),
    )


def faults(layout: Layout, html: str) -> list[str]:
    """What is wrong with the page as it was laid out; one sentence each."""
    found = []
    if layout.content_width > layout.width or layout.too_wide:
        found.append(f"it is {layout.content_width} pixels wide; over the edge: {', '.join(layout.too_wide) or 'its text'}")
    if len(layout.images) != html.count("<img "):
        found.append(f"{len(layout.images)} of {html.count('<img ')} pictures are there")
    found += [f"picture {number} did not load" for number, width in enumerate(layout.images, 1) if width < 1]
    if layout.scripts or layout.loaded:
        found.append(f"it has {layout.scripts} scripts and loads {', '.join(layout.loaded) or 'nothing'}")
    titles = [unescape(re.sub(r"<[^>]+>", "", title)) for title in re.findall(r"<h[1-6][^>]*>(.*?)</h[1-6]>", html)]
    if not titles:
        found.append("it has no headings")
    found += [f"the heading {title!r} is not to be seen" for title in titles if title not in layout.text]
    return found


def main(arguments: Sequence[str]) -> int:
    """Check the page at each width and save screenshots beside it; 1 where something is wrong, 2 where nothing can be said."""
    page = FilePath(arguments[0])
    chromium = find_chromium()
    if chromium is None:
        print(f"error: {HELP}", file=sys.stderr)
        return 2
    wrong = 0
    for width in WIDTHS:
        screenshot = page.with_name(f"{page.stem}-{width}.png")
        try:
            layout = measure(chromium, page, width, screenshot)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        found = faults(layout, page.read_text(encoding="utf-8"))
        print(
            f"{width} pixels: the content is {layout.content_width} wide and {layout.height} high, {len(layout.images)} "
            f"pictures, {layout.scrolling} tables and pictures scroll in their boxes, {len(layout.text)} characters; "
            + ", ".join(map(str, layout.screenshots))
        )
        print("\n".join(f"  WRONG: {fault}" for fault in found) or "  nothing is wrong")
        wrong += len(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
