"""Tables are read as they are written: no cell moves, is renamed, rounded or lost without a word.

Seen to fail: rows longer than the header cut off; "07" read as 7; "NA" as no name; integers
through float64; times through int64 of nanoseconds; the order of day and month guessed; the value
of another row in a message; an infinite float let through; a class order by a set of "nan".
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_lrnn.data import DataError
from lightning_lrnn.data.tables.cells import Unlike, label, labels, packed, to_numbers, typed
from lightning_lrnn.data.tables.columns import class_names, numbers
from lightning_lrnn.data.tables.csv_files import CsvFormat
from lightning_lrnn.data.tables.files import Series, read_series
from lightning_lrnn.data.tables.times import TimeError, following, to_times

arrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")


def read(tmp_path: Path, text: str | bytes, *group: str, **options: Any) -> dict[str, dict]:
    """The series of a CSV table, each as its columns."""
    file = tmp_path / "t.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {
        series.name: {name: series.column(name).tolist() for name in series.columns}
        for series in read_series(file, group, **options)
    }


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("t,y\n1,2,\n0,3,,\n", {"t": [1, 0], "y": [2, 3]}),
        ("\n\nt,y\n1,2\n\n0,3\n,\n", {"t": [1, 0], "y": [2, 3]}),
        ("t,y,\n1,2,\n", {"t": [1], "y": [2]}),
        (",y\n0,2\n", {"Unnamed: 0": [0], "y": [2]}),
        (b"\xef\xbb\xbft,y\r1,2\r", {"t": [1], "y": [2]}),
        ('t,y\n1,"a ""b"",\nc"\n', {"t": [1], "y": ['a "b",\nc']}),
        (b"t,y\n1,2\0\0.5\n", {"t": [1], "y": [2.5]}),
        ("y\n1\n\n3\n\n\n", {"y": [1, None, 3]}),
        (f"t,y\n1,{'z' * 99}\n2,NA\n", {"t": [1, 2], "y": ["z" * 99, "NA"]}),
        (f"t\n{2**63 - 1}\n{-(2**63)}\n", {"t": [2**63 - 1, -(2**63)]}),
        (f"t\n{2**64 - 1}\n", {"t": [2**64 - 1]}),
        ("t,y\nTrue,true\nFalse,\n", {"t": [True, False], "y": [1, None]}),
    ],
)
def test_cells_stay_in_their_columns(tmp_path: Path, text: str | bytes, columns: dict) -> None:
    (actual,) = read(tmp_path, text).values()
    actual = {name: [None if v != v else v for v in values] for name, values in actual.items()}
    assert actual == columns
    assert [type(v) for v in actual.get("t", [])] == [type(v) for v in columns.get("t", [])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("t,y\n", "is empty but for its header"),
        (",\n1,2\n", "its first line has no names"),
        ("t,y\n1,2\n1,2,3\n", r"has 3 cells in line 3, but 2 names .* 't'"),
        ("Plant 7\nt,y\n1,2\n", "has 2 cells in line 2, but 1 names .*'Plant 7': take out what"),
        ("t;y\n1;2,5\n", "give `separator: ';'`"),
        ("t,y,y\n1,2,3\n", "has several columns 'y'"),
        ('t,y\n1,"2\n3,4\n', "cannot be read as CSV at line 3: unexpected end"),
        ('t,y\n1,"a"b\n', "cannot be read as CSV at line 2"),
        ("t,y\n1,2\n".encode("utf-16"), "is UTF-16: give `encoding: utf-16`"),
        (b"t,y\n1,2\n2,\xe9\n", "is not UTF-8, by the byte 0xe9 in line 3"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_other_formats_are_named(tmp_path: Path) -> None:
    text = "zähler;y\n07;1,5\n".encode("cp1252")
    actual = read(tmp_path, text, form=CsvFormat(";", ",", "cp1252"))
    assert actual == {"t": {"zähler": [7], "y": [1.5]}}


@pytest.mark.parametrize(
    ("shown", "hint"),
    [
        ("x", ""),
        (
            "1,020",
            "or make numbers of it; commas are decimal with .*; ',' between .* `thousands: ','`",
        ),
        ("1.020,5", "commas are decimal with .*; '.' between thousands .* `thousands: '.'`"),
        ("10,25", "commas are decimal with `decimal: ','`$"),
        ("1 020 000.5", "`thousands: ' '`"),
        ("inf", ""),
        ("1_0", ""),
        ("٣", ""),
        ("-", ""),
    ],
)
def test_a_bad_cell_is_named_by_its_row_and_value(tmp_path: Path, shown: str, hint: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f'g,t,y\nb,2,1\na,3,"{shown}"\na,1,4\nb,9,NaN\n', encoding="utf-8")
    series, other = read_series(file, ["g"], "t")
    with pytest.raises(DataError, match=rf"'y' of .*group 'a' has '{shown}' .*step 2 of 2, line 3"):
        numbers(series, ["y"])
    if hint:
        with pytest.raises(DataError, match=hint):
            numbers(series, ["y"])
    np.testing.assert_array_equal(numbers(other, ["y"])[:, 0], [1, np.nan])


def test_points_between_thousands(tmp_path: Path) -> None:
    """Only where groups have three digits; names are left as they are."""
    cells = ["1.193,2", "-1.200.000", " 12.345 ", "7", "", "0,5", "NA"]
    text = "g;x\n" + "".join(f"1.234;{cell}\n" for cell in cells)
    (series,) = _csv(tmp_path, text, CsvFormat(";", ",", "utf-8", "."), ["g"])
    wanted = [1193.2, -1.2e6, 12345, 7, np.nan, 0.5, np.nan]
    np.testing.assert_array_equal(numbers(series, ["x"])[:, 0], wanted)
    assert series.groups == ("1.234",) and series.column("x")[0] == 1193.2
    for wrong in ("1.5", "1.1930", "1.19,2", "1,193.2"):
        (series,) = _csv(tmp_path, f"x\n{wrong}\n", CsvFormat(";", ",", "utf-8", "."))
        with pytest.raises(DataError, match=f"has '{wrong}' where a number is wanted"):
            numbers(series, ["x"])
    (series,) = _csv(tmp_path, "x\n1.193,2\n", CsvFormat(";", ",", "utf-8"))
    message = (
        r"line 2\): make numbers of it; '\.' between thousands is taken with `thousands: '\.'`"
    )
    with pytest.raises(DataError, match=message):
        numbers(series, ["x"], ["x"])


def _csv(folder: Path, text: str, form: CsvFormat, group: Sequence[str] = ()) -> list[Series]:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return read_series(folder / "t.csv", group, form=form)


def test_names_are_what_is_written(tmp_path: Path) -> None:
    names = ["07", "7", "NA", "None", "null", "nan", "1e3", "True", "a ", "inf"]
    actual = read(tmp_path, "g,x\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)), "g")
    assert {name: columns["x"] for name, columns in actual.items()} == {
        name: [i] for i, name in enumerate(names)
    }
    (series,) = read_series(tmp_path / "t.csv")
    assert class_names([series], "g") == sorted(names)
    with pytest.raises(DataError, match=r"'g' of .* has no value in line 3"):
        read(tmp_path, "g,x\na,1\n,2\n", "g")


def test_groups_of_two_columns_stay_apart(tmp_path: Path) -> None:
    actual = read(tmp_path, 'g,k,x\n"a, b",c,1\na,"b, c",2\n', "g", "k")
    assert [columns["x"] for columns in actual.values()] == [[2], [1]]


def test_classes_are_sorted_as_numbers_if_all_are(tmp_path: Path) -> None:
    read(tmp_path, "c,d\n10,10\n9,9\n3.0,nan\n07,\n7,2\n")
    (series,) = read_series(tmp_path / "t.csv")
    assert class_names([series], "c") == ["3", "07", "7", "9", "10"]
    assert class_names([series], "d") == ["10", "2", "9", "nan"]


def test_a_meter_is_one_wherever_it_stands_in_a_long_table(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lightning_lrnn.data.tables.csv_files.AT_ONCE", 10)
    rows = [(f"{i % 3:04d}" if i < 35 else f"A{'0' * (i % 2 * 80)}", i) for i in range(40)]
    actual = read(tmp_path, "meter,x\n" + "".join(f"{meter},{i}\n" for meter, i in rows), "meter")
    assert {name: columns["x"] for name, columns in actual.items()} == {
        name: [i for meter, i in rows if meter == name] for name in {meter for meter, _ in rows}
    }


def test_numbers_are_exact_or_refused(tmp_path: Path) -> None:
    for value, wanted in ((10**18 + 1, np.int64), (2**64 - 1, np.uint64), (2**64, np.float64)):
        actual = to_numbers(packed([str(value)]))
        assert actual.dtype == wanted and int(actual[0]) == value
    for given in (np.array(["1.5", ""]), np.array(["1.5", None], dtype=object)):
        np.testing.assert_array_equal(to_numbers(given), [1.5, np.nan])
    with pytest.raises(Unlike):
        to_numbers(np.array([1 + 2j]))
    steps = np.arange(2**60, 2**60 + 3)
    np.save(tmp_path / "a.npy", np.stack([steps, steps * 4, np.arange(3) * 10**15], -1))
    (series,) = read_series(tmp_path / "a.npy")
    assert numbers(series, ["2"])[:, 0].tolist() == [0, 1e15, 2e15]
    with pytest.raises(
        DataError, match=f"'0' of .* from {2**60} to {2**60 + 2}, .* rounded to 256"
    ):
        numbers(series, ["0"])


@arrow
def test_types_of_databases(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pa.array([1, 2, None], pa.int64())
    far = pa.array([1, 2, 253402214400000000], pa.int64())
    table = {
        "decimal": pa.array([Decimal("1.50"), None, Decimal("2.00")]),
        "open": pa.array([True, None, False]),
        "took": whole.cast(pa.duration("us")),
        "big": pa.array([2**60 + 1, None, 3]),
        "unsigned": pa.array([2**64 - 1, 1, 2], pa.uint64()),
        "half": pa.array(np.arange(3, dtype=np.float16)),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "of day": whole.cast(pa.time64("us")),
        "list": pa.array([[1, 2], [3, 4], [5, 6]]),
        "until": far.cast(pa.timestamp("us", "Europe/Berlin")),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (series,) = read_series(tmp_path / "t.parquet", [], "until")
    actual = {
        name: numbers(series, [name])[:, 0].tolist() for name in list(table)[:6] if name != "big"
    }
    np.testing.assert_array_equal(actual["decimal"], [1.5, np.nan, 2])
    np.testing.assert_array_equal(actual["open"], [1, np.nan, 0])
    np.testing.assert_array_equal(actual["took"], [1e-6, 2e-6, np.nan])
    assert actual["unsigned"] == [2.0**64, 1, 2] and actual["half"] == [0, 1, 2]
    assert labels(series.cells("big")).tolist() == [str(2**60 + 1), "", "3"]
    assert class_names([series], "kind") == ["a"] and class_names([series], "decimal") == [
        "1.50",
        "2",
    ]
    assert class_names([series], "open") == ["False", "True"]
    assert series.times is not None and str(series.times[-1]) == "9999-12-31T00:00:00.000000"
    for name in ("of day", "list", "until"):
        with pytest.raises(DataError, match="where a number is wanted"):
            numbers(series, [name])


def test_true_and_false_are_classes_in_every_format(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", active=np.array([True, False]))
    (tmp_path / "b.csv").write_text("active\nTrue\nFalse\n\nTrue\n")
    assert [class_names([one], "active") for one in read_series(tmp_path)] == [
        ["False", "True"]
    ] * 2
    assert label(np.True_) == "True"


# Times.

START = datetime(2024, 2, 28, 23, 30)


@pytest.mark.parametrize(
    "write",
    [
        lambda t: (t + timedelta(milliseconds=250 * t.minute)).isoformat(),
        lambda t: str(t) if t.hour else t.date().isoformat(),
        lambda t: t.isoformat() + "Z",
        lambda t: (t + timedelta(hours=t.hour % 3)).isoformat() + f"+0{t.hour % 3}:00",
        lambda t: t.strftime("%d.%m.%Y %H:%M"),
        lambda t: t.strftime("%m/%d/%Y %I:%M %p"),
        lambda t: t.strftime("%d-%b-%Y %H:%M"),
        lambda t: t.strftime("%B %d, %Y %H:%M"),
        lambda t: t.strftime("%Y/%m/%d %H:%M:%S.000000001"),
        lambda t: str(int(t.timestamp()) * 10**9 + 1),
        lambda t: t.isoformat().replace("2024", "9996"),
        lambda t: t.isoformat().replace("2024", "0096"),
    ],
)
def test_times_are_sorted(tmp_path: Path, write: Any) -> None:
    stamps = [write(START + timedelta(hours=i)) for i in range(60)]
    lines = [f'"{stamps[i * 7 % 60]}",{i * 7 % 60}' for i in range(60)]
    (actual,) = read(tmp_path, "when,x\n" + "\n".join(lines), time="when").values()
    assert actual["x"] == list(range(60))


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        *(
            ([text], f"'{text}', of which .* give `time_format: '{day}'`, or '{month}'")
            for text, day, month in (
                ("03/04/2024", "%d/%m/%Y", "%m/%d/%Y"),
                ("01.11.2024 00:00", "%d.%m.%Y %H:%M", "%m.%d.%Y %H:%M"),
                ("1-2-2024T07:08:09.5Z", "%d-%m-%YT%H:%M:%S.%f%z", "%m-%d-%YT%H:%M:%S.%f%z"),
                ("01/02/2024, 07:08 PM", "%d/%m/%Y, %I:%M %p", "%m/%d/%Y, %I:%M %p"),
            )
        ),
        (["2024-01-01", "2023-02-29"], "has a date that there is not"),
        (
            ["2024-01-01", "13.01.2024"],
            r"'13.01.2024', written in another way \(day or month first",
        ),
        (["2024-01-01T00:00Z", "2024-01-01T00:00"], "all times have an offset, or none has"),
        (["2024-01-01", "monday"], "has 'monday' for a time"),
        (["2024-01-01 24:10"], "'2024-01-01 24:10' for a time, which is no time of a day"),
        (["2024-01-01", ""], "has no time"),
        (["12/13/24"], "in no known format"),
        (["9999-12-31 00:00:00.000000001"], "has nanoseconds outside"),
        (["1", "2024-01-01"], "has '2024-01-01' for a time, after numbers"),
        (["", "2024-01-01"], "has no time"),
    ],
)
def test_times_that_cannot_be_told(stamps: list[str], message: str) -> None:
    with pytest.raises(TimeError) as error:
        to_times(packed(stamps))
    assert re.search(message, error.value.args[1])


@pytest.mark.parametrize(
    "text", ["01.11.2024 00:00", "1-2-2024T07:08:09.5Z", "01/02/2024, 07:08 PM", "01/02/2024 7:08"]
)
def test_the_format_that_is_suggested_reads_it(text: str) -> None:
    with pytest.raises(TimeError) as error:
        to_times(packed([text]))
    day, month = re.findall("'(%[^']*)'", error.value.args[1])
    assert to_times(packed([text]), day) != to_times(packed([text]), month)


def test_the_time_of_a_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'t' of .*t.csv \(step 2 of 2, line 3\) has 'soon'"):
        read(tmp_path, "t,y\n2020-01-01,1\nsoon,2\n", time="t")
    with pytest.raises(
        DataError, match=r"has 5 more than once \(lines 2 and 4\).* back, give times"
    ):
        read(tmp_path, "t,y\n5,1\n3,2\n5,3\n", time="t")
    with pytest.raises(DataError, match="`time_zone`, such as Europe/Berlin, or times with their"):
        read(tmp_path, "t,y\n2024-10-27 02:00,1\n2024-10-27 02:00,2\n", time="t")


def test_day_and_month_are_told_by_the_whole_table(tmp_path: Path) -> None:
    rows = "a,05/04/2024,1\na,06/03/2024,0\nb,13/01/2024,0\n"
    actual = read(tmp_path, "g,t,x\n" + rows, "g", time="t")
    assert actual["a"]["x"] == [0, 1]
    named = read(tmp_path, "t,x\n02/03/2024,1\n03/02/2024,0\n", time="t", time_format="%d/%m/%Y")
    assert named["t"]["x"] == [0, 1]


@pytest.mark.parametrize(
    ("times", "after"),
    [
        (["2020-01-31", "2020-02-29"], ["2020-03-31", "2020-04-30"]),
        (["2020-11-15", "2020-12-15"], ["2021-01-15", "2021-02-15"]),
        (["2020-01-31", "2020-02-01", "2020-02-02"], ["2020-02-03", "2020-02-04"]),
        (["2020-01-01 00:00", "2020-01-01 01:00"], ["2020-01-01 02:00", "2020-01-01 03:00"]),
        (["1", "3", "5"], ["7", "9"]),
        (["2020-01-05"], ["2020-01-06", "2020-01-07"]),
    ],
)
def test_times_go_on(times: list[str], after: list[str]) -> None:
    actual = following(to_times(packed(times)), len(after))
    assert actual.tolist() == to_times(packed(after)).tolist()


def test_text_of_arrays_is_text() -> None:
    assert typed(np.array(["a", "1"])).tolist() == ["a", "1"]
    assert typed(np.array([b"7", b"8"])).tolist() == [7, 8]


def test_the_former_place_of_tables():
    sys.modules.pop("lightning_lrnn.data.table_files", None)
    with pytest.warns(DeprecationWarning, match="lightning_lrnn.data.tables.files now"):
        module = importlib.import_module("lightning_lrnn.data.table_files")
    assert module.read_series is read_series
