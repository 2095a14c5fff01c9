"""One thread, two threads and `serial`, from problems too small to share to the largest.

    python benchmarks/threads.py [--seconds 1] [--json PATH] [--draw]

Plain recurrence and the gates of a GILR-LSTM with their readout, forward and backward, float32, by
the backend `scan` with `torch.set_num_threads` of 1 and 2, and by `serial`, in turn in one process.
Before each sample an operator of PyTorch runs on two threads, as in training: those of OpenMP then
look for more work for a while, on the cores that the recurrence is to have. How long they do is
`OMP_WAIT_POLICY`: each round has a process as users have it, which leaves it unset, and one with
`passive`. That one and two threads give the same bits, and `serial` nearly the same values, is
checked first. Writes benchmarks/results/threads.json: medians and minima in microseconds.
`SLOWER` stands behind a line where `auto`, which is `scan`, takes over 1.05 times as long as
`serial`, by medians and by minima, on one thread or on two, as users have it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from implementations import WORKLOADS, recurrence
from timing import Clock, Run, about, as_many, environment
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "threads.json"
SHAPES = [
    (1, 16, 4), (1, 64, 32), (8, 64, 64), (1, 4096, 16), (8, 256, 64), (32, 128, 64),
    (1, 16384, 32), (16, 512, 64), (32, 256, 128), (8, 1024, 256), (32, 256, 512), (64, 1024, 256),
    (1, 65536, 4), (1, 65536, 32), (1, 65536, 128), (1, 1048576, 1),
]  # fmt: skip
GATES = ("plain", "lstm")
CONFIGURATIONS = {"1": ("scan", 1), "2": ("scan", 2), "serial": ("serial", 1)}
"""By name: the backend and the number of threads."""
POLICIES = ("unset", "passive")
ROUNDS = 3
SLOWER = 1.05
MOST = 2000

Samples = dict[str, dict[str, list[float]]]
"""Seconds by case, then by configuration."""


def runs_of(gate: str, shape: tuple[int, int, int]) -> dict[str, dict[str, Run]]:
    """By pass, then by configuration."""
    workload = WORKLOADS[gate]
    torch.manual_seed(0)
    leaves = [p.detach().requires_grad_() for p in workload.pre(shape, torch.float32, "cpu")]
    dy = torch.randn(shape)

    def y(backend: str) -> Tensor:
        return recurrence(workload, backend, *leaves)

    def after_an_operator(threads: int, before: Callable[[], Any]) -> Callable[[], Any]:
        def prepare() -> Any:
            torch.set_num_threads(threads)
            argument = before()
            torch.set_num_threads(2)
            torch.tanh(dy)
            torch.set_num_threads(threads)
            return argument

        return prepare

    def forward(backend: str, threads: int) -> Run:
        def timed(_: object) -> Tensor:
            with torch.no_grad():
                return y(backend)

        return Run(timed, after_an_operator(threads, lambda: None))

    def backward(backend: str, threads: int) -> Run:
        def timed(y: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, leaves, dy)

        return Run(timed, after_an_operator(threads, lambda: y(backend)))

    return {
        one_pass.__name__: {name: one_pass(*how) for name, how in CONFIGURATIONS.items()}
        for one_pass in (forward, backward)
    }


def check(runs: dict[str, Run], title: str) -> None:
    results = [run.timed(run.before()) for run in runs.values()]
    one, two, serial = ([r] if isinstance(r, Tensor) else r for r in results)
    if not all(map(torch.equal, one, two)):
        raise SystemExit(f"{title}: the bits depend on the number of threads")
    for x, other in zip(one, serial, strict=True):
        torch.testing.assert_close(x, other, msg=lambda text: f"{title}: {text}")


def sampled(seconds: float) -> Samples:
    """Samples in seconds of every case, taken in this process."""
    samples = {}
    for gate in GATES:
        for shape in SHAPES:
            for step, runs in runs_of(gate, shape).items():
                title = f"{gate} {shape} {step}"
                check(runs, title)
                samples[title] = as_many(Clock("cpu"), runs, seconds, MOST, title)
    return samples


def sampled_by(policy: str, seconds: float, folder: str) -> Samples:
    """In a process of its own: OpenMP reads the policy once."""
    names = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy != "unset":
        names["OMP_WAIT_POLICY"] = policy
    path = Path(folder) / "samples.json"
    command = [sys.executable, __file__, "--seconds", str(seconds), "--samples", str(path)]
    subprocess.run(command, env=names, check=True)
    samples: Samples = json.loads(path.read_text())
    return samples


def measure(seconds: float) -> dict[str, dict[str, Any]]:
    """Summaries by case, then by policy; each policy has a process in every round."""
    pooled: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in range(ROUNDS):
            for policy in POLICIES:
                print(f"round {count + 1} of {ROUNDS}: {policy}", file=sys.stderr)
                for title, samples in sampled_by(policy, seconds / ROUNDS, folder).items():
                    row = pooled.setdefault(title, {}).setdefault(policy, {})
                    for name, times in samples.items():
                        row.setdefault(name, []).extend(times)
    return {
        title: {policy: summary(samples) for policy, samples in rows.items()}
        for title, rows in pooled.items()
    }


def summary(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Median and minimum in microseconds by configuration, and the number of samples."""
    row: dict[str, Any] = {"samples": len(samples["1"])}
    for statistic in (statistics.median, min):
        row[statistic.__name__] = {n: round(1e6 * statistic(s), 1) for n, s in samples.items()}
    return row


def slower(row: dict[str, Any]) -> bool:
    """Whether `auto` is, on one thread or on two."""
    return any(
        all(row[s][n] > SLOWER * row[s]["serial"] for s in ("median", "min")) for n in ("1", "2")
    )


def line(title: str, rows: dict[str, dict[str, Any]]) -> str:
    gate, rest = title.split(" ", 1)
    times = "".join(
        "".join(f"{rows[policy]['median'][n]:9,.0f}" for n in CONFIGURATIONS) for policy in POLICIES
    )
    unset = rows["unset"]["median"]
    ratios = f"{unset['2'] / unset['1']:7.2f}{unset['2'] / unset['serial']:9.2f}"
    return f"{gate:6}{rest:26}{times}{ratios}{'  SLOWER' if slower(rows['unset']) else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each series (%(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--samples", type=Path, help="takes samples in this process, writes them")
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    options = parser.parse_args()
    if options.samples:
        options.samples.write_text(json.dumps(sampled(options.seconds)))
        return
    if not options.draw:
        record = {"environment": environment("cpu"), "cases": measure(options.seconds)}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(options.json.read_text())
    print(about(record["environment"]))
    print(f"{'microseconds, medians':32}{'OMP_WAIT_POLICY unset':>27}{'passive':>27}")
    names = "".join(f"{name:>9}" for name in CONFIGURATIONS)
    print(f"{'threads':32}{names * len(POLICIES)}    2/1 2/serial")
    for title, rows in record["cases"].items():
        print(line(title, rows))


if __name__ == "__main__":
    main()
