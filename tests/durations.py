"""How long each test took, with `--cpu-durations=N`: a table in build/, and its first N rows.

In seconds of the CPU, of the process and of the children that it waited for, which do not depend on
what else the machine does; and on the clock, which tells of waiting.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict

import pytest
from paths import ROOT

LIMIT = 10.0
"""From so many seconds of the CPU a test carries the marker `slow`."""
TABLE = ROOT / "build" / "test_durations.tsv"
of_others = 0.0
"""Seconds of the CPU of processes that are no children, so far: see `processes.spawn`."""


def now() -> tuple[float, float]:
    return sum(os.times()[:4]) + of_others, time.perf_counter()


class Durations:
    """Fixtures count to the test that is the first to ask for them."""

    def __init__(self, shown: int) -> None:
        self.shown = shown
        self.at = now()
        self.cpu: dict[str, float] = defaultdict(float)
        self.clock: dict[str, float] = defaultdict(float)
        self.marked: set[str] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        self.at = now()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):
        report = yield
        before, self.at = self.at, now()
        # Plain attributes go from the processes of pytest-xdist to the one that reports.
        report.seconds = [after - was for after, was in zip(self.at, before, strict=True)]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        cpu, clock = getattr(report, "seconds", (0.0, 0.0))  # none of a process that crashed
        self.cpu[report.nodeid] += cpu
        self.clock[report.nodeid] += clock
        if "slow" in report.keywords:
            self.marked.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        longest = sorted(self.cpu, key=self.cpu.__getitem__, reverse=True)
        rows = [f"{self.cpu[test]:.2f}\t{self.clock[test]:.2f}\t{test}" for test in longest]
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text("\n".join(["cpu\tclock\ttest", *rows]) + "\n", encoding="utf-8")
        cpu, clock = sum(self.cpu.values()), sum(self.clock.values())
        total = f"{cpu:.0f} s of the CPU in {clock:.0f} s; {TABLE.relative_to(ROOT)}"
        terminalreporter.section(f"longest tests ({total})")
        for row in rows[: self.shown]:
            terminalreporter.write_line(row.expandtabs(10))
        for test in longest:
            if self.cpu[test] > LIMIT and test not in self.marked:
                terminalreporter.write_line(f"over {LIMIT:.0f} s without the marker slow: {test}")
