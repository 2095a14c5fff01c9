"""Seasonal naive forecasts: the length of a season, and the errors of the forecasts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.tables.cells import Column
from lightning_lrnn.data.tables.forecasts import KnownSeries
from lightning_lrnn.data.tables.rows import ForecastRows
from lightning_lrnn.data.tables.times import following

__all__ = ["NaiveErrors", "carried", "naive_errors", "season_of"]

DAY = 86_400
BY_DAYS = ((1, 1, 7), (7, 7, 52), (28, 31, 12), (90, 92, 4))
"""Days from step to step, from and to, and the steps of a week, or of a year."""

AT_ONCE = 4096
"""Windows whose errors are in memory at the same time."""


class NaiveErrors(NamedTuple):
    """The absolute errors of a baseline.

    Attributes:
        total: sum of the absolute errors, in the user's units.
        targets: number of targets in the sum.
        left_out: known targets without a known value in any season before.
    """

    total: float
    targets: int
    left_out: int


def season_of(series: Sequence[KnownSeries]) -> int:
    """Steps of a season, by the times: of a day, of a week for days, of a year for longer steps.

    Raises:
        DataError: where times do not say it.
    """
    seasons: dict[int, str] = {}
    for member in series:
        if member.times is None:
            raise DataError(
                "`season: auto` needs the times of the data, which have no column `time`: name it, "
                "or give the season as a number of steps"
            )
        if len(member.times) > 1:
            seasons.setdefault(_season(member.name, member.times), member.name)
    if len(seasons) == 1:
        return next(iter(seasons))
    listed = ", ".join(f"{steps} steps for {name}" for steps, name in list(seasons.items())[:4])
    raise DataError(
        f"`season: auto` finds {listed}: give it as a number of steps"
        if seasons
        else "`season: auto` needs a series of two steps: give the season as a number of steps"
    )


def _season(name: str, times: Column) -> int:
    if times.dtype.kind not in "mM":
        raise DataError(
            f"`season: auto` needs times with a unit; those of {name} are numbers: give the season "
            "as a number of steps"
        )
    step = following(times, 1)[0] - times[-1]
    seconds = float(step / np.timedelta64(1, "s"))
    within = DAY / seconds
    season = int(within) if within > 1 and within.is_integer() else 0
    for shortest, longest, steps in BY_DAYS:
        if shortest * DAY <= seconds <= longest * DAY:
            season = steps
    if not season:
        raise DataError(
            "`season: auto` knows steps of minutes and hours that divide a day, of a day, a week, "
            f"a month and a quarter; those of {name} are {timedelta(seconds=seconds)} apart: give "
            "the season as a number of steps"
        )
    return season


def carried(values: Tensor, season: int) -> Tensor:
    """Values (T, K), each NaN replaced by the last known value whole seasons before."""
    steps, columns = values.shape
    seasons = -(-steps // season)
    by_season = values.new_full((seasons * season, columns), torch.nan)
    by_season[:steps] = values
    by_season = by_season.view(seasons, season, columns)
    season_index = torch.arange(seasons)[:, None, None]
    last = torch.where(by_season.isnan(), 0, season_index).cummax(0).values
    return by_season.gather(0, last).view(-1, columns)[:steps]


def naive_errors(rows: ForecastRows, windows: Iterable[int], season: int) -> NaiveErrors:
    """The errors of y_{t-js}, j the least number of seasons s so that it is known, for y_t.

    Args:
        rows: of a part.
        windows: numbers of its rows; a window that is there twice counts twice.
        season: s, at most the steps before the targets of each window.
    """
    starts: dict[int, list[int]] = {}
    for window in windows:
        series, start = rows.starts[window]
        starts.setdefault(series, []).append(start)
    ahead = torch.arange(rows.horizon)
    # At the end of the inputs the value of the season before may not be known yet.
    lag = season * (ahead // season + 1)
    total, count, known = 0.0, 0, 0
    for series, of_series in starts.items():
        y = rows.targets[series].double()
        before, scale = carried(y, season), rows.scale[series].double()
        for block in torch.tensor(of_series).split(AT_ONCE):
            steps = block[:, None] + rows.window + ahead
            errors = scale * (y[steps] - before[steps - lag]).abs()
            total += float(errors.nansum())
            count += int((~errors.isnan()).sum())
            known += int((~y[steps].isnan()).sum())
    return NaiveErrors(total, count, known - count)
