"""Callbacks that look after what a checkpoint restores, and after monitored metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from lightning_lrnn.core.checks import UserError
from lightning_lrnn.modules import RecurrentModule
from lightning_lrnn.modules.checkpoint import CheckpointError

__all__ = ["Monitors", "Restored"]

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""Parts of an optimizer's state that have the shape of the parameter."""


class Restored(pl.Callback):
    """Checks and changes what a checkpoint restores in optimizers.

    Gives optimizers the options that were typed, and refuses states that are not of their
    parameters: Lightning takes any number of states, PyTorch any state with the right number of
    groups.

    Args:
        path: of the checkpoint.
        overruled: the checkpoint's values of options that are typed with another value.
    """

    def __init__(self, path: str, overruled: dict[str, Any]) -> None:
        self._path, self._overruled = path, overruled
        self._numbers: dict[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares numbers and shapes of states with those of the optimizers.

        Raises:
            CheckpointError: for states of other optimizers or parameters.
        """
        present: dict[str, Sequence[Any]] = {
            "optimizer_states": trainer.optimizers,
            "lr_schedulers": trainer.lr_scheduler_configs,
        }
        for name, number in self._numbers.items():
            if number != len(present[name]):
                raise CheckpointError(
                    f"{self._path} has {number} `{name}` for {len(present[name])} of this run; "
                    f"give a checkpoint of this model"
                )
        for optimizer in trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name in MOMENTS:
                    value = state.get(name, parameter)
                    if getattr(value, "shape", None) != parameter.shape:
                        raise CheckpointError(
                            f"{self._path} has `optimizer_states` of other parameters: {name} is "
                            f"{tuple(getattr(value, 'shape', ()))} for one of "
                            f"{tuple(parameter.shape)}; give a checkpoint of this model"
                        )

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Scales the learning rates and replaces the weight decay in the states to be restored."""
        self._numbers = {
            name: len(checkpoint[name]) for name in ("optimizer_states", "lr_schedulers")
        }
        if not isinstance(pl_module, RecurrentModule):
            return
        groups = [g for state in checkpoint["optimizer_states"] for g in state["param_groups"]]
        if (lr := self._overruled.get("lr")) is not None:
            for group in groups:
                for name in ("lr", "initial_lr"):
                    if name in group:
                        group[name] *= pl_module.lr / lr
            for schedule in checkpoint["lr_schedulers"]:
                for name in {"base_lrs", "_last_lr"} & set(schedule):
                    schedule[name] = [rate * pl_module.lr / lr for rate in schedule[name]]
        if "weight_decay" in self._overruled:
            for group in groups:
                if group.get("weight_decay") == self._overruled["weight_decay"]:
                    group["weight_decay"] = pl_module.weight_decay


class Monitors(pl.Callback):
    """Refuses a monitored metric that nothing logs: Lightning warns, and keeps no best model."""

    def __init__(self) -> None:
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the metrics of validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = True
            self._check(trainer, "val")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks all metrics."""
        if self._validated:
            self._check(trainer, "")

    def _check(self, trainer: pl.Trainer, prefix: str) -> None:
        logged = trainer.callback_metrics
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and name.startswith(prefix) and name not in logged:
                raise UserError(
                    f"{type(callback).__name__} monitors {name!r}, which nothing logs; there are "
                    f"{', '.join(sorted(logged))}"
                )
