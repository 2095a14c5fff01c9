"""The figures of the demos: learning curves, and how long units remember."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_lrnn.cli.figures import new_figure, save

__all__ = ["LAST", "draw", "draw_classify", "draw_long_memory"]

COLORS = ("C0", "C1")
LAST = 20
"""Number of batches in a mean share of right answers."""


def draw(results: dict[str, Any], path: Path) -> Path | None:
    """Writes the figure of `demo text`.

    Args:
        results: of the demo: "seconds", and for each model its "curve" and "bits_per_byte",
            and the "horizons" of those that have them.
        path: of the PNG.

    Returns:
        The path, or None where matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        return None
    figure = new_figure(1100, 420)
    curves, horizons = figure.subplots(1, 2)

    for color, (name, model) in zip(COLORS, results["models"].items(), strict=False):
        # Not the clock's seconds: other programs may have slowed one of the two down.
        bits = model["curve"]
        seconds = [results["seconds"] * count / len(bits) for count in range(1, len(bits) + 1)]
        _draw_model(curves, name, color, seconds, bits, model["bits_per_byte"])
    for (name, bits), style in zip(results["compressors"].items(), (":", "--"), strict=False):
        curves.axhline(bits, color="0.5", linestyle=style, label=name)
    curves.set(
        xlabel="seconds of training (steps x time of a step)",
        ylabel="bits per byte",
        title="Learning curves",
        ylim=(1, 5),
    )
    curves.legend(fontsize=8)

    for model in results["models"].values():
        for layer, taus in model["horizons"].items():
            finite = [math.log10(max(tau, 0.1)) for tau in taus if math.isfinite(tau)]
            horizons.hist(finite, bins=40, range=(-1, 4), histtype="step", label=layer)
    horizons.set(
        xlabel="time constant -1 / log a, steps",
        ylabel="units",
        title="How long the surrogate RNN's units remember",
    )
    horizons.set_xticks(range(-1, 5), [f"{10.0**k:g}" for k in range(-1, 5)])
    horizons.legend(fontsize=8)
    return save(figure, path)


def draw_long_memory(results: dict[str, Any], path: Path) -> Path | None:
    """Writes the figure of `demo long-memory`: the share of right answers over time.

    Args:
        results: of the demo: for each model its "curve", and "right" of "held_out" sequences.
        path: of the PNG.

    Returns:
        The path, or None where matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        return None
    figure = new_figure(700, 400)
    axes = figure.subplots()
    for color, (name, model) in zip(COLORS, results["models"].items(), strict=True):
        seconds, right = zip(*model["curve"], strict=True)
        means = [fmean(right[max(0, i - LAST) : i]) for i in range(1, len(right) + 1)]
        _draw_model(axes, name, color, seconds, means, model["right"] / model["held_out"])
    axes.axhline(0.5, color="0.5", linestyle=":", label="chance")
    axes.set(
        xlabel="seconds of training",
        ylabel="right answers",
        ylim=(0, 1.05),
        title=f"The first of {results['steps']:,} symbols, asked for after the last",
    )
    axes.legend(fontsize=8)
    return save(figure, path)


def draw_classify(runs: dict[str, Any], path: Path) -> Path | None:
    """Writes the figure of `demo classify`: F1 over seconds of training.

    Args:
        runs: of the demo: for each its "curve", and "f1" on the test part.
        path: of the PNG.

    Returns:
        The path, or None where matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        return None
    figure = new_figure(700, 400)
    axes = figure.subplots()
    for color, (name, run) in zip(COLORS, runs.items(), strict=True):
        seconds, f1 = zip(*run["curve"], strict=True)
        axes.plot(seconds, f1, "o-", color=color, label=f"{name}: {run['f1']:.3f} on the test part")
    axes.set(
        xlabel="seconds of training",
        ylabel="F1 on the validation part, after each epoch",
        title="A classifier of packed sequences, before and after",
    )
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, loc="lower right")
    return save(figure, path)


def _draw_model(
    axes: Any,
    name: str,
    color: str,
    seconds: Sequence[float],
    values: Sequence[float],
    held_out: float,
) -> None:
    """Draws the curve of training, and a dot for the held-out data."""
    axes.plot(seconds, values, color=color, label=f"{name}, training")
    axes.plot(seconds[-1], held_out, "o", color=color, label=f"{name}, held out")
