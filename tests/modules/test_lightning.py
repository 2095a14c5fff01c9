"""The modules under Lightning's trainer: what is carried, saved, resumed, measured.

Seen to fail: the carried state, the random state or the position left out of the checkpoint; one
state for all stages; `states[0]` in place of `states[rank]`; `load_state_dict` of ByteText empty;
`reset` not passed on (both kinds of layer); the state of a window not detached; `backend` kept in
the hyperparameters; the loss of padding counted; `_continue` with an empty state; the state of
`TorchRNN` kept at a reset; `fixed_options` empty; training's metrics computed over all processes in
every step, or never.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from language_models import Losses, make_data, make_model, make_trainer, train
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

import lightning_lrnn
from lightning_lrnn import BackendError
from lightning_lrnn.data import TextBatch
from lightning_lrnn.modules import BitsPerByte, LanguageModel, RecurrentModule
from lightning_lrnn.nn import GILRLSTM, RGLRU
from lightning_lrnn.nn.layer import KNOWN as RNNS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(30):
        (text / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 4))
    return tmp_path


RUNS = {
    # The first asks the trainer for its steps, which makes the loader before its state is loaded.
    "epochs": {"max_epochs": 3, "max_steps": -1},
    "steps": {"max_steps": 60},
    "limited": {"max_epochs": 4, "max_steps": -1, "limit_train_batches": 19},
    "validated": {
        "max_steps": 50,
        "limit_val_batches": 2,
        "val_check_interval": 5,
        "check_val_every_n_epoch": None,
    },
}


@pytest.mark.parametrize(
    "run, rnn",
    # In `make test` each run with one of the layers.
    [
        pytest.param(run, rnn, marks=[pytest.mark.nightly] * ((i + j) % 2))
        for i, run in enumerate(RUNS)
        for j, rnn in enumerate(("GILRLSTM", "torch.nn.LSTM"))
    ],
)
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(folder, run, rnn) -> None:
    path, step = folder / "middle.ckpt", 13
    whole = train(folder, make_model(rnn=rnn, dropout=0.2), Losses(step, path), **RUNS[run])
    windows = len(make_data(folder).train_dataloader())
    assert step < windows < len(whole), "in the middle of an epoch, and into the next"

    torch.manual_seed(99)
    rest = train(folder, make_model(rnn=rnn, dropout=0.2), Losses(), path, **RUNS[run])
    assert rest == whole[step:]


def test_run_resumed_after_an_epoch(folder) -> None:
    windows = len(make_data(folder).train_dataloader())
    path, options = folder / "epoch.ckpt", {"max_epochs": 2, "max_steps": -1}
    whole = train(folder, make_model(), Losses(windows, path), **options)
    assert train(folder, make_model(), Losses(), path, **options) == whole[windows:]


def resumed(rank: int, folder: Path) -> None:
    """Seven steps, and those after the third by another run."""
    options = {"devices": 2, "strategy": "ddp", "max_steps": 7}
    with processes.world(rank, 2):
        whole, rest = Losses(3, folder / "middle.ckpt"), Losses()
        model = make_model(dropout=0.2, total_steps=9)
        torch.manual_seed(rank)
        train(folder, model, whole, **options)
        torch.manual_seed(99)
        model = make_model(dropout=0.2, total_steps=9)
        train(folder, model, rest, folder / "middle.ckpt", **options)
    (folder / f"{rank}.json").write_text(json.dumps([whole.losses, rest.losses]))


@pytest.mark.slow
def test_two_processes_resume_with_their_own_streams(folder) -> None:
    processes.spawn(resumed, folder, folder)
    wholes = []
    for rank in range(2):
        whole, rest = json.loads((folder / f"{rank}.json").read_text())
        assert rest == whole[3:]
        wholes.append(whole)
    assert wholes[0] != wholes[1]


def measured(rank: int, folder: Path) -> None:
    """What is called in steps, and a figure after the last step and after the epoch."""
    calls: list[str] = []
    in_steps: list[str] = []

    def counted(call, *args, **kwargs):
        calls.append(call.__name__)
        return call(*args, **kwargs)

    for name in ("barrier", "all_gather"):
        setattr(dist, name, partial(counted, getattr(dist, name)))

    class Count(pl.Callback):
        def on_train_batch_start(self, *args) -> None:
            self.before = len(calls)

        def on_train_batch_end(self, trainer, module, *args) -> None:
            in_steps.extend(calls[self.before :])
            self.own = float(trainer.callback_metrics["train/bits_per_byte"])

    count = Count()
    options = {"devices": 2, "strategy": "ddp", "max_steps": -1, "max_epochs": 1}
    with processes.world(rank, 2):
        trainer = make_trainer(folder, callbacks=[count], limit_train_batches=3, **options)
        trainer.fit(make_model(), make_data(folder))
    assert calls
    actual = [in_steps, count.own, float(trainer.callback_metrics["train/bits_per_byte"])]
    (folder / f"{rank}.json").write_text(json.dumps(actual))


@pytest.mark.slow
def test_processes_measure_training_together_at_the_end_of_an_epoch_only(folder) -> None:
    processes.spawn(measured, folder, folder)
    actual = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert [steps for steps, _, _ in actual] == [[], []]
    own, together = ([row[i] for row in actual] for i in (1, 2))
    assert own[0] != own[1]
    assert together == pytest.approx([sum(own) / 2] * 2, rel=1e-5)


def test_validation_does_not_touch_training(folder) -> None:
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    without = train(folder, make_model(total_steps=10), Losses())
    with_it = train(folder, make_model(total_steps=10), Losses(), limit_val_batches=2, **options)
    assert with_it == without


def test_second_fit_starts_from_zeros_and_logs_each_step(folder) -> None:
    model = make_model()
    train(folder, model, Losses())
    trainer = make_trainer(folder)
    trainer.fit(model, make_data(folder, batch_size=5))
    assert model._states["train"][0][0].shape[1] == 5
    logged = trainer.callback_metrics
    assert float(logged["train/bits_per_byte"]) == pytest.approx(
        float(logged["train/loss"]) / math.log(2)
    )


def test_other_data_are_refused_on_resuming(folder) -> None:
    path = folder / "middle.ckpt"
    train(folder, make_model(), Losses(3, path))
    with pytest.raises(ValueError, match=r"window was 16, is 8.*load_from_checkpoint"):
        make_trainer(folder).fit(
            make_model(), make_data(folder, window=8), ckpt_path=path, weights_only=True
        )


@pytest.mark.parametrize("rnn", RNNS)
def test_state_is_carried_and_detached(folder, rnn) -> None:
    model = make_model(rnn=rnn, num_layers=2)
    batches = list(make_data(folder).train_dataloader())[:3]
    whole = TextBatch(*(torch.cat(part, 1) for part in zip(*batches, strict=True)))
    # Only the first step of a stream starts anew here; otherwise little would be carried.
    whole.reset[:, 1:] = False
    batches = [TextBatch(*parts) for parts in zip(*(x.split(16, 1) for x in whole), strict=True)]
    expected, _ = model.run(whole, None)
    for carry in (True, False):
        model.carry_state = carry
        model.on_train_epoch_start()
        outputs = [model._advance(batch, "train") for batch in batches]
        assert torch.allclose(torch.cat(outputs, 1), expected, rtol=1e-4, atol=1e-5) is carry
        states = [part for layer in model._states.get("train", []) for part in parts(layer)]
        assert bool(states) is carry
        assert not any(state.requires_grad for state in states)
    assert set(model._states) <= {"train"}


@pytest.mark.parametrize("rnn", RNNS)
def test_windows_start_anew_at_files(rnn) -> None:
    model = make_model(rnn=rnn, num_layers=2)
    inputs = torch.randint(1, 256, (2, 12))
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[0, 5] = reset[1, 9] = True
    _, before = model(torch.randint(1, 256, (2, 7)))
    logits, state = model(inputs, before, reset)
    for row, cut in ((0, 5), (1, 9)):
        alone, alone_state = model(inputs[row : row + 1, cut:])
        torch.testing.assert_close(logits[row : row + 1, cut:], alone, rtol=1e-4, atol=1e-5)
        for layer, alone_layer in zip(state, alone_state, strict=True):
            for part, alone_part in zip(parts(layer), parts(alone_layer), strict=True):
                torch.testing.assert_close(part[:, row], alone_part[:, 0], rtol=1e-4, atol=1e-5)
    # And only there.
    unbroken, _ = model(inputs, before, torch.zeros_like(reset))
    torch.testing.assert_close(logits[0, :5], unbroken[0, :5], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[0, 5:], unbroken[0, 5:], rtol=1e-3, atol=1e-3)


def parts(state: Any) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("rnn", RNNS)
def test_bits_per_byte_are_the_cost_of_every_held_out_byte(folder, rnn) -> None:
    model, data = make_model(rnn=rnn), make_data(folder, batch_size=4)
    trainer = make_trainer(folder, limit_val_batches=1.0)
    (actual,) = trainer.validate(model, data, verbose=False)

    nats, count, state = 0.0, 0, None
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits, state = model(batch.inputs, state, batch.reset)
            real = batch.targets >= 0
            nats += float(F.cross_entropy(logits[real], batch.targets[real], reduction="sum"))
            count += int(real.sum())
    assert count == len(data.held_out("val"))
    assert actual["val/bits_per_byte"] == pytest.approx(nats / count / math.log(2), rel=1e-5)
    assert actual["val/loss"] == pytest.approx(nats / count, rel=1e-5)

    bits = torch.cat(trainer.predict(model, data), 1)
    (tested,) = trainer.test(model, data, verbose=False)
    total = tested["test/bits_per_byte"] * len(data.held_out("test"))
    assert float(bits.sum()) == pytest.approx(total, rel=1e-5)


def test_bits_per_byte_of_much() -> None:
    metric = BitsPerByte()
    metric.update(torch.tensor(math.log(2)), torch.tensor(3 * 2**24))
    metric.update(torch.tensor(2 * math.log(2)), torch.tensor(2**24))
    assert float(metric.compute()) == pytest.approx(1.25)


@pytest.mark.parametrize("command", ["test", "fit"])
def test_checkpoint_goes_on_with_another_backend(folder, command) -> None:
    path = folder / "middle.ckpt"
    train(folder, make_model(backend="serial"), Losses(3, path))
    assert lightning_lrnn.last_backend() == "serial"
    assert "backend" not in torch.load(path, weights_only=True)["hyper_parameters"]
    run = getattr(make_trainer(folder, max_steps=5), command)
    run(make_model(backend="scan"), make_data(folder), ckpt_path=path, weights_only=True)
    assert lightning_lrnn.last_backend() == "scan"


def test_backends_agree_on_a_checkpoint(folder) -> None:
    path = folder / "middle.ckpt"
    train(folder, make_model(), Losses(3, path))
    model = LanguageModel.load_from_checkpoint(path, weights_only=True, backend="scan")
    losses = {}
    for backend in ("scan", "serial"):
        model.backend = backend
        assert {layer.backend for layer in model.recurrent_layers().values()} == {backend}
        (actual,) = make_trainer(folder).test(model, make_data(folder), verbose=False)
        assert lightning_lrnn.last_backend() == backend
        losses[backend] = actual["test/loss"]
    assert losses["scan"] == pytest.approx(losses["serial"], rel=1e-5)


@pytest.mark.parametrize("rnn", RNNS)
def test_generate_steps_as_the_sequence_does(rnn) -> None:
    model = make_model(rnn=rnn, num_layers=2).train()
    prompt = b"def f"
    text = prompt + b"".join(model.generate(prompt, 12, temperature=0))
    logits, _ = model(torch.tensor([[0, *text[:-1]]]))
    assert logits[0].argmax(-1).tolist()[len(prompt) :] == list(text[len(prompt) :])
    assert model.training


def test_generate_samples() -> None:
    model = make_model(hidden_size=1, num_layers=1)
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        model.head.bias[[97, 98]] = torch.tensor([50.0, 50.0 + math.log(3)])

    def share(temperature: float, seed: int = 0) -> float:
        generator = torch.Generator().manual_seed(seed)
        text = b"".join(model.generate(b"", 200, temperature, generator))
        assert set(text) <= {97, 98} and len(text) == 200
        return text.count(b"b") / 200

    assert abs(share(1.0) - 0.75) < 0.11  # 3.6 standard deviations
    assert abs(share(0.5) - 0.9) < 0.08
    assert share(1.0) == share(1.0)
    with pytest.raises(ValueError, match="must be a number of at least 0, got -1"):
        model.generate(b"", 3, -1)


@pytest.mark.parametrize("rnn", ["GILRLSTM", "torch.nn.LSTM"])
def test_precision_and_clipping(folder, rnn) -> None:
    norms = []

    class Norms(Losses):
        def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(float(nn.utils.get_total_norm(gradients)))

    model, callback = make_model(rnn=rnn), Norms()
    options = {"precision": "bf16-mixed", "gradient_clip_val": 0.01}
    make_trainer(folder, callbacks=[callback], **options).fit(model, make_data(folder))
    assert 0.0099 < max(norms) < 0.0101
    assert next(model.parameters()).dtype == torch.float32
    assert all(map(math.isfinite, callback.losses))


def test_training_learns(folder) -> None:
    losses = train(folder, make_model(hidden_size=32), Losses(), max_steps=80)
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


def test_learning_rate_rises_and_falls() -> None:
    model = make_model(warmup_steps=4, total_steps=12, final_lr=0.1)
    optimizer = model.make_optimizer()
    schedule = model.make_schedule(optimizer)
    rates = []
    for _ in range(14):
        rates.append(schedule.get_last_lr()[0] / model.lr)
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates[4:13] == sorted(rates[4:13], reverse=True)
    assert rates[8] == pytest.approx(0.55)
    assert rates[12:] == pytest.approx([0.1, 0.1])


def test_only_matrices_decay() -> None:
    model = make_model()
    groups = model.make_optimizer().param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in groups[0]["params"]}
    assert groups[0]["weight_decay"] > 0 == groups[1]["weight_decay"]
    assert {"head.weight", "rnns.0.cells.0.weight_ih"} <= decayed
    assert not [n for n in decayed if "bias" in n or "norm" in n or "embedding" in n]
    assert sum(len(g["params"]) for g in groups) == len(names)


def test_tied_weights_are_one_parameter() -> None:
    model = make_model(tie_weights=True)
    assert model.head.weight is model.embedding.weight
    logits, _ = model(torch.randint(0, 256, (2, 5)))
    assert 0.5 < float(logits.detach().std()) < 2


def test_decays_leave_everything_as_it_was(folder) -> None:
    model = make_model(num_layers=2, dropout=0.5)
    batch = next(iter(make_data(folder).train_dataloader()))
    model._advance(batch, "train")
    before = model._states["train"]
    decays = model.decays(batch)
    assert set(decays) == {
        f"rnns.{i}.layer0.forward.{place}" for i in (0, 1) for place in ("surrogate", "cell")
    }
    assert all(a.shape == (3, 16, 8) and 0 < a.min() and a.max() < 1 for a in decays.values())
    assert model._states["train"] is before and model.training
    assert not any(layer._forward_pre_hooks for layer in model.recurrent_layers().values())
    assert make_model(rnn=nn.LSTM).decays(batch) == {}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "fast"}, BackendError, "no backend 'fast'"),
        ({"rnn": "GRU"}, ValueError, "there is no layer 'GRU'; known are GILR, .* torch.nn.GRU"),
        ({"rnn": "os.system"}, ValueError, "there is no layer 'os.system'; known are GILR, "),
        ({"rnn": nn.GRU(8, 8)}, ValueError, r"`rnn` must be a class.*got GRU\(8, 8\)"),
        ({"rnn": lambda i, h: nn.GRU(i, h)}, ValueError, "`rnn` must be a class.*got <function"),
        ({"rnn": partial(RGLRU, 8)}, ValueError, "`rnn` must be a class.*RGLRU'>, 8"),
        ({"rnn": partial(RGLRU, blocks=3)}, ValueError, "`blocks` .*hidden_size=8, got 3"),
        ({"rnn": partial(RGLRU, memory=(5, 2))}, ValueError, r"`memory` must be .* got .5, 2"),
        ({"rnn": partial(RGLRU, blokcs=3)}, ValueError, "RGLRU does not take .*{'blokcs': 3}"),
        ({"rnn": partial(nn.GRU, blocks=3)}, ValueError, "GRU does not take .*{'blocks': 3}"),
        ({"rnn": partial(nn.GRU, bias=nn.ReLU)}, ValueError, "`rnn.bias` must be .*ReLU"),
        *(
            ({"rnn": partial(kind, **{name: value})}, ValueError, f"`rnn.{name}` must be .*: .+")
            for kind in (GILRLSTM, nn.LSTM)
            for name, value in {
                "bidirectional": True,
                "proj_size": 4,
                "backend": "serial",
                "device": "cpu",
                "dtype": torch.float64,
            }.items()
        ),
    ],
)
def test_errors(options, error, message) -> None:
    with pytest.raises(error, match=message):
        make_model(**options)


class Own(RecurrentModule):
    """What a user writes."""

    def __init__(self, classes: int, backend: str = "auto") -> None:
        super().__init__(backend=backend, warmup_steps=1)
        self.save_hyperparameters()
        self.classes = classes
        self.rnn = lightning_lrnn.nn.GILR(3, 4, batch_first=True, backend=backend)
        self.head = nn.Linear(4, classes)

    def forward(self, inputs, state=None, reset=None):
        y, state = self.rnn(inputs, state, reset=reset)
        return self.head(y), state

    def loss(self, output, batch):
        return F.cross_entropy(output.flatten(0, 1), batch.targets.flatten())

    def make_metrics(self):
        return MetricCollection({"accuracy": MulticlassAccuracy(self.classes, average="micro")})

    def measure(self, metrics, output, batch, loss):
        metrics.update(output.flatten(0, 1), batch.targets.flatten())

    def make_optimizer(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def make_schedule(self, optimizer):
        return None


def test_subclass_in_a_few_lines(folder) -> None:
    class Loader:
        def __iter__(self):
            for _ in range(4):
                x = torch.randn(2, 6, 3)
                yield TextBatch(x, (x.sum(-1) > 0).long(), torch.zeros(2, 6, dtype=torch.bool))

    model = Own(2, backend="serial")
    trainer = make_trainer(folder, limit_val_batches=2, max_steps=-1, max_epochs=1)
    trainer.fit(model, Loader(), Loader())
    logged = trainer.callback_metrics
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(logged)
    assert 0 <= logged["val/accuracy"] <= 1
    trainer.save_checkpoint(folder / "own.ckpt")
    saved = torch.load(folder / "own.ckpt", weights_only=True)["hyper_parameters"]
    assert saved == {"classes": 2}


def test_subclass_without_a_loss_is_told() -> None:
    with pytest.raises(NotImplementedError, match=r"RecurrentModule must define `loss\("):
        RecurrentModule().loss(None, None)
