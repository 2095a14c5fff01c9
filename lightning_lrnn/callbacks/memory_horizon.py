"""Time constants of the units of recurrent layers, and saturation of their gates."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.probes.decays import RecordedDecays
from lightning_lrnn.callbacks.to_loggers import is_wandb, log_metrics
from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.nn.stack import Stack

__all__ = ["MemoryHorizon", "saturation", "time_constants"]

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
CLOSED, OPEN = 0.01, 0.99
"""Below and above, the slope a (1 - a) of a = sigmoid(z) is less than 0.01, 1/25 of its largest."""


def time_constants(a: Tensor) -> Tensor:
    """Steps after which a state has fallen to 1/e: -1 / log |a|, the median over time.

    Args:
        a: decays, (..., D).

    Returns:
        (D,), float32, on the CPU: 0 where a = 0, inf where |a| >= 1 (no forgetting, or growth).
    """
    size = a.detach().abs().float().flatten(0, -2)
    # The median first: -1/log is increasing, so it commutes, and the median of an even number of
    # steps would otherwise depend on infinities.
    size = size.median(dim=0).values.cpu()
    return torch.where(size < 1, -1 / size.log(), torch.inf)


def saturation(a: Tensor) -> dict[str, float]:
    """Shares of decays, over steps and units, where a gate hardly learns.

    Args:
        a: decays, of any shape.

    Returns:
        "closed": |a| < 0.01, all is forgotten; "open": |a| > 0.99, nearly nothing is. Where a
        decay is not a sigmoid, as in an LRU, these are no more than shares. "growing": |a| > 1,
        of the open ones those that make a state grow, which only a gate of one's own has.
    """
    size = a.detach().abs()
    return {
        "closed": float((size < CLOSED).float().mean()),
        "open": float((size > OPEN).float().mean()),
        "growing": float((size > 1).float().mean()),
    }


class MemoryHorizon(Callback):
    """Logs the time constants -1/log a of every recurrent layer, in steps, and gate saturation.

    They are those of the decays in the batch of a training step, without padding.
    Every logger gets the 10, 50 and 90 % quantiles over the units as "horizon/<layer>/p10", "p50"
    and "p90", and `saturation` as "saturation/<layer>/closed", "open" and "growing"; a WandbLogger
    also gets a histogram, "horizon/<layer>/units". Units that forget nothing, or grow, are inf in
    quantiles, and left out of histograms.

    If a module has no layers of this package, or torch.compile hides them, the decays are those of
    its method `decays(batch) -> dict[str, Tensor]`, (..., D) by layer, if it has one.

    Args:
        every_n_steps: optimizer steps between two measurements; there is one more at the end of
            training.

    Attributes:
        latest: by layer, the last measurement: time constants (D,), the median over time.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        check_counts(every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.latest: dict[str, Tensor] = {}
        self._batch: Any = None
        self._recorded: RecordedDecays | None = None
        self._step = self._measured_at = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks that there is something to measure.

        Raises:
            TypeError: if there is neither a layer of this package nor a method `decays`.
        """
        has_layers = any(isinstance(layer, Stack) for layer in pl_module.modules())
        if not has_layers and not callable(getattr(pl_module, "decays", None)):
            raise TypeError(
                f"MemoryHorizon needs a layer of lightning_lrnn or a method `decays(batch) -> "
                f"dict[str, Tensor]`, and {type(pl_module).__name__} has neither; remove the "
                f"callback"
            )
        self.start(trainer)

    def start(self, trainer: pl.Trainer) -> None:
        """Starts from the current step, which is not 0 in a resumed run."""
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts to record decays, if this batch can be the last of a step to measure."""
        after = trainer.global_step + max(1, len(trainer.optimizers))
        if self._due(after) or _ends(trainer, after):
            self._recorded = RecordedDecays(pl_module)

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
        decays = self._recorded.stop() if self._recorded else {}
        self._recorded = None
        # With accumulated gradients a step lasts several batches, and is due after the last.
        step = trainer.global_step
        if self._due(step) or _ends(trainer, step):
            self._measure(trainer, pl_module, decays)
        self._step = step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the trained model, if it has a method `decays`."""
        if self._batch is not None and trainer.global_step != self._measured_at:
            self._measure(trainer, pl_module, {})
        self._batch = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Removes the hooks."""
        if self._recorded:
            self._recorded.remove()
            self._recorded = None

    def _due(self, step: int) -> bool:
        return step // self.every_n_steps > self._step // self.every_n_steps

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, decays: dict[str, Tensor]
    ) -> None:
        model_decays: Any = getattr(pl_module, "decays", None)
        if not decays and callable(model_decays):
            with torch.no_grad():
                decays = model_decays(self._batch)
        decays = {name: a for name, a in decays.items() if a.numel()}
        if not decays:
            return
        self._measured_at = trainer.global_step
        self.latest = {name: time_constants(a) for name, a in decays.items()}
        scalars = {
            # Nearest, as an interpolation between a number and inf is inf.
            f"horizon/{name}/{label}": float(taus.quantile(q, interpolation="nearest"))
            for name, taus in self.latest.items()
            for label, q in QUANTILES.items()
        }
        for name, a in decays.items():
            scalars |= {f"saturation/{name}/{label}": x for label, x in saturation(a).items()}
        log_metrics(trainer, scalars)
        if trainer.is_global_zero:
            for logger in filter(is_wandb, trainer.loggers):
                logger.log_metrics(self._histograms(), step=trainer.global_step)

    def _histograms(self) -> dict[str, Any]:
        import wandb

        finite = {name: taus[taus.isfinite()] for name, taus in self.latest.items()}
        return {
            f"horizon/{name}/units": wandb.Histogram(taus.tolist())
            for name, taus in finite.items()
            if len(taus)
        }


def _ends(trainer: pl.Trainer, step: int) -> bool:
    """Whether training ends with this batch, whose number of steps is then `step`."""
    epochs = trainer.max_epochs
    last_epoch = epochs is not None and trainer.current_epoch + 1 >= epochs > 0
    return step >= trainer.max_steps > 0 or (last_epoch and trainer.is_last_batch)
