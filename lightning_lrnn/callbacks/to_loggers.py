"""What the callbacks hand to loggers, whichever package these are from."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

__all__ = ["is_wandb", "log_metrics"]


def log_metrics(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    """Hands figures to every logger, at the number of optimizer steps that were made.

    `LightningModule.log` takes about a millisecond of every step, whether or not it is logged.
    """
    if metrics and trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def is_wandb(logger: Any) -> bool:
    """Whether it is the WandbLogger of `pytorch_lightning` or `lightning.pytorch`, or of a kind."""
    return any(kind.__name__ == "WandbLogger" for kind in type(logger).__mro__)
