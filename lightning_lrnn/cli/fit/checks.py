"""Checks of a config that neither jsonargparse nor Lightning makes in time."""

from __future__ import annotations

import sys
from typing import Any

from jsonargparse import Namespace

from lightning_lrnn.cli.fit.parser import one_sentence
from lightning_lrnn.core.checks import UserError, check_counts
from lightning_lrnn.modules import RecurrentModule
from lightning_lrnn.nn.layer import Layer

__all__ = ["check_intervals", "check_layer"]


def check_intervals(trainer: Any) -> None:
    """Refuses intervals of 0, by which Lightning would divide.

    Args:
        trainer: the trainer's options.

    Raises:
        UserError: for such an interval.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (value := trainer.get(name)) is not None:
            check_counts(1, UserError, **{f"trainer.{name}": value})
    if (value := trainer.get("val_check_interval")) in (0, 0.0):
        raise UserError(f"`trainer.val_check_interval` must be above 0, got {value}")


def check_layer(model: Any) -> None:
    """Refuses a layer's options before jsonargparse makes objects of them.

    A checkpoint may have set them, and where an option's type is open jsonargparse makes an object
    of any class that is named there.

    Args:
        model: the model's class and options.

    Raises:
        UserError: for options that the layer does not have, or may not have here.
    """
    rnn = model.get("init_args", {}).get("rnn") if isinstance(model, Namespace) else None
    if not isinstance(rnn, Namespace):
        return
    module, _, name = model.class_path.rpartition(".")
    model_class = getattr(sys.modules.get(module), name, None)
    if isinstance(model_class, type) and issubclass(model_class, RecurrentModule):
        try:
            Layer.of(rnn.as_dict(), model_class.fixed_options)
        except ValueError as error:
            raise UserError(one_sentence(str(error))) from error
