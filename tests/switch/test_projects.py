"""Projects of others, unmodified, with SwitchRNN among their callbacks."""

from __future__ import annotations

import inspect
import pydoc_data.topics
import re

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from paths import ROOT
from pytorch_lightning.demos import lstm as demo
from pytorch_lightning.demos.transformer import WikiText2

from lightning_lrnn import SwitchRNN, load_switched
from lightning_lrnn.cli import main
from lightning_lrnn.nn.stack import Stack

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # theirs, and Lightning's about them
]


def quiet(pl, *callbacks, steps, **options):
    """A trainer, and the losses that it will have seen."""
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            losses.append(float(outputs["loss"]))

    plain = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    plain |= {"enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    run = pl.Trainer(callbacks=[*callbacks, Losses()], max_steps=steps, **plain, **options)
    return run, losses


def backends_of(module):
    return {m.backend for m in module.modules() if isinstance(m, Stack)}


# pytorch_lightning.demos.lstm: four layers, states made of zeros, carried and detached.


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text where the demo looks for its own, which it would download."""
    (tmp_path / "data").mkdir()
    words = " ".join(pydoc_data.topics.topics.values())[:80_000]
    (tmp_path / "data" / "wikitext-2.txt").write_text(words)
    monkeypatch.chdir(tmp_path)
    return len(WikiText2().dictionary)


@pytest.mark.slow
def test_the_demo_of_lightning_trains_and_resumes(text, tmp_path):
    def model():
        torch.manual_seed(0)
        return demo.LightningLSTM(vocab_size=text)

    options = {"gradient_clip_val": 0.25}
    before, old = quiet(pytorch_lightning, steps=8, **options)
    before.fit(model())
    short = SwitchRNN("GILRLSTM", backend="scan", options={"memory": [1, 1]}, state="carried")
    after, new = quiet(pytorch_lightning, short, steps=8, **options)
    switched, states = model(), []
    # At the end of an epoch the project forgets its state.
    forget = switched.on_train_epoch_end
    switched.on_train_epoch_end = lambda: (
        states.extend(h.shape for h in switched.hidden),
        forget(),
    )
    after.fit(switched)
    assert backends_of(switched) == {"scan"} and "lightning_lrnn" not in inspect.getsource(demo)
    assert min(new[-4:]) < new[0] - 0.2 and min(old[-4:]) < old[0] - 0.2
    assert states == [(4, 20, 512), (4, 20, 1024)]

    path = tmp_path / "middle.ckpt"
    after.save_checkpoint(path)
    rest, losses = quiet(
        pytorch_lightning, SwitchRNN("GILRLSTM", state="carried"), steps=10, **options
    )
    rest.fit(model(), ckpt_path=path)
    assert len(losses) == 2
    loaded = load_switched(demo.LightningLSTM, path, vocab_size=text)
    torch.testing.assert_close(loaded.state_dict(), switched.state_dict())


# pytorch-forecasting: subclasses of nn.LSTM and nn.GRU, lengths that are not sorted, learned
# initial states, states that are repeated for sampling.


def series(kind, cell="LSTM"):
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data.examples import generate_ar_data

    table = generate_ar_data(seasonality=10.0, timesteps=60, n_series=8, seed=42)
    table["static"] = "2"
    columns = {"time_idx": "time_idx", "target": "value", "group_ids": ["series"]}
    columns |= {"time_varying_unknown_reals": ["value"], "static_categoricals": ["static"]}
    lengths = {"max_encoder_length": 20, "min_encoder_length": 5, "max_prediction_length": 5}
    if kind == "TemporalFusionTransformer":
        # It allows for series without a past; the others do not.
        lengths |= {"min_encoder_length": 0, "add_relative_time_idx": True}
    elif kind in ("DeepAR", "RecurrentNetwork"):
        columns.pop("static_categoricals")
    training = TimeSeriesDataSet(table[lambda x: x.time_idx < 50], **columns, **lengths)
    return training, TimeSeriesDataSet.from_dataset(training, table, min_prediction_idx=50)


def forecaster(kind, training, **options):
    import pytorch_forecasting

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "dropout": 0.1}
    if kind == "TemporalFusionTransformer":
        sizes |= {"hidden_continuous_size": 8, "attention_head_size": 1, "lstm_layers": 2}
    else:
        sizes |= {"rnn_layers": 2}
    made = getattr(pytorch_forecasting, kind)
    return made.from_dataset(training, learning_rate=3e-2, **sizes, **options)


FORECASTERS = [
    ("DeepAR", {"cell_type": "LSTM"}, "GILRLSTM"),
    ("DeepAR", {"cell_type": "GRU"}, "MinGRU"),
    ("RecurrentNetwork", {"cell_type": "LSTM"}, "MinLSTM"),
    ("RecurrentNetwork", {"cell_type": "GRU"}, "auto"),
    ("TemporalFusionTransformer", {}, "auto"),
    ("TemporalFusionTransformer", {}, "MinLSTM"),
]


@pytest.mark.parametrize("kind, options, rnn", FORECASTERS)
def test_forecasters_train_and_predict(kind, options, rnn, tmp_path):
    pl = lightning.pytorch
    training, validation = series(kind)
    loaders = training.to_dataloader(True, 32), validation.to_dataloader(False, 32)
    means = {}
    for name, callbacks in {"before": [], "after": [SwitchRNN(rnn)]}.items():
        model = forecaster(kind, training, **options)
        torch.manual_seed(1)
        run, losses = quiet(
            pl, *callbacks, steps=20, gradient_clip_val=0.1, default_root_dir=tmp_path
        )
        run.fit(model, *loaders)
        means[name] = np.mean(losses[:4]), np.mean(losses[-4:])
    assert all(last < first for first, last in means.values()), means
    layers = [m for m in model.modules() if isinstance(m, Stack)]
    assert len(layers) == (2 if kind == "TemporalFusionTransformer" else 1)
    for layer in layers:
        assert type(layer).__module__ == "pytorch_forecasting.models.nn.rnn"
        assert layer.repeat_interleave and isinstance(layer, torch.nn.RNNBase)
    trainer = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    samples = {"mode": "samples", "n_samples": 7} if kind == "DeepAR" else {}
    predicted = model.predict(loaders[1], trainer_kwargs=trainer, **samples)
    assert torch.isfinite(predicted).all() and predicted.shape[1] == 5
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_switched(type(model), tmp_path / "last.ckpt", weights_only=False)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("rnn, state", [("GILRLSTM", "carried"), ("MinLSTM", "strict")])
def test_series_without_a_past(rnn, state):
    from pytorch_forecasting.models.nn.rnn import LSTM

    from lightning_lrnn import replace_rnn

    holder = torch.nn.ModuleDict({"rnn": LSTM(3, 4, 2, batch_first=True)})
    replace_rnn(holder, rnn, state=state)
    x, lengths = torch.randn(5, 6, 3), torch.tensor([2, 0, 6, 1, 4])
    y, hidden = holder["rnn"](x, lengths=lengths, enforce_sorted=False)
    empty = [part[:, 1] for part in hidden]
    assert y.shape == (5, 6, 4) and not any(part.any() for part in empty)
    decoded, _ = holder["rnn"](x[:, :1], hidden)
    alone, _ = holder["rnn"](x[1:2, :1])
    torch.testing.assert_close(decoded[1:2], alone)


def test_the_readme_shows_these_lines():
    readme = (ROOT / "README.md").read_text()
    assert (
        "trainer:\n  callbacks:\n    - class_path: lightning_lrnn.SwitchRNN\n"
        "      init_args: {rnn: auto, backend: auto}\n" in readme
    )


def test_demo_switch(tmp_path, capsys):
    folder = str(tmp_path / "demo")
    assert main(["demo", "switch", "--steps", "2", "--rnn", "MinLSTM", "--folder", folder]) == 0
    said = capsys.readouterr().out
    assert re.search(r"its parameters +8,404,992 +3,151,872", said)
    assert "-> MinLSTM(512, 512, num_layers=4, batch_first=True, dropout=0.2" in said
    assert "has the same parameters" in said and "OTHER" not in said
    assert main(["demo", "switch", "--rnn", "GILRR", "--folder", folder]) == 2
    assert "there is no layer 'GILRR'" in capsys.readouterr().err
