"""The norm of the gradient, as it was before clipping."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lightning_lrnn.callbacks.callback import Callback

__all__ = ["GradientNorm"]


class GradientNorm(Callback):
    """Logs "train/gradient_norm": the 2-norm over all gradients, before clipping.

    Lightning calls `on_before_optimizer_step` after accumulation and, with 16-bit precision, after
    the loss scale is taken out again, but before it clips; the norm of the clipped gradient would
    only show the clipping value. A step that the loss scaler is about to skip shows as inf or NaN.
    With several optimizers each has its own key, "train/gradient_norm/0" and so on.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Logs the norm over the optimizer's parameters; no synchronisation with the device."""
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        name = "train/gradient_norm"
        if len(trainer.optimizers) > 1:
            # The optimizers of the trainer are those of the module, unwrapped.
            numbers = [i for i, o in enumerate(trainer.optimizers) if o is optimizer]
            name += f"/{numbers[0] if numbers else 'other'}"
        if gradients:
            norm: Any = get_total_norm(gradients)
            # Of divided parameters (FSDP2) processes add it up when it is read: all of them now.
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            pl_module.log(name, norm, batch_size=1)
