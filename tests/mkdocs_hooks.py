"""Hooks of the documentation site (see mkdocs.yml): notebooks are shown as pages, and pages show pictures of results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PICTURES = "pictures"
"""Folder of the site that contains the pictures of results/."""


class NotebookFile(File):
    """A notebook, which MkDocs would take for a file to copy."""

    def is_documentation_page(self) -> bool:
        return True


def page(notebook: dict) -> str:
    """Return a notebook with its outputs as Markdown; images are data URIs."""
    lines: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        lines.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text") or data.get("text/plain", [])).rstrip()
            if "image/png" in data:
                lines.append(f"![Output of the cell above](data:image/png;base64,{data['image/png']})")
            else:
                lines.append(f"```text\n{text}\n```")
    return "\n\n".join(lines) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Make each notebook a page, and add the pictures of results/; MkDocs calls this function."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(NotebookFile.generated(config, file.src_uri, content=page(json.loads(file.content_string))))
    for picture in sorted((ROOT / "results").rglob("*.png")):
        name = picture.relative_to(ROOT / "results").as_posix()
        files.append(File.generated(config, f"{PICTURES}/{name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let pages, which refer to the folder results/ of the repository, refer to its copy in the site."""
    return markdown.replace("](../../results/", f"](../{PICTURES}/")
