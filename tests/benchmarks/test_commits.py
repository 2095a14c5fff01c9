"""`benchmarks/commits.py`: ratios are now / then, whoever is timed first, and other bits are told.

Seen to fail: then / now; the seconds of the first one taken for those of the earlier commit.
"""

from __future__ import annotations

from typing import Any

import pytest


class Fake:
    """A checkout whose calls take so many seconds."""

    def __init__(self, digest: str, seconds: float, names: tuple[str, ...] = ("host a", "host b")):
        self.names, self.digest, self.seconds = list(names), digest, seconds
        self.known: set[str] = set()

    def ask(self, name: str) -> Any:
        answer = self.seconds if name in self.known else f"{self.digest} of {name}"
        self.known.add(name)
        return answer


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("commits")


def test_ratios_and_bits(script, capsys):
    calls: dict[str, Any] = {}
    for digest in ("x", "y"):
        then, now = Fake("x", 2e-6), Fake(digest, 1e-6, ("host b", "host c", "step d"))
        script.measure(calls, then, now, 3, "host")
    assert list(calls) == ["host b"]
    assert calls["host b"] == {
        "same_bits": False,
        "then_and_now_in_seconds": [(2e-6, 1e-6)] * 6,
    }
    about = {"device": "one", "threads": 1, "torch": "2", "commit": "new", "date": "today"}
    script.show({**about, "then": "old", "calls": calls})
    shown = capsys.readouterr().out
    assert "host: now / then 0.50 over 1" in shown
    assert shown.splitlines()[3].split() == [
        "host",
        "b",
        "2.0",
        "1.0",
        "0.50",
        "0.50",
        "to",
        "0.50",
        "other",
    ]
