"""What the callbacks hand to loggers, whichever package these are from."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

__all__ = ["draw_no_graph", "is_wandb", "log_metrics"]


def draw_no_graph(trainer: pl.Trainer) -> None:
    """Lets loggers go without the graph that they would draw by `torch.jit.trace`, and says so.

    That of TensorBoard draws it when a run starts; what cannot be traced ends the run.
    """
    for logger in trainer.loggers:
        if getattr(logger, "_log_graph", False):
            logger._log_graph = False  # type: ignore[attr-defined]
            rank_zero_warn(
                f"{type(logger).__name__}(log_graph=True): no graph is logged, since "
                f"torch.jit.trace, which draws it, holds neither the kernels of this package nor "
                f"states that may be None; leave `log_graph` out"
            )


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
