"""StopWhenSolved: validates when training is right, ends when validation is."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_lrnn.callbacks import StopWhenSolved


class Scripted(pl.LightningModule):
    """Is right in training and in validation as it is told to be."""

    def __init__(self, training: list[float], validation: list[float], metric: str = "accuracy"):
        super().__init__()
        self.training_script, self.validation_script = training, validation
        self.metric, self.validated = metric, []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        right = self.training_script[min(batch_idx, len(self.training_script) - 1)]
        self.log(f"train/{self.metric}", right)
        return self.weight.square()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.global_step)
            self.log(f"val/{self.metric}", self.validation_script[len(self.validated) - 1])
        else:
            self.log(f"val/{self.metric}", 1.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Scripted, callback: StopWhenSolved, **options: Any) -> pl.Trainer:
    rows = DataLoader(torch.zeros(100, 1), batch_size=1)
    quiet: dict[str, Any] = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    options = {"max_epochs": 1, "callbacks": [callback], "accelerator": "cpu"} | options
    trainer = pl.Trainer(**quiet, **options)
    trainer.fit(model, rows, DataLoader(torch.zeros(1, 1)))
    return trainer


def test_it_validates_when_training_is_right_and_goes_on_after_a_mistake() -> None:
    #        1    2    3    4    5    6    7    8    9   10   11   12
    script = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    model, callback = Scripted(script, [0.99, 1.0]), StopWhenSolved(batches=3)
    trainer = fit(model, callback)
    assert model.validated == [6, 11] and trainer.global_step == 11 and callback.solved


def test_a_mistake_starts_the_count_anew() -> None:
    model, callback = Scripted([1.0], [0.9, 0.9, 1.0]), StopWhenSolved(batches=5)
    trainer = fit(model, callback, num_sanity_val_steps=1)
    assert model.validated == [5, 10, 15] and trainer.global_step == 15


def test_another_end_of_training_is_an_end() -> None:
    class Enough(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            trainer.should_stop = trainer.should_stop or trainer.global_step >= 4

    model, callback = Scripted([0.5], [0.5] * 9), StopWhenSolved(batches=3)
    trainer = fit(model, callback, callbacks=[callback, Enough()])
    assert trainer.global_step == 4 and not callback.solved


def test_a_validation_that_nobody_asked_for() -> None:
    model, callback = Scripted([0.5], [0.5, 1.0] + [0.0] * 9), StopWhenSolved(batches=3)
    trainer = fit(model, callback, val_check_interval=10)
    assert model.validated == [10, 20] and trainer.global_step == 20 and callback.solved


def test_another_metric() -> None:
    model = Scripted([1.0], [1.0], "found")
    assert fit(model, StopWhenSolved(2, metric="found")).global_step == 2
    with pytest.raises(RuntimeError, match=r"'train/accuracy', .* logs train/found: set `met"):
        fit(Scripted([1.0], [1.0], "found"), StopWhenSolved(2))
