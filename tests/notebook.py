"""Run the cells of a notebook one after the other in this process, and store what they print and show.

    python tests/notebook.py docs/start/tour.ipynb

`make notebook` calls it after the demo. It needs no Jupyter, which would bring a hundred packages.
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


def main() -> None:
    for name in sys.argv[1:]:
        content = json.dumps(execute(Path(name)), indent=1, ensure_ascii=False)
        Path(name).write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
