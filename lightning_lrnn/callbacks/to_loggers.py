"""Logging of callbacks, to loggers of `pytorch_lightning` or `lightning.pytorch`."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

__all__ = ["is_wandb", "log_metrics"]


def log_metrics(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    """Logs metrics in every logger, at the current number of optimizer steps.

    `LightningModule.log` takes about a millisecond of every step, whether or not it is logged.
    """
    if metrics and trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def is_wandb(logger: Any) -> bool:
    """Whether it is a WandbLogger of `pytorch_lightning` or `lightning.pytorch`."""
    return any(cls.__name__ == "WandbLogger" for cls in type(logger).__mro__)
