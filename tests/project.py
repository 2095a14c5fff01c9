"""A user's project, which knows nothing of this package, under both names of Lightning."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lrnn.nn.stack import Stack

PACKAGES = ["pytorch_lightning", "lightning.pytorch"]

M, H, T, STEPS = 3, 5, 6, 4


def project(package="pytorch_lightning", make="__init__", rnn=None):
    """A user's LightningModule, which knows nothing of this package, and its Lightning."""
    pl = importlib.import_module(package)

    class Project(pl.LightningModule):
        def __init__(self, size=H):
            super().__init__()
            self.save_hyperparameters()
            self.size, self.hidden, self.losses = size, None, []
            self.head = nn.Linear(size, 1)
            if make == "__init__":
                self.make()

        def make(self):
            self.rnn = nn.LSTM(M, self.size, 2, batch_first=True) if rnn is None else rnn()

        def setup(self, stage):
            if make == "setup" and not hasattr(self, "rnn"):
                self.make()

        def configure_model(self):
            if make == "configure_model" and not hasattr(self, "rnn"):
                self.make()

        def forward(self, x):
            return self.head(self.rnn(x)[0])[..., 0]

        def step(self, batch):
            return (self(batch[0]) - batch[1]).square().mean()

        def training_step(self, batch, index):
            loss = self.step(batch)
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch, index):
            self.log("val_loss", self.step(batch), batch_size=len(batch[0]))

        def test_step(self, batch, index):
            self.log("test_loss", self.step(batch), batch_size=len(batch[0]))

        def predict_step(self, batch, index):
            return self(batch[0])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

        def train_dataloader(self):
            x = torch.randn(8 * STEPS, T, M, generator=torch.Generator().manual_seed(1))
            return DataLoader(TensorDataset(x, x.cumsum(1)[..., 0]), batch_size=8)

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    return pl, Project


def trainer(pl, folder, *callbacks, **options):
    plain = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "default_root_dir": folder}
    plain |= {"enable_progress_bar": False, "enable_model_summary": False}
    plain |= {"enable_checkpointing": False, "log_every_n_steps": 1, **options}
    return pl.Trainer(callbacks=list(callbacks), **plain)


def stacks(module):
    return [m for m in module.modules() if isinstance(m, Stack)]


both_packages = pytest.mark.parametrize("package", PACKAGES)
