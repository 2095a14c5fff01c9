"""Figures that are written to a file, without a window system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_lrnn.core.checks import UserError

__all__ = ["PlotError", "new_figure", "plain_text", "save", "write"]

DPI = 100


class PlotError(UserError):
    """There is nothing to draw; the message is one sentence that says what to do."""


def new_figure(width: float, height: float) -> Any:
    """An empty figure.

    Args:
        width: in pixels.
        height: in pixels.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Writes a PNG, twice as fine as it is wide on a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=2 * DPI)
    return path


def write(figure: Any, path: Path) -> Path:
    """Writes a PNG where a user wants it; see `save`.

    Raises:
        PlotError: if it cannot be written there, or not be drawn.
    """
    if path.is_dir():
        raise PlotError(f"the figure cannot be written to {path}, a folder; name a file in it")
    try:
        return save(figure, path)
    except OSError as error:
        raise PlotError(f"{path} cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise PlotError(f"the figure cannot be made: {error}") from error


def plain_text(name: str) -> str:
    """A name without mathematics, which matplotlib would read between two $."""
    return name.replace("$", r"\$")
