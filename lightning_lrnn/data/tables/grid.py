"""Series with a row at every step of an even grid of time: rows that are missing are empty ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.tables.cells import Column
from lightning_lrnn.data.tables.files import Series
from lightning_lrnn.data.tables.times import (
    even,
    following,
    local,
    pandas,
    shown,
    usual_step,
)

__all__ = ["Grid", "closed_up", "continued", "on_grid", "warn_of_jumps"]

OFTEN = 0.5
"""Share of the steps from which on the most frequent spacing is that of the table."""
ROUNDING = 1e-3
"""Part of a step by which a time may lie beside it."""


class Grid:
    """Steps of time that are `freq` apart.

    Args:
        freq: as pandas names it ("1h", "15min", "D", "MS"), or a number for times that are numbers.
        zone: of dates, in which days and months begin; None for UTC.

    Raises:
        DataError: for a `freq` or a zone that there is not.
    """

    def __init__(self, freq: str, zone: str | None = None) -> None:
        self.freq, self.zone = str(freq), zone
        spacing = _spacing(self.freq)
        self._number = spacing if isinstance(spacing, float) else None
        if spacing is None or (self._number is not None and not self._number > 0):
            raise DataError(
                f"`freq` must be a spacing as pandas names it ('1h', '15min', 'D', 'MS'), or a "
                f"number for times that are numbers, got {self.freq!r}"
            )

    def is_spaced(self, freq: str) -> bool:
        """Whether another `freq` means the same steps, as "60min" and "1h" do."""
        return bool(_spacing(self.freq) == _spacing(freq))

    def filled(
        self, series: Series, steady: Sequence[str], beyond: int = 0
    ) -> tuple[Series, NDArray[np.int64]]:
        """The series with all steps from its first to its last one, and `beyond` more.

        Args:
            series: with rising times.
            steady: columns that a row that was missing takes from the row before it; others are
                empty there.
            beyond: steps behind the last one.

        Returns:
            The series, and the step of the grid that each of its times is.

        Raises:
            DataError: for times that are not on the grid, or are no dates where `freq` wants some.
        """
        times = series.times
        assert times is not None
        grid = self._steps(series, times, beyond)
        at, off = self._places(grid, times)
        if off.any():
            step = int(np.argmax(off))
            raise DataError(
                f"{series.source} has the time {shown(times[step : step + 1], self.zone)[0]} "
                f"({series.where(step)}), which is not on the grid `freq: {self.freq}` that starts "
                f"at {shown(times[:1], self.zone)[0]}: take a `freq` that fits, or round the times"
            )
        rows = np.full(len(grid), -1)
        rows[at] = np.arange(len(times))
        if len(grid) > len(times):
            series = replace(_with_gaps(series, rows, steady), times=grid)
        return series, at

    def _places(self, grid: Column, times: Column) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Which step of the grid each time is, and whether it lies beside it."""
        if self._number is None:
            at = np.searchsorted(grid, times)
            return at, grid[np.minimum(at, len(grid) - 1)] != times
        at = np.rint((times - times[0]) / self._number).astype(np.int64)
        beside = abs(times - grid[at]) > ROUNDING * self._number
        return at, beside | (np.diff(at, prepend=-1) < 1)

    def _steps(self, series: Series, times: Column, beyond: int) -> Column:
        dates = times.dtype.kind == "M"
        if dates is (self._number is not None):
            what, wanted = ("dates", "'1h'") if dates else ("numbers", "1")
            raise DataError(
                f"the times of {series.source} are {what}: `freq` must be such as {wanted} for "
                f"them, got {self.freq!r}"
            )
        if self._number is not None:
            count = round(float(times[-1] - times[0]) / self._number) + 1 + beyond
            grid = even(times[0], self._number, count)
            whole = times.dtype.kind in "iu" and self._number.is_integer()
            return grid.astype(times.dtype) if whole else grid
        index = local(times, self.zone)
        inside = pandas().date_range(index[0], index[-1], freq=self.freq)
        if len(inside) and beyond:
            more = pandas().date_range(inside[-1], periods=beyond + 1, freq=self.freq)[1:]
            inside = inside.append(more)
        steps: Column = inside.tz_convert("UTC").tz_localize(None).to_numpy().astype(times.dtype)
        return steps if len(steps) else times[:1]


def on_grid(
    all_series: Sequence[Series], grid: Grid, steady: Sequence[str], beyond: int
) -> list[Series]:
    """`Grid.filled` of all series; tells how many rows were missing."""
    pairs = [grid.filled(one, steady, beyond) for one in all_series]
    _warn_of_finer(all_series, [np.diff(at) for _, at in pairs], grid)
    series, missing = [one for one, _ in pairs], [len(one) - beyond - len(at) for one, at in pairs]
    if sum(missing):
        most = int(np.argmax(missing))
        rank_zero_info(
            f"`freq: {grid.freq}`: {sum(missing):,} of {sum(map(len, series)):,} rows were missing "
            f"and are empty now; most, {missing[most]:,}, of {series[most].name}"
        )
    return series


def _warn_of_finer(
    all_series: Sequence[Series], apart: Sequence[NDArray[np.int64]], grid: Grid
) -> None:
    """Warns of a grid of which most rows come the same number of steps after the row before."""
    steps, counts = np.unique(np.concatenate(apart), return_counts=True)
    if not len(steps):
        return
    count, usual = counts.max(), steps[np.argmax(counts)]
    if usual > 1 and count > OFTEN * counts.sum():
        series, at = next(
            (one, int(np.argmax(jumps == usual)))
            for one, jumps in zip(all_series, apart, strict=True)
            if usual in jumps
        )
        assert series.times is not None
        times = " and ".join(shown(series.times[at : at + 2], series.zone))
        warnings.warn(
            f"`freq: {grid.freq}` is finer than the table, of which {count:,} of "
            f"{counts.sum():,} rows come {usual} such steps after the row before, as {times}: "
            "empty rows are put between them; take the `freq` of the table",
            stacklevel=2,
        )


def warn_of_jumps(all_series: Sequence[Series]) -> None:
    """Warns where rows are missing between others, which are then taken as neighbours."""
    jumps = [0 if one.times is None else closed_up(one.times) for one in all_series]
    if sum(jumps):
        most = int(np.argmax(jumps))
        warnings.warn(
            f"{sum(jumps):,} rows seem to be missing between others, most, {jumps[most]:,}, of "
            f"{all_series[most].source}: what comes after them is taken as the next step. `freq` "
            "puts them in",
            stacklevel=2,
        )


def continued(series: Series, steady: Sequence[str], beyond: int) -> Series:
    """The series with empty rows behind its last one, spaced as most of its rows are."""
    rows = np.concatenate([np.arange(len(series)), np.full(beyond, -1)])
    times = series.times
    if times is not None:
        times = np.concatenate([times, following(times, beyond)])
    return replace(_with_gaps(series, rows, steady), times=times)


def closed_up(times: Column) -> int:
    """How many rows are missing between others, where most rows are spaced alike; else 0."""
    if len(times) < 3:
        return 0
    step = usual_step(times)
    if step <= np.zeros_like(step):
        return 0
    apart = np.diff(times) / step
    steps = np.rint(apart)
    if (abs(apart - steps) > ROUNDING).any() or (steps == 1).mean() <= OFTEN:
        return 0
    return int((steps - 1).sum())


def _spacing(freq: str) -> Any:
    """A number, or the offset that pandas means by it; None for neither."""
    try:
        return float(freq)
    except ValueError:
        pass
    try:
        return pandas().tseries.frequencies.to_offset(freq)
    except ValueError:
        return None


def _with_gaps(series: Series, rows: NDArray[np.int64], steady: Sequence[str]) -> Series:
    """The rows with these indices, of -1 an empty one."""
    before = np.maximum.accumulate(rows)
    gaps = rows < 0
    columns: dict[str, Column] = {}
    for name, values in series.columns.items():
        taken = values[before]
        columns[name] = taken if name in steady else _emptied(taken, gaps)
    return replace(series, columns=columns, positions=series.positions[before])


def _emptied(values: Column, gaps: NDArray[np.bool_]) -> Column:
    if values.dtype.kind in "iub":
        values = values.astype(np.float64)
    empty: dict[str, Any] = {"f": np.nan, "c": np.nan, "S": b"", "U": "", "O": None}
    values = values.copy()
    values[gaps] = empty.get(values.dtype.kind, "NaT")
    return values
