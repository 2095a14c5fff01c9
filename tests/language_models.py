"""Small language models with their data and trainer, and the losses of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel


def make_data(folder: Path, **options: Any) -> ByteText:
    defaults = {"batch_size": 3, "window": 16, "val_fraction": 0.2, "test_fraction": 0.2}
    return ByteText(str(folder / "text"), **(defaults | options))


def make_model(**options: Any) -> LanguageModel:
    torch.manual_seed(1)
    defaults: dict[str, Any] = {"hidden_size": 8, "lr": 0.02, "warmup_steps": 3}
    return LanguageModel(**(defaults | options))


def make_trainer(folder: Path, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_steps": 10,
        "max_epochs": -1,
    }
    return pl.Trainer(**(defaults | options))


class Losses(pl.Callback):
    """Notes the losses; saves a checkpoint after a step."""

    def __init__(self, save_after: int | None = None, path: Path | None = None) -> None:
        self.losses: list[float] = []
        self.save_after, self.path = save_after, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        if trainer.global_step == self.save_after:
            self.save_after = None
            trainer.save_checkpoint(self.path)


def train(folder: Path, model: LanguageModel, callback: Losses, ckpt: Any = None, **options: Any):
    trainer = make_trainer(folder, callbacks=[callback], **options)
    trainer.fit(model, make_data(folder), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return callback.losses
