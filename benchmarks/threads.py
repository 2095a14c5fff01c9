"""Two threads against one, from problems that are too small to share to the largest.

    python benchmarks/threads.py [--seconds 1] [--json PATH] [--draw]

Plain recurrence and the gates of a GILR-LSTM with their readout, forward and backward, float32, by
the backend `scan`, with `torch.set_num_threads` of 1 and 2 in turn in one process. That both give
the same bits is checked first. Writes benchmarks/results/threads.json: medians and minima in
microseconds. A second series of those that were slower on two threads tells noise from the rest.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch, see recurrence.py

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import WORKLOADS, recurrence
from timing import Clock, Run, about, as_many, environment
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "threads.json"
SHAPES = [
    (1, 16, 4), (1, 64, 32), (8, 64, 64), (1, 4096, 16), (8, 256, 64), (32, 128, 64),
    (1, 16384, 32), (16, 512, 64), (32, 256, 128), (8, 1024, 256), (32, 256, 512), (64, 1024, 256),
    (1, 65536, 4), (1, 65536, 32), (1, 65536, 128), (1, 1048576, 1),
]  # fmt: skip
GATES = ("plain", "lstm")
THREADS = (1, 2)
SLOWER = 1.05
"""Of medians and of minima, both: what counts as slower on two threads."""
MOST = 2000


def runs_of(gate: str, shape: tuple[int, int, int]) -> dict[str, dict[str, Run]]:
    """By pass, then by number of threads."""
    workload = WORKLOADS[gate]
    torch.manual_seed(0)
    leaves = [p.detach().requires_grad_() for p in workload.pre(shape, torch.float32, "cpu")]
    dy = torch.randn(shape)

    def y() -> Tensor:
        return recurrence(workload, "scan", *leaves)

    def forward(_: object) -> Tensor:
        with torch.no_grad():
            return y()

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, dy)

    def on(threads: int, before: Callable[[], Any]) -> Callable[[], Any]:
        def prepare() -> Any:
            torch.set_num_threads(threads)
            return before()

        return prepare

    found = {}
    for step, timed, before in (
        ("forward", forward, lambda: None),
        ("backward", backward, y),
    ):
        found[step] = {str(n): Run(timed, on(n, before)) for n in THREADS}
        check(found[step], f"{shape} {gate} {step}")
    return found


def check(runs: dict[str, Run], title: str) -> None:
    """The same bits on any number of threads."""
    results = [run.timed(run.before()) for run in runs.values()]
    one, *others = ([r] if isinstance(r, Tensor) else r for r in results)
    for other in others:
        if not all(map(torch.equal, one, other)):
            raise SystemExit(f"{title}: the bits depend on the number of threads")


def measured(runs: dict[str, Run], seconds: float, title: str) -> dict[str, Any]:
    samples = as_many(Clock("cpu"), runs, seconds, MOST, title)
    row: dict[str, Any] = {"samples": len(samples["1"])}
    for statistic in (statistics.median, min):
        times = {n: 1e6 * statistic(samples[n]) for n in samples}
        row[statistic.__name__] = {n: round(t, 1) for n, t in times.items()}
        row[f"ratio of {statistic.__name__}s"] = round(times["2"] / times["1"], 3)
    return row


def slower(row: dict[str, Any]) -> bool:
    return min(row["ratio of medians"], row["ratio of mins"]) > SLOWER


def measure(seconds: float) -> list[dict[str, Any]]:
    rows = []
    for gate in GATES:
        for shape in SHAPES:
            for step, runs in runs_of(gate, shape).items():
                title = f"{shape} {gate} {step}"
                row = measured(runs, seconds, title)
                if slower(row):
                    row["again"] = measured(runs, 2 * seconds, f"{title}, again")
                rows.append({"gate": gate, "shape": shape, "pass": step, **row})
                print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    times = "".join(f"{row['median'][n]:11,.0f}{row['min'][n]:10,.0f}" for n in map(str, THREADS))
    last = row.get("again", row)
    ratios = f"{last['ratio of medians']:8.2f}{last['ratio of mins']:7.2f}"
    end = "  SLOWER" if slower(last) else ""
    return f"{row['gate']:6}{tuple(row['shape'])!s:18}{row['pass']:9}{times}{ratios}{end}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each series (%(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    options = parser.parse_args()
    old = json.loads(options.json.read_text()) if options.draw else {}
    machine = old.get("environment") or environment("cpu")
    print(about(machine))
    print(f"{'microseconds':33}{'1: median':>11}{'min':>10}{'2: median':>11}{'min':>10}   2/1")
    if options.draw:
        for row in old["rows"]:
            print(line(row))
        return
    record = {"environment": machine, "rows": measure(options.seconds)}
    options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
