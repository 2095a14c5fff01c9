"""Any table: what comes out is what the csv module reads of the same bytes, or a DataError.

Seen to fail: cells beyond the header shifting the others; a short row taken from the next;
leading zeros lost; NA read as no name; rows of a group in the order of another; a time before 1677
wrapped; a value through float32; a mark of UTF-8 in the first name; month and day exchanged; a
table refused that has nothing wrong.

LIGHTNING_LRNN_FUZZ is the number of tables, 100 if it is not set. A nightly run has

    LIGHTNING_LRNN_FUZZ=2000 python -m pytest tests/data/test_table_fuzz.py

which takes some minutes.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lightning_lrnn.data import DataError
from lightning_lrnn.data.tables.cells import labels
from lightning_lrnn.data.tables.columns import numbers
from lightning_lrnn.data.tables.csv_files import CsvFormat
from lightning_lrnn.data.tables.files import Series, read_series

COUNT = int(os.environ.get("LIGHTNING_LRNN_FUZZ", "100"))

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1")
NAMES = ("07", "7", "7.0", "NA", "None", "nan", "", "a, b", 'say "x"', "é", "two\nlines", " ", "-1")
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-9, 9).map(lambda i: f"{i:03d}"),
    st.floats(-1e300, 1e300).map(repr),
    st.sampled_from(("", "NaN", "NA", "null", "1e-3", " 2 ", "+4", ".5", "6.")),
    # Not numbers.
    st.sampled_from(("inf", "1_0", "1,5", "1.000,5", "5 kWh", "12%", "-", "٣", "1e999", "--1")),
)


def day_first(t: datetime) -> str:
    """Of which it may not be told what comes first."""
    return t.strftime("%d.%m.") + f"{t.year:04d}"


WRITTEN = (
    lambda t: t.isoformat(),
    lambda t: str(t),
    lambda t: t.isoformat(timespec="seconds") + "Z",
    lambda t: t.date().isoformat(),
    day_first,
    lambda t: str((t - datetime(1970, 1, 1)) // timedelta(microseconds=1)),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, CsvFormat, list[datetime], Any, bool]:
    """A table of g, t, y and z: its bytes, how to read it, the times of its rows.

    The last is whether there is nothing to refuse.
    """
    form = CsvFormat(
        draw(st.sampled_from(",;\t|")),
        draw(st.sampled_from(".,")),
        draw(st.sampled_from(ENCODINGS)),
    )
    if form.decimal == form.separator:
        form = form._replace(decimal=".")
    count = draw(st.integers(1, 8))
    # Of one year only the month and the day say which comes first.
    year = draw(st.sampled_from(((1, 9999), (2024, 2024))))
    times = draw(
        st.lists(
            st.datetimes(datetime(year[0], 1, 2), datetime(year[1], 12, 30)),
            min_size=count,
            max_size=count,
            unique_by=lambda t: t.date(),
        )
    )
    times = [t.replace(microsecond=0) if draw(st.booleans()) else t for t in times]
    write = draw(st.sampled_from(WRITTEN))
    good = draw(st.booleans())
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=form.separator,
        quoting=draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))),
        lineterminator=draw(st.sampled_from(("\n", "\r\n"))),
    )
    writer.writerow(["g", "t", "y", "z"])
    cells = st.integers(-999, 999).map(str) if good else NUMBERS
    name = st.sampled_from(NAMES[:5] if good else NAMES)
    for time in times:
        row = [draw(name), write(time), draw(cells), draw(cells)]
        if not good:
            row = (row + draw(st.sampled_from(([], [], [], [""], ["", ""], ["x"]))))[
                : draw(st.sampled_from((9, 9, 9, 3, 1)))
            ]
        writer.writerow(row)
        if not good and draw(st.integers(0, 9)) == 0:
            text.write("\n")
    # A mark of UTF-8 is no part of the text, whether or not it is told.
    marked = form.encoding == "utf-8" and draw(st.booleans())
    raw = text.getvalue().encode("utf-8-sig" if marked else form.encoding, "replace")
    if not good and draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(raw)))
        raw = raw[:place] + draw(st.binary(max_size=2)) + raw[place + 1 :]
    return raw, form, times, write, good and write is not day_first


def plainly(raw: bytes, form: CsvFormat) -> list[list[str]]:
    """The rows that the csv module finds, as long as the header; the header first."""
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    text = raw.decode(encoding).replace("\0", "")
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=form.separator))
    header, *rows = [row for row in rows if row]
    while rows and not any(rows[-1]):
        rows.pop()
    assert all(not any(row[len(header) :]) for row in rows)
    return [header, *((row + [""] * len(header))[: len(header)] for row in rows)]


def name_of(cell: str) -> str:
    whole = re.fullmatch(r"(-?\d+)\.0+", cell, re.ASCII)
    return whole[1] if whole else cell if cell.strip() else ""


def number_of(cell: str, decimal: str) -> float:
    """NaN for none; ValueError for what is no number."""
    cell = cell.strip()
    if cell.lower() in ("", "nan", "na", "null", "none"):
        return float("nan")
    if re.search(r"[^-+0-9eE" + re.escape(decimal) + "]", cell):
        raise ValueError(cell)
    actual = float(cell.replace(decimal, "."))
    if actual in (float("inf"), float("-inf")):
        raise ValueError(cell)
    return actual


def the_same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)


def check_columns(series: Series, rows: list[list[str]], header: list[str], decimal: str) -> None:
    for place, name in enumerate(header):
        name = name or f"Unnamed: {place}"
        if name not in series.columns:
            assert not header[place] and not any(row[place] for row in rows)
            continue
        wanted = [row[place] for row in rows]
        assert labels(series.cells(name)).tolist() == [name_of(cell) for cell in wanted]
        try:
            actual = numbers(series, [name])[:, 0].tolist()
        except DataError as error:
            # Refused is what is no number; and integers that are rounded to nothing.
            refused = False
            for cell in wanted:
                try:
                    number_of(cell, decimal)
                except ValueError:
                    refused |= repr(cell) in str(error) or "infinite" in str(error)
            assert refused or "rounded to" in str(error), (wanted, error)
        else:
            assert all(map(the_same, actual, [number_of(cell, decimal) for cell in wanted])), wanted


@settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=COUNT == 100,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(tables())
def test_what_comes_out_is_what_a_plain_reader_finds(table: Any) -> None:
    raw, form, times, write, good = table
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "t.csv")
        file.write_bytes(raw)
        try:
            (whole,) = read_series(file, form=form)
        except DataError as error:
            assert not good, error
            event(f"refused: {re.sub('[0-9]+', 'n', str(error).rpartition('t.csv')[2])[:40]}")
            return
        header, *rows = plainly(raw, form)
        check_columns(whole, rows, header, form.decimal)
        try:
            grouped = read_series(file, ["g"], "t", form)
        except DataError as error:
            assert not good, error
            event(f"not grouped: {re.sub('[0-9]+', 'n', str(error).rpartition('t.csv')[2])[:40]}")
            return
        event("grouped")
        g, t = header.index("g"), header.index("t")
        assert {one.name for one in grouped} == {name_of(row[g]) for row in rows}
        when = {write(time): time for time in times}
        for one in grouped:
            members = [row for row in rows if name_of(row[g]) == one.name]
            if {row[t] for row in members} <= when.keys():
                members.sort(key=lambda row: when[row[t]])
                check_columns(one, members, header, form.decimal)
