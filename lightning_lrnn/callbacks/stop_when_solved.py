"""Ends training when the task is solved: every held-out example right."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.core.checks import check_counts

__all__ = ["StopWhenSolved"]


class StopWhenSolved(Callback):
    """Ends training when every held-out example is right, and validates only when that is likely.

    After `batches` training batches in a row without a mistake a validation runs; if that is
    without a mistake too, training ends, else it continues. For tasks with an endless supply of
    training examples, where validation would cost more than training: a million steps, say.

    Args:
        batches: training batches in a row that must be right.
        metric: name of a metric that is 1 without a mistake, logged as "train/<metric>" at every
            step and as "val/<metric>" after a validation.

    Attributes:
        solved: whether a validation was without a mistake.

    Raises:
        ValueError: if `batches` is less than 1.
        RuntimeError: in training, if the model logs no such metric.
    """

    def __init__(self, batches: int = 20, metric: str = "accuracy") -> None:
        check_counts(batches=batches)
        self.batches, self.metric, self.solved = batches, metric, False
        self._right_batches, self._validating = 0, False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts right batches; stops for a validation, which Lightning runs before it stops."""
        self._right_batches = self._right_batches + 1 if self._is_one(trainer, "train") else 0
        if self._right_batches >= self.batches:
            self._right_batches, self._validating = 0, True
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continues training after a mistake, unless something else ends it."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.solved = self._is_one(trainer, "val")
        if self._validating or self.solved:
            self._validating = False
            trainer.should_stop = self.solved
        right = float(trainer.callback_metrics[f"val/{self.metric}"])
        rank_zero_info(
            f"step {trainer.global_step:,}: {right:.2%} of the held-out examples right"
            f"{': solved' if self.solved else ''}"
        )

    def _is_one(self, trainer: pl.Trainer, stage: str) -> bool:
        name = f"{stage}/{self.metric}"
        if name not in trainer.callback_metrics:
            raise RuntimeError(
                f"StopWhenSolved needs {name!r}, which the model does not log; it logs "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'nothing'}: set `metric`"
            )
        return float(trainer.callback_metrics[name]) == 1
