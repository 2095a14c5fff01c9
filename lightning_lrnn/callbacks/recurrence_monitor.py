"""Monitors a model's recurrences in training: rates, memory, backend and time."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from lightning_lrnn.callbacks.backend_report import BackendReport
from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.memory_horizon import MemoryHorizon
from lightning_lrnn.callbacks.probes.layer_times import LayerTimes
from lightning_lrnn.callbacks.throughput import Throughput
from lightning_lrnn.callbacks.to_loggers import log_metrics

__all__ = ["RecurrenceMonitor"]

FIRST = 10
"""The first step that is measured: before it memory is allocated and code is compiled."""


class RecurrenceMonitor(Callback):
    """`Throughput`, `MemoryHorizon` and `BackendReport` in one, and where the time goes.

    Works with every LightningModule, with layers of this package and with those of `torch.nn`, of
    which it has no decays to show. Beside what those three log, every logger gets

        recurrence/layer_share         share of a step's time, forward, backward and optimizer,
                                       that goes into recurrent layers as a whole, `torch.nn.LSTM`
                                       and the like included
        recurrence/share               that of the recurrences of this package alone, without
                                       projections; not of the backend `cudnn`, which has none
        memory/peak_allocated_mb       most that tensors have taken on a CUDA device, in 10^6 bytes

    Shares and memory are measured when ten steps have been made, and every `every_n_steps` from
    there, decays every `every_n_steps`: by hooks that are there for that step only, and in one
    batch of it, if it has several. With several processes the first one speaks for all.

    Args:
        every_n_steps: optimizer steps between two measurements.
        window: batches over which rates are averaged.

    Attributes:
        throughput: with its `latest`.
        horizon: with its `latest`.
        backend: with its `report`.
        latest: the shares and the memory that were logged last.
    """

    def __init__(self, every_n_steps: int = 200, window: int = 50) -> None:
        self.throughput = Throughput(window)
        self.horizon = MemoryHorizon(every_n_steps)
        self.backend = BackendReport()
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        # Not in the step in which decays are recorded, which takes time in the layers.
        self._first = min(FIRST, every_n_steps // 2)
        self._times: LayerTimes | None = None
        self._step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts a new report of the backend."""
        self.backend.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting from the current step, which is not 0 in a resumed run."""
        self._step = trainer.global_step - 1
        self.throughput.on_train_start(trainer, pl_module)
        self.horizon.start(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the measurement of rates."""
        self.throughput.on_train_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the measurement of rates."""
        self.throughput.on_validation_end(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Registers the hooks, if this step is to be measured."""
        self.throughput.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.horizon.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        step, n = trainer.global_step, self.every_n_steps
        due = (step - self._first) // n > (self._step - self._first) // n
        self._step = step
        if due and pl_module.device.type in ("cpu", "cuda"):
            self._times = LayerTimes(pl_module, pl_module.device)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stops the measurement of this step, if there is one, and logs what is due."""
        if self._times:
            shares = self._times.stop()
            self._times = None
            self.latest = {f"recurrence/{name}": share for name, share in shares.items()}
            if pl_module.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(pl_module.device)
                self.latest["memory/peak_allocated_mb"] = peak / 1e6
            log_metrics(trainer, self.latest)
        self.throughput.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.horizon.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.backend.on_train_batch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the last rates and the last decays."""
        self.throughput.on_train_end(trainer, pl_module)
        self.horizon.on_train_end(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the backend once."""
        self.backend.on_validation_batch_end(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the backend once."""
        self.backend.on_test_batch_end(trainer, pl_module)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the backend once."""
        self.backend.on_predict_batch_end(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Removes the hooks."""
        self.horizon.on_exception(trainer, pl_module, exception)
        if self._times:
            self._times.remove()
            self._times = None
