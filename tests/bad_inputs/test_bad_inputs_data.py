"""Bad arguments of data, and files that cannot be used: a DataError with words that name them.

A row is a class with its arguments, or the content of a file, and words of the message.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_lrnn.data import (
    Adding,
    ByteText,
    Copying,
    DataError,
    Digits,
    LongMemory,
    NextSymbol,
    SequenceTable,
    SourceTokens,
    SpokenDigits,
    TextError,
)

FORECAST = {"path": "t.csv", "task": "forecast", "target": "x", "window": 2, "horizon": 1}
ONE = "must be an integer of at least 1, got "
ZERO = "must be an integer of at least 0, got "
TWO = "must be an integer of at least 2, got "
FLAG = "must be True or False, got "
SHARE = "must be a number from 0 to 1, got "
LEAVE = "must be positive and leave something to train on"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refuses(call: Any, words: str) -> None:
    with pytest.raises(DataError) as raised:
        call()
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        *(
            (kind, {name: value}, f"`{name}` {ONE}{value!r}")
            for kind, name in (
                *((ByteText, "batch_size"), (ByteText, "window"), (ByteText, "max_bytes")),
                *((Digits, "batch_size"), (SourceTokens, "window"), (SourceTokens, "max_bytes")),
                *((LongMemory, "steps"), (NextSymbol, "lag"), (Copying, "length")),
                *((Adding, "epoch_rows"), (Adding, "held_out"), (SpokenDigits, "batch_size")),
            )
            for value in (0, -1, 1.5, "2", True)
        ),
        *(
            (kind, {name: value}, f"`{name}` {ZERO}{value!r}")
            for kind, name in (
                *((ByteText, "seed"), (Adding, "seed"), (Adding, "num_workers")),
                *((SpokenDigits, "bucket"), (Copying, "delay")),
            )
            for value in (-1, 1.5, "a")
        ),
        *(
            (kind, {name: value}, f"`{name}` {TWO}{value!r}")
            for kind, name in (
                *((Adding, "steps"), (Copying, "symbols"), (LongMemory, "symbols")),
                (NextSymbol, "symbols"),
            )
            for value in (1, "3")
        ),
        (NextSymbol, {"lag": 1}, f"`symbols` {TWO}1"),
        *(
            (Digits, {name: value}, f"`{name}` {FLAG}{value!r}")
            for name in ("packed", "drop_last", "permute")
            for value in (2, "no", None)
        ),
        *(
            (
                kind,
                {"val_fraction": value},
                f"`val_fraction` {SHARE}{value!r}",
            )
            for kind in (ByteText, Digits)
            for value in (-1, "a", math.nan, None)
        ),
        *((kind, {"val_fraction": 0}, LEAVE) for kind in (ByteText, Digits)),
        *(
            (kind, {"val_fraction": 0.6, "test_fraction": 0.4}, f"{LEAVE}, got 0.6 and 0.4")
            for kind in (ByteText, SourceTokens, SpokenDigits)
        ),
        (Digits, {"steps": "columns"}, "`steps` must be one of pixels, rows, got 'columns'"),
        (LongMemory, {"sampling": "fair"}, "`sampling` must be one of random, balanced, paired, g"),
        (ByteText, {"pattern": None}, "`pattern` must be one of names, such as '**/*', got None"),
        (ByteText, {"path": ""}, "`path` is empty: give a file or a folder"),
        (SourceTokens, {"path": " "}, "`path` is empty: give a file or a folder"),
        (ByteText, {"path": 5}, "`path` must be a path, got 5"),
        *(
            (SequenceTable, FORECAST | {name: value}, f"`{name}` {ONE}{value!r}")
            for name in ("window", "stride", "horizon", "batch_size")
            for value in (0, -1, 2.5, "2")
        ),
        *(
            (SequenceTable, FORECAST | options, words)
            for options, words in (
                ({"path": ""}, "`path` is empty: give a file or a folder"),
                ({"path": 5}, "`path` must be a path, got 5"),
                ({"package": ""}, "`package` is empty"),
                ({"window": None}, "needs `target`, `window` and `horizon`"),
                ({"target": []}, "needs `target`, `window` and `horizon`"),
                ({"task": "guess"}, "`task` must be one of forecast, classify, tag, got 'guess'"),
                ({"task": ["tag"]}, "`task` must be one of forecast, classify, tag, got ['tag']"),
                ({"task": None}, "`task` must be one of forecast, classify, tag, got None"),
                ({"target": 5.5}, "`target` must be names, or numbers, got 5.5"),
                ({"target": ["x", "x"]}, "`target` has x more than once"),
                ({"features": []}, "`features` is empty: leave it out for all columns"),
                ({"features": [None]}, "`features` must be names, or numbers, got [None]"),
                ({"group": {"a": 1}}, "`group` must be names, or numbers, got {'a': 1}"),
                ({"group": ["g", "g"]}, "`group` has g more than once"),
                ({"classes": ["a"]}, "a forecast has no `classes`: leave them out"),
                ({"split_by": "day"}, "`split_by` must be one of group, time, got 'day'"),
                ({"split_by": ""}, "`split_by` must be one of group, time, got ''"),
                ({"scaling": "robust"}, "`scaling` must be one of standard, group, none, got 'ro"),
                ({"scaling": None}, "`scaling` must be one of standard, group, none, got None"),
                ({"scaling": "group", "split_by": "group"}, "`scaling: group` needs `split_by: t"),
                ({"missing": "drop"}, "`missing` must be one of error, mean, last, got 'drop'"),
                ({"predict": "past"}, "`predict` must be one of test, future, got 'past'"),
                ({"refit": "yes"}, f"`refit` {FLAG}'yes'"),
                ({"packed": "yes"}, f"`packed` {FLAG}'yes'"),
                ({"separator": ""}, "`separator` must be one character, such as ';', got ''"),
                ({"separator": ";;"}, "`separator` must be one character, such as ';', got ';;'"),
                ({"separator": "a"}, "`separator` must be one character, such as ';', got 'a'"),
                ({"separator": None}, "`separator` must be one character, such as ';', got None"),
                ({"decimal": ";"}, "`decimal` must be '.' or ',', got ';'"),
                ({"decimal": None}, "`decimal` must be '.' or ',', got None"),
                (
                    {"decimal": ","},
                    "`decimal` and `separator` are both ',': give the `separator` that stands",
                ),
                ({"thousands": ""}, "`thousands` must be one character, such as '.', got ''"),
                ({"thousands": 1}, "`thousands` must be one character, such as '.', got 1"),
                ({"thousands": "."}, "`thousands` and `decimal` are both '.'"),
                ({"encoding": "morse"}, "`encoding`: 'morse' is no encoding that Python knows"),
                ({"encoding": "rot13"}, "`encoding`: 'rot13' is no encoding that Python knows"),
                ({"encoding": None}, "`encoding`: None is no encoding that Python knows"),
                ({"time_format": 5}, "`time_format` must be as strptime has it, got 5"),
                ({"time_format": ""}, "got '': it names no part of a time"),
                ({"time_format": "%Q"}, "got '%Q': 'Q' is a bad directive"),
                ({"time_format": "%d.%m.%"}, "got '%d.%m.%': stray %"),
                ({"horizons": 3}, "unexpected keyword argument 'horizons'"),
                ({"task": "tag"}, "`horizon` is for `task: forecast`, not for 'tag': leave it out"),
                ({"task": "tag", "target": None, "horizon": None}, "`task: tag` needs `target`"),
                (
                    {"task": "tag", "target": ["x", "y"], "horizon": None},
                    "`task: tag` has one column in `target`, got x, y",
                ),
                (
                    {"task": "tag", "horizon": None, "predict": "future"},
                    "`predict: future` is for `task: forecast`, not for 'tag'",
                ),
                (
                    {"task": "classify", "split_by": "time", "horizon": None},
                    "can only be split by group",
                ),
            )
        ),
    ],
)
def test_arguments(kind: Any, options: dict[str, Any], words: str) -> None:
    if "keyword" in words:
        with pytest.raises(TypeError, match=words):
            kind(**options)
        return
    refuses(lambda: kind(**options), words)


def test_a_part_that_there_is_not() -> None:
    refuses(lambda: Adding().part("valid"), "one of train, val, test, got 'valid'")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "t.csv is empty, or its first line has no names of columns"),
        ("x,t\n", {}, "t.csv is empty but for its header"),
        ("x,t\n1,0\n", {"target": "y"}, "t.csv has no column 'y'; there are x, t"),
        ("x,t\n1,0\n", {"features": {"a": 1}}, "`features` must be names, or numbers"),
        ("x,t\n1,0\n", {"features": ["a"]}, "`features`: t.csv has no column 'a'; there are x, t"),
        ("x,t\n1,0\n", {"group": "g"}, "t.csv has no column 'g'; there are x, t"),
        ("x,t\n1,0\n", {"time": "when"}, "t.csv has no column 'when'; there are x, t"),
        ("x,t\n1,0\nmany,1\n", {}, "'many' where a number is wanted (step 2 of 2, line 3"),
        ("x,t\n1,monday\n2,2020-01-01\n", {}, "line 2) has 'monday' for a time, which is in no k"),
        ("x,t\n1,2020-01-01\n2,monday\n", {}, "line 3) has 'monday' for a time"),
        ("x,t\n1,0\ninf,1\n", {}, "has 'inf' where a number is wanted (step 2 of 2, line 3"),
        ("x,t\n1,0\n1e999,1\n", {}, "is infinite at step 2 of 2, line 3"),
        ("x,t,x\n1,0,1\n", {}, "has several columns 'x'"),
        ("x,t\n" + "\n".join(f",{i}" for i in range(60)), {}, "'x' has no value in the training p"),
        ("x,t\n1,0\n2,1\n", {"window": 30}, "no window of 30 steps with 1 to forecast"),
        ("x,t\n1,0\n2,1\n", {"checkpoint": "none.ckpt"}, "`checkpoint`: there is no file or folde"),
        ("x,t\n1,0\n2,1\n", {"checkpoint": ""}, "`checkpoint` is empty: give a file or a folder"),
        ("x,t\n1,0\n2,1\n", {"path": "nothing"}, "there is no file or folder 'nothing'"),
        ("x,t\n1,0\n2,1\n", {"path": "a\0b"}, "there is no file or folder 'a\\x00b'"),
        ("x,t\n1,0\n2,1\n", {"package": "no_such"}, "the package no_such is not installed"),
    ],
)
def test_tables(text: str, options: dict[str, Any], words: str) -> None:
    pytest.importorskip("pyarrow")
    Path("t.csv").write_text(text)
    given: dict[str, Any] = FORECAST | {"time": "t", "window": 1, "missing": "mean"}
    refuses(lambda: SequenceTable(**(given | options)).setup(), words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", np.array([{}]), "cannot be read: "),
        ("a.npy", np.ones((2, 2, 2)), "must be (T,) or (T, columns), got (2, 2, 2)"),
        ("a.npz", {"x": np.ones(3), "y": np.ones(4)}, "same length, the steps, got x 3, y 4"),
        ("a.npz", {"x": np.array(1.0)}, "same length, the steps, got none"),
        ("a.npy", np.ones((0, 2)), "a.npy is empty"),
        ("a.npy", np.ones(3, dtype=complex), "where a number is wanted"),
        ("broken.npz", b"PK\x03\x04 and no more", "broken.npz cannot be read"),
        ("broken.npy", b"\x93NUMPY", "broken.npy cannot be read"),
        ("broken.parquet", b"PAR1", "broken.parquet cannot be read"),
        ("text.txt", b"x\n1\n", "text.txt is none of .csv"),
        ("notes.md", b"x", "has no file of .csv, .parquet, .npy, .npz"),
    ],
)
def test_files(name: str, content: Any, words: str) -> None:
    pytest.importorskip("pyarrow")
    if isinstance(content, dict):
        np.savez(name, **content)
    elif isinstance(content, bytes):
        Path(name).write_bytes(content)
    else:
        np.save(name, content, allow_pickle=True)
    path = "." if name.endswith(("md", "npy", "npz")) else name
    refuses(lambda: SequenceTable(path, "forecast", 0, window=1, horizon=1).setup(), words)


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({}, {"path": "nowhere"}, "there is no file or folder 'nowhere'"),
        ({}, {}, "no text files match '**/*'"),
        ({"a.txt": b""}, {}, "no text files"),
        ({"a.bin": b"\0\1"}, {}, "no text files"),
        ({".hidden": b"text"}, {}, "no text files"),
        ({"a.txt": b"text"}, {"pattern": "*.py"}, "no text files match '*.py'"),
        ({"a": b"a\n"}, {"pattern": "/a"}, "`pattern`: '/a' cannot be matched"),
        ({"a": b"a\n"}, {"pattern": ""}, "`pattern`: '' cannot be matched"),
        ({"a": b"a\n"}, {"pattern": "**x/*"}, "`pattern`: '**x/*' cannot be matched"),
        ({"a": b"one\n" * 9, "b": b"two\n" * 9}, {}, "2 file(s) with 72 bytes leave nothing"),
        ({"a": b"x"}, {}, "leave nothing for"),
        ({"empty": b""}, {"path": "empty"}, "with 0 bytes"),
        ({str(i): b"line\n" for i in range(9)}, {"window": 100}, "train: the text has "),
        ({}, {"path": "x" * 999}, "cannot be looked at: File name too long"),
    ],
)
def test_texts(files: dict[str, bytes], options: dict[str, Any], words: str) -> None:
    for name, content in files.items():
        Path(name).write_bytes(content)
    data = ByteText(**({"path": ".", "val_fraction": 0.2, "test_fraction": 0.2} | options))
    with pytest.raises(TextError) as raised:
        data.train_dataloader()
    assert words in str(raised.value)
