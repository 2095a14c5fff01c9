"""`benchmarks/carried.py`: what it counts as steps, and what learns in them.

Seen to fail: the first steps not of learning; the rest of the model left to its optimizer in them;
the goal by the loss at the end of the training.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def benchmark(benchmark_script):
    return benchmark_script("carried")


@pytest.fixture
def small(benchmark, monkeypatch):
    """A project whose losses on unseen data are told."""
    from projects.project import Project

    class Small(Project):
        package, cell, unseen, heads = "torch", "GRU", [], []

        def fit(self):
            self.model = torch.nn.ModuleDict(
                {"rnn": torch.nn.GRU(3, 4), "head": torch.nn.Linear(4, 3)}
            )
            self.watch.switch(self.model)
            Small.heads = []
            optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
            for _ in range(self.steps):
                x = torch.rand(5, 4, 3)
                loss = (self.model["head"](self.model["rnn"](x)[0]) - x).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                self.watch.step(loss)
                Small.heads.append(self.model["head"].weight.detach().clone())

        def validation(self):
            return Small.unseen.pop(0)

    monkeypatch.setattr(benchmark, "find", lambda name: Small)
    monkeypatch.setitem(benchmark.STEPS, "Small", 20)
    monkeypatch.setitem(benchmark.LOOKS, "Small", 4)
    return Small


def test_all_steps_count_and_in_the_first_only_new_layers_learn(benchmark, small, monkeypatch):
    monkeypatch.setattr(benchmark, "OWN_LOOKS", 2)
    # At the end of the training, and in the loop as it is: L = 1.
    trained, as_it_is = [0.5], [0.9, 1.1]
    small.unseen = [*trained, *as_it_is, *[1.2] * 5]
    actual = benchmark.measure("Small", ["as it is", "new"], {})
    assert [step for step, _ in actual["arms"]["as it is"]["validation"]] == [4, 8]
    assert [step for step, _ in actual["arms"]["new"]["validation"]] == [4, 8, 12, 16, 20]
    assert benchmark.reached(actual, "new") is None and len(small.heads) == 20
    assert (small.heads[0] != small.heads[1]).any()
    small.unseen = [*trained, 1.2, 1.031, 1.03]
    actual = benchmark.measure("Small", ["carried"], actual)
    assert set(actual["arms"]) == {"as it is", "new", "carried"}
    carried = actual["arms"]["carried"]
    assert [step for step, _ in carried["validation"]] == [5, 9, 13]
    assert benchmark.reached(actual, "carried") == 13 and "passes=3" in carried["report"]
    assert len(carried["errors"]) == 5
    first, *others = small.heads
    assert [torch.equal(first, other) for other in others] == [True] * 4 + [False] * 7
    small.unseen = [2.0, *as_it_is]
    assert set(benchmark.measure("Small", ["as it is"], actual)["arms"]) == {"as it is"}


def test_table(benchmark):
    def model(own, **arms):
        arms = {name: {"validation": run} for name, run in arms.items()}
        arms["as it is"] = {"validation": [[10, own - 0.5], [20, own + 0.5]]}
        return {"cell": "LSTM", "steps": 2000, "loss": own + 0.1, "arms": arms}

    report = {
        "models": {
            "one": model(2.0, new=[[400, 2.0]], carried=[[25, 2.5], [45, 2.06], [65, 1.9]]),
            "below 0": model(-1.0, new=[[2000, -0.9]], carried=[[100, -0.975]]),
            "never": model(1.0, new=[[2000, 1.1]], carried=[[2000, 1.1]]),
        }
    }
    head, line, *rows = benchmark.table(report)
    assert head.count("|") == line.count("|") == rows[0].count("|")
    assert rows == [
        "| one, LSTM | 2,000 | 2.100 | 2.000, 1.500 to 2.500 | 400 | 45 (0.11) |",
        "| below 0, LSTM | 2,000 | -0.900 | -1.000, -1.500 to -0.500 | more than 2,000 "
        "| 100 (under 0.05) |",
        "| never, LSTM | 2,000 | 1.100 | 1.000, 0.500 to 1.500 | more than 2,000 "
        "| more than 2,000 |",
    ]
