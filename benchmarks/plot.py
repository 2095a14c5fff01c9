"""The percents of a copy that a benchmark's samples show, as PNG."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from goals import OURS, PASSES, medians, of_a_copy, step_of


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars by case and pass, a line at the copy; or a word, where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    cases = report["samples_in_seconds"]
    steps = [p for p in PASSES if any(f"scan {p}" in samples for samples in cases.values())]
    figure = Figure(figsize=(2 + 4 * len(steps), 1.6 + 0.7 * len(cases)), layout="constrained")
    axes = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    implementations = {step_of(name)[0] for samples in cases.values() for name in samples}
    names = sorted(
        implementations - {"", "copy for"}, key=lambda name: (not name.startswith(OURS), name)
    )
    height = 0.8 / max(len(names), 1)
    for axis, step in zip(axes, steps, strict=True):
        for index, name in enumerate(names):
            bars = {}
            for row, samples in enumerate(cases.values()):
                if f"{name} {step}" in samples:
                    bars[row] = of_a_copy(medians(samples), name, step)
            at = [row + (index - len(names) / 2 + 0.5) * height for row in bars]
            axis.barh(at, list(bars.values()), height, label=name)
        axis.axvline(100, color="black", linewidth=1)
        axis.set_title(step)
        axis.set_xlabel("% of a copy of equal bytes")
        axis.set_yticks(range(len(cases)), list(cases))
    axes[0].invert_yaxis()  # for all: they share it
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{report['device']}, PyTorch {report['torch']}, {report['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
