"""Tables and arrays of a user, read into series: one for each group of a table, or each file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_lrnn.data.errors import DataError, printable, why
from lightning_lrnn.data.paths import existing, files_below
from lightning_lrnn.data.tables.cells import Column, label, labels, typed
from lightning_lrnn.data.tables.csv_files import CsvFormat, read_csv
from lightning_lrnn.data.tables.parquet_files import read_parquet
from lightning_lrnn.data.tables.times import EXTRA, TimeError, has_offset, to_times, to_utc

__all__ = ["EXTRA", "Series", "group_name", "listed", "read_series"]

TABLES = (".csv", ".parquet")
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Series:
    """Columns of the same length T.

    Attributes:
        name: the path of the file inside the folder, without suffix, and the group, if there are
            such; of its own.
        folder: the name of the folder of its file, inside the folder that was given; else empty.
        source: says in a message where it comes from.
        columns: name -> (T,); the cells of a CSV table as they are written.
        positions: (T,), the line or row of its file that each step was read from.
        unit: of positions: "line" of a CSV table, "row" of others, the first is 1.
        groups: the values of the columns of `group`.
        times: (T,), rising, if there is a column of time; dates of UTC, where `zone` is known.
        zone: in which dates are shown, "UTC" if they are written with an offset; None if unknown.
        decimal: of the numbers in text.
        thousands: what these may have between groups of three digits.
    """

    name: str
    folder: str
    source: str
    columns: dict[str, Column]
    positions: NDArray[np.int64]
    unit: str
    groups: tuple[str, ...] = ()
    times: Column | None = None
    zone: str | None = None
    decimal: str = "."
    thousands: str | None = None

    def __len__(self) -> int:
        """The number of time steps."""
        return len(self.positions)

    def cells(self, name: str) -> Column:
        """The column of that name, of a CSV table as text.

        Raises:
            DataError: if there is none.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.source} has no column {name!r}; there are {listed(self.columns)}"
            )
        return self.columns[name]

    def column(self, name: str) -> Column:
        """The column of that name, as numbers if all of its cells are numbers."""
        return typed(self.cells(name), self.decimal, self.thousands)

    def where(self, step: int) -> str:
        """A step and its position in the file, as text for a message."""
        return f"step {step + 1} of {len(self)}, {self.unit} {self.positions[step]}"

    def at(self, rows: Column) -> Series:
        """Some of the steps, or all in another order."""
        return replace(
            self,
            columns={name: values[rows] for name, values in self.columns.items()},
            positions=self.positions[rows],
            times=None if self.times is None else self.times[rows],
        )


def read_series(
    path: Path,
    group: Sequence[str] = (),
    time: str | None = None,
    form: CsvFormat | None = None,
    time_format: str | None = None,
    zone: str | None = None,
) -> list[Series]:
    """All series of a file or of a folder, sorted by name.

    CSV and Parquet: columns by their names; a column of CSV without one is "Unnamed: " and its
    place. `.npy`: (T,) or (T, C), columns "0", "1" and so on. `.npz`: an array (T,) under "a" is
    the column "a", one (T, C) the columns "a.0", "a.1" and so on, a single value one that is the
    same at every step. Pickled objects are not read.

    Args:
        path: one such file, or a folder with such files, at any depth; hidden ones do not count.
        group: columns that say which rows belong together; all rows of a file if there are none.
        time: column to sort the rows of a series by, ascending; as in the file if there is none.
        form: how CSV tables are written; None for `CsvFormat()`.
        time_format: how times are that are text; see `lightning_lrnn.data.tables.times.to_times`.
        zone: of dates without an offset, which become those of UTC; None to leave them.

    Raises:
        DataError: if there is nothing to read, or what there is cannot be read.
    """
    path = existing(path)
    known = (*TABLES, *ARRAYS)
    tables: list[Series] = []
    if path.is_file():
        if path.suffix.lower() not in known:
            raise DataError(f"`path`: {path} is none of {', '.join(known)}")
        tables.append(_of_file(path, path.stem if not group else "", "", form))
    else:
        for file in files_below(path):
            if file.suffix.lower() in known:
                inside = file.relative_to(path)
                folder = inside.parent.as_posix() if len(inside.parts) > 1 else ""
                tables.append(_of_file(file, inside.with_suffix("").as_posix(), folder, form))
    if not tables:
        raise DataError(f"`path`: the folder {path} has no file of {', '.join(known)}")
    all_series = [
        part for table in tables for part in _grouped(_timed(table, time, time_format), group)
    ]
    often = Counter(series.name for series in all_series)
    named = [
        series
        if often[series.name] == 1
        else replace(series, name=f"{series.name} {series.source}")
        for series in all_series
    ]
    zoned = (_zoned(series, time, zone) for series in named)
    return sorted((_sorted(series, time) for series in zoned), key=lambda series: series.name)


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for a message; of many the first. Those with blanks around them in quotes."""
    names = [name if name == name.strip() and name else repr(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _of_file(file: Path, name: str, folder: str, form: CsvFormat | None) -> Series:
    form = form or CsvFormat()
    positions, unit = None, "row"
    if file.suffix.lower() == ".csv":
        names, values, positions = read_csv(file, form)
        unit = "line"
    elif file.suffix.lower() == ".parquet":
        names, values = read_parquet(file, EXTRA)
    else:
        arrays = _arrays(file)
        names, values = list(arrays), list(arrays.values())
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(
            f"{file} has several columns {', '.join(map(repr, twice))}: give each a name of its own"
        )
    if positions is None:
        positions = np.arange(1, 1 + (len(values[0]) if values else 0))
    if not len(positions):
        raise DataError(f"{file} is empty")
    return Series(
        printable(name),
        printable(folder),
        str(file),
        dict(zip(names, values, strict=True)),
        positions,
        unit,
        decimal=form.decimal,
        thousands=form.thousands,
    )


def _timed(series: Series, time: str | None, time_format: str | None) -> Series:
    """With the times of the whole table: what a date means is told by all of them."""
    if time is None:
        return series
    try:
        times = to_times(series.cells(time), time_format, series.decimal)
    except TimeError as error:
        step, problem = error.args
        where = "" if step is None else f" ({series.where(step)})"
        raise DataError(f"column {time!r} of {series.source}{where} {problem}") from error
    return replace(series, times=times)


def _zoned(series: Series, time: str | None, zone: str | None) -> Series:
    """With the times of UTC that clocks of a zone show, in the order of the file."""
    times = series.times
    if times is None or time is None or times.dtype.kind != "M":
        return series
    if has_offset(series.cells(time)[0]):
        return replace(series, zone=zone or "UTC")
    try:
        return series if zone is None else replace(series, times=to_utc(times, zone), zone=zone)
    except ValueError as error:
        raise DataError(f"column {time!r} of {series.source}, in {zone}: {error}") from error


def _grouped(table: Series, group: Sequence[str]) -> list[Series]:
    if not group:
        return [table]
    codes: list[NDArray[np.intp]] = []
    names: list[NDArray[np.object_]] = []
    for column in group:
        values = labels(table.cells(column))
        if (values == "").any():
            step = int(np.argmax(values == ""))
            raise DataError(
                f"column {column!r} of {table.source} has no value in {table.unit} "
                f"{table.positions[step]} of {table.positions[-1]}, which therefore belongs to no "
                "group"
            )
        distinct, code = np.unique(values, return_inverse=True)
        names.append(distinct)
        codes.append(code.reshape(-1))
    keys, member = np.unique(np.stack(codes), axis=1, return_inverse=True)
    order = np.argsort(member.reshape(-1), kind="stable")
    counts = np.bincount(member.reshape(-1))
    all_series = []
    for key, rows in zip(keys.T, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        values_of = tuple(str(distinct[i]) for distinct, i in zip(names, key, strict=True))
        title = group_name(values_of)
        all_series.append(
            replace(
                table.at(rows),
                name=f"{table.name}/{title}" if table.name else title,
                source=f"{table.source}, group {title!r}",
                groups=values_of,
            )
        )
    return all_series


def group_name(values: Sequence[str]) -> str:
    """What a group is called, of values of the columns that tell it apart."""
    # So that ("a, b", "c") is another one than ("a", "b, c").
    apart = len(values) == 1 or not any(", " in value for value in values)
    return ", ".join(values if apart else map(repr, values))


def _sorted(series: Series, time: str | None) -> Series:
    times = series.times
    if times is None or time is None:
        return series
    order = np.argsort(times, kind="stable")
    again = np.flatnonzero(times[order][1:] == times[order][:-1])
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        clocks = "give times with their offset"
        if times.dtype.kind == "M" and series.zone is None:
            clocks = f"give the `time_zone`, such as Europe/Berlin, or {clocks[5:]}"
        raise DataError(
            f"column {time!r} of {series.source} has {label(series.cells(time)[first])} more than "
            f"once ({series.unit}s {series.positions[first]} and {series.positions[second]}): name "
            "the columns in `group` that tell the series apart, leave out what is double, or, "
            f"where clocks were put back, {clocks}"
        )
    return series.at(order)


def _arrays(file: Path) -> dict[str, Column]:
    try:
        # Opened here, for numpy.load leaves a broken file open.
        with file.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            arrays = (
                loaded
                if isinstance(loaded, np.ndarray)
                else {name: loaded[name] for name in loaded.files}
            )
    except Exception as error:
        # Of a broken file NumPy and what it calls raise of all kinds.
        raise DataError(
            f"{file} cannot be read: {why(error)}. Arrays of numbers or text are read, as "
            "numpy.save and numpy.savez write them; not pickled objects"
        ) from error
    if isinstance(arrays, np.ndarray):
        return _split(arrays, None, file)
    lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(lengths.values())) != 1:
        raise DataError(
            f"the arrays of {file} must have the same length, the steps, got "
            f"{', '.join(f'{name} {length}' for name, length in lengths.items()) or 'none'}"
        )
    (steps,) = set(lengths.values())
    columns: dict[str, Column] = {}
    for name, array in arrays.items():
        columns |= _split(array if array.ndim else np.repeat(array, steps), name, file)
    return columns


def _split(array: Column, name: str | None, file: Path) -> dict[str, Column]:
    """Returns the columns of an array (T,) or (T, C), by name."""
    if array.ndim not in (1, 2):
        where = file if name is None else f"{name} in {file}"
        raise DataError(f"{where} must be (T,) or (T, columns), got {array.shape}")
    if array.ndim == 1:
        return {name or "0": array}
    prefix = "" if name is None else f"{name}."
    return {f"{prefix}{i}": array[:, i] for i in range(array.shape[1])}
