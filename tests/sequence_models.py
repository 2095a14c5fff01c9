"""Small models of sequences, and a trainer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.modules import (
    Forecaster,
    SequenceClassifier,
    SequenceTagger,
)

F_, C, H, K = 3, 4, 5, 2


def make(kind: str, **options: Any) -> Any:
    torch.manual_seed(1)
    defaults: dict[str, Any] = {"hidden_size": 8, "dropout": 0.0, "warmup_steps": 2}
    options = defaults | options
    if kind == "forecast":
        return Forecaster(F_, H, K, **options)
    if kind == "tag":
        return SequenceTagger(F_, C, **options)
    if kind == "mean":
        options["pooling"] = "mean"
    model = SequenceClassifier(F_, C, **options)
    model.head.reset_parameters()  # of zeros nothing could be told
    return model


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return pl.Trainer(**(defaults | options))


def measured(folder: Path, devices: int) -> dict[str, float]:
    """Figures of a validation by so many processes."""
    torch.manual_seed(3)
    x, y, z = torch.randn(24, 9, F_), torch.arange(24) % C, torch.randn(24, H, K)
    actual: dict[str, float] = {}
    for kind in ("last", "forecast"):
        model = make(kind)
        nn.init.normal_((model.head.linear if kind == "forecast" else model.head).weight)
        target = z if kind == "forecast" else y
        rows = [SequenceBatch(*row) for row in zip(x, target, strict=True)]

        def collate(rows: list[SequenceBatch]) -> SequenceBatch:
            return SequenceBatch(*(torch.stack([row[i] for row in rows]) for i in range(2)))

        loader = DataLoader(rows, 4, collate_fn=collate)
        options = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
        (part,) = trainer(folder, **options).validate(model, loader, verbose=False)
        actual |= {kind + name: value for name, value in part.items()}
    return actual
