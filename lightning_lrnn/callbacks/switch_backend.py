"""Sets the backend of a model's layers of this package."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.nn.checks import check_backend
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.switch.replace import SwitchError

__all__ = ["SwitchBackend"]


class SwitchBackend(Callback):
    """Sets the backend of all layers of this package in a LightningModule; nothing else changes.

    Args:
        backend: "auto" or a name of `lightning_lrnn.backends.names()`.

    Raises:
        lightning_lrnn.BackendError: if there is no backend of that name.
        lightning_lrnn.SwitchError: in a run, if the module has no such layer.
    """

    def __init__(self, backend: str) -> None:
        check_backend(backend)
        self.backend = backend

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the backend of all layers, which have been made by then."""
        self._set(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the backend of all layers."""
        self._set(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the backend of all layers."""
        self._set(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the backend of all layers."""
        self._set(pl_module)

    def _set(self, module: Any) -> None:
        layers = [m for m in module.modules() if isinstance(m, Stack)]
        if not layers:
            raise SwitchError(
                f"{type(module).__name__} has no layer of lightning_lrnn; SwitchRNN makes them"
            )
        for layer in layers:
            layer.backend = self.backend
        if hasattr(module, "recurrent_layers"):
            # A RecurrentModule, of either package, whose setting reports show.
            module.backend = self.backend
