"""How long the units of a recurrent layer remember."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

__all__ = ["MemoryHorizon", "time_constants"]

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def time_constants(a: Tensor) -> Tensor:
    """Steps after which a state has fallen to 1/e: -1 / log |a|, the median over time.

    Args:
        a: decays, (..., D).

    Returns:
        (D,), float32, on the CPU: 0 where a = 0, inf where |a| >= 1 (no forgetting).
    """
    size = a.detach().abs().float().flatten(0, -2)
    # The median first: -1/log is increasing, so it commutes, and the median of an even number of
    # steps would otherwise depend on infinities.
    size = size.median(dim=0).values.cpu()
    return torch.where(size < 1, -1 / size.log(), torch.inf)


class MemoryHorizon(pl.Callback):
    """Logs the time constants -1/log a of every recurrent layer, in steps.

    Asks the module for the decays in the last batch, `pl_module.decays(batch) -> dict[str, Tensor]`
    with a name and (..., D) per layer, without gradients. Every logger gets the 10, 50 and 90 %
    quantiles over the units as "horizon/<layer>/p10", "p50" and "p90"; a WandbLogger also gets a
    histogram, "horizon/<layer>/units". Units that forget nothing count in quantiles as inf, and are
    left out of histograms.

    Args:
        every_n_steps: optimizer steps between two measurements; there is one more at the end of
            training.

    Attributes:
        latest: by layer, the last measurement: time constants (D,), the median over time.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        if every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.latest: dict[str, Tensor] = {}
        self._batch: Any = None
        self._measured_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks that the module can be asked.

        Raises:
            TypeError: if it has no method `decays`.
        """
        if not callable(getattr(pl_module, "decays", None)):
            raise TypeError(
                f"MemoryHorizon needs a method `decays(batch) -> dict[str, Tensor]`, which "
                f"{type(pl_module).__name__} does not have; add it or remove the callback"
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measures every `every_n_steps` steps."""
        self._batch = batch
        # With accumulated gradients a step lasts several batches.
        step = trainer.global_step
        if step and step % self.every_n_steps == 0 and step != self._measured_at:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the trained model."""
        if self._batch is not None and trainer.global_step != self._measured_at:
            self._measure(trainer, pl_module)
        self._batch = None

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measured_at = trainer.global_step
        with torch.no_grad():
            decays: dict[str, Tensor] = pl_module.decays(self._batch)  # type: ignore[operator]
        self.latest = {name: time_constants(a) for name, a in decays.items()}
        if not self.latest or not trainer.is_global_zero:
            return
        scalars = {
            # Nearest, because half way between a number and inf there is nothing to show.
            f"horizon/{name}/{label}": float(taus.quantile(q, interpolation="nearest"))
            for name, taus in self.latest.items()
            for label, q in QUANTILES.items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
            if isinstance(logger, WandbLogger):
                logger.log_metrics(self._histograms(), step=trainer.global_step)

    def _histograms(self) -> dict[str, Any]:
        import wandb

        finite = {name: taus[taus.isfinite()] for name, taus in self.latest.items()}
        return {
            f"horizon/{name}/units": wandb.Histogram(taus.tolist())
            for name, taus in finite.items()
            if len(taus)
        }
