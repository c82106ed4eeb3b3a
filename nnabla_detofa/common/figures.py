"""Matplotlib figures for files, without a window system or global state; Matplotlib is imported on first use."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from .files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDERS = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}
"""Variable that names a folder of Matplotlib's -> its default in the home folder."""


@contextmanager
def _default_settings() -> Iterator[None]:
    """Import Matplotlib inside this block, so that figures do not depend on the user's Matplotlib settings.

    A user's matplotlibrc could switch on LaTeX or be unreadable, and MPLBACKEND could name a backend that is not installed. The
    folder for the font cache is temporary if Matplotlib could not write to its own.
    """
    changed: dict[str, str | None] = {"MPLBACKEND": None, "MATPLOTLIBRC": os.devnull}
    with ExitStack() as stack:
        if not _has_settings_folder():
            changed["MPLCONFIGDIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="matplotlib-"))
        before = {name: os.environ.get(name) for name in changed}
        try:
            _set_environment(changed)
            yield
        finally:
            _set_environment(before)


def _has_settings_folder() -> bool:
    """Return whether Matplotlib can write to its folders for settings and caches, or create them."""
    try:
        home = FilePath.home()
    except RuntimeError:
        home = FilePath(os.devnull)
    places = [FilePath(os.environ.get(name) or home / folder) for name, folder in FOLDERS.items()]
    if os.environ.get("MPLCONFIGDIR"):
        places = [FilePath(os.environ["MPLCONFIGDIR"])]
    existing = [next(folder for folder in (place, *place.absolute().parents) if folder.exists()) for place in places]
    return all(folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) for folder in existing)


def _set_environment(values: Mapping[str, str | None]) -> None:
    """Set environment variables; None removes a variable."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def matplotlib() -> Any:
    """Import and return Matplotlib; no other function imports it."""
    with _default_settings():
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.font_manager
        import matplotlib.text  # noqa: F401

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
    """Write a figure as a PNG file atomically, with its titles and labels drawn literally.

    Args:
        figure: the figure.
        file: path of the file.
        options: passed to `Figure.savefig`: dpi, bbox_inches.

    Raises:
        OSError: the file cannot be written.
    """
    _draw_text_literally(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    write_bytes(file, content.getvalue())


def _draw_text_literally(figure: Figure) -> None:
    """Switch off formulas between dollar signs in all text but tick labels, because titles and labels may be a user's."""
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    ticks = {label for axis in axes for tick in (*axis.majorTicks, *axis.minorTicks) for label in (tick.label1, tick.label2)}
    for text in figure.findobj(matplotlib().text.Text):
        if text not in ticks and text not in {axis.offsetText for axis in axes}:
            text.set_parse_math(False)


def plain(text: str) -> str:
    """Return a label of a legend that Matplotlib draws literally: a leading "_" would hide it. See `save` for formulas."""
    return f"\u200b{text}" if text.startswith("_") else text
