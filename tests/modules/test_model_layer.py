"""The byte language model's recurrent layer: every one by name, with its own options, and kept.

The lists are `CELLS` and what the layers' constructors take: a new layer is covered as it is.

Seen to fail: options not given to the layer (all that set one); a class_path of any class, or
`_check_layer` or `_instantiator` left out (what a checkpoint names); the layer saved as it was
given (checkpoints of Python), tuples kept in it; `proj_size` given to a GRU; modules imported for a
checkpoint; `LayerClass` a Callable (torch.nn.RNN); the autocast of `TorchRNN` left on; a
call with `**options` in `Stack.__init__`.
"""

from __future__ import annotations

import inspect
import json
import sys
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_lrnn.cli import main
from lightning_lrnn.modules import LanguageModel
from lightning_lrnn.nn import CELLS, GILR, GILRLSTM, QRNN, RGLRU
from lightning_lrnn.nn.layer import KNOWN
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.nn.torch_rnn import TorchRNN

DATA = (
    "--data.path=text",
    "--data.batch_size=2",
    "--data.window=16",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
    "--trainer.limit_test_batches=1",
    "--trainer.logger=false",
)
TINY = ("--model.hidden_size=8", "--model.num_layers=1")
SOME = ("GILRLSTM", "QRNN", "HGRN", "LRU", "torch.nn.LSTM")
"""In `make test`: a surrogate, a window, a bound, complex numbers, PyTorch's."""
OWN_OPTIONS = {
    name: {
        option.name: option.default
        for option in inspect.signature(layer).parameters.values()
        if option.kind is option.KEYWORD_ONLY
        and option.name not in inspect.signature(Stack).parameters
    }
    for name, layer in CELLS.items()
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)


def fit(*words: str) -> str:
    """Trains two steps; the checkpoint."""
    assert main(["fit", *DATA, *TINY, "--trainer.max_steps=2", *words]) == 0
    (path,) = Path("checkpoints").glob("*.ckpt")
    return str(path)


def made(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The recurrent layer of the model that the command line makes."""
    models: list[LanguageModel] = []
    with monkeypatch.context() as patch:
        # With its signature, by which the command line knows its options.
        noted = wraps(pl.Trainer.fit)(lambda trainer, model, **_: models.append(model))
        patch.setattr(pl.Trainer, "fit", noted)
        assert main(["fit", *DATA, *TINY, *words]) == 0
    layer = models[0].rnns[0]
    return layer.rnn if isinstance(layer, TorchRNN) else layer


def saved(model: LanguageModel) -> str:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint("model.ckpt")
    return "model.ckpt"


@pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.nightly) for n in KNOWN]
)
def test_every_layer_trains_by_its_name_and_comes_back(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fit(f"--model.rnn={name}")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    moments = [of["exp_avg"] for of in checkpoint["optimizer_states"][0]["state"].values()]
    # Not every vector: HGRN's lower bound, say, belongs to a stack of several layers.
    assert all(moment.any() for moment in moments if moment.ndim >= 2)
    assert checkpoint["hyper_parameters"]["rnn"]["class_path"].rpartition(".")[::2] == (
        ("torch.nn" if "." in name else "lightning_lrnn.nn"),
        name.rpartition(".")[2],
    )
    model = LanguageModel.load_from_checkpoint(path, weights_only=True, backend="serial")
    layer = model.rnns[0]
    assert type(layer.rnn if "." in name else layer).__name__ == name.rpartition(".")[2]
    assert main(["generate", path, "--length=5", "--prompt=def "]) == 0
    assert capsys.readouterr().out.startswith("def ")


# `surrogate_size` goes with no other number of passes.
@pytest.mark.parametrize(
    "name, alone",
    [
        (name, alone)
        for name, options in OWN_OPTIONS.items()
        for alone in sorted({option == "surrogate_size" for option in options})
    ],
)
def test_every_own_option_is_taken(name: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {k: v for k, v in OWN_OPTIONS[name].items() if (k == "surrogate_size") == alone}
    values: dict[str, Any] = {}
    for option, default in own.items():
        values[option] = {"surrogate_size": 0.5, "surrogate_options": {}}.get(option, default)
        if isinstance(default, int):
            values[option] = not default if isinstance(default, bool) else default + 1
    words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    options = [f"--model.rnn.{option}={word}" for option, word in words.items()]
    layer = made(monkeypatch, f"--model.rnn={name}", *options)
    assert {option: json.dumps(layer.options[option]) for option in values} == {
        option: json.dumps(value) for option, value in values.items()
    }


@pytest.mark.parametrize("window", [3, 5])
def test_window(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = made(monkeypatch, "--model.rnn=QRNN", f"--model.rnn.window={window}")
    assert layer.cells[0].weight_ih.shape == (3 * 8, window * 8)


def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for blocks in (2, 4):
        layer = made(monkeypatch, "--model.rnn", "RGLRU", "--model.rnn.blocks", str(blocks))
        assert layer.cells[0].weight.shape == (2, blocks, 8 // blocks, 8 // blocks)


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for low, high in ((1, 2), (100, 200)):
        layer = made(monkeypatch, "--model.rnn=GILR", f"--model.rnn.memory=[{low},{high}]")
        forget = layer.cells[0].bias[:8].exp()
        assert low <= forget.min() and forget.max() <= high
        decays = layer.decays(torch.zeros(1, 1, 8))["layer0.forward.state"]
        assert low <= (-1 / decays.log()).min() and (-1 / decays.log()).max() <= high + 1


def test_options_are_found_beside_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which replaces `nn.Module.__init__`, that options are looked for in."""
    torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(2))
    layer = made(monkeypatch, "--model.rnn=RGLRU", "--model.rnn.num_layers=2")
    assert layer.num_layers == 2


def test_output_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = {}
    for name in ("tanh", "identity"):
        layer = made(monkeypatch, f"--model.rnn.output_activation={name}")
        nn.init.constant_(layer.cells[0].bias_ih, 9.0)
        by_name[name] = layer(torch.zeros(1, 50, 8))[0].max()
    # The gates are open: the cell grows with every step.
    assert by_name["tanh"] < 1 < 10 < by_name["identity"]


@pytest.mark.parametrize("name", ["SRU", "torch.nn.GRU"])
def test_layers_and_bias(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--model.rnn.num_layers=3", "--model.rnn.bias=false")
    layer = made(monkeypatch, f"--model.rnn={name}", *words)
    _, state = layer(torch.zeros(2, 4, 8))
    assert state.shape == (3, 2, 8)
    assert not [name for name, _ in layer.named_parameters() if "bias" in name]


def test_nonlinearity(monkeypatch: pytest.MonkeyPatch) -> None:
    lows = [
        made(monkeypatch, "--model.rnn=torch.nn.RNN", *words)(torch.randn(2, 9, 8))[0].min()
        for words in ([], ["--model.rnn.nonlinearity=relu"])
    ]
    assert lows[0] < 0 == lows[1]


@pytest.mark.parametrize(
    ("rnn", "kind"),
    [
        ("GILR", GILR),
        ("torch.nn.LSTM", nn.LSTM),
        ("{class_path: RGLRU, init_args: {blocks: 4}}", RGLRU),
        (
            "{class_path: lightning_lrnn.nn.GILRLSTM, init_args: {output_activation: identity}}",
            GILRLSTM,
        ),
    ],
)
def test_yaml(rnn: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own.yaml").write_text(f"model: {{class_path: LanguageModel, init_args: {{rnn: {rnn}}}}}")
    layer = made(monkeypatch, "--config=own.yaml")
    assert type(layer) is kind
    assert getattr(layer, "output_activation", "identity") == "identity"
    assert kind is not RGLRU or layer.cells[0].weight.shape[1] == 4


@pytest.mark.parametrize(
    ("rnn", "path", "options"),
    [
        (GILR, "lightning_lrnn.nn.GILR", {}),
        ("GILR", "lightning_lrnn.nn.GILR", {}),
        (partial(QRNN, window=5), "lightning_lrnn.nn.QRNN", {"window": 5}),
        (partial(partial(RGLRU, blocks=2), blocks=4), "lightning_lrnn.nn.RGLRU", {"blocks": 4}),
        (partial(GILR, memory=(2, 200)), "lightning_lrnn.nn.GILR", {"memory": [2, 200]}),
        (nn.GRU, "torch.nn.GRU", {}),
        (partial(nn.RNN, nonlinearity="relu"), "torch.nn.RNN", {"nonlinearity": "relu"}),
        ({"class_path": "RGLRU", "init_args": {"blocks": 4}}, None, {"blocks": 4}),
    ],
)
def test_checkpoint_of_python_comes_back(rnn: Any, path: str | None, options: dict) -> None:
    model = LanguageModel(rnn, hidden_size=8, num_layers=2).eval()
    plain = {"class_path": path or "lightning_lrnn.nn.RGLRU", "init_args": options}
    assert model.hparams["rnn"] == model.hparams_initial["rnn"] == plain
    file = saved(model)
    assert torch.load(file, weights_only=True)["hyper_parameters"]["rnn"] == plain
    again = LanguageModel.load_from_checkpoint(file, weights_only=True, backend="serial").eval()
    assert {layer.backend for layer in again.recurrent_layers().values()} <= {"serial"}
    inputs = torch.randint(1, 256, (2, 12))
    torch.testing.assert_close(again(inputs)[0], model(inputs)[0])
    assert main(["test", *DATA, f"--ckpt_path={file}"]) == 0


class Called:
    """Notes that it was."""

    times = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Called.times += 1


HERE = f"{__name__}.Called"


@pytest.mark.parametrize(
    "rnn",
    [
        HERE,
        {"class_path": HERE},
        {"class_path": "lightning_lrnn.nn.GILR", "init_args": {"device": {"class_path": HERE}}},
        {"class_path": "torch.nn.GRU", "init_args": {"device": {"class_path": HERE}}},
        {"class_path": f"{__name__}.Open", "init_args": {"what": {"class_path": HERE}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("instantiator", [True, False])
def test_nothing_that_a_checkpoint_names_is_called(
    rnn: Any, instantiator: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Called.times = 0
    file = saved(LanguageModel(GILR, hidden_size=8, num_layers=1))
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["hyper_parameters"]["rnn"] = rnn
    if instantiator:
        checkpoint["hyper_parameters"] |= {
            "_class_path": "lightning_lrnn.modules.LanguageModel",
            "_instantiator": "pytorch_lightning.cli.instantiate_module",
        }
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match=r"there is no layer|`rnn\.(device|what)` must be"):
        LanguageModel.load_from_checkpoint(file, weights_only=True)
    for words in (["generate", file], ["test", *DATA, f"--ckpt_path={file}"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("lightning-lrnn: ")
    assert Called.times == 0


class Open(GILR):
    """Has an option of any type."""

    def __init__(self, input_size: int, hidden_size: int, what: Any = None) -> None:
        super().__init__(input_size, hidden_size)


class Mean(nn.Module):
    """A layer that knows nothing of this package: the mean of all steps since a document began."""

    def __init__(self, input_size: int, hidden_size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Any, state: Any = None, *, reset: Any = None) -> tuple[Any, Any]:
        total = x.new_zeros(len(x), x.shape[-1]) if state is None else state
        outputs = []
        for t in range(x.shape[1]):
            if reset is not None:
                total = total.masked_fill(reset[:, t, None], 0)
            total = total + x[:, t]
            outputs.append(self.scale * total)
        return torch.stack(outputs, 1), total


def test_a_layer_of_ones_own_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (f"--model.rnn={__name__}.Mean", "--model.rnn.scale=0.5")
    assert made(monkeypatch, *words).scale == 0.5
    file = fit(*words)
    model = LanguageModel.load_from_checkpoint(file, weights_only=True)
    assert isinstance(model.rnns[0], Mean) and model.rnns[0].scale == 0.5
    # What is not imported is not imported for a checkpoint.
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(ValueError, match="there is no layer"):
        LanguageModel.load_from_checkpoint(file, weights_only=True)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_torch_layer_without_reset_is_the_layer(kind: type) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, num_layers=2, batch_first=True)
    x = torch.randn(2, 7, 3)
    _, state = layer(x)
    expected, _ = layer(x, state)
    for reset in (None, torch.zeros(2, 7, dtype=torch.bool)):
        torch.testing.assert_close(TorchRNN(layer)(x, state, reset=reset)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert TorchRNN(layer)(x.bfloat16(), state)[0].dtype == torch.float32
