"""Optimizers that are older than a switch.

Seen to fail: old parameters left in their groups; groups made anew, not changed in place; state of
old parameters kept; names of parameters not moved; no look before a step.
"""

from __future__ import annotations

import pytest
import torch
from project import H, M, project, trainer
from torch import nn

from lightning_lrnn import SwitchError, SwitchRNN, replace_rnn
from lightning_lrnn.nn.stack import Stack


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(M, M)
        self.rnn = nn.LSTM(M, H, 2, batch_first=True)
        self.head = nn.Linear(H, 1)

    def forward(self, x):
        return self.head(self.rnn(self.first(x))[0]).square().mean()


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(2, 4, M)).backward()
    optimizer.step()


def held(optimizer):
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


def switch(model):
    replace_rnn(model, "GILRLSTM")


def load(model):
    other = Model()
    replace_rnn(other, "GILRLSTM")
    model.load_state_dict(other.state_dict())


both_ways = pytest.mark.parametrize("change", [switch, load])


@both_ways
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS])
def test_it_gets_the_new_parameters(change, kind):
    model = Model()
    optimizer = kind(model.parameters())
    groups = [group["params"] for group in optimizer.param_groups]
    if kind is torch.optim.Adam:
        step(model, optimizer)
    kept = dict(optimizer.state[model.head.weight])
    change(model)
    assert isinstance(model.rnn, Stack)
    assert sorted(held(optimizer)) == sorted(id(p) for p in model.parameters())
    assert all(g["params"] is was for g, was in zip(optimizer.param_groups, groups, strict=True))
    assert kept.items() <= optimizer.state[model.head.weight].items()
    assert len(optimizer.state) <= 4
    if kind is torch.optim.Adam:
        before = model.rnn.cells[0].weight_ih.clone()
        step(model, optimizer)
        assert not torch.equal(model.rnn.cells[0].weight_ih, before)
        again = kind(model.parameters())
        again.load_state_dict(optimizer.state_dict())


@both_ways
def test_groups_and_names(change):
    model = Model()
    named = dict(model.named_parameters())
    matrices = [(n, p) for n, p in named.items() if p.ndim > 1]
    vectors = [(n, p) for n, p in named.items() if p.ndim == 1]
    optimizer = torch.optim.SGD([{"params": matrices, "lr": 0.1}, {"params": vectors}], 0.2)
    change(model)
    named = {id(p): n for n, p in model.named_parameters()}
    first, second = optimizer.param_groups
    assert all(p.ndim > 1 for p in first["params"]) and all(p.ndim == 1 for p in second["params"])
    assert len(held(optimizer)) == len(named)
    for group in optimizer.param_groups:
        assert [named[id(p)] for p in group["params"]] == group["param_names"]
    # In the place of the old ones, not at the end.
    assert "head" not in first["param_names"][1] and "head" in first["param_names"][-1]


@both_ways
def test_what_cannot_be_exchanged_ends_with_an_error(change):
    model = Model()
    layers = [[p for n, p in model.rnn.named_parameters() if n.endswith(f"l{k}")] for k in (0, 1)]
    optimizer = torch.optim.SGD([{"params": layer} for layer in layers], 0.1)
    change(model)
    with pytest.raises(SwitchError, match=r"SGD was made before the switch .*weight_ih_l0"):
        step(model, optimizer)
    model = Model()
    parameters = list(model.parameters())
    change(model)
    with pytest.raises(SwitchError, match=r"Adam was made before the switch"):
        step(model, torch.optim.Adam(parameters))


def test_an_old_layer_may_go_on_by_itself():
    model = Model()
    old = model.rnn
    switch(model)
    optimizer = torch.optim.SGD(old.parameters(), 0.1)
    old(torch.randn(2, 4, M))[0].sum().backward()
    optimizer.step()


@pytest.mark.parametrize("made", ["optimizer", "list", "groups", "head"])
def test_in_a_run(tmp_path, made):
    pl, Project = project()

    class Early(Project):
        def __init__(self):
            super().__init__()
            self.parameters_then = list(self.parameters())
            if made == "optimizer":
                self.optimizers_then = [torch.optim.Adam(self.parameters_then)]

        def configure_optimizers(self):
            if made == "optimizer":
                return self.optimizers_then
            if made == "list":
                return torch.optim.Adam(self.parameters_then)
            if made == "groups":
                return torch.optim.Adam([{"params": [p]} for p in self.parameters_then])
            return torch.optim.Adam(self.head.parameters())

    model, run = Early(), trainer(pl, tmp_path, SwitchRNN("GILR"))
    if made in ("groups", "head"):
        with pytest.raises(SwitchError, match="parameters of rnn are new, and no optimizer has"):
            run.fit(model)
        return
    run.fit(model)
    assert sorted(held(run.optimizers[0])) == sorted(id(p) for p in model.parameters())


def test_a_frozen_layer_needs_no_optimizer(tmp_path):
    pl, Project = project()

    class Frozen(Project):
        def setup(self, stage):
            self.rnn.requires_grad_(False)

        def configure_optimizers(self):
            return torch.optim.Adam(self.head.parameters())

    trainer(pl, tmp_path, SwitchRNN("GILR")).fit(Frozen())
