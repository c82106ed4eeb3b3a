"""Matplotlib figures that go into files: no window system, no global state, and no import before something is drawn."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from .files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def _folder_for_settings() -> Iterator[None]:
    """Give Matplotlib, which looks for its settings and fonts while it is imported, a folder where there is no home folder."""
    try:
        FilePath.home()
        missing = False
    except RuntimeError:
        missing = "MPLCONFIGDIR" not in os.environ
    if not missing:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="matplotlib-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def matplotlib() -> Any:
    """The module, imported here and nowhere else."""
    with _folder_for_settings():
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.font_manager  # noqa: F401

    return matplotlib


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: str | None = None, **options) -> tuple:
    """A figure and its panels, as `matplotlib.pyplot.subplots` gives them, which pyplot does not know.

    Args:
        options: of `Figure.subplots`: sharex, sharey, squeeze.
    """
    figure = matplotlib().figure.Figure(figsize=figsize, layout=layout)
    matplotlib().backends.backend_agg.FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, file: str | os.PathLike, **options) -> None:
    """Write a figure as a PNG file, whole or not at all.

    Args:
        options: of `Figure.savefig`: dpi, bbox_inches.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    write_bytes(file, content.getvalue())


def plain(text: str) -> str:
    """A name from the user as Matplotlib draws it: a dollar sign starts no formula, and a leading underscore hides no label."""
    escaped = text.replace("$", r"\$")
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped
