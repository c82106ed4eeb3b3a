"""The notebook of the documents, and the program that runs it."""

import json
from pathlib import Path

import notebook
import pytest
from PIL import Image

TOUR = Path(__file__).parents[2] / "docs/start/tour.ipynb"


def test_the_outputs_of_a_cell():
    names = {}
    assert notebook.run_cell("x = 2", names, 1) == []
    printed, value = notebook.run_cell("print(x)\nx + 1", names, 2)
    assert printed["text"] == ["2\n"] and value["data"] == {"text/plain": ["3"]} and value["execution_count"] == 2


def test_pictures_are_stored_as_png():
    data = notebook.shown(Image.new("RGB", (4, 3)))
    assert data["image/png"].startswith("iVBOR") and data["text/plain"] == ["<Image>"]


def test_a_cell_that_fails_is_an_error():
    with pytest.raises(ZeroDivisionError):
        notebook.run_cell("1 / 0", {}, 1)


def test_a_whole_notebook(tmp_path):
    file = tmp_path / "small.ipynb"
    cells = [{"cell_type": "markdown", "source": ["# Title"]}, {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": []}]
    file.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert notebook.execute(file)["cells"][1]["outputs"][0]["data"] == {"text/plain": ["1"]}


def test_the_tour_was_executed():
    content = json.loads(TOUR.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]) == 2
