"""The base of all callbacks: a callback for `pytorch_lightning` and for `lightning.pytorch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytorch_lightning as pl

__all__ = ["Callback"]

if TYPE_CHECKING:
    Callback = pl.Callback
else:
    try:
        from lightning.pytorch import Callback as OtherCallback
    except ModuleNotFoundError as error:
        # A folder of the user's may be called `lightning` too.
        if error.name not in ("lightning", "lightning.pytorch"):
            raise
        Callback = pl.Callback
    else:

        class Callback(pl.Callback, OtherCallback):
            """Both packages' Callback, since the command line of each accepts only its own."""
