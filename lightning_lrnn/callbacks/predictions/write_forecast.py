"""Writes what `predict` forecasts as a table, with the times that it is for."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.predictions.csv_table import (
    check_csv_path,
    refuse_several_processes,
    write_csv,
)
from lightning_lrnn.data.errors import DataError

__all__ = ["WriteForecast"]


class WriteForecast(Callback):
    """Writes the forecasts of `Trainer.predict`, or of the command `predict`, as a CSV table.

    Its columns are those of `lightning_lrnn.data.SequenceTable.forecast_table`: group, time, steps
    ahead, target and a column for each quantile. With `predict: future` of the data it is what
    comes after the end of their table. The file is there when all of it is written, in the place of
    an older one.

    Args:
        path: of the CSV (.csv).

    Raises:
        lightning_lrnn.data.DataError: for another suffix; in `predict`, for data without
            `forecast_table`, a model without `quantiles`, several processes, or if the file cannot
            be written.
    """

    def __init__(self, path: str = "forecast.csv") -> None:
        check_csv_path(path)
        self.path = path
        self._batches: list[Tensor] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises for data, models or processes whose forecasts could not be written."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "forecast_table") or not hasattr(pl_module, "quantiles"):
            raise DataError(
                f"WriteForecast is for a Forecaster and a SequenceTable, not for "
                f"{type(pl_module).__name__} and {type(data).__name__}: leave it out"
            )
        refuse_several_processes(trainer, "forecasts")
        self._batches = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the forecasts of a batch."""
        self._batches.append(outputs.cpu())

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the forecasts of all batches as one table."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        table = data.forecast_table(self._batches, pl_module.quantiles)
        self._batches = []
        target = write_csv(self.path, table, "forecast")
        rank_zero_info(f"The forecast is in {target}, {len(table['target']):,} rows.")
