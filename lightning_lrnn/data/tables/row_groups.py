"""Parquet tables of which only some row groups are in memory at a time."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_lrnn.data.errors import DataError, why
from lightning_lrnn.data.packages import import_package
from lightning_lrnn.data.paths import existing, files_below, refuse_changed, stamp
from lightning_lrnn.data.tables.cells import Column, labels
from lightning_lrnn.data.tables.columns import numbers
from lightning_lrnn.data.tables.files import EXTRA, Series
from lightning_lrnn.data.tables.parquet_files import values_of

__all__ = ["Block", "RowGroups", "RowReader"]

NUMBER = 8
"""Bytes of a value in memory."""

POOL = 2**27
"""Bytes of row groups of which the windows are shuffled together."""

LARGEST = POOL
"""Bytes of the largest row group that is read, of the columns that are used."""

KEPT = 2 * POOL
"""Bytes of row groups in memory: a pool, and what windows at the ends of its row groups need."""


class Block(NamedTuple):
    """A row group.

    Attributes:
        file: its number.
        group: its number in the file.
        start: its first row in the file, from 0.
        stop: behind its last one.
        first: its first row in all files together.
    """

    file: int
    group: int
    start: int
    stop: int
    first: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


class RowGroups:
    """The row groups of one Parquet file, or of all in a folder, in the order of their names.

    Args:
        path: the file or the folder.

    Attributes:
        files: the tables.
        names: of the columns, the same in all files.
        blocks: the row groups that have rows.

    Raises:
        DataError: if there is something else, or it cannot be read; later, if a file has changed.
    """

    def __init__(self, path: Path) -> None:
        root = existing(path)
        self.files = [root] if root.is_file() else list(files_below(root))
        self.files = [file.absolute() for file in self.files]
        other = next((file for file in self.files if file.suffix.lower() != ".parquet"), None)
        if other or not self.files:
            raise DataError(
                f"`in_memory: false` is for Parquet tables, `path` has {other or 'none'}: write "
                "tables as Parquet, as `pyarrow.csv.open_csv` and `pyarrow.parquet.ParquetWriter` "
                "do batch by batch, or leave `in_memory` out"
            )
        self.root, self.names, self.blocks = root, list[str](), list[Block]()
        self._stamps: list[tuple[int, int]] = []
        self._footers: list[Any] = []
        for i, file in enumerate(self.files):
            opened = self._open(i)
            names = [str(name) for name in opened.schema_arrow.names]
            if i and names != self.names:
                raise DataError(f"{file} has other columns than {self.files[0]}")
            self.names = names
            start = 0
            for group in range(opened.num_row_groups):
                first, stop = self.rows, start + opened.metadata.row_group(group).num_rows
                if stop > start:
                    self.blocks.append(Block(i, group, start, stop, first))
                start = stop
            if not start:
                raise DataError(f"{file} is empty")

    @property
    def rows(self) -> int:
        """Number of rows of all files together."""
        return self.blocks[-1].first + self.blocks[-1].rows if self.blocks else 0

    def columns(self) -> Series:
        """A series without rows, which has the columns."""
        none = np.empty(0)
        columns = dict.fromkeys(self.names, none)
        return Series("", "", str(self.files[0]), columns, none.astype(np.int64), "row")

    def read(self, block: Block, names: Sequence[str]) -> Series:
        """Some columns of a row group, as in its file.

        Raises:
            DataError: if they cannot be read.
        """
        arrow: Any = import_module("pyarrow")
        try:
            opened = self._open(block.file)
            columns: dict[str, Column] = {}
            for name in names:
                # One by one, so that no more than one of them is there twice.
                read = opened.read_row_group(block.group, columns=[name]).column(name)
                columns[name] = values_of(arrow.chunked_array(read.chunks, type=read.type))
        except DataError:
            raise
        except Exception as error:
            # The library underneath raises of all kinds.
            raise DataError(f"{self.files[block.file]} cannot be read: {why(error)}") from error
        positions = np.arange(block.start + 1, block.stop + 1)
        return Series("", "", self.where(block), columns, positions, "row")

    def labels(self, block: Block, name: str) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
        """Names in a row group: a number of each row, (rows,), and what they stand for."""
        column = self.read(block, [name]).columns[name]
        if column.dtype.kind == "O":
            # Text is told apart before it is looked at.
            import_package("pandas", "a .parquet table", EXTRA)
            codes, distinct = import_module("pandas").factorize(column, use_na_sentinel=False)
            return codes.astype(np.int64), labels(np.asarray(distinct, dtype=object))
        values, codes = np.unique(column, return_inverse=True)
        return codes.reshape(-1).astype(np.int64), labels(values)

    def where(self, block: Block) -> str:
        """The file and number of a row group, as text for a message."""
        return f"{self.files[block.file]}, row group {block.group + 1}"

    def _open(self, i: int) -> Any:
        parquet = import_package("pyarrow.parquet", "a .parquet table", EXTRA)
        file = self.files[i]
        try:
            current = stamp(os.stat(file))
            footer = self._footers[i] if i < len(self._footers) else None
            opened = parquet.ParquetFile(file, metadata=footer)
        except Exception as error:
            raise DataError(f"{file} cannot be read: {why(error)}") from error
        if i == len(self._stamps):
            self._stamps.append(current)
            self._footers.append(opened.metadata)
        if current != self._stamps[i]:
            refuse_changed(file)
        return opened


class RowReader:
    """Numbers of the rows of a table, (rows, C); what was read last is kept.

    Args:
        table: whose row groups are read.
        names: of the columns C.

    Raises:
        DataError: for a row group that is too large.
    """

    def __init__(self, table: RowGroups, names: Sequence[str]) -> None:
        self.table, self.names = table, list(names)
        self._begins = [block.first for block in table.blocks]
        self._kept: OrderedDict[int, NDArray[np.float64]] = OrderedDict()
        largest = max(table.blocks, key=lambda block: block.rows)
        if (size := self.size(largest)) > LARGEST:
            rows = LARGEST // (NUMBER * len(self.names))
            raise DataError(
                f"{table.where(largest)} has {largest.rows:,} rows of {len(self.names)} columns, "
                f"{size / 1e6:.0f} MB: write the table with `row_group_size={rows // 2}`, or fewer"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}

    def size(self, block: Block) -> int:
        """Bytes of a row group in memory."""
        return NUMBER * block.rows * len(self.names)

    def block(self, i: int) -> NDArray[np.float64]:
        """Returns all rows of row group `i`, from memory if it was read before."""
        if i not in self._kept:
            block = self.table.blocks[i]
            kept_bytes = sum(array.nbytes for array in self._kept.values())
            while self._kept and kept_bytes + self.size(block) > KEPT:
                kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            numbers_of_block = np.empty((block.rows, len(self.names)))
            for column, name in enumerate(self.names):
                numbers_of_block[:, column] = numbers(self.table.read(block, [name]), [name])[:, 0]
            self._kept[i] = numbers_of_block
        self._kept.move_to_end(i)
        return self._kept[i]

    def rows(self, start: int, stop: int) -> NDArray[np.float64]:
        """Rows, counted in all files together."""
        i = bisect_right(self._begins, start) - 1
        pieces = []
        while start < stop:
            block = self.table.blocks[i]
            end = min(stop, block.first + block.rows)
            pieces.append(self.block(i)[start - block.first : end - block.first])
            start, i = end, i + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
