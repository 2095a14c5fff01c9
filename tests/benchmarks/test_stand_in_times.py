"""`benchmarks/stand_in_times.py`: that it runs, what it times, and that it times both in turn.

Seen to fail: the layer in its place timed twice; times of all repeated steps taken for one.
"""

from __future__ import annotations

import pytest
from torch import nn


@pytest.fixture
def stand_ins(benchmark_script):
    return benchmark_script("stand_in_times")


def test_quick(stand_ins, capsys):
    stand_ins.main(["--quick", "--rounds", "1"])
    out = capsys.readouterr().out
    rows = [row.split() for row in out.split("-\n")[-1].splitlines()]
    assert [row[:5] for row in rows] == [
        ["(2,", "16,", "4,", "8)", kind] for kind in ("LSTM", "GRU", "RNN")
    ]
    assert all(float(value) > 0 for row in rows for value in row[5:])


def test_both_are_timed_and_a_sample_is_one_step(stand_ins, monkeypatch):
    called = []

    def in_turn(clock, runs, rounds, title):
        for run in runs.values():
            run.timed(None)
        return {name: [20.0] * rounds for name in runs}

    monkeypatch.setattr(stand_ins, "in_turn", in_turn)
    for name, kind in {"stock": nn.LSTM, "auto": stand_ins.lrnn.nn.SurrogateRNN}.items():
        forward = kind.forward

        def noted(self, *inputs, name=name, forward=forward):
            called.append(name)
            return forward(self, *inputs)

        monkeypatch.setattr(kind, "forward", noted)
    seconds = stand_ins.times(nn.LSTM, (2, 16, 4, 8), 3)
    assert seconds == {"stock": [1.0] * 3, "auto": [1.0] * 3}
    assert called == 2 * (["stock"] * 20 + ["auto"] * 20)
