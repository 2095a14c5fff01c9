"""How fast training goes, in sequences and tokens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

__all__ = ["Throughput"]


class Throughput(pl.Callback):
    """Logs "train/tokens_per_second" and "train/sequences_per_second".

    The first tensor found in a batch counts: (B, T, ...) is B sequences and B * T tokens, padding
    included; (B,) is B sequences without tokens. The rate is the mean over the last `window`
    batches by the wall clock, data loading and the other callbacks included, validation not. Work
    that a GPU still has queued blurs single steps, not the mean. Rates of several processes are
    added up as if all were as fast as this one.

    Args:
        window: number of batches to average over, at least 1.
    """

    def __init__(self, window: int = 50) -> None:
        if window < 1:
            raise ValueError(f"`window` must be at least 1, got {window}")
        # One entry more than intervals: (time, sequences so far, tokens so far).
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=window + 1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts measuring anew."""
        self._marks.clear()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts measuring anew, for validation is not training."""
        self._marks.clear()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the first mark."""
        if not self._marks:
            self._marks.append((time.perf_counter(), 0, 0))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the batch and logs the rates."""
        tensor = _first_tensor(batch)
        if tensor is None or tensor.ndim == 0 or not self._marks:
            return
        sequences = tensor.shape[0]
        tokens = sequences * tensor.shape[1] if tensor.ndim > 1 else 0
        _, sequences_before, tokens_before = self._marks[-1]
        self._marks.append(
            (time.perf_counter(), sequences_before + sequences, tokens_before + tokens)
        )
        (start, *first), (end, *last) = self._marks[0], self._marks[-1]
        for name, before, after in zip(("sequences", "tokens"), first, last, strict=True):
            if after > before:
                rate = trainer.world_size * (after - before) / max(end - start, 1e-9)
                pl_module.log(f"train/{name}_per_second", rate, batch_size=sequences)


def _first_tensor(batch: Any) -> Tensor | None:
    """The first tensor in nested dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for item in batch:
            if (found := _first_tensor(item)) is not None:
                return found
    return None
