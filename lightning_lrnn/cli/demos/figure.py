"""The demo's figure: learning curves, and how long the units remember."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_lrnn.cli.figures import new_figure, save

__all__ = ["draw"]


def draw(results: dict[str, Any], path: Path) -> Path | None:
    """Writes a PNG.

    Args:
        results: of the demo: for each model its "curve" and "bits_per_byte", and the "horizons" of
            those that have them.
        path: of the PNG.

    Returns:
        The path, or None where matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        return None
    figure = new_figure(1100, 420)
    curves, horizons = figure.subplots(1, 2)

    for color, (name, model) in zip(("C0", "C1"), results["models"].items(), strict=False):
        seconds, bits = zip(*model["curve"], strict=True)
        curves.plot(seconds, bits, color=color, label=f"{name}, training")
        curves.plot(
            seconds[-1], model["bits_per_byte"], "o", color=color, label=f"{name}, held out"
        )
    for (name, bits), style in zip(results["compressors"].items(), (":", "--"), strict=False):
        curves.axhline(bits, color="0.5", linestyle=style, label=name)
    curves.set(
        xlabel="seconds of training",
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
        title="How long the surrogate LSTM's units remember",
    )
    horizons.set_xticks(range(-1, 5), [f"{10.0**k:g}" for k in range(-1, 5)])
    horizons.legend(fontsize=8)
    return save(figure, path)
