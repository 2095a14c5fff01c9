"""Which backend computed the recurrence, where, and with which versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.to_loggers import is_wandb
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.ops.eager import last_backend, record_backend

__all__ = ["BackendReport"]

PACKAGES = (
    "lightning-lrnn",
    "torch",
    "pytorch-lightning",
    "lightning",
    "llvmlite",
    "cuda-core",
    "cuda-bindings",
)


class BackendReport(Callback):
    """Writes the backend that really ran into the hyperparameters, after the first batch.

    Every logger gets `recurrence/backend` (what ran; "none" if no recurrence did),
    `recurrence/requested` (the `backend` of the layers), `recurrence/device` and the versions
    of the packages involved; a WandbLogger also in the run's summary. They are strings, which
    `self.log` does not take. They are those of the first batch, in training or elsewhere: a backend
    is chosen by device and dtype, which do not change within a run.

    Attributes:
        report: what was written; empty before the first batch.
    """

    def __init__(self) -> None:
        self.report: dict[str, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the report of an earlier run."""
        self.report = {}
        # What an earlier model of this process used says nothing about this one.
        record_backend(None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the backend after the first batch of a run."""
        self._write(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the backend after the first batch of a run."""
        self._write(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the backend after the first batch of a run."""
        self._write(trainer, pl_module)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the backend after the first batch of a run."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.report:
            return
        self.report = {
            "recurrence/backend": last_backend() or "none",
            "recurrence/requested": _requested(pl_module),
            "recurrence/device": _device_name(pl_module.device),
            "version/python": platform.python_version(),
            **_versions(),
        }
        if not trainer.is_global_zero:
            return
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            logger.log_hyperparams(self.report)
            if is_wandb(logger):
                logger.experiment.summary.update(self.report)


def _requested(module: torch.nn.Module) -> str:
    layers = [layer for layer in module.modules() if isinstance(layer, Stack)]
    if not layers:
        return str(getattr(module, "backend", "auto"))
    return ", ".join(dict.fromkeys(layer.backend for layer in layers))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.processor() or platform.machine()}"


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[f"version/{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return versions
