"""A forecast that needs no model, beside the model's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.probes.season import Season, naive_errors, season_of
from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.tables.rows import ForecastRows

__all__ = ["SeasonalNaive"]
