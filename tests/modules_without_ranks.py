"""Modules of users that know nothing of ranks, trained on one process or by several."""

from __future__ import annotations

from typing import Any

import processes
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_lrnn import SwitchRNN

STEPS, ROWS, T, SIZE = 20, 4, 12, 5


class Steps(pl.LightningModule):
    """A target for each step: what `training_step` needs it takes from layers, not by `forward`."""

    split: Any = [1, 1]  # noqa: RUF012

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rnn = nn.LSTM(size, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 1)
        self.losses: list[float] = []

    def output(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self.output(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.output(batch[0])

    def on_train_batch_end(self, *_: Any) -> None:
        self.losses.append(self.trainer.callback_metrics["loss"].item())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


class Rows(Steps):
    """A target for each row, of the final state, which every rank has."""

    split = {"x": 1, "y": None}  # noqa: RUF012

    def loss(self, batch: Any) -> Tensor:
        _, (h, _) = self.rnn(batch["x"])
        return F.mse_loss(self.head(h[-1]), batch["y"])


def batches(module_class: type[Steps]) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    data: list[Any] = []
    for _ in range(STEPS):
        x = torch.randn(ROWS, T, SIZE, generator=generator)
        y = x.cumsum(1).mean(-1, keepdim=True)
        data.append([x, y] if module_class.split == [1, 1] else {"x": x, "y": y[:, -1]})
    return data


def fit(
    model: pl.LightningModule,
    split: Any,
    data: list[Any],
    strategy: Any = "auto",
    clip: float | None = 1.0,
    **switch: Any,
) -> pl.Trainer:
    """Trains on all processes, or on each by itself, after a switch."""
    size = 1 if strategy == "auto" else dist.get_world_size()
    with processes.world(dist.get_rank(), size):
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=size,
            strategy=strategy,
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            gradient_clip_val=clip,
            use_distributed_sampler=False,
            callbacks=[SwitchRNN(rnn="GILRLSTM", split=split, **switch)],
        )
        loader = DataLoader(data, batch_size=None)
        trainer.fit(model, loader, DataLoader(data[:2], batch_size=None))
    return trainer


def new_module(module_class: type[Any]) -> Any:
    """A module of seed 0. Made before its run, as the switch draws random numbers too."""
    torch.manual_seed(0)
    return module_class()
