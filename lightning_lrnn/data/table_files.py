"""Tables and arrays of a user, read into series: one for each group of a table, or each file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.packages import import_package

__all__ = ["Column", "Series", "label", "listed", "read_series"]

Column = NDArray[Any]

TABLES = (".csv", ".parquet")
ARRAYS = (".npy", ".npz")
EXTRA = "lightning-lrnn[table]"


@dataclass(frozen=True)
class Series:
    """Columns of the same length T.

    Attributes:
        name: the path of the file inside the folder, without suffix, and the group, if there are
            such.
        folder: the name of the folder of its file, inside the folder that was given; else empty.
        source: says in a message where it comes from.
        columns: name -> (T,).
    """

    name: str
    folder: str
    source: str
    columns: dict[str, Column]

    def __len__(self) -> int:
        """T."""
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            DataError: if there is none.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.source} has no column {name!r}; there are {listed(self.columns)}"
            )
        return self.columns[name]


def read_series(path: Path, group: Sequence[str] = (), time: str | None = None) -> list[Series]:
    """All series of a file or of a folder, sorted by name.

    CSV and Parquet: columns by their names. `.npy`: (T,) or (T, C), columns "0", "1" and so on.
    `.npz`: an array (T,) under "a" is the column "a", one (T, C) the columns "a.0", "a.1" and so
    on, a single value one that is the same at every step. Pickled objects are not read.

    Args:
        path: one such file, or a folder with such files, at any depth; hidden ones do not count.
        group: columns that say which rows belong together; all rows of a file if there are none.
        time: column to sort the rows of a series by, ascending; as in the file if there is none.

    Raises:
        DataError: if there is nothing to read, or what there is cannot be read.
    """
    if not path.exists():
        raise DataError(f"`path`: there is no file or folder {str(path)!r}")
    known = (*TABLES, *ARRAYS)
    if path.is_file():
        if path.suffix.lower() not in known:
            raise DataError(f"`path`: {path} is none of {', '.join(known)}")
        return sorted(_of_file(path, "", "", group, time), key=lambda series: series.name)
    found: list[Series] = []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.is_file() and not hidden and file.suffix.lower() in known:
            folder = inside.parent.as_posix() if len(inside.parts) > 1 else ""
            found += _of_file(file, inside.with_suffix("").as_posix(), folder, group, time)
    if not found:
        raise DataError(f"`path`: the folder {path} has no file of {', '.join(known)}")
    return sorted(found, key=lambda series: series.name)


def label(value: Any) -> str | None:
    """What a group or a class is called: "3" for 3 and 3.0; None for NaN and the like."""
    if value is None or value != value or (isinstance(value, np.datetime64) and np.isnat(value)):
        return None
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value) or None


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for a message; of many the first."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _of_file(
    file: Path, name: str, folder: str, group: Sequence[str], time: str | None
) -> list[Series]:
    columns = _table(file) if file.suffix.lower() in TABLES else _arrays(file)
    whole = Series(name or file.stem, folder, str(file), columns)
    if not columns or not len(whole):
        raise DataError(f"{file} is empty")
    if not group:
        return [_sorted(whole, time)]
    keys = [[label(value) for value in whole.column(column)] for column in group]
    for column, values in zip(group, keys, strict=True):
        if None in values:
            raise DataError(
                f"column {column!r} of {file} has no value in row {values.index(None) + 1} of "
                f"{len(values)}, which therefore belongs to no group"
            )
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(zip(*keys, strict=True)):
        rows.setdefault(", ".join(map(str, key)), []).append(row)
    return [
        _sorted(
            Series(
                f"{name}/{key}" if name else key,
                folder,
                f"{file}, group {key!r}",
                {column: values[members] for column, values in columns.items()},
            ),
            time,
        )
        for key, members in rows.items()
    ]


def _table(file: Path) -> dict[str, Column]:
    pandas = import_package("pandas", f"{file.suffix} table", EXTRA)
    try:
        if file.suffix.lower() == ".csv":
            frame = pandas.read_csv(file)
        else:
            import_package("pyarrow", "a .parquet table", EXTRA)
            frame = pandas.read_parquet(file)
    except DataError:
        raise
    except Exception as error:
        # The two libraries underneath raise of all kinds.
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file} has several columns {', '.join(map(repr, twice))}")
    return {name: _values(pandas, frame.iloc[:, i]) for i, name in enumerate(names)}


def _values(pandas: Any, column: Any) -> Column:
    """Numbers (NaN for none), times (NaT) or objects (None)."""
    types = pandas.api.types
    if types.is_numeric_dtype(column) and not types.is_complex_dtype(column):
        exact = not column.isna().any()
        if exact and types.is_integer_dtype(column):
            return np.asarray(column.to_numpy(dtype=np.int64))
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    if types.is_datetime64_any_dtype(column):
        if column.dt.tz is not None:
            column = column.dt.tz_convert(None)
        return np.asarray(column.to_numpy(dtype="datetime64[ns]"))
    return np.asarray(column.astype(object).where(column.notna(), None).to_numpy(dtype=object))


def _arrays(file: Path) -> dict[str, Column]:
    try:
        # Opened here, for numpy.load leaves a broken file open.
        with file.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _split(loaded, None, file)
            arrays = {name: loaded[name] for name in loaded.files}
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file} cannot be read: {' '.join(str(error).split())}. Arrays of numbers or text are "
            "read, as numpy.save and numpy.savez write them; not pickled objects"
        ) from error
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
    """Columns of (T,) or (T, C)."""
    if array.ndim not in (1, 2):
        where = file if name is None else f"{name} in {file}"
        raise DataError(f"{where} must be (T,) or (T, columns), got {array.shape}")
    if array.ndim == 1:
        return {name or "0": array}
    prefix = "" if name is None else f"{name}."
    return {f"{prefix}{i}": array[:, i] for i in range(array.shape[1])}


def _sorted(series: Series, time: str | None) -> Series:
    if time is None:
        return series
    values = series.column(time)
    times = _times(values, f"column {time!r} of {series.source}")
    order = np.argsort(times, kind="stable")
    again = np.flatnonzero(times[order][1:] == times[order][:-1])
    if len(again):
        raise DataError(
            f"column {time!r} of {series.source} has {values[order[again[0]]]} more than once: "
            "name the columns in `group` that tell the series apart, or leave out what is double"
        )
    return replace(series, columns={name: column[order] for name, column in series.columns.items()})


def _times(values: Column, where: str) -> Column:
    """What can be sorted: numbers, or dates and times, also as text."""
    times = values
    if values.dtype.kind not in "iufM":
        pandas = import_package("pandas", f"{where}, which is text,", EXTRA)
        told = pandas.Series([label(value) for value in values], dtype=object)
        with warnings.catch_warnings():
            # Without a format that all share pandas guesses one by one: "May" is one this year.
            warnings.simplefilter("error", UserWarning)
            try:
                parsed = pandas.to_datetime(told, errors="coerce", utc=True)
            except (UserWarning, ValueError) as error:
                raise DataError(
                    f"{where} has dates in no known format, such as {told[0]!r}: write them as "
                    "2020-01-31 or 2020-01-31 23:59"
                ) from error
        times = parsed.dt.tz_convert(None).to_numpy(dtype="datetime64[ns]")
    none = np.isnat(times) if times.dtype.kind == "M" else np.isnan(times)
    if none.any():
        raise DataError(
            f"{where} has {values[np.argmax(none)]!r} where a number, or a date and time written "
            "as in the other rows, is wanted"
        )
    return times
