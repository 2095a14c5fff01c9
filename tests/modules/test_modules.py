"""Classifier, tagger and forecaster: padding, metrics, heads, checkpoints, what they refuse.

Seen to fail: the loss divided by the rows instead of the known targets, without the weights of
classes; padding let into the encoder, lengths kept from the layers, the last column taken for the
last step, a mean over padding; no residual, no state, the base class's arguments as
hyperparameters, a layer that is not plain data; the first step of the second direction forgotten;
steps without class counted; scaled values measured as the user's, CRPS without its scale; unknown
targets in a mean; quantiles summed from the wrong end; degrees of freedom from 1; the signs and
constants of each score; a density one power off; AUROC of classes without examples; perplexity
without exp.
"""

from __future__ import annotations

import json
import math
import runpy
import warnings
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from paths import ROOT
from pytorch_lightning.loggers import CSVLogger
from scipy import integrate, stats
from sequence_models import F_, C, H, K, make, measured, trainer
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torchmetrics import MetricCollection

import lightning_lrnn
from lightning_lrnn.cli import main
from lightning_lrnn.data import IGNORE, SourceTokens
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.modules import (
    Forecaster,
    LanguageModel,
    MacroAUROC,
    SequenceClassifier,
    SequenceModule,
    SequenceTagger,
)
from lightning_lrnn.modules.forecast_heads import HEADS
from lightning_lrnn.modules.scores import crps_of_quantiles
from lightning_lrnn.modules.student_t import student_t_quantiles
from lightning_lrnn.nn import GILRLSTM, QRNN, SRU
from lightning_lrnn.nn.torch_rnn import TorchRNN

LENGTHS = torch.tensor([7, 2, 9, 5])
RNNS = {
    "GILRLSTM": GILRLSTM,
    "QRNN": partial(QRNN, window=3),
    "LSTM": nn.LSTM,
    "GILRLSTM both ways": partial(GILRLSTM, bidirectional=True),
    "GRU both ways": partial(nn.GRU, bidirectional=True, num_layers=2),
}


KINDS = ("last", "mean", "tag", "forecast")
PAIRS = [
    (kind, rnn)
    for kind in KINDS
    for rnn in RNNS
    if not (kind == "forecast" and rnn.endswith("both ways"))
]


def targets(kind: str, lengths: Tensor, steps: int) -> Tensor:
    rows = len(lengths)
    if kind == "forecast":
        target = torch.randn(rows, H, K)
        target[0, 1, 0] = target[1] = torch.nan
        return target
    if kind != "tag":
        return torch.arange(rows) % C
    tags = torch.randint(0, C, (rows, steps))
    return tags.masked_fill(torch.arange(steps) >= lengths[:, None], IGNORE)


def batch_of(kind: str, lengths: Tensor = LENGTHS) -> SequenceBatch:
    """Rows of different lengths, with NaN behind their end."""
    x = torch.randn(len(lengths), 9, F_)
    x[torch.arange(9) >= lengths[:, None]] = torch.nan
    return SequenceBatch(x, targets(kind, lengths, 9), lengths)


def gradients(model: pl.LightningModule, batch: SequenceBatch) -> list[Tensor]:
    model.zero_grad()
    output, _ = model.run(batch, None)
    model.loss(output, batch).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("kind", "rnn"), PAIRS)
def test_padding_reaches_nothing(kind: str, rnn: str) -> None:
    model, batch = make(kind, rnn=RNNS[rnn]), batch_of(kind)
    output, _ = model.run(batch, None)
    for row, length in enumerate(batch.lengths.tolist()):
        alone, _ = model(batch.inputs[row : row + 1, :length])
        actual = output[row : row + 1, :length] if kind == "tag" else output[row : row + 1]
        torch.testing.assert_close(actual, alone, rtol=1e-4, atol=1e-5)
    assert all(g.isfinite().all() for g in gradients(model, batch))
    prediction = model.prediction(output, batch)
    assert prediction.isfinite().all()
    if kind == "tag":
        sums = prediction.sum(-1)
        torch.testing.assert_close(sums, (batch.targets != IGNORE).float())


@pytest.mark.parametrize(("kind", "rnn"), PAIRS)
def test_packed_is_padded(kind: str, rnn: str) -> None:
    model, batch = make(kind, rnn=RNNS[rnn]), batch_of(kind)
    rows = pack_padded_sequence(batch.inputs, LENGTHS, batch_first=True, enforce_sorted=False)
    packed = batch._replace(inputs=rows, lengths=None)
    model.check(packed)
    padded_output, packed_output = (model.run(b, None)[0] for b in (batch, packed))
    torch.testing.assert_close(
        model.prediction(packed_output, packed), model.prediction(padded_output, batch)
    )
    for one, other in zip(gradients(model, packed), gradients(model, batch), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rnn", ["GILRLSTM", "LSTM"])
def test_a_row_without_steps_knows_nothing(kind: str, rnn: str) -> None:
    both = {} if kind == "forecast" else {"bidirectional": True}
    model = make(kind, rnn=partial(RNNS[rnn], **both))
    batch = batch_of(kind, torch.tensor([0, 9, 0]))
    output, _ = model.run(batch, None)
    assert model.prediction(output, batch).isfinite().all()
    assert all(g.isfinite().all() for g in gradients(model, batch))
    if kind == "tag":
        assert not model.prediction(output, batch)[0].any()
    else:
        bias = model.head.linear.bias if kind == "forecast" else model.head.bias
        torch.testing.assert_close(output[0].flatten(), bias)


@pytest.mark.parametrize("rnn", ["GILRLSTM", "GILRLSTM both ways", "GRU both ways"])
def test_pooling(rnn: str) -> None:
    inputs = torch.randn(2, 6, F_)
    for kind in ("last", "mean"):
        model = make(kind, rnn=RNNS[rnn])
        x, _, _ = model.features(inputs)
        ends = torch.cat([x[:, -1], x[:, 0]], -1) if "both" in rnn else x[:, -1]
        expected = model.head(ends if kind == "last" else x.mean(1))
        torch.testing.assert_close(model(inputs)[0], expected)
        # Every step counts, in every direction.
        model.eval()
        actual = torch.func.jacrev(lambda z, model=model: model(z)[0][0])(inputs)[:, 0]
        assert (actual.abs().amax((0, 2)) > 0).all()


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_torch_layer_with_lengths(kind: type, both: bool) -> None:
    layer = TorchRNN(kind(3, 4, num_layers=2, bidirectional=both))
    lengths = torch.tensor([6, 0, 3, 8])
    x = torch.randn(4, 8, 3)
    x[torch.arange(8) >= lengths[:, None]] = torch.nan
    state = torch.randn(4 if both else 2, 4, 4)
    state = (state, -state) if kind is nn.LSTM else state
    reset = torch.zeros(4, 8, dtype=torch.bool)
    if not both:
        reset[0, 2] = reset[2, 5] = reset[3, 0] = True
    output, after = layer(x, state, lengths=lengths, reset=None if both else reset)
    parts = (lambda s: s) if kind is nn.LSTM else lambda s: (s,)
    for row, length in enumerate(lengths.tolist()):
        before = [part[:, row : row + 1] for part in parts(state)]
        if length:
            valid = reset[row : row + 1, :length]
            alone = x[row : row + 1, :length]
            hx = tuple(before) if kind is nn.LSTM else before[0]
            expected, then = layer(alone, hx, reset=None if both else valid)
            torch.testing.assert_close(output[row : row + 1, :length], expected)
            before = parts(then)
        for actual, part in zip(parts(after), before, strict=True):
            torch.testing.assert_close(actual[:, row : row + 1], part)
        assert not output[row, length:].any()
    for wrong in (torch.tensor([6, 0, 3, 9]), torch.tensor([6, -1, 3, 8])):
        with pytest.raises(ValueError, match=r"`lengths` must be from 0 to T=8, got \[6"):
            layer(x, lengths=wrong, reset=None if both else reset)


def test_torch_layer_of_two_directions_has_no_reset_within() -> None:
    layer = TorchRNN(nn.GRU(3, 4, bidirectional=True))
    x, reset = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    expected, _ = layer(x)
    reset[:, 0] = True
    torch.testing.assert_close(layer(x, reset=reset)[0], expected)
    reset[1, 3] = True
    with pytest.raises(ValueError, match=r"GRU cannot start anew within .* True at step 3: give"):
        layer(x, reset=reset)


class Loader(list):
    """Batches that are there already."""


def validated(model: pl.LightningModule, batches: list, folder: Path) -> dict[str, float]:
    (actual,) = trainer(folder).validate(model, Loader(batches), verbose=False)
    return actual


@pytest.mark.parametrize("kind", ["last", "tag"])
def test_classes_are_measured_as_scikit_learn_does(kind: str, tmp_path: Path) -> None:
    weights = [0.5, 2.0, 1.0, 0.5]
    model = make(kind, class_weights=torch.tensor(weights))
    nn.init.normal_(model.head.weight)
    batches = [batch_of(kind, torch.randint(1, 10, (rows,))) for rows in (20, 7, 13)]
    actual = validated(model, batches, tmp_path)
    assert set(actual) == {"val/loss", "val/accuracy", "val/macro_f1", "val/auroc"}
    p, y = [], []
    for batch, p_batch in zip(
        batches, trainer(tmp_path).predict(model, Loader(batches)), strict=True
    ):
        known = batch.targets != IGNORE
        p.append(p_batch[known].double())
        y.append(batch.targets[known])
    p, y = torch.cat(p), torch.cat(y)
    assert actual["val/accuracy"] == pytest.approx(accuracy_score(y, p.argmax(1)), rel=1e-6)
    f1 = f1_score(y, p.argmax(1), average="macro")
    assert actual["val/macro_f1"] == pytest.approx(f1, rel=1e-6)
    p = p / p.sum(1, keepdim=True)
    auroc = roc_auc_score(y, p, multi_class="ovr", average="macro")
    assert actual["val/auroc"] == pytest.approx(auroc, abs=1e-6 if kind == "last" else 5e-3)
    loss = -(torch.tensor(weights)[y] * p[torch.arange(len(y)), y].log()).mean()
    assert actual["val/loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("thresholds", [None, 500])
def test_auroc_leaves_out_classes_that_have_none(thresholds: int | None) -> None:
    metric = MacroAUROC(4, thresholds, IGNORE)
    p, y = torch.rand(60, 4).softmax(-1), torch.randint(0, 3, (60,))
    metric.update(p, torch.where(torch.arange(60) < 5, IGNORE, y))
    areas = [roc_auc_score(y[5:] == c, p[5:, c]) for c in range(3)]
    assert float(metric.compute()) == pytest.approx(
        np.mean(areas), abs=1e-6 if not thresholds else 0.01
    )
    metric.reset()
    metric.update(p, torch.zeros(60, dtype=torch.long))
    assert metric.compute().isnan()
    metric.reset()
    metric.update(p, torch.full((60,), IGNORE))
    assert metric.compute().isnan()


HEAD_LEVELS = (0.05, 0.3, 0.5, 0.8, 0.99)


@pytest.mark.parametrize("head", HEADS)
def test_forecasts_are_measured_in_the_units_of_the_user(head: str, tmp_path: Path) -> None:
    model = make("forecast", head=head, quantiles=HEAD_LEVELS)
    nn.init.normal_(model.head.linear.weight, std=0.3)
    offsets, scales = torch.randn(40, 1, K) * 50, torch.rand(40, 1, K) * 9 + 1
    batches = []
    for rows in (slice(0, 20), slice(20, 27), slice(27, 40)):
        batch = batch_of("forecast", torch.randint(1, 10, (rows.stop - rows.start,)))
        batches.append(batch._replace(offset=offsets[rows], scale=scales[rows]))
    actual = validated(model, batches, tmp_path)
    assert set(actual) == {"val/loss", "val/mae", "val/rmse", "val/pinball", "val/crps"}

    quantiles = torch.cat(trainer(tmp_path).predict(model, Loader(batches))).double()
    assert quantiles.shape == (40, H, K, 5) and (quantiles.diff(dim=-1) > 0).all()
    y = torch.cat([offsets, scales, torch.cat([b.targets for b in batches])], 1).double()
    y = y[:, :1] + y[:, 1:2] * y[:, 2:]
    known = ~y.isnan()
    quantiles, y = quantiles[known], y[known]
    error = y - quantiles[:, 2]
    assert actual["val/mae"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert actual["val/rmse"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)
    above = y[:, None] - quantiles
    levels = torch.tensor(HEAD_LEVELS)
    losses = torch.where(above > 0, levels * above, (levels - 1) * above)
    assert actual["val/pinball"] == pytest.approx(float(losses.mean()), rel=1e-5)
    raw = torch.cat([model.run(b, None)[0].detach() for b in batches])[known]
    scale, offset = (v.expand(40, H, K)[known] for v in (scales, offsets))
    crps = scale * model.head.crps(raw, (y.float() - offset) / scale)
    assert actual["val/crps"] == pytest.approx(float(crps.mean()), rel=1e-4)
    scaled = model.head.losses(raw, (y.float() - offset) / scale)
    assert actual["val/loss"] == pytest.approx(float(scaled.mean()), rel=1e-4)


def test_targets_that_nobody_knows_count_nowhere(tmp_path: Path) -> None:
    model, batch = make("forecast"), batch_of("forecast")
    alone = validated(model, [batch], tmp_path)
    nothing = batch._replace(targets=torch.full_like(batch.targets, torch.nan))
    assert validated(model, [batch, nothing], tmp_path) == pytest.approx(alone)
    assert all(not g.any() for g in gradients(model, nothing))


def distribution(head: str, raw: Tensor) -> Any:
    location, scale = float(raw[0]), math.log1p(math.exp(raw[1])) + 1e-4
    if head == "student_t":
        return stats.t(2 + math.log1p(math.exp(raw[2])), location, scale)
    return {"normal": stats.norm, "laplace": stats.laplace}[head](location, scale)


@pytest.mark.parametrize("head", ["normal", "laplace", "student_t"])
def test_distributions_are_those_of_scipy(head: str) -> None:
    model = HEADS[head](8, 1, 1, HEAD_LEVELS)
    for raw in torch.randn(4, model.size):
        scipy = distribution(head, raw)
        y = float(raw[0]) + 2.5 * torch.randn(())
        assert float(model.losses(raw, y)) == pytest.approx(-scipy.logpdf(y), rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(model.quantiles(raw), scipy.ppf(HEAD_LEVELS), rtol=2e-3)
        assert float(model.point(raw)) == pytest.approx(scipy.median(), abs=1e-5)
        below, _ = integrate.quad(lambda x, f=scipy: f.cdf(x) ** 2, -np.inf, float(y))
        above, _ = integrate.quad(lambda x, f=scipy: f.sf(x) ** 2, float(y), np.inf)
        rel = 1e-2 if head == "student_t" else 1e-4
        assert float(model.crps(raw, y)) == pytest.approx(below + above, rel=rel)


def test_quantiles_of_student_t() -> None:
    df = torch.tensor([1.0, 2.0, 3.5, 30.0, 1000.0])
    levels = torch.tensor([0.001, 0.025, 0.4, 0.5, 0.9, 0.999])
    expected = stats.t.ppf(levels.double(), df.double()[:, None])
    np.testing.assert_allclose(student_t_quantiles(df, levels), expected, rtol=2e-3, atol=1e-6)


def test_quantiles_start_as_those_of_a_normal_and_never_cross() -> None:
    head = HEADS["quantiles"](8, 2, 3, HEAD_LEVELS)
    start = head.quantiles(head(torch.zeros(1, 8)))
    np.testing.assert_allclose(
        start.detach(), np.broadcast_to(stats.norm.ppf(HEAD_LEVELS), (1, 2, 3, 5)), atol=1e-5
    )
    assert (head.quantiles(100 * torch.randn(500, 5)).diff(dim=-1) >= 0).all()
    for other in ("normal", "laplace", "student_t"):
        head = HEADS[other](8, 2, 3, HEAD_LEVELS)
        location, scale = head.parts(head(torch.zeros(1, 8)))
        torch.testing.assert_close((location, scale), (torch.zeros(1, 2, 3), torch.ones(1, 2, 3)))


@pytest.mark.parametrize(("count", "rel"), [(9, 0.016), (99, 1e-3)])
def test_crps_of_quantiles_is_nearly_that_of_the_distribution(count: int, rel: float) -> None:
    levels = torch.arange(1, count + 1).double() / (count + 1)
    y = torch.special.ndtri((torch.arange(1000).double() + 0.5) / 1000)
    actual = crps_of_quantiles(torch.special.ndtri(levels).expand(1000, -1), y, levels).mean()
    assert float(actual) == pytest.approx(1 / math.sqrt(math.pi), rel=rel)


def digits(kind: str) -> list[SequenceBatch]:
    """Images of digits, row by row."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8) / 16
    y = torch.tensor(labels)
    batches = []
    for rows, label in zip(x.split(50), y.split(50), strict=True):
        if kind == "forecast":
            # The last two rows from the six above.
            batches.append(SequenceBatch(rows[:, :6], rows[:, 6:] * 3 - 1))
        elif kind == "tag":
            # Already before all is seen.
            batches.append(SequenceBatch(rows, label[:, None].repeat(1, 8)))
        else:
            batches.append(SequenceBatch(rows, label))
    return batches


@pytest.mark.parametrize("head", [*KINDS, *list(HEADS)[1:]])
def test_training_learns(head: str, tmp_path: Path) -> None:
    kind = "forecast" if head in HEADS else head
    options: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "lr": 0.02, "warmup_steps": 10}
    torch.manual_seed(1)
    if kind == "forecast":
        head = head if head in HEADS else "quantiles"
        model = Forecaster(8, 2, 8, head, **options)
    elif kind == "tag":
        model = SequenceTagger(8, 10, **options)
    else:
        model = SequenceClassifier(8, 10, pooling=kind, **options)
    batches = digits(kind)
    fit = trainer(tmp_path, max_epochs=6)
    before = validated(model, batches[30:], tmp_path)
    fit.fit(model, Loader(batches[:30]), Loader(batches[30:]))
    after = {name: float(value) for name, value in fit.callback_metrics.items()}
    if kind == "forecast":
        assert after["val/crps"] < 0.6 * before["val/crps"]
        assert after["val/mae"] < 0.6 * before["val/mae"]
    else:
        assert after["val/accuracy"] > (0.5 if kind == "tag" else 0.8) > 2 * before["val/accuracy"]
        assert after["val/auroc"] > 0.85
    # A step's own figures: what one batch cannot tell is left to validation.
    trained = {name for name in after if name.startswith("train/")}
    assert trained == {"train/loss"} | (
        {"train/mae", "train/rmse"} if kind == "forecast" else {"train/accuracy"}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_comes_back(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rnn": partial(QRNN, window=3), "backend": "serial"}
    plain: dict[str, Any] = {}
    if kind == "forecast":
        options |= {"head": "student_t", "quantiles": torch.tensor([0.25, 0.5])}
        plain = {"quantiles": [0.25, 0.5]}
    else:
        options |= {"class_weights": torch.tensor([1, 2, 3, 4])}
        plain = {"class_weights": [1.0, 2.0, 3.0, 4.0]}
    model, batch = make(kind, **options), batch_of(kind)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, Loader([batch] * 2), Loader([batch]))
    assert lightning_lrnn.last_backend() == "serial"
    path = tmp_path / "model.ckpt"
    fit.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["hyper_parameters"]
    rnn = {"class_path": "lightning_lrnn.nn.QRNN", "init_args": {"window": 3}}
    assert saved == saved | plain | {"rnn": rnn} and "backend" not in saved
    again = type(model).load_from_checkpoint(path, weights_only=True, backend="scan").eval()
    output, expected = (m.run(batch, None)[0] for m in (again, model.eval()))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.loss(output, batch), model.loss(expected, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision(kind: str, tmp_path: Path) -> None:
    model, batch = make(kind), batch_of(kind)
    fit = trainer(tmp_path, precision="bf16-mixed", max_steps=2)
    fit.fit(model, Loader([batch] * 2), Loader([batch]))
    assert all(value.isfinite() for name, value in fit.callback_metrics.items())
    (prediction,) = fit.predict(model, Loader([batch]))
    assert prediction.dtype == torch.float32 and prediction.isfinite().all()


def test_tagger_carries_its_state() -> None:
    model = make("tag", carry_state=True)
    batch = SequenceBatch(torch.randn(3, 12, F_), torch.randint(0, C, (3, 12)))
    reset = torch.zeros(3, 12, dtype=torch.bool)
    reset[1, 7] = True
    batch = batch._replace(reset=reset)
    whole, _ = model.run(batch, None)
    windows = [
        SequenceBatch(x, y, reset=r)
        for x, y, r in zip(
            batch.inputs.split(4, 1), batch.targets.split(4, 1), reset.split(4, 1), strict=True
        )
    ]
    outputs = [model._advance(window, "train") for window in windows]
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="`carry_state` needs a layer of one direction"):
        make("tag", rnn=partial(nn.GRU, bidirectional=True), carry_state=True)
    assert not make("tag").carry_state and not make("last").carry_state


def test_decays_leave_out_nothing_of_two_directions() -> None:
    model = make("last", rnn=partial(SRU, bidirectional=True), num_layers=1)
    decays = model.decays(batch_of("last"))
    assert len(decays) == 2 and all(a.shape[:2] == (4, 9) for a in decays.values())


def test_perplexity_is_of_the_same_sums(tmp_path: Path) -> None:
    from lightning_lrnn.data import TextBatch

    model = LanguageModel(hidden_size=8, num_layers=1)
    text = torch.randint(1, 256, (2, 6))
    batch = TextBatch(text, text, torch.zeros(2, 6, dtype=torch.bool))
    actual = validated(model, [batch], tmp_path)
    assert actual["val/perplexity"] == pytest.approx(math.exp(actual["val/loss"]), rel=1e-5)
    assert actual["val/perplexity"] == pytest.approx(2 ** actual["val/bits_per_byte"], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        *(
            (
                kind,
                {"inputs": torch.randn(4, 9, 5)},
                r"`inputs` have 5 features, the model was made for 3: set `model.num_features`",
            )
            for kind in KINDS
        ),
        (
            "last",
            {"inputs": torch.randn(4, 3)},
            r"`inputs` must be \(B, T, 3\), .*got float32 \(4, 3\)",
        ),
        ("last", {"targets": torch.tensor([0, 1, 4, 0])}, "have class 4, the model was made for 4"),
        ("tag", {"targets": torch.full((4, 9), -1)}, "have class -1, the model was made for 4"),
        ("tag", {"targets": torch.zeros(4, 8).long()}, r"int64 of shape \(4, 9\), .*got \(4, 8\)"),
        ("last", {"targets": torch.zeros(4)}, r"`targets` must be int64.*of torch.float32"),
        ("forecast", {"targets": torch.zeros(4, 2, 5)}, r"\(B, 5, 2\), got \(4, 2, 5\): set"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_before_training(
    kind: str, change: dict, message: str, tmp_path: Path
) -> None:
    batch = batch_of(kind)._replace(**change)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(make(kind), Loader([batch]), Loader([batch]))
    # A batch that fitted does not speak for the data after it.
    fit, model = trainer(tmp_path), make(kind)
    fit.validate(model, Loader([batch_of(kind)]), verbose=False)
    with pytest.raises(ValueError, match=message):
        fit.validate(model, Loader([batch]), verbose=False)


def of_two(rank: int, folder: Path) -> None:
    with processes.world(rank, 2):
        actual = measured(folder, 2)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(actual))


@pytest.mark.slow
def test_two_processes_measure_as_one_does(tmp_path: Path) -> None:
    processes.spawn(of_two, tmp_path, tmp_path)
    two = json.loads((tmp_path / "found.json").read_text())
    assert len(two) == 9 and two == pytest.approx(measured(tmp_path, 1), rel=1e-5)


class Rows(pl.LightningDataModule):
    """Digits, row by row, for the command line."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> Any:
        return Loader(digits(self.kind)[:30])

    def val_dataloader(self) -> Any:
        return Loader(digits(self.kind)[30:])

    test_dataloader = val_dataloader


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (
            "SequenceClassifier",
            "last",
            ["--model.num_classes=10", f"--model.class_weights={[1.0] * 10}"],
        ),
        (
            "SequenceTagger",
            "tag",
            [
                "--model.num_classes=10",
                "--model.rnn=torch.nn.GRU",  # No other model's `carry_state` stands in its way.
                "--model.rnn.bidirectional=true",
            ],
        ),
        (
            "Forecaster",
            "forecast",
            [
                "--model.horizon=2",
                "--model.num_targets=8",
                "--model.head=student_t",
                "--model.quantiles=[0.1, 0.5, 0.9]",
            ],
        ),
    ],
)
def test_command_line(
    model: str,
    kind: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        f"--model={model}",
        "--model.num_features=8",
        "--model.hidden_size=8",
        *words,
        f"--data={__name__}.Rows",
        f"--data.kind={kind}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger=false",
    ]
    assert main(["fit", *words, "--trainer.max_steps=2", "--trainer.limit_val_batches=1"]) == 0
    (path,) = Path("checkpoints").glob("*.ckpt")
    assert main(["test", *words, f"--ckpt_path={path}"]) == 0
    assert "test/loss" in capsys.readouterr().out
    kinds = {
        "SequenceClassifier": SequenceClassifier,
        "SequenceTagger": SequenceTagger,
        "Forecaster": Forecaster,
    }
    assert kinds[model].load_from_checkpoint(path, weights_only=True).num_features == 8


def example(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


@pytest.mark.parametrize(
    ("name", "length", "figures"),
    [
        ("classifier", 1, {"test/accuracy", "test/top2"}),
        ("tagger", 2, {"test/accuracy", "test/auroc"}),
        ("forecaster", 1, {"Forecaster", "ChangeForecaster"}),
    ],
)
def test_examples_run(name: str, length: int, figures: set[str], monkeypatch: Any) -> None:
    if name == "forecaster":
        pytest.importorskip("vega_datasets")
        pytest.importorskip("pandas")
    monkeypatch.setattr(
        SourceTokens, "__init__", partialmethod(SourceTokens.__init__, path=str(Path(__file__)))
    )
    actual = example(name)["main"](length)
    assert figures <= set(actual)


def test_a_subclass_comes_back_by_its_own_arguments(tmp_path: Path) -> None:
    model = example("tagger")["ByteTagger"](5, hidden_size=8, rnn="QRNN")
    fit, batch = trainer(tmp_path, max_steps=1), batch_of("tag")
    batch = batch._replace(inputs=torch.randint(0, 2, (4, 9, 8)) * 2.0 - 1)
    fit.fit(model, Loader([batch]), Loader([batch]))
    fit.save_checkpoint(tmp_path / "own.ckpt")
    again = type(model).load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    rnn = {"class_path": "lightning_lrnn.nn.QRNN", "init_args": {}}
    assert again.hparams == {"num_classes": 5, "hidden_size": 8, "rnn": rnn}
    torch.testing.assert_close(again.eval().run(batch, None)[0], model.eval().run(batch, None)[0])


class Regression(SequenceModule):
    """A task of one's own: the mean brightness of what is to come."""

    def __init__(self, num_features: int, hidden_size: int = 8) -> None:
        super().__init__(carry_state=False, warmup_steps=1)
        self.num_features = num_features
        self.make_blocks("GILR", hidden_size, 1, 0.0)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, inputs, state=None, reset=None, lengths=None):
        x, lengths, state = self.features(inputs, state, reset, lengths)
        return self.head(x[:, -1]), state

    def loss(self, output, batch):
        return F.mse_loss(output[:, 0], batch.targets.mean((1, 2)))

    def make_metrics(self):
        return MetricCollection({})


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    model = Regression(8)
    before = validated(model, digits("forecast")[30:], tmp_path)
    fit = trainer(tmp_path, max_epochs=4)
    fit.fit(model, Loader(digits("forecast")[:30]), Loader(digits("forecast")[30:]))
    assert fit.callback_metrics["val/loss"] < 0.5 * before["val/loss"]
    fit.save_checkpoint(tmp_path / "own.ckpt")
    again = Regression.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert again.hparams == {"num_features": 8, "hidden_size": 8}


@pytest.mark.parametrize("rnn", ["GILRLSTM", "torch.nn.LSTM"])
def test_a_logger_that_draws_the_graph_hinders_no_fit(rnn: str, tmp_path: Path) -> None:
    """As that of TensorBoard does with `log_graph`, if the model has an `example_input_array`."""

    class Draws(CSVLogger):
        _log_graph = True

        def log_graph(self, model: Any, input_array: Any = None) -> None:
            if self._log_graph:
                torch.jit.trace(model, model.example_input_array, strict=False)

    model = make("last", rnn=rnn)
    model.example_input_array = torch.randn(2, 9, F_)
    fit = trainer(tmp_path, max_steps=1, logger=Draws(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(model, Loader([batch_of("last")]))
        fit.test(model, Loader([batch_of("last")]), verbose=False)
    (said,) = (str(w.message) for w in caught if "log_graph" in str(w.message))
    assert said.endswith("leave `log_graph` out")


def test_a_classifier_starts_without_a_preference() -> None:
    model = SequenceClassifier(5, 3, hidden_size=8)
    logits, _ = model(torch.randn(4, 9, 5))
    assert (logits == 0).all()


def test_logit_scale() -> None:
    """Logits are scaled, the gradient is that of loss / scale, what is logged is the loss."""
    pl.seed_everything(0, verbose=False)
    batch = batch_of("last")
    actual: dict[float, list[Any]] = {}
    for scale in (1.0, 1e-2):
        model = SequenceClassifier(3, 4, hidden_size=8, dropout=0.0, logit_scale=scale)
        if actual:
            model.load_state_dict(actual[1.0][0])
        else:
            torch.nn.init.normal_(model.head.weight)
        model.log, model.log_dict = (lambda *a, **k: None), (lambda *a, **k: None)  # type: ignore
        logits, _ = model(batch.inputs, lengths=batch.lengths)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        torch.testing.assert_close(model.loss(logits, batch), loss)
        torch.testing.assert_close(model.training_step(batch, 0), loss / scale)
        actual[scale] = [model.state_dict(), logits]
    torch.testing.assert_close(actual[1e-2][1], actual[1.0][1] / 100)
