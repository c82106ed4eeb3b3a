"""Matplotlib figures for files, without a window system or global state; Matplotlib is imported on first use."""

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
    """Set MPLCONFIGDIR to a temporary folder while Matplotlib is imported, if the user has no home folder."""
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
    """Import and return Matplotlib; no other function imports it."""
    with _folder_for_settings():
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.font_manager  # noqa: F401

    return matplotlib


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: str | None = None, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes like `matplotlib.pyplot.subplots`, without registering the figure in pyplot.

    Args:
        rows, columns: number of axes in each direction.
        figsize: width and height in inches.
        layout: layout engine of `Figure`.
        options: passed to `Figure.subplots`: sharex, sharey, squeeze.
    """
    figure = matplotlib().figure.Figure(figsize=figsize, layout=layout)
    matplotlib().backends.backend_agg.FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, file: str | os.PathLike, **options: Any) -> None:
    """Write a figure as a PNG file atomically.

    Args:
        figure: the figure.
        file: path of the file.
        options: passed to `Figure.savefig`: dpi, bbox_inches.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    write_bytes(file, content.getvalue())


def plain(text: str) -> str:
    """Escape a string so that Matplotlib draws it literally: no formula at a dollar sign, no label hidden by a leading "_"."""
    escaped = text.replace("$", r"\$")
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped
