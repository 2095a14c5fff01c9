"""The results of a comparison as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_lrnn.cli.compare.run import WARM_UP
from lightning_lrnn.cli.tables import counted, text_table

__all__ = ["metric_of", "results_table", "short", "summary", "value_of"]

OF_PROCESS, OF_GPU = "MB of memory", "MB on the GPU"
MEANING = {
    OF_PROCESS: "what the process grew by at its peak, compiled code included",
    OF_GPU: "the most that tensors took",
}


def summary(config: str, options: list[str], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the contents of results.json: the runs, and what the table has in common.

    Args:
        config: path of the config.
        options: further options of `fit`.
        runs: the result of each run, or its "error".
    """
    succeeded = [run for run in runs if "error" not in run]
    monitored = {run["monitor"]: run["mode"] for run in succeeded if run["monitor"]}
    names = list(monitored) or list(dict.fromkeys(n for run in succeeded for n in run["metrics"]))
    words = {"min": "lower is better", "max": "higher is better"}
    better = {name: words.get(monitored.get(name) or "", "after training") for name in names}
    device = succeeded[0]["device"] if succeeded else ""
    memory = OF_PROCESS if device in ("cpu", "") else OF_GPU
    if device == "cpu":
        device = f"CPU, {counted(succeeded[0]['threads'], 'thread')}"
    title = ", ".join(item for item in (Path(config).stem, _length(succeeded), device) if item)
    return {
        "config": config,
        "options": options,
        "what": title,
        "metrics": names,
        "better": better,
        "memory": memory,
        "runs": runs,
    }


def _length(runs: list[dict[str, Any]]) -> str:
    """The number of steps of the runs, and where it differs their seconds."""
    steps = sorted({run["steps"] for run in runs})
    if not steps:
        return ""
    if len(steps) == 1:
        return f"{counted(steps[0], 'step')} each"
    return f"{steps[0]:,} to {steps[-1]:,} steps in {max(run['seconds'] for run in runs):.0f} s"


def results_table(results: dict[str, Any]) -> str:
    """Returns the table as text, with the meaning of its columns.

    Args:
        results: see `summary`.
    """
    names, memory = results["metrics"], results["memory"]
    rows = [["layer", "backend", *names, "ms per step", "steps", "parameters", memory]]
    for run in results["runs"]:
        row = [run["rnn"], run["ran"] or "-"]
        if "error" in run:
            rows.append([*row, f"failed: {run['error']}"])
            continue
        row += [short(metric_of(name)(run)) for name in names]
        row += [short(run["milliseconds"]), f"{run['steps']:,}", f"{run['parameters']:,}"]
        rows.append([*row, short(run["megabytes"])])
    lines = [results["what"], "", text_table(rows, left=2), ""]
    lines += [f"{name}: {better}" for name, better in results["better"].items()]
    lines.append(f"ms per step: median, the first {WARM_UP} steps left out")
    lines.append(f"{memory}: {MEANING[memory]}")
    return "\n".join(lines) + "\n"


def metric_of(name: str) -> Any:
    """A function from a run to the value of a metric, None if it has none."""
    return lambda run: run["metrics"].get(name)


def value_of(name: str) -> Any:
    """A function from a run to one of its values, None if it has none."""
    return lambda run: run.get(name)


def short(value: float | None) -> str:
    """Three or four digits; "-" for nothing."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
