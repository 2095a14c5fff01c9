"""LightningModules and data for projects that import `pytorch_lightning`; see `L` for the others.

All names of `lightning_lrnn.modules` and `lightning_lrnn.data`, the same objects.
"""

from lightning_lrnn import data, modules
from lightning_lrnn.data import *  # noqa: F403
from lightning_lrnn.modules import *  # noqa: F403

__all__ = [*modules.__all__, *data.__all__]
