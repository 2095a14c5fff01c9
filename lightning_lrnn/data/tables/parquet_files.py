"""Parquet tables, each column in the type that it has."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lrnn.data.errors import DataError, why
from lightning_lrnn.data.packages import import_package
from lightning_lrnn.data.tables.cells import Column

__all__ = ["read_parquet", "values_of"]

EXACT = 2**53
"""Integers up to here are floats without loss."""


def read_parquet(file: Path, install: str) -> tuple[list[str], list[Column]]:
    """The names of the columns and their values.

    Numbers and times keep their type, so that no integer and no time is rounded or wrapped; where
    values are missing, integers are floats if that loses nothing. What NumPy has no type for
    (decimals, text, times of a day) are objects, None for none. An index of pandas that was written
    is a column.

    Args:
        file: the table.
        install: what pip installs where pyarrow is missing.

    Raises:
        DataError: if it cannot be read.
    """
    parquet = import_package("pyarrow.parquet", "a .parquet table", install)
    try:
        table = parquet.ParquetFile(file).read()
        return [str(name) for name in table.column_names], [values_of(c) for c in table.columns]
    except Exception as error:
        # The library underneath raises of all kinds.
        raise DataError(f"{file} cannot be read: {why(error)}") from error


def values_of(column: Any) -> Column:
    """A column of Arrow as one of NumPy, see `read_parquet`."""
    types: Any = import_module("pyarrow").types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    arrow_type = column.type
    plain = types.is_floating(arrow_type) or (
        types.is_temporal(arrow_type) and not types.is_time(arrow_type)
    )
    if plain or (
        (types.is_integer(arrow_type) or types.is_boolean(arrow_type)) and not column.null_count
    ):
        return np.asarray(column.to_numpy())
    values = column.to_pylist()
    if types.is_integer(arrow_type):
        known = [value for value in values if value is not None]
        if max(map(abs, known), default=0) <= EXACT:
            return np.array([np.nan if value is None else value for value in values], np.float64)
    # One by one: of lists NumPy would make more dimensions.
    objects = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        objects[i] = value
    return objects
