"""Configs of made-up tasks: what says that one is solved, and that training ends with it.

Seen to fail: metrics over all steps where those of the end are asked for; the last column in
place of the last valid step; rows without a step that count as class 0; the error of the last
batch, or the smallest, in place of the largest of all; a mode of EarlyStopping that is wrong; a
threshold that chance reaches; a memory that is not a multiple of the lag.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import yaml
from paths import BENCHMARKS
from pytorch_lightning.callbacks import EarlyStopping

from lightning_lrnn import data as lrnn_data
from lightning_lrnn.data import IGNORE, NextSymbol, SequenceBatch
from lightning_lrnn.modules import SequenceTagger
from lightning_lrnn.modules.metrics import LargestError

QUIET: dict[str, Any] = dict.fromkeys(
    ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
)
# What is monitored, and its value for who knows nothing.
CHANCE = {
    "next_symbol": ("val/end_error", 0.5),
    "adding": ("val/rmse", (1 / 6) ** 0.5),
    "copying": ("val/accuracy", 1 / 8),
}


def config_of(name: str) -> dict[str, Any]:
    config = yaml.safe_load((files("lightning_lrnn.configs") / f"{name}.yaml").read_text())
    assert isinstance(config, dict)
    return config


def largest_error(p: torch.Tensor, target: torch.Tensor) -> float:
    """By definition: over all outputs, not only that of the target."""
    return float((p - F.one_hot(target, p.shape[-1])).abs().max())


def test_largest_error() -> None:
    p = torch.rand(30, 5).softmax(-1)
    target = torch.randint(0, 5, (30,))
    worst = largest_error(p, target)
    # Wherever it is: in the first batch, in the middle, in the last.
    for shift in range(0, 30, 10):
        metric = LargestError(ignore_index=IGNORE)
        for rows in torch.arange(30).roll(shift).split(10):
            metric.update(p[rows], target[rows])
        assert float(metric.compute()) == pytest.approx(worst)
    metric = LargestError(ignore_index=IGNORE)
    best = int(p.gather(1, target[:, None]).argmax())
    metric.update(p, torch.where(torch.arange(30) == best, target, IGNORE))
    assert float(metric.compute()) == pytest.approx(largest_error(p[best], target[best]))


def test_largest_error_of_nothing() -> None:
    metric = LargestError(ignore_index=IGNORE)
    metric.update(torch.rand(3, 2), torch.full((3,), IGNORE))
    assert metric.compute().isnan()
    # What has diverged is not solved, whatever comes after.
    metric.update(torch.full((1, 2), torch.nan), torch.tensor([0]))
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert metric.compute().isnan()


@pytest.mark.parametrize("ends", ["all", "lengths", "packed"])
def test_metrics_at_the_end(ends: str) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([9, 9, 9, 9]) if ends == "all" else torch.tensor([9, 4, 0, 7])
    if ends == "packed":
        lengths[2] = 1
    model = SequenceTagger(3, 4, hidden_size=8, metrics_at="end").eval()
    targets = torch.randint(0, 4, (4, 9))
    targets[torch.arange(9) >= lengths[:, None]] = IGNORE
    targets[3, lengths[3] - 1] = IGNORE  # a row whose end has no class
    inputs: Any = torch.randn(4, 9, 3)
    if ends == "packed":
        inputs = torch.nn.utils.rnn.pack_padded_sequence(inputs, lengths, True, False)
    batch = SequenceBatch(inputs, targets, lengths if ends == "lengths" else None)
    output = model.run(batch, None)[0].detach()
    actual = model.make_metrics()
    model.measure(actual, output, batch, model.loss(output, batch))

    rows = [row for row in range(3) if lengths[row]]
    p = torch.stack([output[row, lengths[row] - 1] for row in rows]).softmax(-1)
    target = torch.stack([targets[row, lengths[row] - 1] for row in rows])
    assert float(actual.compute()["end_error"]) == pytest.approx(largest_error(p, target))
    right = float((p.argmax(-1) == target).float().mean())
    assert float(actual.compute()["accuracy"]) == pytest.approx(right)
    # The loss is over all steps all the same.
    everywhere = F.cross_entropy(output.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(model.loss(output, batch), everywhere)


def test_metrics_at_steps_have_no_end_error() -> None:
    model = SequenceTagger(3, 4, hidden_size=8)
    assert set(model.make_metrics()) == {"accuracy"}
    assert set(SequenceTagger(3, 4, metrics_at="end").make_metrics()) == {"accuracy", "end_error"}
    with pytest.raises(ValueError, match="`metrics_at` must be one of steps, end, got 'last'"):
        SequenceTagger(3, 4, metrics_at="last")  # type: ignore[arg-type]


def test_training_ends_when_no_output_at_the_end_is_wrong() -> None:
    stop = EarlyStopping("val/end_error", stopping_threshold=0.25, patience=1000)
    pl.seed_everything(0, verbose=False)
    model = SequenceTagger(
        4, 4, hidden_size=16, num_layers=1, dropout=0.0, metrics_at="end", lr=0.02, total_steps=9999
    )
    data = NextSymbol(lag=4, symbols=3, batch_size=32, epoch_rows=320, held_out=100)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=60, num_sanity_val_steps=0, callbacks=[stop], **QUIET
    )
    trainer.fit(model, data)
    assert 0 < stop.stopped_epoch < 59
    assert float(trainer.callback_metrics["val/end_error"]) < 0.25
    # Counted by hand.
    (batch,) = NextSymbol(lag=4, symbols=3, batch_size=100, held_out=100).val_dataloader()
    with torch.no_grad():
        p = model.eval()(batch.inputs)[0][:, -1].softmax(-1)
    assert largest_error(p, batch.targets[:, -1]) < 0.25


@pytest.mark.parametrize("name", CHANCE)
def test_solved_is_far_from_chance(name: str) -> None:
    """And the sizes in both parts of a config are the same."""
    config = config_of(name)
    (stop,) = (c for c in config["trainer"]["callbacks"] if "EarlyStopping" in c["class_path"])
    options = stop["init_args"]
    monitor, chance = CHANCE[name]
    assert options["monitor"] == monitor
    # Epochs without progress do not end it.
    assert options["patience"] >= config["trainer"]["max_epochs"]
    if options.get("mode") == "max":
        assert options["stopping_threshold"] > 1 - (1 - chance) / 2
    else:
        assert options["stopping_threshold"] <= chance / 2
    model = config["model"]["init_args"]
    made = getattr(lrnn_data, config["data"]["class_path"].rpartition(".")[2])(
        **config["data"]["init_args"]
    )
    row = made.part("val")[0].inputs
    features = made.num_features if row.ndim == 1 else row.shape[1]
    assert model["num_features"] == features
    if "num_classes" in model:
        assert model["num_classes"] == len(made.classes)
    # Half the steps between cause and effect to twice as many.
    lag = {"next_symbol": "lag", "adding": "steps", "copying": "delay"}[name]
    steps = config["data"]["init_args"][lag]
    assert model["rnn"]["init_args"]["memory"] == [steps / 2, steps * 2]


def test_the_benchmark_says_what_early_stopping_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tasks

    config = config_of("adding")
    config["data"]["init_args"] |= {"steps": 8, "epoch_rows": 64, "held_out": 64}
    config["trainer"]["max_epochs"] = 2
    (stopping,) = (
        callback["init_args"]
        for callback in config["trainer"]["callbacks"]
        if callback["class_path"].endswith("EarlyStopping")
    )
    monkeypatch.setattr(tasks, "CONFIGS", tmp_path)
    path = tmp_path / "found.json"
    for seed, (threshold, solved) in enumerate([(1e-6, False), (100.0, True)]):
        stopping["stopping_threshold"] = threshold
        (tmp_path / "adding.yaml").write_text(yaml.safe_dump(config))
        words = ["--tasks", "adding", "--seeds", str(seed), "--json", str(path)]
        monkeypatch.setattr("sys.argv", ["tasks.py", *words])
        tasks.main()
        actual = json.loads(path.read_text())[seed]
        assert (actual["solved"], len(actual["validation"])) == (solved, 1 if solved else 2)
        assert actual["metric"] == "rmse" and 0 < actual["validation"][-1][2] < 2
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["adding", "rmse", "1/2", "2"] in [line[:4] for line in lines]
    sys.modules.pop("tasks")
