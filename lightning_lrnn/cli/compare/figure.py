"""The picture of a comparison: bars of quality, time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_lrnn.cli.compare.table import metric_of, short, value_of
from lightning_lrnn.cli.figures import new_figure, save

__all__ = ["draw", "rounded"]

WIDTH = 800
ROW, FRAME = 36, 130
"""Height of a run, and of the rest of the figure, in pixels."""


def draw(results: dict[str, Any], path: Path) -> Path:
    """Draws the comparison as a PNG.

    Args:
        results: as results.json has them.
        path: of the PNG.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    runs = [run for run in results["runs"] if "error" not in run]
    labels = [_label(run) for run in runs]
    panels = [
        (f"{name}\n({results['better'][name]})", metric_of(name)) for name in results["metrics"][:2]
    ]
    panels += [
        ("ms per step", value_of("milliseconds")),
        (results["memory"], value_of("megabytes")),
    ]
    panels = [(title, of) for title, of in panels if any(of(run) is not None for run in runs)]
    figure = new_figure(WIDTH, FRAME + ROW * len(runs))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    colors = {rnn: f"C{i % 10}" for i, rnn in enumerate(dict.fromkeys(r["rnn"] for r in runs))}
    for axis, (title, of) in zip(axes, panels, strict=True):
        values = [of(run) or 0.0 for run in runs]
        bars = axis.barh(range(len(runs)), values, color=[colors[r["rnn"]] for r in runs])
        axis.bar_label(bars, [f" {short(of(run))}" for run in runs], fontsize=9)
        axis.set_xlim(0, 1.35 * max(*values, 1e-9))
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0].set_yticks(range(len(runs)), labels, fontsize=10)
    axes[0].invert_yaxis()  # for all: they share it
    figure.suptitle(results["what"], fontsize=10)
    return save(figure, path)


def _label(run: dict[str, Any]) -> str:
    """Layer and backend, and below how large the model is, which the bars do not show."""
    name = f"{run['rnn']} {run['ran'] or ''}".strip()
    return f"{name}\n{rounded(run['parameters'])} parameters"


def rounded(count: int) -> str:
    """A count in three digits, with k for thousands and M for millions."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g} {name}"
    return str(count)
