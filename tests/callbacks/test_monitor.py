"""RecurrenceMonitor and its parts on LightningModules that know nothing of them.

Seen to fail: an input that is no view of itself; no end of a backward without one of its input;
spans added up in place of their union; hooks left where they are, after a step and after an
exception; `observed` taken off the backward; lengths ignored; zoneout left out in the step of the
decays; times measured in that step; no measurement at the end; sequences left out of tokens;
utilisation not divided; a WandbLogger of one package only; the module asked in place of its layers.
"""

from __future__ import annotations

import importlib.util
import re
import types
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from paths import ROOT
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from wandb_file import history, summary

import lightning_lrnn as lrnn
from lightning_lrnn.callbacks import BackendReport, MemoryHorizon, RecurrenceMonitor, Throughput
from lightning_lrnn.callbacks import throughput as throughput_module
from lightning_lrnn.callbacks.memory_horizon import saturation, time_constants
from lightning_lrnn.callbacks.probes import layer_times
from lightning_lrnn.callbacks.probes.layer_times import LayerTimes
from lightning_lrnn.cli.plot import read

pytestmark = [
    pytest.mark.filterwarnings("ignore:The `lightning.*installed both:UserWarning"),
]

B, T, FEATURES = 4, 12, 3
LENGTHS = torch.tensor([12, 3, 7, 1])


class Foreign(pl.LightningModule):
    """A model as somebody else writes it: packed sequences, a head, dropout."""

    def __init__(self, rnn: nn.Module, **more: Any) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"rnn": rnn})
        self.head = nn.Linear(5, 1)
        self.dropout = nn.Dropout(0.3)
        self.losses: list[float] = []
        self.hooks: list[int] = []
        for name, value in more.items():
            setattr(self, name, value)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.hooks.append(hooks(self))
        x, lengths = batch
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.inner["rnn"](packed)
        loss = self.head(self.dropout(output.data)).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def hooks(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in module.modules() for kind in kinds)


def batches(number: int) -> Any:
    data = [(torch.randn(B, T, FEATURES), LENGTHS) for _ in range(number)]
    return torch.utils.data.DataLoader(data, batch_size=None)


def train(model: pl.LightningModule, folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": CSVLogger(folder, name="", version=""),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 5,
        "max_epochs": 1,
    }
    trainer = pl.Trainer(**defaults | options, callbacks=list(callbacks), default_root_dir=folder)
    torch.manual_seed(3)
    trainer.fit(model, batches(12))
    return trainer


def make(name: str, **options: Any) -> Foreign:
    torch.manual_seed(1)
    kind = getattr(nn if name.startswith("torch.") else lrnn.nn, name.removeprefix("torch."))
    return Foreign(kind(FEATURES, 5, batch_first=True, **options))


@pytest.mark.parametrize("name", ["GILRLSTM", "QRNN", "LRU", "torch.LSTM", "torch.GRU"])
def test_training_is_the_same_bit_by_bit(name: str, tmp_path: Path) -> None:
    options = {"zoneout": 0.5} if name == "QRNN" else {"num_layers": 2, "dropout": 0.5}
    without, monitored = make(name, **options), make(name, **options)
    train(without, tmp_path / "without")
    train(monitored, tmp_path / "with", RecurrenceMonitor(every_n_steps=2))
    assert monitored.losses == without.losses
    for p, q in zip(without.parameters(), monitored.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["GILRLSTM", "QRNN", "LRU", "torch.LSTM", "torch.GRU"])
def test_what_is_logged_and_when(name: str, tmp_path: Path) -> None:
    model, monitor = make(name), RecurrenceMonitor(every_n_steps=4)
    train(model, tmp_path, monitor)
    logged = read(tmp_path / "metrics.csv")
    ours = not name.startswith("torch.")

    rates = {f"train/{what}_per_second" for what in ("steps", "sequences", "tokens")}
    assert rates <= logged.keys()
    assert [step for step, _ in logged["train/tokens_per_second"]] == [5, 10, 12]
    shares = [logged["recurrence/layer_share"]]
    if ours:
        shares.append(logged["recurrence/share"])
    for curve in shares:
        # After two steps, half of four, and every four from there.
        assert [step for step, _ in curve] == [3, 7, 11]
        assert all(0 < share < 1 for _, share in curve)
    if ours:
        assert all(a > b for (_, a), (_, b) in zip(*shares, strict=True))
    horizons = {key: curve for key, curve in logged.items() if key.startswith("horizon/inner.rnn.")}
    open_gates = [key for key in logged if key.startswith("saturation/inner.rnn.layer0.forward.")]
    assert bool(horizons) is bool(open_gates) is ours
    for curve in horizons.values():
        assert [step for step, _ in curve] == [4, 8, 12]
    assert "recurrence/share" in logged or not ours
    assert monitor.backend.report["recurrence/backend"] == (lrnn.last_backend() if ours else "none")
    # Hooks in the steps that are measured and in no others.
    times, decays = [k in (2, 6, 10) for k in range(12)], [k in (3, 7, 11) for k in range(12)]
    expected = [t or (d and ours) for t, d in zip(times, decays, strict=True)]
    assert [bool(count) for count in model.hooks] == expected
    assert hooks(model) == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_decays_are_those_of_the_valid_steps(replaced: bool, tmp_path: Path) -> None:
    model = make("torch.LSTM" if replaced else "GILRLSTM")
    if replaced:
        lrnn.replace_rnn(model, "GILRLSTM")
    horizon = MemoryHorizon()
    seen: list[Any] = []

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            x, lengths = batch
            seen[:] = [model.inner["rnn"].decays(x, lengths=lengths)]

    train(model, tmp_path, Note(), horizon)
    assert set(horizon.latest) == {
        f"inner.rnn.layer0.forward.{place}" for place in ("cell", "surrogate")
    }
    valid = torch.arange(T) < LENGTHS[:, None]
    for place, a in seen[0].items():
        torch.testing.assert_close(
            horizon.latest[f"inner.rnn.{place}"], time_constants(a[valid]), rtol=1e-4, atol=1e-5
        )
        assert not torch.allclose(time_constants(a[valid]), time_constants(a), rtol=1e-3)


def test_a_method_is_asked_where_there_is_no_layer(tmp_path: Path) -> None:
    horizon = MemoryHorizon(every_n_steps=5)
    model = make("torch.GRU")
    model.decays = lambda batch: {"own": torch.full((2, 7, 3), 0.5)}
    train(model, tmp_path, horizon)
    assert horizon.latest["own"].tolist() == pytest.approx([1 / 0.6931] * 3, rel=1e-3)
    steps = [step for step, _ in read(tmp_path / "metrics.csv")["horizon/own/p50"]]
    assert steps == [5, 10, 12]


def test_a_horizon_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"needs a layer of lightning_lrnn .* Foreign has neither"):
        train(make("torch.GRU"), tmp_path, MemoryHorizon())


def test_saturation() -> None:
    a = torch.tensor([0.0, 0.009, 0.011, 0.5, 0.989, 0.991, 1.0, -0.995])
    assert saturation(a) == {"closed": 2 / 8, "open": 3 / 8, "growing": 0}


def test_a_unit_that_grows_is_not_one_that_remembers(tmp_path: Path) -> None:
    """Seen to fail: an infinite horizon and an open gate, as of a decay of 1."""
    model = make("torch.GRU")
    model.decays = lambda batch: {"own": torch.tensor([0.5, 1.0, 1.25, -1.5]).expand(2, 7, 4)}
    train(model, tmp_path, MemoryHorizon(every_n_steps=5))
    logged = read(tmp_path / "metrics.csv")
    assert {x for _, x in logged["saturation/own/growing"]} == {0.5}
    assert {x for _, x in logged["saturation/own/open"]} == {0.75}


class Takes(torch.autograd.Function):
    """Takes so long forward, and so long backward."""

    @staticmethod
    def forward(ctx, clock, forward, backward, *tensors):
        ctx.clock, ctx.seconds = clock, backward
        clock.now += forward
        return tensors[0].clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.now += ctx.seconds
        return None, None, None, gradient, *([None] if len(ctx.needs_input_grad) > 4 else [])


class Slow(nn.RNN):
    """A layer that takes 3 seconds forward and 5 backward, of which 2 are those of its input."""

    clock: Any

    def forward(self, input: Any, hx: Any = None) -> Any:
        x = Takes.apply(self.clock, 1, 2, input)
        y, h = super().forward(x, hx)
        return Takes.apply(self.clock, 2, 3, y), h


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The time of LayerTimes, which stands but where somebody takes some."""
    clock = types.SimpleNamespace(now=0.0)
    now = types.SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(layer_times, "time", now)
    return clock


def test_what_is_computed_again_counts_once(clock: Any) -> None:
    layer = Slow(4, 4)
    layer.clock = clock
    x = torch.randn(5, 2, 4, requires_grad=True)
    times = LayerTimes(layer, torch.device("cpu"))
    with set_checkpoint_early_stop(False):
        y = checkpoint(layer, Takes.apply(clock, 10, 20, x), use_reentrant=False)[0]
    y.sum().backward()
    # Forward, again forward inside of backward, backward.
    assert times.stop() == {"layer_share": pytest.approx((3 + 3 + 5) / (3 + 3 + 5 + 30))}


@pytest.mark.parametrize("frozen_input", [False, True])
def test_share_of_the_layers_is_their_time(frozen_input: bool, clock: Any) -> None:
    layers = [Slow(4, 4), Slow(4, 4)]
    for layer in layers:
        layer.clock = clock
    model = nn.ModuleList(layers)
    x = torch.randn(5, 2, 4, requires_grad=not frozen_input)

    times = LayerTimes(model, torch.device("cpu"))
    before = Takes.apply(clock, 10, 20, x)
    y = layers[0](before)[0]
    # A branch beside the second layer, whose backward comes between those of the layers.
    beside = Takes.apply(clock, 7, 11, y)
    z = layers[1](y)[0]
    Takes.apply(clock, 1, 1, z + beside).sum().backward()
    clock.now += 4  # the optimizer
    shares = times.stop()

    total = 10 + 3 + 7 + 3 + 1 + 1 + 5 + 11 + 5 + 4 + (0 if frozen_input else 20)
    # The first layer's input needs no gradient, so that nothing takes its 2 seconds.
    of_layers = 3 + 3 + 5 + 5
    if frozen_input:
        total, of_layers = total - 2, of_layers - 2
    assert clock.now == total
    assert shares == {"layer_share": pytest.approx(of_layers / total)}
    assert hooks(model) == 0


def test_every_recurrence_is_seen_forward_and_backward() -> None:
    for backend in ("scan", "serial"):
        for observed in (False, True):
            rnn = lrnn.nn.GILRLSTM(3, 4, num_layers=2, bidirectional=True, backend=backend)
            x = torch.randn(6, 2, 3, requires_grad=True)
            times = LayerTimes(rnn, torch.device("cpu"))
            with torch.utils.flop_counter.FlopCounterMode(display=False) if observed else _no():
                rnn(x)[0].sum().backward()
            # Surrogate and cell, two directions, two layers.
            assert len(times._recurrences) == 2 * 8
            shares = times.stop()
            assert 0 < shares["share"] < shares["layer_share"] < 1


class _no:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: Any) -> None: ...


def test_compiled_models_are_not_compiled_again(tmp_path: Path) -> None:
    model = make("GILRLSTM")
    counter = CompileCounter()
    rnn = model.inner["rnn"]
    compiled = torch.compile(lambda x, lengths: rnn(x, lengths=lengths)[0], backend=counter)

    def training_step(batch: Any, batch_idx: int) -> torch.Tensor:
        return compiled(*batch).square().mean()

    model.training_step = training_step
    train(model, tmp_path, RecurrenceMonitor(every_n_steps=4))
    assert counter.frame_count == 1
    assert "recurrence/share" in read(tmp_path / "metrics.csv")


def test_an_exception_leaves_no_hook(tmp_path: Path) -> None:
    for step in (2, 3):
        model = make("GILRLSTM")
        whole = model.training_step

        def fail(batch: Any, batch_idx: int, whole=whole, step=step) -> Any:
            if batch_idx == step:
                raise RuntimeError("on purpose")
            return whole(batch, batch_idx)

        model.training_step = fail
        with pytest.raises(RuntimeError, match="on purpose"):
            train(model, tmp_path / str(step), RecurrenceMonitor(every_n_steps=4))
        assert hooks(model) == 0
        assert lrnn.ops.profiling.observer is None


def test_accumulated_gradients_measure_a_step_once(tmp_path: Path) -> None:
    model = make("QRNN")
    monitor = RecurrenceMonitor(every_n_steps=2)
    train(model, tmp_path, monitor, accumulate_grad_batches=3, log_every_n_steps=1)
    logged = read(tmp_path / "metrics.csv")
    # After the first of three batches no step has been made.
    assert [step for step, _ in logged["recurrence/layer_share"]] == [1, 3]
    assert [step for step, _ in logged["horizon/inner.rnn.layer0.forward.state/p50"]] == [2, 4]
    assert [step for step, _ in logged["train/steps_per_second"]] == [1, 2, 3, 4]


def test_rates_and_utilisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        throughput_module, "time", types.SimpleNamespace(perf_counter=lambda: clock.now)
    )
    monkeypatch.setattr(throughput_module, "get_available_flops", lambda device, dtype: 1000)

    class Tick(pl.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            clock.now += 0.5

    model, throughput = make("QRNN"), Throughput()
    model.flops_per_batch = 50
    # Each step takes half a second before it is counted.
    train(model, tmp_path, Tick(), throughput)
    assert throughput.latest == {
        "train/steps_per_second": pytest.approx(2),
        "train/sequences_per_second": pytest.approx(2 * B),
        "train/tokens_per_second": pytest.approx(2 * B * T),
        "train/device/flops_per_sec": pytest.approx(100),
        "train/device/mfu": pytest.approx(0.1),
    }
    model = make("QRNN")
    train(model, tmp_path / "without", throughput)
    assert "train/device/mfu" not in throughput.latest


def test_what_counts_as_a_token() -> None:
    x, packed = torch.zeros(4, 7, 3), pack_padded_sequence(torch.zeros(7, 4, 3), [7, 3, 2, 2])
    sizes = throughput_module._sizes
    assert sizes({"name": "a", "x": x}) == sizes([(x, 3)]) == (4, 28)
    assert sizes((packed, x)) == (4, 14)
    assert sizes(torch.zeros(5)) == (5, 0)
    assert sizes("words") == sizes(torch.zeros(())) == (0, 0)


def test_requested_backends_of_any_module(tmp_path: Path) -> None:
    model, report = make("QRNN", backend="serial"), BackendReport()
    train(model, tmp_path, report)
    assert report.report["recurrence/requested"] == "serial"
    assert report.report["recurrence/backend"] == "serial"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "looking.md").read_text()
    names: dict[str, Any] = {}
    exec("".join(re.findall(r"```python\n(.*?)```", page, re.S)), names)
    assert names["model"].flops_per_batch > 2 * 3 * 4 * 32 * 64 * 256  # the head alone
    logged = re.findall(r"`((?:train|recurrence|memory|horizon|saturation)/[^`]+)`", page)
    assert len(logged) == 14


def loggers() -> list[Any]:
    kinds = [pytest.param(WandbLogger, pl, id="pytorch_lightning")]
    if importlib.util.find_spec("lightning"):
        import lightning.pytorch

        other = lightning.pytorch
        kinds.append(pytest.param(other.loggers.WandbLogger, other, id="lightning.pytorch"))
    return kinds


@pytest.mark.parametrize(("kind", "package"), loggers())
def test_wandb_gets_histograms_and_words(
    kind: Any, package: Any, wandb: Any, tmp_path: Path
) -> None:
    rnn = lrnn.nn.QRNN(FEATURES, 5, batch_first=True)
    body = {n: getattr(Foreign, n) for n in ("training_step", "configure_optimizers")}
    module = type("Module", (package.LightningModule,), body)()
    module.inner, module.head = nn.ModuleDict({"rnn": rnn}), nn.Linear(5, 1)
    module.dropout, module.losses, module.hooks = nn.Identity(), [], []
    trainer = package.Trainer(
        accelerator="cpu",
        logger=kind(save_dir=tmp_path, offline=True),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
        max_epochs=1,
        callbacks=[RecurrenceMonitor(every_n_steps=6)],
    )
    trainer.fit(module, batches(12))
    wandb.finish()

    rows = history(tmp_path)
    steps = {}
    for row in rows:
        for key in row:
            steps.setdefault(key, []).append(row["trainer/global_step"])
    assert steps["recurrence/layer_share"] == steps["recurrence/share"] == [4, 10]
    units = "horizon/inner.rnn.layer0.forward.state/units"
    assert steps[f"{units}/_type"] == [6, 12]
    assert steps["saturation/inner.rnn.layer0.forward.state/open"] == [6, 12]
    assert steps["train/tokens_per_second"] == [5, 10, 12]
    last = next(row for row in reversed(rows) if f"{units}/_type" in row)
    assert last[f"{units}/_type"] == "histogram"
    assert sum(last[f"{units}/values"]) == 5
    assert summary(tmp_path)["recurrence/backend"] == lrnn.last_backend()
