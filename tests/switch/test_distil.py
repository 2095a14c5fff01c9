"""Layers that learn from those that they replaced.

Seen to fail: the copy or one of its conditions left out, the old layer's outputs not handed on,
states not known again, the error of padding counted, dropout left on, the rest of the module
trained or decayed, the old layer kept, gradients not reduced; calls of a validation learned from,
autocast forgotten, the learning rate not falling with the error, every call of the same weight.
"""

from __future__ import annotations

import copy

import processes
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_map

from lightning_lrnn import SwitchError, SwitchRNN, fit_surrogate, replace_rnn
from lightning_lrnn.switch.distil import Distillation

B, T, M, H = 4, 9, 3, 6
close = torch.testing.assert_close
KINDS = {"LSTM": "GILRLSTM", "GRU": "GILRGRU", "RNN": "GILRRNN"}


class Model(nn.Module):
    def __init__(self, kind="LSTM", **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(M, H, batch_first=True, **options)
        self.head = nn.Linear(H, 2)

    def forward(self, x, hx=None):
        y, hx = self.rnn(x, hx)
        return self.head(y), hx


def batches(n=3):
    return [torch.randn(B, T, M) for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_both_layers_have_is_copied(kind, bidirectional):
    model = nn.ModuleDict({"rnn": getattr(nn, kind)(M, H, 2, bidirectional=bidirectional)})
    old = copy.deepcopy(model["rnn"])
    replace_rnn(model, {kind: KINDS[kind]}, state="carried", weights="carried")
    ends = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"] if bidirectional else ["_l0", "_l1"]
    for cell, end in zip(model["rnn"].cells, ends, strict=True):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            close(getattr(cell, name).detach(), getattr(old, name + end).detach())


def test_of_another_function_nothing_is_copied():
    model, options = Model("LSTM"), {"output_activation": "identity"}
    replace_rnn(model, "GILRLSTM", options=options, state="carried", weights="carried")
    (old,) = vars(model.rnn)["_teacher"]
    assert (model.rnn.cells[0].weight_ih != old.weight_ih_l0).all()


AUTO = {
    "LSTM": ({}, "LSTM"),
    "GRU": ({}, "GRU"),
    "RNN": ({"nonlinearity": "relu"}, "RNN_RELU"),
}


@pytest.mark.parametrize("kind", AUTO)
def test_with_carried_states_auto_begins_at_the_old_layers_function(kind):
    options, function = AUTO[kind]
    model = Model(kind, **options)
    old, x = copy.deepcopy(model.rnn), torch.randn(B, 3, M)
    (report,) = replace_rnn(model, weights="carried", state="carried")
    assert f"cell='{function}'" in report.new and "passes=3" in report.new
    assert not any("nonlinearity" in note or "`state`" in note for note in report.notes)
    # Three passes: from a state that is known, three steps, whatever the surrogate.
    state = tree_map(torch.randn_like, old(x)[1])
    close(model.rnn(x, state)[0], old(x, state)[0])
    for other in ({"weights": "new", "state": "carried"}, {"weights": "carried"}):
        model = Model(kind, **options)
        (report,) = replace_rnn(model, **other)
        assert "passes=3" not in report.new
        said = [note for note in report.notes if "`state`: carried would start" in note]
        assert len(said) == ("state" not in other)
    model = Model(kind, **options)
    (report,) = replace_rnn(model, KINDS[kind], weights="carried")
    assert not any("would start" in note for note in report.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_computes_as_before_while_its_layers_learn(kind):
    model = Model(kind)
    x = torch.randn(B, T, M)
    expected, _ = model(x)
    replace_rnn(model, "auto", weights="carried")
    assert not torch.allclose(model(x)[0], expected)
    learning = Distillation(model, 10)
    close(model(x)[0], expected)
    learning.finish()
    assert not torch.allclose(model(x)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_falls_and_nothing_else_is_trained(kind):
    torch.manual_seed(0)
    model = Model(kind, num_layers=2, dropout=0.5)
    replace_rnn(model, "auto", weights="carried")
    head = copy.deepcopy(model.head.state_dict())
    errors = fit_surrogate(model, batches(), steps=8, call=lambda x: model(x))
    assert len(errors) == 8 and sum(errors[-3:]) < 0.5 * sum(errors[:3])
    close(dict(model.head.state_dict()), dict(head))
    assert "_teacher" not in vars(model.rnn) and "forward" not in vars(model.rnn)
    with pytest.raises(ValueError, match="no layer has an old one to learn from"):
        fit_surrogate(model, batches())


def test_the_error_is_that_of_outputs_without_dropout():
    model = Model("LSTM", num_layers=2, dropout=0.5).train()
    replace_rnn(model, "auto", weights="carried")
    layer, (old,) = model.rnn, vars(model.rnn)["_teacher"]
    x = torch.randn(B, T, M)
    with torch.no_grad():
        y, target = copy.deepcopy(layer).eval()(x)[0], copy.deepcopy(old).eval()(x)[0]
    (error,) = fit_surrogate(model, [x], steps=1)
    close(error, ((y - target).square().sum() / target.square().sum()).item(), rtol=1e-5, atol=0)
    assert layer.training


def test_windows_follow_each_other():
    """The final state of the old layer, detached, stands for that of the new one."""
    torch.manual_seed(0)
    model = Model("LSTM")
    replace_rnn(model, "auto", weights="carried")
    layer = copy.deepcopy(model.rnn)
    x = torch.randn(B, T, M)
    learning = Distillation(model, 10)
    _, hx = model(x[:, :4])
    y_old, _ = model(x[:, 4:], tuple(part.detach() for part in hx))
    learning.step()
    _, state = layer(x[:, :4])
    y, _ = layer(x[:, 4:], state)
    with torch.no_grad():
        (old,) = vars(model.rnn)["_teacher"]
        target, _ = old(x)
        first = (layer(x[:, :4])[0] - target[:, :4]).square().sum() / target[:, :4].square().sum()
        second = (y - target[:, 4:]).square().sum() / target[:, 4:].square().sum()
    close(y_old, model.head(target[:, 4:]))
    close(learning.errors[0], ((first + second) / 2).item(), rtol=1e-4, atol=0)


def test_a_layer_that_nearly_gives_the_old_outputs_is_not_made_worse():
    """Three passes from a known state: three exact steps, and a fourth with a small error."""
    torch.manual_seed(1)
    model = Model("LSTM")
    replace_rnn(model, weights="carried", state="carried")
    errors = fit_surrogate(model, [torch.randn(B, 4, M) for _ in range(5)], steps=5)
    assert errors[0] < 1e-4 and max(errors) < 5 * errors[0]


def test_a_layer_that_is_called_at_every_step_weighs_as_one_that_is_called_once():
    model = nn.ModuleDict({"often": nn.LSTM(M, M), "once": nn.LSTM(M, H)})
    replace_rnn(model, {"LSTM": "GILRLSTM"}, state="carried", weights="carried")
    learning, x = Distillation(model, 5), torch.randn(T, B, M)
    errors = {}
    for name, layer in model.items():
        (teacher,) = vars(layer)["_teacher"]
        with torch.no_grad():
            calls = [x[:1]] * 3 if name == "often" else [x]
            y, target = type(layer).forward(layer, calls[0])[0], teacher(calls[0])[0]
        errors[name] = ((y - target).square().sum() / target.square().sum()).item()
        for call in calls:
            layer(call)
    learning.step()
    close(learning.errors[0], sum(errors.values()) / 2, rtol=1e-5, atol=0)


def test_what_the_project_writes_into_later():
    def errors(write):
        torch.manual_seed(0)
        model = nn.ModuleDict({"rnn": nn.LSTM(M, H)})
        replace_rnn(model, weights="carried", state="carried")
        learning, x = Distillation(model, 1), torch.randn(T, B, M)
        y, _ = model["rnn"](x)
        if write:
            x.zero_()
            y.detach().zero_()
        learning.step()
        return learning.errors

    assert errors(True) == errors(False)


def test_under_autocast():
    model = Model("LSTM")
    replace_rnn(model, "auto", weights="carried")
    learning = Distillation(model, 5)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            # What comes out of a linear layer is bfloat16 there, and no parameter is.
            model(torch.randn(B, T, M).bfloat16())
        learning.step()
    assert learning.errors[-1] < learning.errors[0]
    assert {p.dtype for p in model.rnn.parameters()} == {torch.float32}


def test_packed_rows():
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.GRU(M, H, batch_first=True)})
    replace_rnn(model, "auto", weights="carried")
    packed = pack_padded_sequence(
        torch.randn(3, 7, M), torch.tensor([2, 7, 4]), batch_first=True, enforce_sorted=False
    )
    errors = fit_surrogate(model, [packed], steps=5, call=lambda x: model["rnn"](x))
    assert errors[-1] < 0.5 * errors[0]


def test_nobody_calls_the_layer():
    model = Model()
    replace_rnn(model, "auto", weights="carried")
    with pytest.raises(ValueError, match="no batch that reaches a layer"):
        fit_surrogate(model, [1, 2], call=lambda batch: None)
    with pytest.raises(ValueError, match="`weights` must be one of new, carried, got 'old'"):
        replace_rnn(Model(), "auto", weights="old")


class Project(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Model("LSTM")

    def training_step(self, batch, index):
        return self.net(batch)[0].square().mean()

    def validation_step(self, batch, index):
        self.net(batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.1)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_validation_meanwhile_is_not_learned_from(inference_mode, tmp_path):
    def fit(validations):
        pl.seed_everything(0, verbose=False)
        project, loader = Project(), torch.utils.data.DataLoader(torch.randn(40, T, M), B)
        pl.Trainer(
            accelerator="cpu",
            max_steps=4,
            callbacks=[SwitchRNN(weights="carried", carry_steps=5)],
            val_check_interval=2,
            limit_val_batches=validations,
            inference_mode=inference_mode,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(project, loader, torch.utils.data.DataLoader(torch.randn(8, T, M), B))
        return project.state_dict()

    close(fit(2), fit(0), rtol=0, atol=0)


def test_the_first_steps_of_fit_are_the_new_layers(tmp_path):
    def fit(steps):
        pl.seed_everything(0, verbose=False)
        project, loader = Project(), torch.utils.data.DataLoader(torch.randn(40, T, M), B)
        head = copy.deepcopy(project.net.head.state_dict())
        pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[SwitchRNN(weights="carried", carry_steps=5)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(project, loader)
        assert "_teacher" not in vars(project.net.rnn)
        moved = any((head[k] != v).any() for k, v in project.net.head.state_dict().items())
        return moved, project.net.rnn.cells[0].weight_ih.detach()

    few, more, most = fit(1), fit(5), fit(6)
    assert [moved for moved, _ in (few, more, most)] == [False, False, True]
    assert (few[1] != more[1]).all() and (more[1] != most[1]).any()


def test_parameters_in_parts_are_refused(tmp_path):
    class FSDPStrategy(SingleDeviceStrategy):
        """By its name; the real one needs a GPU."""

    project = Project()
    trainer = pl.Trainer(
        strategy=FSDPStrategy("cpu"),
        max_steps=1,
        callbacks=[SwitchRNN(weights="carried")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(SwitchError, match="needs whole parameters, and FSDPStrategy divides"):
        trainer.fit(project, torch.utils.data.DataLoader(torch.randn(4, T, M), B))
    assert "forward" not in vars(project.net.rnn)


class OfTwo(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def prepare_data(self):
        torch.manual_seed(0)  # before the switch, in the process that makes it

    def training_step(self, batch, index):
        ranks = (0, 1) if self.trainer.world_size == 1 else (self.global_rank,)
        parts = [batch[rank::2] for rank in ranks]
        losses = [self.head(self.rnn(part)[0]).square().mean() for part in parts]
        return torch.stack(losses).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def learned(rank, devices, strategy):
    with processes.world(rank, devices):
        pl.seed_everything(0, verbose=False)
        project, data = OfTwo(), torch.randn(20, 5, 3)
        pl.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            use_distributed_sampler=False,
            max_steps=5,
            callbacks=[SwitchRNN(weights="carried", state="carried", carry_steps=3)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(project, torch.utils.data.DataLoader(data, 4))
    return project.state_dict()


def learn(rank):
    expected = learned(rank, 1, "auto")
    for strategy in ("ddp", "ddp_find_unused_parameters_true"):
        torch.testing.assert_close(learned(rank, 2, strategy), expected, rtol=1e-4, atol=1e-6)


def test_two_processes_learn_from_old_layers_as_one_does(tmp_path):
    processes.spawn(learn, tmp_path)
