"""`demo classify`: a classifier of packed sequences, before and after the switch.

Seen to fail: both runs with the callback, both without; what is said when it was no better.
"""

from __future__ import annotations

import json

import pytest
import torch

from lightning_lrnn.cli import main
from lightning_lrnn.cli.demos import classify
from lightning_lrnn.data import SpokenDigits


class Few(SpokenDigits):
    """96 recordings of each part."""

    def make_parts(self):
        return {name: rows[:96] for name, rows in super().make_parts().items()}


@pytest.fixture
def one_thread():
    """Packed rows of a torch.nn.LSTM on several threads take minutes beside another process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_demo(tmp_path, capsys, monkeypatch, one_thread):
    monkeypatch.setattr(classify, "SpokenDigits", Few)
    folder = tmp_path / "demo"
    assert main(["demo", "classify", "--epochs", "2", "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == ["torch.nn.LSTM", "SwitchRNN()"]
    before, after = results.values()
    assert (before["parameters"], after["parameters"]) == (541_696, 475_904)
    for run in (before, after):
        assert len(run["curve"]) == 2 and 0 < run["curve"][0][0] < run["curve"][1][0]
        assert run["seconds"] == pytest.approx(run["curve"][1][0]) and 0.1 < run["f1"] <= 1
    assert "LSTM(13, 128, num_layers=2, batch_first=True, bidirectional=True)" in said
    assert "96 to train" in said and f"F1 {after['f1'] - before['f1']:+.3f}" in said
    assert (folder / "demo.png").stat().st_size > 10_000 and str(folder / "demo.png") in said


def test_what_is_said_is_what_was_measured():
    slow, fast = {"seconds": 3.0, "f1": 0.9}, {"seconds": 1.5, "f1": 0.95}
    assert "trained 2.0 times as fast, F1 +0.050" in classify._conclusion(slow, fast)
    assert "trained 2.0 times as slow, F1 -0.050" in classify._conclusion(fast, slow)
