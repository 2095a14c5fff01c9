"""CSV tables: the cells as they are written, in the columns of the header."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_lrnn.data.errors import DataError, why
from lightning_lrnn.data.paths import read_bytes
from lightning_lrnn.data.tables.cells import Column, packed

__all__ = ["CsvFormat", "read_csv"]

AT_ONCE = 65_536
"""Rows that are objects of Python at the same time."""

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
OTHERS = (";", "\t", "|", ",")


class CsvFormat(NamedTuple):
    """How a CSV table is written.

    Attributes:
        separator: between cells, one character.
        decimal: "." or ",".
        encoding: of the characters, a name that Python knows.
        thousands: what numbers may have between groups of three digits, one character.
    """

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    thousands: str | None = None

    def check(self) -> None:
        """Raises DataError for what cannot be."""
        one = isinstance(self.separator, str) and len(self.separator) == 1
        if not one or self.separator in '"\r\n\0' or self.separator.isalnum():
            raise DataError(
                f"`separator` must be one character, such as ';', got {self.separator!r}"
            )
        if self.decimal not in (".", ","):
            raise DataError(f"`decimal` must be '.' or ',', got {self.decimal!r}")
        if self.decimal == self.separator:
            raise DataError(
                f"`decimal` and `separator` are both {self.decimal!r}: give the `separator` that "
                "stands between cells, such as ';', or the `decimal` of the numbers"
            )
        if self.thousands is not None:
            one = isinstance(self.thousands, str) and len(self.thousands) == 1
            if not one or self.thousands.isalnum() or self.thousands in "+-":
                raise DataError(
                    f"`thousands` must be one character, such as '.', got {self.thousands!r}"
                )
            if self.thousands == self.decimal:
                raise DataError(f"`thousands` and `decimal` are both {self.decimal!r}")
        try:
            text = codecs.lookup(self.encoding)._is_text_encoding
        except (LookupError, TypeError, ValueError):
            text = False
        if not text:
            raise DataError(f"`encoding`: {self.encoding!r} is no encoding that Python knows")


def read_csv(file: Path, form: CsvFormat) -> tuple[list[str], list[Column], NDArray[np.int64]]:
    """The names of the columns, their cells as text, and the line in which each row ends.

    The first line has the names. Rows that end early have empty cells at the end; cells beyond the
    header are refused unless they are empty, as where lines end in a separator. Left out are NUL
    bytes, rows of empty cells at the end, and blank lines, but inside a table of one column, where
    they are empty cells. Quotes are those of RFC 4180.

    Raises:
        DataError: with the line, for what cannot be read so.
    """
    form.check()
    rows = _rows(file, form)
    names = next((cells for cells, _ in rows if cells), [])
    if not any(names):
        raise DataError(f"{file} is empty, or its first line has no names of columns")
    hint = _hint(names, form.separator)
    columns: list[list[Column]] = [[] for _ in names]
    lines: list[int] = []
    chunk: list[list[str]] = []
    blank: list[tuple[list[str], int]] = []

    def close() -> None:
        for column, cells in zip(columns, zip(*chunk, strict=True), strict=False):
            column.append(packed(cells))
        chunk.clear()

    for cells, line in rows:
        if len(cells) > len(names):
            if any(cells[len(names) :]):
                raise DataError(
                    f"{file} has {len(cells)} cells in line {line}, but {len(names)} names in its "
                    f"first line, of which the first is {names[0]!r}: {hint}"
                )
            del cells[len(names) :]
        if not any(cells):
            # Of a single column a blank line is a gap, unless only such follow.
            if cells or len(names) == 1:
                blank.append((cells, line))
            continue
        for row, where in (*blank, (cells, line)):
            chunk.append(row + [""] * (len(names) - len(row)))
            lines.append(where)
        blank.clear()
        if len(chunk) >= AT_ONCE:
            close()
    close()
    if not lines:
        raise DataError(f"{file} is empty but for its header")
    named, values = [], []
    for index, (name, chunks) in enumerate(zip(names, columns, strict=True)):
        # Chunks of bytes and of objects together are objects.
        column = np.concatenate(chunks)
        if name or bool((column != b"").any()):
            named.append(name or f"Unnamed: {index}")
            values.append(column)
    return named, values, np.array(lines, dtype=np.int64)


def _hint(names: list[str], separator: str) -> str:
    """What may be wrong where header and rows do not fit."""
    for other in OTHERS:
        if other != separator and any(other in name for name in names):
            return f"if cells are separated by {other!r}, give `separator: {other!r}`"
    return (
        "take out what stands before the line of names, give every column a name, and write cells "
        f"that have {separator!r} inside in quotes"
    )


def _rows(file: Path, form: CsvFormat) -> Iterator[tuple[list[str], int]]:
    """Cells, and the line that they end in."""
    raw = read_bytes(file)
    encoding = form.encoding
    if codecs.lookup(encoding).name == "utf-8":
        if raw.startswith(UTF_16):
            raise DataError(f"{file} is UTF-16: give `encoding: utf-16`")
        encoding = "utf-8-sig"
    text = io.TextIOWrapper(io.BytesIO(raw), encoding=encoding, newline="")
    lines = (line.replace("\0", "") for line in text)
    reader = csv.reader(lines, delimiter=form.separator, strict=True)
    try:
        for cells in reader:
            yield cells, reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{file} cannot be read as CSV at line {reader.line_num}: {error}. A cell with quotes, "
            f'line ends or {form.separator!r} is written "so", quotes inside it doubled'
        ) from error
    except UnicodeError as error:
        raise DataError(
            f"{file} is not {form.encoding.upper()}, {_undecoded(raw, encoding)}: save it as "
            "UTF-8, or give its `encoding`, such as cp1252 or latin-1"
        ) from error


def _undecoded(raw: bytes, encoding: str) -> str:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        # What decodes piece by piece counts from the start of its piece.
        line = raw.count(b"\n", 0, error.start) + 1
        return f"by the byte 0x{error.object[error.start]:02x} in line {line}"
    except UnicodeError as error:
        return why(error)
    return "which its first bytes say"
