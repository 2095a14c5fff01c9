"""LightningModules, data and strategies for projects that import `lightning.pytorch`.

All names of `lightning_lrnn.modules`, `data` and `strategies`; see `pl` for the others. What
derives from a class of `pytorch_lightning` there derives from that of `lightning.pytorch` here and
is else the same; the rest (batches, metrics, errors) are the same objects.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import pytorch_lightning as _pl

from lightning_lrnn import data as _data
from lightning_lrnn import modules as _modules
from lightning_lrnn import strategies as _strategies
from lightning_lrnn.L._rebind import rebind_bases as _rebind_bases

__all__ = [*_modules.__all__, *_data.__all__, *_strategies.__all__]

if TYPE_CHECKING:
    from lightning_lrnn.data import *  # noqa: F403
    from lightning_lrnn.modules import *  # noqa: F403
    from lightning_lrnn.strategies import *  # noqa: F403

try:
    _other = import_module("lightning.pytorch")
except ModuleNotFoundError as error:
    if error.name not in ("lightning", "lightning.pytorch"):
        raise
    raise ModuleNotFoundError(
        "lightning_lrnn.L is for projects that import `lightning.pytorch`, which is not installed: "
        '`pip install "lightning>=2.6.4,<2.7"` brings it; lightning_lrnn.pl has the same for '
        "`pytorch_lightning`",
        name=error.name,
    ) from error

_bases: dict[type, type] = {
    _pl.LightningModule: _other.LightningModule,
    _pl.LightningDataModule: _other.LightningDataModule,
    _pl.strategies.DDPStrategy: _other.strategies.DDPStrategy,
}
for _source in (_modules, _data, _strategies):
    for _name in _source.__all__:
        _value = getattr(_source, _name)
        if isinstance(_value, type):
            _value = _rebind_bases(_value, _bases, __name__)
        globals()[_name] = _value
