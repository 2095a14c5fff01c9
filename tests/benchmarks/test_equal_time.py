"""`benchmarks/equal_time.py` and what the text demo tells, at sizes that take seconds.

Seen to fail: steps by the mean of the times; the surrogate RNN's steps for the torch.nn.LSTM; a
verdict for the one with more bits; a learning rate that is not the model's own.
"""

from __future__ import annotations

import functools
import json

import pytest
import torch

from lightning_lrnn.cli.demos import text as demo
from lightning_lrnn.nn import SurrogateRNN
from lightning_lrnn.switch.recommended import recommended

OURS, THEIRS = demo.OURS, demo.THEIRS


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("equal_time")


@pytest.fixture
def small(script, monkeypatch, tmp_path):
    """Models of eight units on a text of 40 kB."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {k} of a text\n" for k in range(2000)))
    ours = functools.partial(SurrogateRNN, surrogate="LRU")
    models = {OURS: {"rnn": ours, "lr": 1e-3}, THEIRS: {"rnn": torch.nn.LSTM, "lr": 2e-3}}
    monkeypatch.setattr(demo, "MODELS", {k: v | {"hidden_size": 8} for k, v in models.items()})
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setattr(script, "ROUNDS", 1)
    data = functools.partial(demo.ByteText, str(text), batch_size=4, window=8)
    monkeypatch.setattr(script, "text", lambda seed: data(seed=seed))
    return script


def samples(ours: float, theirs: float) -> dict[str, list[float]]:
    return {OURS: [ours, ours, 50.0], THEIRS: [theirs, 0.0, theirs]}


def test_as_many_steps_as_fit_by_the_median(script):
    assert demo.fitting(6, samples(1.0, 2.0)) == {OURS: 6, THEIRS: 3}


def test_equal_time_and_equal_steps(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(small, "step_seconds", lambda rounds: samples(1.0, 2.0))
    small.measure([1], 6, tmp_path / "record.json")
    report = json.loads((tmp_path / "record.json").read_text())
    made = [(run["model"], run["seed"], run["steps"], run["lr"]) for run in report["runs"]]
    of_seed = [(OURS, 6, 1e-3), (THEIRS, 3, 2e-3), (small.EQUAL, 3, 1e-3)]
    assert made == [(name, 1, *rest) for name, *rest in of_seed]
    assert all(len(run["curve"]) == run["steps"] for run in report["runs"])
    capsys.readouterr()
    bits = {OURS: (2.0, 3.0), THEIRS: (2.5, 3.3), small.EQUAL: (2.25, 3.4)}
    runs = [
        run | {"bits_per_byte": bits[run["model"]][k]} for k in (0, 1) for run in report["runs"]
    ]
    small.show(report | {"runs": runs})
    shown = capsys.readouterr().out
    assert "equal time: 0.400; by seed 0.300 to 0.500" in shown
    assert "equal steps: 0.075; by seed -0.100 to 0.250" in shown


def test_both_are_tried_at_each_rate(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(small, "step_seconds", lambda rounds: samples(1.0, 2.0))
    small.search([1e-3, 1e-2], 2, tmp_path / "rates.json")
    report = json.loads((tmp_path / "rates.json").read_text())
    tried = [(run["model"], run["lr"], run["steps"]) for run in report["runs"]]
    assert tried == [(OURS, 1e-3, 2), (THEIRS, 1e-3, 1), (OURS, 1e-2, 2), (THEIRS, 1e-2, 1)]
    assert len({run["bits_per_byte"] for run in report["runs"]}) == 4
    capsys.readouterr()
    small.show_rates(report)
    assert f"{report['runs'][2]['bits_per_byte']:9.3f}\n{THEIRS}" in capsys.readouterr().out


def test_a_step_is_one_of_training(small):
    actual = small.step_seconds(3)
    assert list(actual) == [OURS, THEIRS] and all(len(times) == 3 for times in actual.values())


@pytest.mark.parametrize("ours", [2.0, 2.5])
def test_the_demo_tells_who_is_ahead(ours):
    models = {OURS: {"bits_per_byte": ours, "steps": 30}}
    models[THEIRS] = {"bits_per_byte": 2.25, "steps": 20}
    message = demo._verdict({"seconds": 90.0, "models": models})
    assert message.startswith(f"{OURS if ours < 2.25 else THEIRS} is ahead after 90 s: 0.25 bits")
    assert "1.50 times as many" in message


def test_the_demo_shows_what_auto_takes():
    layer, ours = recommended(torch.nn.LSTM(256, 256)), demo.MODELS[OURS]["rnn"]
    assert (ours.func, ours.keywords) == (layer.layer_class, layer.options)
