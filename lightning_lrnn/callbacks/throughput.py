"""The rates of training: steps, sequences, tokens and floating-point operations per second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.throughput import get_available_flops
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.to_loggers import log_metrics
from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.samplers import part_of_data

__all__ = ["Throughput"]

DTYPES = {
    "16": torch.float16,
    "bf16": torch.bfloat16,
    "32": torch.float32,
    "64": torch.float64,
    "transformer": torch.int8,
}
"""The first word of the trainer's precision -> the dtype of matmuls."""


class _Mark(NamedTuple):
    """A point in time, and the counts up to it."""

    seconds: float
    steps: int
    sequences: int = 0
    tokens: int = 0
    flops: float = 0.0


class Throughput(Callback):
    """Logs "train/steps_per_second", "train/sequences_per_second", "train/tokens_per_second".

    The first tensor found in a batch counts: (B, T, ...) is B sequences and B * T tokens, padding
    included; (B,) is B sequences without tokens; a PackedSequence has no padding. A step is one of
    the optimizer. The rate is the mean over the last `window` batches by the wall clock, data
    loading and the other callbacks included, validation not. Work that a GPU still has queued blurs
    single steps, not the mean. Rates of sequences and tokens are added up over
    processes, as if all were as fast as this one.

    If the module has an attribute `flops_per_batch`, the floating-point operations of a batch,
    forward and backward, as for Lightning's ThroughputMonitor, its keys are logged too:
    "train/device/flops_per_sec" and, where Lightning knows the device's peak, the share of that as
    "train/device/mfu".

    It logs every `log_every_n_steps` of the trainer, and at the end of training.

    Args:
        window: number of batches to average over, at least 1.

    Attributes:
        latest: the metrics that were logged last.
    """

    def __init__(self, window: int = 50) -> None:
        check_counts(window=window)
        self.latest: dict[str, float] = {}
        # One entry more than intervals.
        self._marks: deque[_Mark] = deque(maxlen=window + 1)
        self._logged_at = -1
        self._has_flops: bool | None = None
        self._available: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts from the current step, which is not 0 in a resumed run."""
        self._logged_at = trainer.global_step
        self._has_flops = self._available = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the measurement."""
        self._marks.clear()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the measurement: the time of a validation does not count."""
        self._marks.clear()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes the time at which the first batch starts."""
        if not self._marks:
            self._marks.append(_Mark(time.perf_counter(), trainer.global_step))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the batch; logs the rates if they are due."""
        if not self._marks:
            return
        _, _, sequences, tokens, flops = self._marks[-1]
        of_batch = _sizes(batch)
        sequences, tokens = sequences + of_batch[0], tokens + of_batch[1]
        if self._has_flops is None:
            # Once, as looking up a missing attribute of a module takes longer than all else here.
            self._has_flops = hasattr(pl_module, "flops_per_batch")
        if self._has_flops:
            per_batch: Any = pl_module.flops_per_batch
            flops += per_batch or 0
        step = trainer.global_step
        self._marks.append(_Mark(time.perf_counter(), step, sequences, tokens, flops))
        if step != self._logged_at and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the rates at the end of training."""
        if trainer.global_step != self._logged_at:
            self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        if len(self._marks) < 2:
            return
        self._logged_at = trainer.global_step
        first, last = self._marks[0], self._marks[-1]
        seconds = max(last.seconds - first.seconds, 1e-9)
        rates = [(after - before) / seconds for before, after in zip(first, last, strict=True)]
        _, steps, sequences, tokens, flops = rates
        if flops and self._available is None:
            dtype = DTYPES.get(str(trainer.precision).split("-")[0], torch.float32)
            device = trainer.strategy.root_device
            self._available = get_available_flops(device, dtype) or 0
        # Processes that share a sequence, or a model, count as one.
        _, parts = part_of_data(trainer)
        metrics = {
            "train/steps_per_second": steps,
            "train/sequences_per_second": parts * sequences,
            "train/tokens_per_second": trainer.world_size * tokens,
            "train/device/flops_per_sec": flops,
            "train/device/mfu": flops / self._available if self._available else 0.0,
        }
        # A rate of zero means that the batch has no such thing.
        self.latest = {name: rate for name, rate in metrics.items() if rate}
        log_metrics(trainer, self.latest)


def _sizes(batch: Any) -> tuple[int, int]:
    """Sequences and tokens of the first tensor in nested dicts, lists and tuples; 0 for none."""
    if isinstance(batch, PackedSequence):
        return int(batch.batch_sizes[0]), len(batch.data)
    if isinstance(batch, Tensor):
        sequences = batch.shape[0] if batch.ndim else 0
        return sequences, sequences * batch.shape[1] if batch.ndim > 1 else 0
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for item in batch:
            if (sizes := _sizes(item))[0]:
                return sizes
    return 0, 0
