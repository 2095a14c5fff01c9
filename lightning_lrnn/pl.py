"""LightningModules, data and strategies for projects that import `pytorch_lightning`.

All names of `lightning_lrnn.modules`, `data` and `strategies`, the same objects; see `L` for
projects that import the other package.
"""

from lightning_lrnn import data, modules, strategies
from lightning_lrnn.data import *  # noqa: F403
from lightning_lrnn.modules import *  # noqa: F403
from lightning_lrnn.strategies import *  # noqa: F403

__all__ = [*modules.__all__, *data.__all__, *strategies.__all__]
