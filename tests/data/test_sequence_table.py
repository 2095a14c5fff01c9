"""SequenceTable: windows lie where they should, nothing is learned from what is held out.

Seen to fail: scaling fitted on all steps, or that of all series for each; the mean of scaled
values where a value is missing; windows that may not reach back, or whose targets reach into the
next part, or start a step early; the offset of the first series for all; a last window that reaches
beyond its part, or is left out; classes from the start of a series for all windows; rows not sorted
by time; hidden files read; pickled arrays read; dates guessed one by one; classes sorted as text; a
class 3.0 beside a class 3; infinite values let through; series without class kept; a target among
the features; a split without regard to classes.
"""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from loaded_rows import all_rows
from paths import ROOT

from lightning_lrnn import data
from lightning_lrnn.data import IGNORE, DataError, SequenceRow, SequenceTable
from lightning_lrnn.data.splits import PARTS
from lightning_lrnn.data.tables.cells import label

tables = pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="needs pandas")


@pytest.fixture
def weather(tmp_path: Path) -> Path:
    """Two stations, 100 hours each, with the rows in no order; b has larger values."""
    lines = [
        f"{station},2020-01-{1 + t // 24:02d} {t % 24:02d}:00,{(t + shift) * factor},{t % 7}"
        for station, shift, factor in (("b", 1000, 10.0), ("a", 0, 1.0))
        for t in range(100)
    ]
    lines = [lines[(37 * i) % 200] for i in range(200)]
    path = tmp_path / "weather.csv"
    path.write_text("\n".join(["station,hour,heat,wind", *lines]) + "\n")
    return path


def forecast(path: Path, **options: Any) -> SequenceTable:
    given = {
        "target": "heat",
        "group": "station",
        "time": "hour",
        "window": 5,
        "horizon": 3,
        "val_fraction": 0.2,
        "test_fraction": 0.2,
    }
    return SequenceTable(str(path), "forecast", **(given | options))


def in_units(row: SequenceRow) -> torch.Tensor:
    assert row.offset is not None and row.scale is not None
    return (row.offset + row.scale * row.targets).float()


@tables
@pytest.mark.parametrize("scaling", ["standard", "group"])
def test_windows_of_a_forecast(weather: Path, scaling: str) -> None:
    data = forecast(weather, scaling=scaling)
    assert (data.num_features, data.horizon, data.num_targets) == (2, 3, 1)
    assert data.feature_names == ["heat", "wind"]
    begins = {"train": 5, "val": 60, "test": 80}
    ends = {"train": 60, "val": 80, "test": 100}
    for part in PARTS:
        given = data.part(part)
        actual = set()
        for i in range(len(given)):
            row = given[i]
            heat = in_units(row)[:, 0]
            station = "b" if heat[0] > 9000 else "a"
            hours = heat / 10 - 1000 if station == "b" else heat
            first = round(float(hours[0]))
            torch.testing.assert_close(hours, first + torch.arange(3.0), rtol=0, atol=0.01)
            assert begins[part] <= first and first + 3 <= ends[part]
            # The inputs are the hours before, in the same scale.
            past = (row.offset + row.scale * row.inputs[:, :1]).float()  # type: ignore[operator]
            factor, shift = (10, 10000) if station == "b" else (1, 0)
            wanted = shift + factor * torch.arange(first - 5.0, first)[:, None]
            torch.testing.assert_close(past, wanted, rtol=1e-5, atol=0.05)
            actual.add((station, first))
        wanted_starts = range(begins[part], ends[part] - 2)
        assert actual == {(s, t) for s in "ab" for t in wanted_starts}
        assert len(actual) == len(given)


@tables
def test_scaling_knows_nothing_of_what_is_held_out(weather: Path, tmp_path: Path) -> None:
    lines = weather.read_text().splitlines()
    late = tmp_path / "late.csv"
    # Hour 60 is where validation starts.
    late.write_text(
        "\n".join(
            ",".join([*line.split(",")[:2], "123456", "77"])
            if line.split(",")[1] >= "2020-01-03 12:00" and "station" not in line
            else line
            for line in lines
        )
    )
    ours, theirs = forecast(weather), forecast(late)
    for a, b in zip(all_rows(ours, "train"), all_rows(theirs, "train"), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    x = torch.cat([values[:60] for values in ours.part("train").inputs])  # type: ignore[attr-defined]
    torch.testing.assert_close(x.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2))


@tables
def test_scaling_of_each_group(weather: Path) -> None:
    each = forecast(weather, scaling="group").part("train").inputs  # type: ignore[attr-defined]
    for values in each:
        torch.testing.assert_close(values[:60].mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    raw = forecast(weather, scaling="none")
    row = raw.part("train")[0]
    assert row.inputs.tolist() == [[t, t % 7] for t in range(5)]
    assert in_units(row).tolist() == row.targets.tolist() == [[5], [6], [7]]


@tables
def test_strides_and_groups(weather: Path) -> None:
    assert len(forecast(weather, stride=4).part("train")) == 2 * 14
    data = forecast(weather, group=None, time=None, features=["wind"], target=["heat", "wind"])
    assert data.num_targets == 2 and data.num_features == 1
    assert all_rows(data, "val")[0].targets.shape == (3, 2)


@tables
def test_a_forecast_by_group(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    lines = [f"{g},{100 * g + t}" for g in range(10) for t in range(12)]
    path.write_text("\n".join(["g,y", *lines]))
    data = forecast(path, target="y", group="g", time=None, split_by="group", scaling="none")
    actual = {
        part: {int(row.targets[0, 0]) // 100 for row in all_rows(data, part)} for part in PARTS
    }
    assert {part: len(groups) for part, groups in actual.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert set.union(*actual.values()) == set(range(10))


@tables
def test_values_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    gaps = {3: ",", 70: "5,"}
    path.write_text("x,y\n" + "\n".join(gaps.get(t, f"{t},{2 * t}") for t in range(100)))
    with pytest.raises(DataError, match=r"'x' of .*table.csv has no value at step 4 of 100"):
        forecast(path, target="y", group=None, time=None).setup()
    data = forecast(path, target="y", group=None, time=None, missing="mean")
    row = data.part("train")[0]
    assert row.inputs[3].tolist() == [0, 0] and row.inputs.isfinite().all()
    unscaled = forecast(path, target="y", group=None, time=None, missing="mean", scaling="none")
    mean = (sum(range(60)) - 3) / 59
    torch.testing.assert_close(unscaled.part("train")[0].inputs[3], torch.tensor([mean, 2 * mean]))
    # Of a target it is left to the model to leave it out.
    gaps_in = [row for row in all_rows(data, "val") if row.targets.isnan().any()]
    assert len(gaps_in) == 3


@tables
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tags(tmp_path: Path, suffix: str) -> None:
    pandas = pytest.importorskip("pandas")
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {
            "run": [i // 25 for i in range(250)],
            "x": [0.5 * (i % 25) for i in range(250)],
            "kind": [("up", "down", None)[i % 25 % 3] for i in range(250)],
        }
    )
    path = tmp_path / f"table.{suffix}"
    getattr(frame, f"to_{suffix}")(path, index=False)
    data = SequenceTable(
        str(path), "tag", target="kind", group="run", window=10, scaling="none", val_fraction=0.2
    )
    assert data.num_classes == 2 and data.classes == ["down", "up"] and data.num_features == 1
    seen = 0
    for part in PARTS:
        for row in all_rows(data, part):
            assert len(row.inputs) in (10, 5)
            seen += len(row.inputs)
            steps = (2 * row.inputs[:, 0]).long()
            assert torch.equal(row.targets, torch.tensor([1, 0, IGNORE])[steps % 3])
    assert seen == 250
    whole = SequenceTable(str(path), "tag", target="kind", group="run", classes=["up", "down"])
    row = whole.part("train")[0]
    assert len(row.inputs) == 25
    assert row.targets[:4].tolist() == [0, 1, IGNORE, 0]
    by_time = SequenceTable(str(path), "tag", target="kind", features=["x"], split_by="time")
    assert [len(by_time.part(part)[0].inputs) for part in PARTS] == [175, 37, 38]
    # No window reaches into the next part.
    by_time = SequenceTable(
        str(path), "tag", "kind", features=["x"], split_by="time", window=20, stride=15
    )
    lengths = [[len(row.inputs) for row in all_rows(by_time, part)] for part in PARTS]
    assert sorted(lengths[0]) == [10] + [20] * 11 and lengths[1:] == [[20, 20, 7], [20, 20, 8]]


def test_a_class_has_one_name_whatever_its_type() -> None:
    for value in (3, 3.0, np.float32(3), np.int8(3), "3"):
        assert label(value) == "3"
    for value in (None, math.nan, np.datetime64("NaT"), ""):
        assert label(value) is None
    assert (label(0.5), label(np.True_), label(-1e300)) == ("0.5", "True", str(int(-1e300)))


def test_classes_are_the_folders_of_the_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("10", "9", ".hidden"):
        for i in range(10):
            file = tmp_path / name / f"{i}.npy"
            file.parent.mkdir(exist_ok=True)
            np.save(file, rng.normal(len(name), 1, (3 + i, 4)))
    data = SequenceTable(str(tmp_path), "classify")
    assert data.num_classes == 2 and data.classes == ["9", "10"] and data.num_features == 4
    assert data.feature_names == ["0", "1", "2", "3"]
    actual = [row for part in PARTS for row in all_rows(data, part)]
    sizes = sorted((len(row.inputs), int(row.targets)) for row in actual)
    assert sizes == sorted((3 + i, kind) for i in range(10) for kind in (0, 1))
    for part in PARTS:
        counts = torch.bincount(torch.stack([row.targets for row in all_rows(data, part)]))
        assert len(counts) == 2 and abs(int(counts[0] - counts[1])) <= 1


def test_arrays_with_names(tmp_path: Path) -> None:
    for i in range(10):
        label = np.array("ab"[i % 2] if i else "")
        x = np.arange(10.0).reshape(5, 2) + 100 * i
        np.savez(tmp_path / f"{i}.npz", x=x, speed=np.arange(5), label=label)
    data = SequenceTable(str(tmp_path), "classify", target="label", features=["x"], scaling="none")
    assert data.num_features == 2 and data.feature_names == ["x.0", "x.1"]
    actual = [row for part in PARTS for row in all_rows(data, part)]
    # The one without a class is left out.
    assert sorted(int(row.inputs[0, 0]) // 100 for row in actual) == list(range(1, 10))
    for row in actual:
        assert int(row.targets) == (int(row.inputs[0, 0]) // 100) % 2
    windows = SequenceTable(str(tmp_path), "classify", "label", window=2, stride=2, missing="mean")
    assert sorted({len(row.inputs) for row in all_rows(windows, "train")}) == [1, 2]
    assert windows.feature_names == ["x.0", "x.1", "speed"]


@tables
def test_a_folder_of_tables(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / f"{name}.csv").write_text("t,y\n" + "\n".join(f"{9 - i},{i}" for i in range(9)))
    data = SequenceTable(
        str(tmp_path), "forecast", "y", time="t", window=3, horizon=1, scaling="none"
    )
    assert data.num_features == 1 and data.feature_names == ["y"]
    # In order of time.
    assert data.part("train")[0].inputs[:, 0].tolist() == [8, 7, 6]


def wrong(message: str, **options: Any) -> Any:
    return pytest.param(options, message, id=message[:40])


@tables
@pytest.mark.parametrize(
    ("options", "message"),
    [
        wrong(
            "`target`: .*weather.csv, group 'a' has no column 'cold'; there are station, hour, ",
            target="cold",
        ),
        wrong("`features`: .* has no column 'rain'", features=["wind", "rain"]),
        wrong("has no column 'city'; there are", group="city"),
        wrong(
            "column 'hour' of .*group 'a' has '2020-01-01 00:00' where a number is wanted",
            features=["hour"],
        ),
        wrong("column 'hour' of .*weather.csv has 2020-.* more than once", group=None),
        wrong("in the val part, where the longest series has 20 steps", window=30, horizon=25),
        wrong("2 series .* leave nothing for test", split_by="group"),
        wrong(
            "'station' of .* has several classes \\(a, b\\)",
            task="classify",
            target="station",
            group=None,
            time=None,
            horizon=None,
            features=["wind"],
        ),
        wrong(
            "has the class '2'; `classes` are 0, 1",
            task="tag",
            target="wind",
            horizon=None,
            classes=[0, 1],
        ),
        wrong(
            "lies in no folder that would be its class",
            task="classify",
            target=None,
            horizon=None,
            features=["wind"],
        ),
    ],
)
def test_tables_that_do_not_fit(weather: Path, options: dict, message: str) -> None:
    given = {"task": "forecast", "target": "heat", "group": "station", "time": "hour"}
    given |= {"window": 5, "horizon": 3, "val_fraction": 0.2, "test_fraction": 0.2}
    data = SequenceTable(str(weather), **(given | options))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        data.setup()


@tables
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "data.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 9
    exec("".join(blocks), {"__name__": "data"})
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert SequenceTable(**yaml.safe_load(shown)["data"]["init_args"]).num_features == 2
    for name in re.findall(r"^\| `(\w+)` \|", page, re.M):
        assert issubclass(getattr(data, name), pl.LightningDataModule)
