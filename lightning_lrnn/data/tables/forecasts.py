"""Forecasts back in a table, with the times that they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_lrnn.data.tables.cells import Column
from lightning_lrnn.data.tables.files import Series
from lightning_lrnn.data.tables.rows import ForecastRows
from lightning_lrnn.data.tables.times import following

__all__ = ["KnownSeries", "forecast_table", "known_series"]


class KnownSeries(NamedTuple):
    """What is needed of a series to say when a forecast is for.

    Attributes:
        name: of the series.
        groups: values of the columns of `group`.
        steps: up to the last one with a target.
        times: (T,), T at least `steps`; None if there is no column of time.
    """

    name: str
    groups: tuple[str, ...]
    steps: int
    times: Column | None

    def until(self, steps: int) -> Column:
        """The times of so many steps; beyond the table they go on as in it, from 1 without any."""
        if self.times is None:
            return np.arange(1, steps + 1)
        missing = steps - len(self.times)
        if missing <= 0:
            return self.times[:steps]
        return np.concatenate([self.times, following(self.times, missing)])


def known_series(series: Series, targets: NDArray[np.float64]) -> KnownSeries:
    """Of a series and its targets (T, K); rows without any at the end are the future."""
    known = np.flatnonzero(~np.isnan(targets).all(1))
    steps = int(known[-1]) + 1 if len(known) else 0
    return KnownSeries(series.name, series.groups, steps, series.times)


def forecast_table(
    predictions: NDArray[Any],
    rows: ForecastRows,
    known: Sequence[KnownSeries],
    group: Sequence[str],
    time: str | None,
    targets: Sequence[str],
    quantiles: Sequence[float],
) -> dict[str, list[Any]]:
    """See `SequenceTable.forecast_table`; predictions are (rows, horizon, targets, levels)."""
    names = list(group) or (["series"] if len(known) > 1 else [])

    times = [_shown(one.until(one.steps + rows.horizon)) for one in known]
    columns: dict[str, list[Any]] = {name: [] for name in (*names, time or "step", "target")}
    for series, start in rows.starts:
        of = known[series].groups or (known[series].name,)
        middle = start + rows.window
        for when in times[series][middle : middle + rows.horizon]:
            for target in targets:
                for name, value in zip(names, of, strict=False):
                    columns[name].append(value)
                columns[time or "step"].append(when)
                columns["target"].append(target)
    for i, level in enumerate(quantiles):
        columns[f"{level:g}"] = predictions[..., i].reshape(-1).tolist()
    return columns


def _shown(times: Column) -> list[Any]:
    if times.dtype.kind == "M":
        return [str(when) for when in np.datetime_as_string(times, unit="auto")]
    if times.dtype.kind == "m":
        return [str(when) for when in times]
    found: list[Any] = times.tolist()
    return found
