"""The former place of `lightning_lrnn.data.tables.files`."""

from __future__ import annotations

import warnings

from lightning_lrnn.data.tables.files import Series, read_series

__all__ = ["Series", "read_series"]

warnings.warn(
    "lightning_lrnn.data.table_files is lightning_lrnn.data.tables.files now",
    DeprecationWarning,
    stacklevel=2,
)
