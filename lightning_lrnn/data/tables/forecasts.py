"""Forecasts back in a table, with the times that they are for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.tables.cells import Column
from lightning_lrnn.data.tables.files import Series
from lightning_lrnn.data.tables.rows import ForecastRows
from lightning_lrnn.data.tables.times import following, shown

__all__ = [
    "STEPS_AHEAD",
    "KnownSeries",
    "forecast_table",
    "known_series",
    "report_early_ends",
    "warn_of_short",
]

STEPS_AHEAD = "steps_ahead"
"""Column of a table of forecasts: how far ahead a row is, from 1 on."""
PRECISION = 6
"""Digits behind the first one that float32 has."""
MOST = 5
"""Series that are named in a message."""


class KnownSeries(NamedTuple):
    """What is needed of a series to say when a forecast is for.

    Attributes:
        name: of the series.
        groups: values of the columns of `group`.
        steps: up to the last one with a target.
        times: (T,), T at least `steps`; None if there is no column of time.
        zone: of dates that are those of UTC; None to write them as they are.
    """

    name: str
    groups: tuple[str, ...]
    steps: int
    times: Column | None
    zone: str | None = None

    def until(self, steps: int) -> Column:
        """The times of so many steps; beyond the table they go on as in it, from 1 without any."""
        if self.times is None:
            return np.arange(1, steps + 1)
        missing = steps - len(self.times)
        if missing <= 0:
            return self.times[:steps]
        return np.concatenate([self.times, following(self.times, missing)])

    def shown(self) -> list[Any]:
        """The times of all steps, as tables have them."""
        return _shown(self.until(self.steps), self.zone)


def known_series(series: Series, targets: NDArray[np.float64]) -> KnownSeries:
    """Of a series and its targets (T, K); rows without any at the end are the future."""
    known = np.flatnonzero(~np.isnan(targets).all(1))
    steps = int(known[-1]) + 1 if len(known) else 0
    return KnownSeries(series.name, series.groups, steps, series.times, series.zone)


def warn_of_short(steps: Mapping[str, int], used: Iterable[int], window: int, horizon: int) -> None:
    """Warns of series that have no window, if others have some.

    Args:
        steps: that are known, by the name of a series.
        used: the numbers of series with windows.
        window: steps of the inputs.
        horizon: steps of the targets.
    """
    with_windows = set(used)
    left_out = [one for i, one in enumerate(steps.items()) if i not in with_windows]
    if with_windows and left_out:
        names = ", ".join(f"{name!r} with {known}" for name, known in left_out[:MOST])
        more = f" and {len(left_out) - MOST} more" if len(left_out) > MOST else ""
        warnings.warn(
            f"{len(left_out)} series have fewer steps than a window of {window} and {horizon} to "
            f"forecast, and are left out: {names}{more}",
            stacklevel=2,
        )


def report_early_ends(series: Sequence[KnownSeries]) -> None:
    """Tells of which series what is to be forecast begins before that of others."""
    ends = [one.times[one.steps - 1] for one in series if one.times is not None]
    early = [one for one, end in zip(series, ends, strict=False) if end < max(ends)]
    if early:
        names = ", ".join(
            f"{one.name!r} {_shown(one.until(one.steps)[-1:], one.zone)[0]}" for one in early[:MOST]
        )
        last = _shown(np.array([max(ends)]), early[0].zone)[0]
        more = f" and {len(early) - MOST} more" if len(early) > MOST else ""
        rank_zero_info(
            f"The last known target is earlier than {last} in {len(early)} series, and so is their "
            f"forecast: {names}{more}"
        )


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

    header = [*names, time or "step", STEPS_AHEAD, "target"]
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(
            f"a table of forecasts has a column {twice[0]!r} of its own: `group` and `time` need "
            "columns of other names"
        )
    times = [_shown(one.until(one.steps + rows.horizon), one.zone) for one in known]
    columns: dict[str, list[Any]] = {name: [] for name in header}
    for series, start in rows.starts:
        of = known[series].groups or (known[series].name,)
        middle = start + rows.window
        for ahead, when in enumerate(times[series][middle : middle + rows.horizon], 1):
            for target in targets:
                for name, value in zip(names, of, strict=False):
                    columns[name].append(value)
                columns[time or "step"].append(when)
                columns[STEPS_AHEAD].append(ahead)
                columns["target"].append(target)
    predictions = _rounded(predictions, rows)
    for i, level in enumerate(quantiles):
        columns[f"{level:g}"] = predictions[..., i].reshape(-1).tolist()
    return columns


def _rounded(predictions: NDArray[Any], rows: ForecastRows) -> NDArray[Any]:
    """Forecasts without the digits that float32 has made up, below a ten-millionth of their scale.

    That is the smaller one of the scale of their series and of the largest of them.
    """
    rounded = predictions.astype(np.float64)
    members = np.array([series for series, _ in rows.starts])
    for series in np.unique(members):
        of_series = members == series
        for target, scale in enumerate(rows.scale[series][0].tolist()):
            values = rounded[of_series, :, target]
            unit = min(scale, float(abs(values).max()))
            if 0 < unit < math.inf:
                decimals = PRECISION - math.floor(math.log10(unit))
                rounded[of_series, :, target] = np.round(values, decimals)
    return rounded


def _shown(times: Column, zone: str | None) -> list[Any]:
    if times.dtype.kind == "M":
        return list(shown(times, zone))
    if times.dtype.kind == "m":
        return [str(when) for when in times]
    values: list[Any] = times.tolist()
    return values
