"""Numbers and classes from the columns of a series."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.tables.cells import NUMBER, Unlike, labels, to_numbers
from lightning_lrnn.data.tables.files import Series, listed
from lightning_lrnn.data.text.windows import IGNORE

COMMA = re.compile(r"[+-]?[\d.]*\d,\d+", re.ASCII)
THOUSANDS = re.compile(
    r"[+-]?\d{1,3}(?:(?P<t>[., '\u00a0\u202f])\d{3})(?:(?P=t)\d{3})*(?:[.,]\d+)?"
)
TOLD_APART = 1e-6
"""Rounding of integers that may be, against their range."""

__all__ = ["chosen", "class_names", "class_of", "classes_of_steps", "in_order", "numbers"]


def chosen(names: Sequence[str], series: Series, argument: str) -> list[str]:
    """The columns that names mean: a column, or with "a" all of "a.0", "a.1" and so on.

    Args:
        names: as a user gave them.
        series: one that has the columns.
        argument: its name, for messages.

    Raises:
        DataError: for a name without column.
    """
    columns: list[str] = []
    for name in names:
        matching = [c for c in series.columns if name and c.rpartition(".")[0] == name]
        if name in series.columns:
            matching = [name]
        if not matching:
            raise DataError(
                f"`{argument}`: {series.source} has no column {name!r}; there are "
                f"{listed(series.columns)}"
            )
        columns += matching
    return columns


def numbers(
    series: Series, names: Sequence[str], targets: Container[str] = ()
) -> NDArray[np.float64]:
    """Columns side by side, (T, len(names)), NaN where there is no value.

    Args:
        series: that has them.
        names: of the columns.
        targets: those of them that have to be there, for messages.

    Raises:
        DataError: for text, dates, complex numbers and infinities.
    """
    columns = [_number(series, name, name in targets) for name in names]
    return np.stack(columns, -1)


def _number(series: Series, name: str, is_target: bool) -> NDArray[np.float64]:
    try:
        values = to_numbers(series.cells(name), series.decimal, series.thousands)
    except Unlike as error:
        step, shown = error.args[0]
        what = (
            "" if is_target else "leave the column out of `features`, name it in `categories`, or "
        )
        raise DataError(
            f"column {name!r} of {series.source} has {shown!r} where a number is wanted "
            f"({series.where(step)}): {what}make numbers of it{_way_of_writing(shown, series)}"
        ) from None
    column = np.asarray(values, dtype=np.float64)
    infinite = np.isinf(column)
    if infinite.any():
        raise DataError(
            f"column {name!r} of {series.source} is infinite at "
            f"{series.where(int(np.argmax(infinite)))}: make it a finite number or leave it empty"
        )
    if values.dtype.kind in "iu" and len(values):
        low, high = int(values.min()), int(values.max())
        rounding = float(np.spacing(float(max(-low, high))))
        if rounding > 1 and rounding > TOLD_APART * (high - low) > 0:
            what = "" if is_target else ", or leave the column out of `features`"
            raise DataError(
                f"column {name!r} of {series.source} has integers from {low} to {high}, which are "
                f"rounded to {rounding:.0f}: subtract what they have in common{what}"
            )
    return column


def _way_of_writing(cell: str, series: Series) -> str:
    """What `decimal` and `thousands` may do about a cell that is no number."""
    options = []
    decimal = series.decimal
    if decimal == "." and COMMA.fullmatch(cell):
        options.append("; commas are decimal with `decimal: ','`")
        decimal = "," if "." in cell else decimal
    grouped = THOUSANDS.fullmatch(cell)
    if grouped and grouped["t"] != decimal:
        between = grouped["t"]
        options.append(f"; {between!r} between thousands is taken with `thousands: {between!r}`")
    return "".join(options)


def class_names(all_series: Sequence[Series], column: str | None) -> list[str]:
    """All classes there are, sorted as numbers if they are numbers.

    Args:
        all_series: at least one.
        column: that has them; None for the names of the folders.
    """
    names: set[str] = set()
    for series in all_series:
        values = [series.folder] if column is None else np.unique(labels(series.cells(column)))
        names |= {str(value) for value in values if value}
    return in_order(names)


def in_order(classes: Iterable[str]) -> list[str]:
    """Classes sorted as numbers if they are numbers."""
    names = sorted(classes)
    if all(NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return names


def class_of(series: Series, column: str | None, classes: Sequence[str]) -> int:
    """The class of a whole series; `IGNORE` if it has none.

    Args:
        series: whose values in `column` are all the same, but for those that are missing.
        column: None for the name of the folder.
        classes: names, by number.

    Raises:
        DataError: for several classes, one that is not among `classes`, or no folder.
    """
    if column is None:
        if not series.folder:
            raise DataError(
                f"{series.source} lies in no folder that would be its class: put the files into "
                "one folder for each class, or name the column with the class in `target`"
            )
        return _number_of(series.folder, classes, series, "its folder")
    names = [str(name) for name in np.unique(labels(series.cells(column))) if name]
    if len(names) > 1:
        raise DataError(
            f"column {column!r} of {series.source} has several classes ({listed(names)}), where "
            "one for each sequence is wanted: name the columns that tell sequences apart in "
            "`group`, or take `task: tag`"
        )
    return _number_of(names[0], classes, series, f"column {column!r}") if names else IGNORE


def classes_of_steps(series: Series, column: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """The class of every step, (T,); `IGNORE` where there is none.

    Raises:
        DataError: for one that is not among `classes`.
    """
    names, where = np.unique(labels(series.cells(column)), return_inverse=True)
    where_named = f"column {column!r}"
    numbered = [
        _number_of(name, classes, series, where_named) if name else IGNORE for name in names
    ]
    return np.array(numbered, dtype=np.int64)[where.reshape(-1)]


def _number_of(name: str, classes: Sequence[str], series: Series, where: str) -> int:
    if name not in classes:
        raise DataError(
            f"{where} of {series.source} has the class {str(name)!r}; `classes` are "
            f"{listed(classes)}"
        )
    return list(classes).index(name)
