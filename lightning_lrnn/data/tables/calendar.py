"""Columns that are made of others: what a calendar says of a time, and categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.tables.cells import Column, labels
from lightning_lrnn.data.tables.columns import in_order
from lightning_lrnn.data.tables.files import Series, listed
from lightning_lrnn.data.tables.times import local

__all__ = [
    "TIME_FEATURES",
    "category_names",
    "is_steady",
    "one_hot_names",
    "refuse_unseen",
    "with_calendar",
    "with_categories",
]

TIME_FEATURES = ("hour", "weekday", "month")
MOST = 5
"""Values, and groups of each, that are named in a message."""


def with_calendar(series: Series, names: Sequence[str]) -> Series:
    """With columns "hour.sin", "hour.cos" and so on, sin and cos of 2 pi times a share.

    The share is that of the day that is over at "hour", of the week at "weekday", of the year, by
    months, at "month"; in the zone of the series.

    Raises:
        DataError: where times are no dates.
    """
    if not names:
        return series
    times = series.times
    if times is None or times.dtype.kind != "M":
        reason = "no column of `time`" if times is None else "times that are no dates"
        raise DataError(f"`time_features` are those of dates, {series.source} has {reason}")
    index = local(times, series.zone)
    day = (index.hour + index.minute / 60 + index.second / 3600) / 24
    shares = {"hour": day, "weekday": index.weekday / 7, "month": (index.month - 1) / 12}
    columns: dict[str, Column] = {}
    for name in names:
        angle = 2 * np.pi * np.asarray(shares[name], dtype=np.float64)
        columns |= {f"{name}.sin": np.sin(angle), f"{name}.cos": np.cos(angle)}
    if twice := sorted(columns.keys() & series.columns.keys()):
        raise DataError(f"{series.source} has a column {twice[0]!r} already: rename it")
    return replace(series, columns={**series.columns, **columns})


def category_names(all_series: Sequence[Series], column: str) -> list[str]:
    """All values of a column there are, but empty ones, in order."""
    names: set[str] = set()
    for series in all_series:
        names |= {str(name) for name in np.unique(labels(series.cells(column))) if name}
    return in_order(names)


def one_hot_names(column: str, values: Sequence[str]) -> list[str]:
    """The names of the columns that stand for a category, one for each of its values."""
    return [f"{column}={value}" for value in values]


def is_steady(all_series: Sequence[Series], column: str) -> bool:
    """Whether each series has one value of a column, but for empty cells."""
    values = (np.unique(labels(series.cells(column))) for series in all_series)
    return all((names != "").sum() <= 1 for names in values)


def refuse_unseen(
    all_series: Sequence[Series], categories: dict[str, list[str]], path: str
) -> None:
    """Raises DataError if a category has a value that a model was not trained with."""
    for column, known in categories.items():
        rows: Counter[str] = Counter()
        groups: dict[str, list[str]] = {}
        for series in all_series:
            names, counts = np.unique(labels(series.cells(column)), return_counts=True)
            for name, count in zip(names.tolist(), counts.tolist(), strict=True):
                if name and name not in known:
                    rows[name] += count
                    groups.setdefault(name, []).append(series.name)
        if rows:
            unseen = "; ".join(
                f"{name!r} in {count:,} rows of {listed(groups[name], MOST)}"
                for name, count in rows.most_common(MOST)
            )
            more = f"; and {len(rows) - MOST} more values" if len(rows) > MOST else ""
            raise DataError(
                f"column {column!r} of {path} has {unseen}{more}, which the model was not trained "
                f"with; it knows {listed(known)}: correct them, train anew with them, or leave "
                "these cells empty, for which `missing: mean` or `last` stands"
            )


def with_categories(series: Series, categories: dict[str, list[str]]) -> Series:
    """With a column for each value of a category: 1 where the row has it, else 0.

    A linear map of these columns is an embedding of the value; all are NaN for an empty cell.
    """
    columns: dict[str, Column] = {}
    for column, values in categories.items():
        cells = labels(series.cells(column))
        empty = np.where(cells == "", np.nan, 0)
        for name, value in zip(one_hot_names(column, values), values, strict=True):
            columns[name] = (cells == value) + empty
    return replace(series, columns={**series.columns, **columns})
