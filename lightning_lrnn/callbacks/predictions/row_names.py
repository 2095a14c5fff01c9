"""Names of the rows of a prediction, from the data that is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from lightning_lrnn.data.tables.rows import StepRows

__all__ = ["NumberedRows", "SeriesRows", "names_of_rows"]


class NumberedRows:
    """Rows of any data: the first is 1, as is the first step of each.

    Attributes:
        columns: names of what `of` returns.
        step: name of what `steps` returns.
        windows: whether a sequence may be in several rows.
    """

    columns: Sequence[str] = ("row",)
    step = "step"
    windows = False

    def of(self, row: int) -> tuple[Any, ...]:
        """The name of a row, a value for each of `columns`; `row` counts from 0."""
        return (row + 1,)

    def position(self, row: int) -> tuple[int, int]:
        """The number of a row's sequence, and where in it the row starts, from 0."""
        return row, 0

    def steps(self, row: int, start: int, stop: int) -> Sequence[Any]:
        """The times of steps of a row's sequence."""
        return range(start + 1, stop + 1)


class SeriesRows(NumberedRows):
    """Rows of a SequenceTable: windows of series that have names, and perhaps times.

    Args:
        data: a SequenceTable.
        rows: its rows that are predicted.
    """

    def __init__(self, data: Any, rows: StepRows) -> None:
        self._series, self._spans = data.series, rows.spans
        self.columns = tuple(data.group) or ("series",)
        self.step = data.time or "step"
        self.windows = data.window is not None
        self._times: dict[int, Sequence[Any]] = {}

    def of(self, row: int) -> tuple[Any, ...]:
        """The values of the columns of `group`, or the name of the file."""
        series = self._series[self._spans[row].series]
        return tuple(series.groups or (series.name,))

    def position(self, row: int) -> tuple[int, int]:
        """The number of a window's series, and its first step."""
        series, start, _ = self._spans[row]
        return series, start

    def steps(self, row: int, start: int, stop: int) -> Sequence[Any]:
        """The values of the column of `time`, or the steps from 1."""
        of = self._spans[row].series
        if of not in self._times:
            self._times[of] = self._series[of].shown()
        return self._times[of][start:stop]


def names_of_rows(trainer: pl.Trainer) -> NumberedRows:
    """Names by the SequenceTable that a trainer predicts with; numbers for other data."""
    data: Any = getattr(trainer, "datamodule", None)
    rows = getattr(trainer.predict_dataloaders, "dataset", None)
    # A trainer keeps the data of a call before, while it predicts with other loaders.
    if hasattr(type(data), "series") and isinstance(rows, StepRows):
        return SeriesRows(data, rows) if rows is data.part(data.predict) else NumberedRows()
    return NumberedRows()
