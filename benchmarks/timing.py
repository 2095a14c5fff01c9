"""Timing of implementations in turn, so that a slow spell of the machine meets them all.

And a description of the machine.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

FLUSH_BYTES = 256 << 20
AHEAD_CYCLES = 4_000_000
"""Clock cycles that the GPU sleeps, some 2 ms, while the host launches ahead."""
FEWEST = 3
"""Samples of an implementation that is too slow for all rounds."""


class Run(NamedTuple):
    """`timed` gets what `before` returns, which is made anew, untimed, for every sample."""

    timed: Callable[[Any], object]
    before: Callable[[], Any] = lambda: None


class Clock:
    """Seconds of one call: on a CPU by the wall, on CUDA by events on the stream.

    On CUDA the second-level cache is flushed before, by reading: lines that were written would
    have to be written back, in the time of who comes next.

    With `ahead` the device waits until the host has queued the call, so that its kernels alone are
    timed. Else the host's part counts where the device waits for it, as it does for a user.
    """

    def __init__(self, device: str, ahead: bool = False) -> None:
        self.cuda, self.ahead = device == "cuda", ahead
        if self.cuda:
            self.flush = torch.ones(FLUSH_BYTES // 4, device=device)

    def seconds(self, run: Run) -> float:
        argument = run.before()
        if not self.cuda:
            start = time.perf_counter()
            run.timed(argument)
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.sum()
        torch.cuda.synchronize()
        if self.ahead:
            torch.cuda._sleep(AHEAD_CYCLES)
        begin.record()
        run.timed(argument)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def first(self, run: Run) -> tuple[float, int]:
        """Seconds of the first call, compilation included; bytes at the peak of a second one."""
        start = time.perf_counter()
        run.timed(run.before())
        if not self.cuda:
            return time.perf_counter() - start, 0
        torch.cuda.synchronize()
        first = time.perf_counter() - start
        argument = run.before()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run.timed(argument)
        return first, torch.cuda.max_memory_allocated() - before


def in_turn(
    clock: Clock, runs: dict[str, Run], rounds: int, title: str, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Samples of each; fewer, yet at least `FEWEST`, of what has taken so many seconds in all.

    Each round has another order: who comes after another finds in the caches what that has left.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for count in range(rounds):
        if sys.stderr.isatty():
            print(f"\r  {title}: round {count + 1} of {rounds} ", end="", file=sys.stderr)
        for name, run in Random(count).sample([*runs.items()], len(runs)):
            if count < FEWEST or sum(samples[name]) < seconds:
                samples[name].append(clock.seconds(run))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return samples


def as_many(
    clock: Clock, runs: dict[str, Run], seconds: float, most: int, title: str
) -> dict[str, list[float]]:
    """About as many rounds as the time is enough for, by what the first one takes; at least 1."""
    samples = in_turn(clock, runs, 1, title)
    enough = round(seconds / sum(times[0] for times in samples.values()))
    more = in_turn(clock, runs, max(1, min(most, enough)) - 1, title)
    return {name: times + more[name] for name, times in samples.items()}


def repeated(function: Callable[[], object], times: int, device: str) -> Run:
    """Several calls timed as one: what is timed is all of them, `times` to be divided by."""
    if device == "cuda":
        return replayed(function, times)

    def loop(_: object) -> None:
        for _ in range(times):
            function()

    return Run(loop)


def replayed(function: Callable[[], object], times: int = 20) -> Run:
    """A CUDA graph of several calls; what is timed is all of them, `times` to be divided by."""
    for _ in range(2):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            function()
    graph.replay()  # the first one takes longer
    torch.cuda.synchronize()
    return Run(lambda _: graph.replay())


def host_seconds(function: Callable[[], object], calls: int = 200) -> float:
    """Of one call until it returns, the device's work aside: the least of seven series."""
    series = []
    for _ in range(7):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        series.append((time.perf_counter() - start) / calls)
    return min(series)


def commit() -> str:
    """Of the sources; where they are a copy, LIGHTNING_LRNN_COMMIT says of what."""
    if given_hash := os.environ.get("LIGHTNING_LRNN_COMMIT"):
        return given_hash
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(device: str) -> dict[str, Any]:
    """What a record of samples says about the machine, the versions and the sources."""
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": version("numba"),
    }


def about(record: dict[str, Any]) -> str:
    """The first line of what is shown of a record."""
    policy = record.get("omp_wait_policy", "unset")
    threads = f"{record['threads']} thread{'s' * (record['threads'] != 1)}"
    return (
        f"{record['device']}, {threads}, PyTorch {record['torch']}, "
        f"{record['commit']}, {record['date']}"
        + ("" if policy == "unset" else f", OMP_WAIT_POLICY={policy}")
    )
