"""`benchmarks/switch.py`: what it takes down of a project, and what it makes of that."""

from __future__ import annotations

import pytest
import torch

RNN = {"LSTM": "MinLSTM"}


@pytest.fixture
def benchmark(benchmark_script):
    return benchmark_script("switch")


@pytest.fixture
def small(benchmark, monkeypatch):
    """A project that learns to give its input back; loads what `loads` says."""
    from projects.project import Project

    class Small(Project):
        package, cell, steps, loads, drawn = "torch", "LSTM", 30, "its own", ()

        def fit(self):
            self.model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(3, 3)})
            self.watch.switch(self.model)
            optimizer = torch.optim.Adam(self.model.parameters(), 0.03)
            for _ in range(self.steps):
                x = torch.rand(5, 4, 3)
                Small.drawn += (float(x.sum()),)
                loss = (self.model["rnn"](x)[0] - x).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                self.watch.step(loss)

        def validation(self):
            return 1.0

        def output(self):
            return self.model["rnn"](torch.ones(5, 4, 3))[0]

        def reload(self):
            torch.save(self.model, self.folder / "model.pt")
            if self.loads == "another":
                self.model["rnn"] = torch.nn.LSTM(3, 3)
            else:
                self.model = torch.load(self.folder / "model.pt", weights_only=False)

    monkeypatch.setattr(benchmark, "find", lambda name: Small)
    return Small


def test_a_run_has_the_losses_of_the_project_and_of_the_switched_one(benchmark, small):
    stock, again = (benchmark.losses_of("Small", None, 3, None) for _ in range(2))
    assert stock == again and stock["reloaded"] == "same" and len(stock["losses"]) == 30
    assert benchmark.last(stock["losses"]) < stock["losses"][0] and stock["report"] == ""
    other = benchmark.losses_of("Small", None, 4, 5)
    assert len(other["losses"]) == 5 and other["losses"][0] != stock["losses"][0]
    switched = benchmark.losses_of("Small", RNN, 3, 5)
    assert "MinLSTM" in switched["report"] and switched["losses"] != stock["losses"][:5]
    assert small.drawn[-5:] == small.drawn[:5]


def test_what_goes_wrong_is_taken_down(benchmark, small):
    small.loads = "another"
    assert benchmark.losses_of("Small", None, 0, 2)["reloaded"].startswith("other output: ")
    small.loads = "its own"
    small.output = lambda self: self.missing
    assert "AttributeError" in benchmark.losses_of("Small", None, 0, 2)["reloaded"]
    small.validation = lambda self: 1 / 0
    assert benchmark.losses_of("Small", None, 0, 2)["error"].startswith("ZeroDivisionError: ")


def test_the_times_are_of_steps_in_turn(benchmark, small):
    pytest.importorskip("greenlet")
    seconds = benchmark.times_of("Small", RNN)
    assert {name: len(samples) for name, samples in seconds.items()} == {
        "stock": 28,
        "switched": 28,
    }


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], ["other"]),
        (["--keep", "--seeds", "2"], ["other", "stock"]),
        (["--keep", "--seeds", "1"], ["other"]),
    ],
)
def test_what_is_kept_of_a_record(benchmark, options, kept):
    run = {"project": "Stanza-charlm", "rnn": None, "seed": 1, "losses": [1.0]}
    runs = {
        "other": {**run, "project": "Allosaurus", "rnn": "auto"},
        "stock": run,
        "failed": {**run, "error": "ValueError: no"},
        "switched": {**run, "rnn": "auto"},
    }
    options = benchmark.read(["--projects", "Stanza-charlm", *options])
    actual, tasks = benchmark.wanted(list(runs.values()), "auto", options)
    assert actual == [runs[name] for name in kept]
    arms = [(seed, arm) for seed in range(options.seeds) for arm in (None, "auto")]
    there = [(1, None)] if "stock" in kept else []
    assert tasks == [("Stanza-charlm", a, s, None) for s, a in arms if (s, a) not in there]


def test_table(benchmark):
    def runs(name, rnn, losses, **more):
        run = {"project": name, "rnn": rnn, "validation": 2.0, "reloaded": "same", **more}
        return [{**run, "seed": seed, "losses": [9.0, loss]} for seed, loss in enumerate(losses)]

    report = {
        "projects": {name: {"cell": "GRU"} for name in ("better", "below 0", "failed")},
        "seconds_per_step": {"better": {"stock": [0.1, 0.2, 0.2], "switched": [0.1, 0.1, 9.0]}},
        "runs": [
            *runs("better", None, [1.0, 3.0]),
            *runs("better", "auto", [1.0, 2.0], validation=1.0),
            *runs("below 0", None, [-1.0, -1.0]),
            *runs("below 0", "auto", [-0.9, -0.9], reloaded="KeyError: 'x'"),
            *runs("failed", None, [1.0]),
            {"project": "failed", "rnn": "auto", "seed": 0, "error": "ValueError: no"},
        ],
    }
    rows = list(benchmark.table(report))
    cells = rows[0].count("|")
    assert rows[1].count("|") == rows[2].count("|") == rows[3].count("|") == cells
    assert rows[2].startswith("| better | GRU | 2 | 9 | 2 | 1.5 | 0.750 | 2 -> 1 | 0.500 |")
    assert rows[2].endswith("| 200.0 -> 100.0 | 0.500 | same |")
    assert "| -1 | -0.9 | 1.100 |" in rows[3] and rows[3].endswith("| NO: KeyError: 'x' |")
    assert "ValueError: no" in rows[4] and rows[4].count("|") == cells
    assert rows[-1].endswith("below 0, failed.")


def test_words_of_source_and_what_they_are(benchmark):
    from projects.python_words import sentences

    lines = list(sentences())
    assert len(lines) > 6_600 and all(4 <= len(line) <= 25 for line in lines)
    tags = {tag for line in lines for _, tag in line}
    assert {"DEF", "CLASS", "METHOD", "ATTRIBUTE", "PARAMETER", "ARGUMENT", "CALLED"} <= tags
