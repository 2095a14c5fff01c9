"""Figures that are written to a file, without a window system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["new_figure", "save"]

DPI = 100


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
