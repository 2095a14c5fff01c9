"""`demo classify`, a few functions of each package, one epoch.

Seen to fail: a second run with other settings or another order, a file in both parts, a verdict
that praises what is slower.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from lightning_lrnn.cli import main
from lightning_lrnn.cli.demos import classify
from lightning_lrnn.nn import Stack


@pytest.mark.slow
def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[type, list[list[int]]]] = []
    forward = classify.Classifier.forward

    def watched(self: classify.Classifier, rows: list[torch.Tensor]) -> torch.Tensor:
        seen.append((type(self.rnn), [row.tolist() for row in rows]))
        return forward(self, rows)

    monkeypatch.setattr(classify.Classifier, "forward", watched)
    folder = tmp_path / "demo"
    words = ["--epochs", "1", "--max_functions", "5", "--folder", str(folder)]
    assert main(["demo", "classify", *words]) == 0
    results = json.loads((folder / "results.json").read_text())
    before, after = results["runs"].values()
    assert before["layer"] == "torch.nn.LSTM" and after["layer"] != before["layer"]
    for run in (before, after):
        ((seconds, f1),) = run["curve"]
        assert seconds > 0 and 0 <= f1 <= 1
    # The same batches in the same order.
    half = len(seen) // 2
    assert [rows for _, rows in seen[:half]] == [rows for _, rows in seen[half:]]
    assert {kind for kind, _ in seen[:half]} == {torch.nn.LSTM}
    assert all(issubclass(kind, Stack) for kind, _ in seen[half:])
    shown = capsys.readouterr().out
    assert "Time: the switched run took" in shown and "Quality: F1" in shown
    png = (folder / "demo.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (1400, 800)


def test_what_is_held_out_comes_from_other_files() -> None:
    training, held_out = classify._functions(20)
    assert {number for _, number in training} == set(range(len(classify.PACKAGES)))
    assert {number for _, number in held_out} == set(range(len(classify.PACKAGES)))
    shortest, longest = classify.WORDS
    assert all(shortest <= len(words) <= longest for words, _ in training + held_out)
    trained = {" ".join(words) for words, _ in training if len(words) == longest}
    assert not trained & {" ".join(words) for words, _ in held_out}
    vocabulary = classify._vocabulary(training)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    ((row, number),) = classify._rows([(["def", "never-seen"], 3)], vocabulary)
    assert row.tolist() == [vocabulary["def"], 0] and number == 3


@pytest.mark.parametrize(
    ("before", "after", "time", "quality"),
    [
        ((40, 0.8), (10, 0.85), "took 10 s instead of 40 s, 4.0 times as fast", "+0.050, better"),
        ((10, 0.8), (20, 0.7), "took 20 s instead of 10 s, 2.0 times as long", "-0.100, worse"),
        ((10, 0.8), (10, 0.802), "1.0 times as", "the same"),
    ],
)
def test_the_verdict(
    before: tuple[float, float], after: tuple[float, float], time: str, quality: str
) -> None:
    runs = {"before": {"curve": [before]}, "after": {"curve": [after]}}
    first, second = classify._verdict({"runs": runs}).splitlines()
    assert time in first and quality in second
