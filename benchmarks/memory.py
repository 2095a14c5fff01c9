"""Peak memory of a training step of the long memory model against its steps T.

    python benchmarks/memory.py [--steps 16384 65536 ... 4194304] [--json PATH] [--draw]

Each figure is what a fresh process grew by in one forward and backward pass of two rows, beyond
parameters and inputs, with every activation kept (up to 262,144 steps) and with
`checkpoint_time=16384`. Writes benchmarks/results/memory.json and a figure beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from timing import environment

from lightning_lrnn.cli.figures import new_figure, save
from lightning_lrnn.cli.tables import text_table
from lightning_lrnn.core.process_memory import process_memory, process_peak
from lightning_lrnn.modules import SequenceClassifier

RESULTS = Path(__file__).parent / "results" / "memory.json"
WINDOW = 16384
MOST_KEPT = 262144
ROWS = 2
STEPS = [2**k for k in (14, 16, 18, 20, 22)]


def growth(steps: int, window: int | None) -> int:
    """Bytes, in this process, which should be fresh."""
    model = SequenceClassifier(129, 2, hidden_size=16, dropout=0.0, checkpoint_time=window)
    model(torch.zeros(1, 2, dtype=torch.long))[0].sum().backward()  # compiles
    inputs = torch.randint(0, 129, (ROWS, steps))
    before = process_memory()
    model(inputs)[0].sum().backward()
    peak = process_peak()
    if before is None or peak is None:
        raise SystemExit("this system does not say how much memory a process has")
    return peak - before


def measure(steps: list[int]) -> list[dict[str, Any]]:
    rows = []
    for window in (None, WINDOW):
        for T in steps:
            if window is None and T > MOST_KEPT:
                continue
            command = [sys.executable, __file__, "--one", str(T), str(window or 0)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"steps": T, "checkpoint_time": window, "bytes": int(done.stdout)})
            print(f"{T:,} steps, checkpoint_time {window}: {mib(rows[-1]):.0f} MiB", flush=True)
    return rows


def mib(row: dict[str, Any]) -> float:
    return row["bytes"] / 2**20


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["steps", "all kept, MiB", f"windows of {WINDOW:,}, MiB"]]
    for T in sorted({row["steps"] for row in rows}):
        cells = {row["checkpoint_time"]: f"{mib(row):,.0f}" for row in rows if row["steps"] == T}
        lines.append([f"{T:,}", cells.get(None, ""), cells.get(WINDOW, "")])
    return text_table(lines, left=0)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = new_figure(560, 360)
    axes = figure.subplots()
    for window, label in ((None, "as it is"), (WINDOW, f"with checkpoint_time={WINDOW:,}")):
        line = [row for row in rows if row["checkpoint_time"] == window]
        axes.loglog([r["steps"] for r in line], [mib(r) for r in line], "o-", label=label)
    steps = sorted({row["steps"] for row in rows})
    axes.set_xticks(steps, [f"{T:,}" for T in steps], fontsize=8)
    peaks = [100, 200, 500, 1000]
    axes.set_yticks(peaks, [f"{peak:,}" for peak in peaks])
    axes.minorticks_off()
    axes.set(xlabel="time steps", ylabel="peak memory of a training step, MiB")
    axes.legend()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(growth(options.one[0], options.one[1] or None))
        return
    if not options.draw:
        rows = measure(options.steps)
        record = {"rows_of_a_batch": ROWS, "environment": environment("cpu"), "peaks": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    rows = json.loads(options.json.read_text())["peaks"]
    print(table(rows))
    draw(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
