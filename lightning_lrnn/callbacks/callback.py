"""The base of all callbacks: a callback for `pytorch_lightning` and for `lightning.pytorch`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytorch_lightning as pl

__all__ = ["Callback"]

if TYPE_CHECKING:
    Callback = pl.Callback
elif find_spec("lightning"):
    from lightning.pytorch import Callback as OtherCallback

    class Callback(pl.Callback, OtherCallback):
        """Both packages' Callback, since the command line of each accepts only its own."""

else:
    Callback = pl.Callback
