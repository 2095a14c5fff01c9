"""Made-up tasks: rows as their rules say, never twice in training, always the same held out."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_lrnn.data import (
    IGNORE,
    Adding,
    Copying,
    LongMemory,
    NextSymbol,
    SequenceBatch,
    SyntheticData,
)
from lightning_lrnn.modules import Forecaster, SequenceClassifier, SequenceTagger
from lightning_lrnn.modules.sequence_module import valid_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*returned `None`"),
]

TASKS: dict[str, Any] = {
    "long memory": lambda **o: LongMemory(steps=50, symbols=4, **o),
    "next symbol": lambda **o: NextSymbol(lag=20, **o),
    "adding": lambda **o: Adding(steps=9, **o),
    "copying": lambda **o: Copying(delay=3, length=4, **o),
}


def held_out(data: SyntheticData) -> SequenceBatch:
    """The validation part in one batch."""
    data.batch_size = data.held_out
    (batch,) = data.val_dataloader()
    return batch


def seen(data: SyntheticData, epochs: int, **options: Any) -> list[Tensor]:
    """The inputs of every training batch that Lightning hands out."""
    batches: list[Tensor] = []

    class Eyes(pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            batches.append(batch.inputs)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    quiet: dict[str, Any] = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, limit_val_batches=0, **quiet, **options
    )
    trainer.fit(Eyes(), data)
    return batches


def test_long_memory() -> None:
    data = LongMemory(steps=500, symbols=16, held_out=400)
    inputs, positive, lengths, *_ = held_out(data)
    assert inputs.shape == (400, 500) and inputs.dtype == torch.int64 and lengths is None
    assert ((inputs[:, 0] == 0) == (positive == 1)).all()
    assert ((inputs[:, 0] == 16) == (positive == 0)).all()
    assert 150 < int(positive.sum()) < 250
    counts = torch.bincount(inputs[:, 1:].flatten(), minlength=17)
    assert counts[16] == 0  # -e_1 stands nowhere else, +e_1 as often as any
    expected = 400 * 499 / 16
    assert ((counts[:16] - expected).abs() < 5 * expected**0.5).all()
    assert (data.num_features, data.num_classes) == (17, 2)


@pytest.mark.parametrize("sampling", ["balanced", "paired"])
def test_batches_have_as_many_of_each_class(sampling: Any) -> None:
    data = LongMemory(steps=30, sampling=sampling, batch_size=6, epoch_rows=60)
    for inputs, positive, *_ in data.train_dataloader():
        assert positive.tolist() == [0, 1] * 3
        assert ((inputs[:, 0] == 0) == (positive == 1)).all()
        rest = inputs[:, 1:].unflatten(0, (3, 2))
        assert torch.equal(rest[:, 0], rest[:, 1]) == (sampling == "paired")
        assert len({tuple(row.tolist()) for row in rest[:, 0]}) == 3
    # What is asked in the end does not depend on it.
    rows, independent = held_out(data), held_out(LongMemory(steps=30))
    assert torch.equal(rows.inputs, independent.inputs)
    assert torch.equal(rows.targets, independent.targets)


def test_next_symbol() -> None:
    data = NextSymbol(lag=20, held_out=300)
    inputs, targets, *_ = held_out(data)
    assert inputs.shape == targets.shape == (300, 20)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    assert (targets[:, -1] == inputs[:, 0]).all()
    assert set(inputs[:, 0].tolist()) == {19, 20}
    assert set(inputs[:, 1:].flatten().tolist()) == set(range(19))
    assert (data.num_features, data.num_classes) == (21, 21)


def test_adding() -> None:
    inputs, targets, *_ = held_out(Adding(steps=9, held_out=300))
    numbers, marks = inputs.unbind(-1)
    assert targets.shape == (300, 1, 1) and targets.dtype == torch.float32
    assert torch.equal(targets[:, 0, 0], (numbers * marks).sum(1))
    assert (marks[:, :4].sum(1) == 1).all() and (marks[:, 4:].sum(1) == 1).all()
    assert marks.sum(0).min() > 0
    assert 0 <= float(numbers.min()) < 0.01 and 0.99 < float(numbers.max()) < 1


def test_copying() -> None:
    data = Copying(delay=3, length=4, symbols=5, held_out=100)
    inputs, targets, *_ = held_out(data)
    assert inputs.shape == targets.shape == (100, 11)
    assert set(inputs[:, :4].flatten().tolist()) == set(range(5))
    assert (inputs[:, 4:7] == 5).all() and (inputs[:, 7:] == 6).all()
    assert (targets[:, :7] == IGNORE).all() and torch.equal(targets[:, 7:], inputs[:, :4])
    assert (data.num_features, data.num_classes) == (7, 5)


@pytest.mark.parametrize("task", TASKS)
def test_training_sees_no_row_twice(task: str) -> None:
    batches = seen(TASKS[task](batch_size=4, epoch_rows=10), epochs=3)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    rows = list(chain.from_iterable(batches))
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 30
    # The same whatever an epoch is, and another stream for another seed.
    again = list(chain.from_iterable(seen(TASKS[task](batch_size=5, epoch_rows=15), epochs=2)))
    other = list(chain.from_iterable(seen(TASKS[task](seed=1, epoch_rows=30), epochs=1)))
    assert all(torch.equal(*pair) for pair in zip(rows, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(rows, other, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_held_out_rows_stay(task: str) -> None:
    data = TASKS[task](held_out=20)
    parts = {name: [data.part(name)[i].inputs for i in range(20)] for name in ("val", "test")}
    trained = [data.part("train")[i].inputs for i in range(20)]
    other = TASKS[task](held_out=20, seed=7)
    for name, rows in parts.items():
        assert all(torch.equal(rows[i], other.part(name)[i].inputs) for i in range(20))
    everything = [tuple(row.flatten().tolist()) for row in chain(*parts.values(), trained)]
    assert len(set(everything)) == 60


def test_a_resumed_run_goes_on_in_the_stream(tmp_path: Path) -> None:
    def losses(max_epochs: int, checkpoint: Path | None = None) -> list[float]:
        actual: list[float] = []

        class Noted(SequenceClassifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                loss = super().training_step(batch, batch_idx)
                actual.append(float(loss.detach()))
                return loss

        pl.seed_everything(0, verbose=False)
        model = Noted(5, 2, hidden_size=4, dropout=0.0, total_steps=100)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        trainer.fit(model, TASKS["long memory"](batch_size=4, epoch_rows=12), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{max_epochs}.ckpt")
        return actual

    whole = losses(3)
    first = losses(2)
    assert whole == first + losses(3, tmp_path / "2.ckpt")
    assert len(set(whole)) == 9


def test_overfitting_takes_the_same_batches_again() -> None:
    batches = seen(TASKS["adding"](batch_size=4, epoch_rows=12), epochs=2, overfit_batches=2)
    assert [torch.equal(batches[0], batch) for batch in batches] == [True, False, True, False]


def test_a_task_of_ones_own() -> None:
    with pytest.raises(NotImplementedError, match=r"SyntheticData must define `row\(rng, k\)`"):
        SyntheticData(steps=3).part("val")[0]


def classifier() -> SequenceClassifier:
    model = SequenceClassifier(6, 2, rnn="MinGRU", hidden_size=8, dropout=0.0)
    model.head.reset_parameters()  # of zeros nothing could be told
    return model


MODULES: dict[str, Any] = {
    "classify": classifier,
    "tag": lambda: SequenceTagger(6, 2, rnn="MinGRU", hidden_size=8, dropout=0.0),
    "forecast": lambda: Forecaster(6, 1, rnn="MinGRU", hidden_size=8, dropout=0.0),
}


@pytest.mark.parametrize("kind", MODULES)
def test_an_index_stands_for_a_one_hot_vector(kind: str) -> None:
    model = MODULES[kind]()
    indices = torch.randint(0, 6, (3, 7))
    lengths = torch.tensor([7, 4, 0])
    one_hot = torch.nn.functional.one_hot(indices, 6).float()
    actual, gradients = [], []
    for inputs in (indices, one_hot):
        model.zero_grad()
        y, _ = model(inputs, lengths=lengths)
        if kind == "tag":
            y = y * valid_steps(lengths, 7)[..., None]
        y.square().sum().backward()
        actual.append(y)
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*actual)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_index_that_stands_for_nothing(kind: str, wrong: int) -> None:
    model = MODULES[kind]()
    batch = SequenceBatch(torch.tensor([[0, 5, wrong]]), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=f"indices of 0 to 5, .* got {wrong}: set `model.num_f"):
        model.validation_step(batch, 0)


def test_features_that_are_integers_are_features() -> None:
    model = MODULES["classify"]()
    x = torch.randint(0, 100, (2, 3, 6))
    torch.testing.assert_close(model(x)[0], model(x.float())[0])
    with pytest.raises(ValueError, match=r"or integers \(B, T\), got float32 \(2, 6\)"):
        model(torch.zeros(2, 6))
