"""The cells of a column as what they mean: numbers, names, or as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BadCell", "Column", "Unlike", "label", "labels", "packed", "to_numbers", "typed"]

Column = NDArray[Any]
"""(T,) numbers, times, objects, or the text of a file, as bytes of UTF-8."""

LONGEST = 64
"""Bytes of a cell up to which the cells of a column lie side by side."""

NO_NUMBER = frozenset(
    "nan na n/a null none <na> #na #n/a -nan -1.#ind 1.#ind 1.#qnan -1.#qnan nat".split()
)
"""What stands for a missing number, in small letters; a name it may be."""

TRUTH = {"true": 1.0, "false": 0.0}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE = re.compile(r"(-?\d+)\.0+", re.ASCII)


class BadCell(NamedTuple):
    """Where a column has something else than a number.

    Attributes:
        step: its place in the column.
        shown: what stands there.
    """

    step: int
    shown: str


class Unlike(Exception):
    """A cell is no number; its only argument is a `BadCell`."""


def packed(cells: Sequence[str]) -> Column:
    """Text, as bytes of UTF-8 side by side; as objects if a cell is long."""
    coded = [cell.encode() for cell in cells]
    if max(map(len, coded), default=0) > LONGEST:
        return np.array(coded, dtype=object)
    return np.array(coded, dtype=np.bytes_)


def label(value: Any) -> str | None:
    """What a group or a class is called: "3" for 3 and 3.0; None for NaN and the like.

    Text is taken as it is written, "07" and "None" too; only "3.0" is "3", for a table with gaps
    makes the one of the other.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        whole = WHOLE.fullmatch(value)
        return (whole[1] if whole else str(value)) if value.strip() else None
    if value is None or value != value or (isinstance(value, np.datetime64) and np.isnat(value)):
        return None
    if isinstance(value, (float, np.floating, Decimal)) and value == value // 1:
        value = int(value)
    return str(value) or None


def labels(values: Column) -> NDArray[np.object_]:
    """Names, (T,); "" where there is none."""
    if values.dtype.kind == "O":
        return np.array([label(value) or "" for value in values], dtype=object)
    distinct, where = np.unique(values, return_inverse=True)
    names = np.array([label(value) or "" for value in distinct], dtype=object)
    return np.asarray(names[where.reshape(-1)])


def to_numbers(values: Column, decimal: str = ".", thousands: str | None = None) -> Column:
    """Numbers, (T,): int64, uint64, bool or float64; NaN where there is none. Durations in seconds.

    Args:
        values: a column.
        decimal: what text has in the place of a point.
        thousands: what text may have between groups of three digits.

    Raises:
        Unlike: for anything else.
    """
    kind = values.dtype.kind
    if thousands and kind in "SUO":
        groups = re.compile(rf"[+-]?\d{{1,3}}({re.escape(thousands)}\d{{3}})+(\D.*)?", re.ASCII)
        values = np.array([_ungrouped(value, groups, thousands) for value in values], dtype=object)
        kind = "O"
    if kind in "biuf":
        return values
    if kind == "m":
        none = np.isnat(values)
        return np.where(none, np.nan, values / np.timedelta64(1, "s"))
    if kind == "S":
        return _of_bytes(values, decimal)
    if kind == "U" or kind == "O":
        return _one_by_one(values, decimal)
    step = int(np.argmax([label(value) is not None for value in values])) if len(values) else 0
    if len(values) and label(values[step]) is not None:
        raise Unlike(BadCell(step, str(values[step])))
    return np.full(len(values), np.nan)


def _ungrouped(value: Any, groups: re.Pattern[str], thousands: str) -> Any:
    """Text without what is between thousands, if that is where it stands; others as they are."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if isinstance(text, str) and groups.fullmatch(text.strip()):
        return text.replace(thousands, "")
    return value


def typed(values: Column, decimal: str = ".", thousands: str | None = None) -> Column:
    """Numbers if all cells are, else names with None for none; other columns as they are."""
    if values.dtype.kind not in "SUO":
        return values
    try:
        return to_numbers(values, decimal, thousands)
    except Unlike:
        shown = [v.decode() if isinstance(v, bytes) else v for v in values]
        return np.array([None if v == "" else v for v in shown], dtype=object)


def _allowed(characters: bytes) -> NDArray[np.bool_]:
    table = np.zeros(256, dtype=bool)
    table[list(characters)] = True
    return table


DIGITS = _allowed(b"0123456789+- \0")
POINT, COMMA = _allowed(b"0123456789+-.eE \0"), _allowed(b"0123456789+-,eE \0")


def _of_bytes(values: Column, decimal: str) -> Column:
    """Of the cells of a file, all at once; one by one where a cell is not plainly a number."""
    if not len(values) or not values.dtype.itemsize:
        return np.full(len(values), np.nan)
    values = np.ascontiguousarray(values)
    cells = values.view(np.uint8).reshape(len(values), -1)
    known = cells[:, 0] != 0
    # What Python takes beyond this ("1_000", "inf", digits of other scripts) is no number here.
    if not (COMMA if decimal == "," else POINT)[cells].all():
        return _one_by_one(values, decimal)
    pointed = values
    if decimal == ",":
        pointed = np.where(cells == ord(","), np.uint8(ord(".")), cells).view(values.dtype)[:, 0]
    numbers = np.full(len(values), np.nan)
    try:
        if known.all() and DIGITS[cells].all():
            return pointed.astype(np.int64)
        numbers[known] = pointed[known].astype(np.float64)
    except (ValueError, OverflowError):
        return _one_by_one(values, decimal)
    return numbers


def _one_by_one(values: Column, decimal: str) -> Column:
    numbers: list[float] = []
    exact: list[int] = []
    truth = True
    for step, value in enumerate(values):
        number = _number(value, decimal)
        if number is None:
            shown = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            raise Unlike(BadCell(step, shown))
        truth &= isinstance(number, bool)
        if isinstance(number, int):
            exact.append(number)
        try:
            numbers.append(float(number))
        except OverflowError:
            raise Unlike(BadCell(step, str(value))) from None
    if len(exact) < len(numbers) or not numbers:
        return np.array(numbers, dtype=np.float64)
    if truth:
        return np.array(exact, dtype=bool)
    for dtype in (np.int64, np.uint64):
        if np.iinfo(dtype).min <= min(exact) and max(exact) <= np.iinfo(dtype).max:
            return np.array(exact, dtype=dtype)
    return np.array(numbers, dtype=np.float64)


def _number(value: Any, decimal: str) -> float | int | None:
    """NaN for none, None for what is no number."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = value.strip()
        if not text or text.lower() in NO_NUMBER:
            return float("nan")
        if text.lower() in TRUTH:
            return text.lower() == "true"
        if decimal != ".":
            text = "." if "." in text else text.replace(decimal, ".")
        if not NUMBER.fullmatch(text):
            return None
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    if value is None:
        return float("nan")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating, Decimal)):
        return float(value)
    return None
