"""Run the cells of a notebook one after the other in this process, and store their outputs; show notebooks on the site.

    python tests/notebook.py docs/start/tour.ipynb

`make notebook` calls it after the demo, and `make docs` makes a page of each notebook with it (see mkdocs.yml). It needs no
Jupyter, which would bring a hundred packages.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any


def shown(value: Any) -> dict[str, Any]:
    """The representations of the value of a cell: text, and PNG for an image of Pillow or a figure of Matplotlib."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    picture = io.BytesIO()
    if hasattr(value, "savefig"):
        value.savefig(picture, format="png", dpi=90, bbox_inches="tight")
    elif hasattr(value, "save") and hasattr(value, "getpixel"):
        value.save(picture, "PNG")
    if picture.tell():
        data["image/png"] = base64.b64encode(picture.getvalue()).decode()
        data["text/plain"] = [f"<{type(value).__name__}>"]
    return data


def run_cell(source: str, names: dict[str, Any], number: int) -> list[dict]:
    """Run one cell, and return its outputs as a notebook stores them."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    outputs: list[dict] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown(value)})
    return outputs


def execute(file: Path) -> dict:
    """Run all cells of a notebook, and return it with their outputs."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    code = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, cell in enumerate(code, 1):
        cell["execution_count"] = number
        cell["outputs"] = run_cell("".join(cell["source"]), names, number)
    return notebook


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
    """Make each notebook among the files of the site a page; MkDocs calls this function."""
    from mkdocs.structure.files import File

    class NotebookFile(File):
        def is_documentation_page(self) -> bool:
            return True

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(NotebookFile.generated(config, file.src_uri, content=page(json.loads(file.content_string))))
    return files


def main() -> None:
    for name in sys.argv[1:]:
        content = json.dumps(execute(Path(name)), indent=1, ensure_ascii=False)
        Path(name).write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
