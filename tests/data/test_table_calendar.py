"""A table with gaps, a time zone, categories and what is known of the steps ahead of a forecast.

Seen to fail: rows that are missing closed up; a grid in UTC for days of a zone; the second of two
hours that clocks repeat taken for the first; unknown features of the steps ahead that are not 0;
categories in another order than the model's; a value of later carried back to where none is.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import yaml
from paths import ROOT

from lightning_lrnn.data import DataError, SequenceTable
from lightning_lrnn.data.tables import fitted, forecasts
from lightning_lrnn.data.tables.files import Series, _timed, _zoned
from lightning_lrnn.data.tables.forecasts import _shown, known_series
from lightning_lrnn.modules import Forecaster

HOURS = 24 * 40
LEFT_OUT = (30, 31, 500)
ZONE = "Europe/Berlin"
GERMAN = {"separator": ";", "decimal": ",", "encoding": "cp1252"}
COMMON = {"task": "forecast", "target": "Last", "group": "Ort", "time": "Zeit"}


def german(path: Path, future: int = 12, tariffs: tuple[str, ...] = ("Früh", "Spät")) -> Path:
    """Two sites by the hour over the end of summer time, in local time, three rows left out of one;
    a temperature that is known for `future` hours more."""
    times = pd.date_range("2024-10-01", periods=HOURS + future, freq="h", tz=ZONE)
    lines = ["Ort;Zeit;Last;Temperatur;Tarif"]
    for site, place in enumerate(("Fürth", "Köln")):
        for hour, when in enumerate(times):
            if site == 0 and hour in LEFT_OUT:
                continue
            load = "" if hour >= HOURS else f"{100 * site + when.hour + hour / 1000:.3f}"
            cells = place, f"{when:%d.%m.%Y %H:%M}", load, f"{hour / 10:.1f}", tariffs[site]
            lines.append(
                ";".join(cells).replace(".", ",").replace(cells[1].replace(".", ","), cells[1])
            )
    path.write_text("\n".join(lines) + "\n", encoding="cp1252")
    return path


def table(path: Path, **options) -> SequenceTable:
    return SequenceTable(str(path), **{**COMMON, **GERMAN, "window": 24, "horizon": 12, **options})


def test_rows_that_are_missing_are_empty_ones(tmp_path, recwarn):
    path = german(tmp_path / "last.csv")
    data = table(path, time_zone=ZONE, freq="1h", missing="last", features=["Last"])
    rows = data.part("train")
    of_first = rows.inputs[0][:, 0] * data.part("train").scale[0][0, 0] + rows.offset[0][0, 0]
    hours = np.arange(HOURS)
    wanted = hours % 24 + hours / 1000
    known = np.setdiff1d(hours[:600], LEFT_OUT)
    # Until clocks are put back, 26 days on.
    np.testing.assert_allclose(of_first[known], wanted[known], atol=1e-4)
    # A feature without value is the one before it, a target without value counts nowhere.
    np.testing.assert_allclose(of_first[[30, 31]], wanted[[29, 29]], atol=1e-4)
    assert rows.targets[0][list(LEFT_OUT)].isnan().all()
    assert not rows.targets[0][known].isnan().any()
    assert not [w for w in recwarn if "missing between" in str(w.message)]


@pytest.mark.parametrize(("freq", "warned"), [("15min", True), ("1h", False)])
def test_a_freq_that_is_finer_than_the_table_is_told(tmp_path, freq, warned):
    data = table(
        german(tmp_path / "last.csv"), time_zone=ZONE, freq=freq, missing="mean", features=["Last"]
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup()
    messages = [str(w.message) for w in caught if "is finer than the table" in str(w.message)]
    assert len(messages) == warned
    if warned:
        assert "of which 1,937 of 1,939 rows come 4 such steps after the row before" in messages[0]
        assert "2024-10-01T00:00:00+02:00 and 2024-10-01T01:00:00+02:00: empty" in messages[0]


def test_rows_that_are_closed_up_are_told(tmp_path):
    path = german(tmp_path / "last.csv")
    data = table(path, time_zone=ZONE, features=["Last"])
    with pytest.warns(
        UserWarning, match=r"3 rows seem to be missing.*most, 3, of .*'Fürth'.*`freq`"
    ):
        data.setup()


def test_the_hour_that_clocks_repeat(tmp_path):
    path = german(tmp_path / "last.csv")
    with pytest.raises(DataError, match="more than once"):
        table(path, features=["Last"]).setup()
    data = table(path, time_zone=ZONE, freq="1h", missing="last", features=["Temperatur"])
    # The first of the two comes first.
    assert (data.part("train").inputs[1].diff(dim=0) > 0).all()
    times = data._known[1].times
    assert (np.diff(times) == np.timedelta64(1, "h")).all()
    assert str(times[0]) == "2024-09-30T22:00:00.000000"


def test_days_of_a_zone(tmp_path):
    days = pd.date_range("2024-10-20", periods=60, freq="D")
    lines = [f"{when:%d.%m.%Y};{k}" for k, when in enumerate(days) if k not in (3, 20)]
    path = tmp_path / "days.csv"
    path.write_text("Zeit;Last\n" + "\n".join(lines) + "\n")
    data = SequenceTable(
        str(path), "forecast", "Last", time="Zeit", window=5, horizon=2, separator=";",
        time_zone=ZONE, freq="D", missing="last", predict="future",
    )  # fmt: skip
    model = Forecaster(1, 2, hidden_size=4, num_layers=1)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    shown = data.forecast_table(trainer.predict(model, data), model.quantiles)["Zeit"]
    assert shown == ["2024-12-19T00:00:00+01:00", "2024-12-20T00:00:00+01:00"]


def test_what_is_known_of_the_steps_ahead(tmp_path):
    data = table(
        german(tmp_path / "last.csv"), time_zone=ZONE, freq="1h", missing="last", predict="future",
        time_features=["hour", "weekday"], categories="Tarif", known=["Temperatur"],
    )  # fmt: skip
    assert data.num_features == 9
    assert data.feature_names == [
        "Last", "Temperatur", "hour.sin", "hour.cos", "weekday.sin", "weekday.cos",
        "Tarif=Früh", "Tarif=Spät",
    ]  # fmt: skip
    # A row that was missing has the category of the row before it.
    assert torch.equal(data.part("train").inputs[0][30, 6:], data.part("train").inputs[0][29, 6:])
    row = data.part("future")[1]
    assert row.inputs.shape == (36, 9) and row.targets.isnan().all()
    past, ahead = row.inputs[:24], row.inputs[24:]
    assert (past[:, -1] == 0).all() and (ahead[:, -1] == 1).all()
    assert (ahead[:, 0] == 0).all() and (past[:, 0] != 0).all()
    # The temperature goes on to rise, as evenly as before.
    torch.testing.assert_close(
        row.inputs[:, 1].diff(), (row.inputs[1, 1] - row.inputs[0, 1]).expand(35)
    )
    index = pd.date_range("2024-10-01", periods=HOURS + 12, freq="h", tz=ZONE)[-36:]
    angle = 2 * np.pi * index.hour.to_numpy() / 24
    scaling = data.fitted["inputs"]
    sines = row.inputs[:, 2].double() * scaling["std"][0, 2] + scaling["mean"][0, 2]
    np.testing.assert_allclose(sines, np.sin(angle), atol=1e-6)
    assert (row.inputs[:, 6] < 0).all() and (row.inputs[:, 7] > 0).all()


def test_calendar_alone_goes_on_beyond_the_table(tmp_path):
    path = german(tmp_path / "last.csv", future=0)
    options = {"time_zone": ZONE, "freq": "1h", "missing": "last", "predict": "future"}
    data = table(path, features=["Last"], time_features=["hour"], known=[], **options)
    assert data.part("future")[0].inputs.shape == (36, 4)
    message = (
        r"'Temperatur' of .*'Fürth' is in `known`, but has no value after step 960 of 972, "
        r"line 958 \(2024-11-09T22:00:00\+01:00\), .* to step 972 \(2024-11-10T10:00:00\+01:00\)"
    )
    with pytest.raises(DataError, match=message):
        table(path, features=["Last"], known=["Temperatur"], **options).setup()


def test_a_model_reads_the_steps_ahead_and_brings_its_categories(tmp_path):
    options = {
        "time_zone": ZONE, "freq": "1h", "missing": "last", "time_features": ["hour"],
        "categories": "Tarif", "known": ["Temperatur"],
    }  # fmt: skip
    data = table(german(tmp_path / "last.csv"), **options)
    model = Forecaster(7, 12, hidden_size=8, num_layers=1, ahead=True)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_steps=2, **quiet)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    batch = next(iter(data.test_dataloader()))
    output = model.eval().run(batch, None)[0]
    assert output.shape[:3] == (32, 12, 1)
    # A step ahead depends on what is known of it and before it, not on what is known later.
    changed = batch.inputs.clone()
    changed[:, 30:, 1] += 1
    moved = (model.run(batch._replace(inputs=changed), None)[0] - output).abs().amax((0, 2, 3))
    assert (moved[:6] == 0).all() and (moved[6:] > 0).all()
    # Another table has one of the tariffs alone.
    again = german(tmp_path / "other.csv", tariffs=("Spät", "Spät"))
    other = table(again, checkpoint=str(tmp_path / "model.ckpt"), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is scaled as the model's
        other.setup()
    assert other.feature_names == data.feature_names
    for changed, message in (
        ({"known": None}, "`known` Temperatur, here it is nothing of the future"),
        ({"known": []}, r"`known` Temperatur, here it is \[\], the calendar and categories alone"),
        ({"known": ["Temperatur", "Ort"]}, "`known` Temperatur, here it is Ort, Temperatur"),
        ({"freq": "30min"}, "`freq` 1h, here it is 30min"),
        ({"freq": None}, "`freq` 1h, here it is left out"),
    ):
        with warnings.catch_warnings(), pytest.raises(DataError, match=f"trained with {message}"):
            warnings.simplefilter("ignore")
            table(again, checkpoint=str(tmp_path / "model.ckpt"), **options | changed).setup()
    # The same steps by another name; a model that was trained without `freq`, or before it counted.
    state = data.state_dict()
    for kept in (state, {"fitted_data": {**state["fitted_data"], "freq": None}}):
        same = table(tmp_path / "last.csv", **options | {"freq": "60min"})
        same.load_state_dict(kept)
        same.setup()
    old = {k: v for k, v in state["fitted_data"].items() if k != "freq"}
    same = table(tmp_path / "last.csv", **options)
    same.load_state_dict({"fitted_data": old})
    same.setup()
    with pytest.raises(DataError, match="`ahead` False"):
        pl.Trainer(max_steps=1, **quiet).fit(Forecaster(7, 12), table(again, **options))


def holidays(
    path: Path, cells: dict[int, str] | None = None, future: int = 3, warm: dict | None = None
) -> Path:
    """Two sites of 60 days and some ahead, of which each has one type; every sixth is a holiday."""
    days = pd.date_range("2024-01-01", periods=60 + future, freq="D").strftime("%Y-%m-%d")
    lines = ["site,t,y,warm,type,holiday"]
    for site, kind in (("a", "school"), ("b", "office")):
        for k, day in enumerate(days):
            holiday = (cells or {}).get(k, "no" if k % 6 else "yes")
            celsius = (warm or {}).get(k, k % 7)
            lines.append(f"{site},{day},{k if k < 60 else ''},{celsius},{kind},{holiday}")
    path.write_text("\n".join(lines) + "\n")
    return path


def days(path: Path, **options) -> SequenceTable:
    return SequenceTable(
        str(path), "forecast", "y", features=["y"], group="site", time="t", window=8, horizon=3,
        predict="future", **{"known": ["warm"], "categories": ["type", "holiday"], **options},
    )  # fmt: skip


@pytest.mark.parametrize("value", ["Yes", " no"])
def test_a_category_that_the_model_does_not_know(tmp_path, value):
    """Seen to fail: it counted as no value at all, without a word."""
    path = tmp_path / "t.csv"
    trained = days(holidays(path), freq="D")
    trained.setup()
    again = days(holidays(path, {3: value, 59: value}), freq="D")
    again.load_state_dict(trained.state_dict())
    message = (
        f"column 'holiday' of .*t.csv has '{value}' in 4 rows of a, b, which .* it knows no, yes"
    )
    with pytest.raises(DataError, match=message):
        again.setup()


def test_rows_that_are_put_in_do_not_count_as_unknown(tmp_path):
    path = tmp_path / "t.csv"
    trained = days(holidays(path), freq="D", missing="last")
    trained.setup()
    text = path.read_text().replace("school", "college")
    path.write_text(re.sub("a,2024-01-05.*\n", "", text))
    again = days(path, freq="D", missing="last")
    again.load_state_dict(trained.state_dict())
    message = "column 'type' of .* has 'college' in 62 rows of a, which .* it knows office, school"
    with pytest.raises(DataError, match=message):
        again.setup()


def test_a_category_without_value_is_missing(tmp_path):
    """Seen to fail: an empty cell was a value of its own, with which nothing was trained."""
    path = tmp_path / "t.csv"
    for step in (20, 61):
        with pytest.raises(DataError, match=rf"'holiday' of .* step {step + 1} of 66, line .*2024"):
            days(holidays(path, {step: ""})).setup()
    last = days(holidays(path, {61: "", 62: "no"}, future=3), missing="last").part("future")[0]
    column = days(path, missing="last")
    column.setup()
    at = column.feature_names.index("holiday=yes")
    # Of step 60, a holiday, to step 61.
    assert last.inputs[-3:, at].sign().tolist() == [1, 1, -1]


def test_a_category_is_carried_on_only_if_it_does_not_change(tmp_path):
    """Seen to fail: a last day that was a holiday made holidays of all days ahead."""
    path = tmp_path / "t.csv"
    data = days(holidays(path, future=0), categories="type", known=[])
    assert (data.part("future")[0].inputs[:, 2] > 0).all() and data.fitted["steady"] == ["type"]
    message = (
        r"'holiday' of .* is in `categories`, but has no value after step 60 of 63, line 61 "
        r"\(2024-02-29\), and the forecast reaches to step 63 \(2024-03-03\)"
    )
    for missing in ("error", "last", "mean"):
        with pytest.raises(DataError, match=message):
            days(path, known=[], missing=missing).setup()
    # Also if the table at hand has no holiday.
    trained = days(holidays(path), known=[])
    trained.setup()
    short = days(holidays(path, dict.fromkeys(range(63), "no"), future=0), known=[])
    short.load_state_dict(trained.state_dict())
    with pytest.raises(DataError, match=message):
        short.setup()


@pytest.mark.parametrize("step", [60, 61, 62])
def test_a_gap_ahead_is_filled_wherever_it_is(tmp_path, monkeypatch, step):
    """Seen to fail: at the last step it was told that there is no value after it."""
    path = holidays(tmp_path / "t.csv", future=5, warm={step: "", 20: "", 21: ""})
    with pytest.raises(DataError, match=r"'warm' of .* has no value at step 21 of 68.*2024-01-21"):
        days(path).setup()
    holidays(path, future=5, warm={step: ""})
    with pytest.raises(DataError, match=rf"'warm' of .* has no value at step {step + 1} of 68"):
        days(path).setup()
    holidays(path, future=5, warm={step: "", 20: "", 21: ""})
    said: list[str] = []
    monkeypatch.setattr(fitted, "rank_zero_info", said.append)
    data = days(path, missing="last")
    warm = data.part("future")[0].inputs[8:, data.feature_names.index("warm")]
    assert (warm.diff() == 0).tolist() == [step == 61, step == 62]
    assert said == [
        "`missing: last` fills values that are missing: warm 6, at most 2 in a row, of a "
        "(2024-01-21)"
    ]
    # What no forecast reads is not told.
    said.clear()
    days(holidays(path, future=5, warm={64: ""}), missing="last").setup()
    assert not said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freq": "hourly"}, "`freq` must be a spacing as pandas names it.*got 'hourly'"),
        (
            {"freq": 1},
            "times of .*'Fürth' are dates: `freq` must be such as '1h' for them, got '1'",
        ),
        ({"freq": "7h"}, r"has the time 2024-10-01T01:00:00\+02:00 \(step 2 of"),
        *(
            ({"time_zone": zone}, f"`time_zone` must be such as 'Europe/Berlin', got {zone!r}")
            for zone in ("Mars", "", "../x", "Europe", 1)
        ),
        ({"time_features": ["minute"]}, "`time_features` must be one of hour, weekday, month"),
        ({"known": ["Last"]}, "`known` has the target 'Last'"),
        ({"known": ["Wind"]}, "`known`: .* has no column 'Wind'"),
        ({"categories": "Art"}, "has no column 'Art'"),
        ({"time": None, "freq": "1h"}, "need `time`"),
        ({"in_memory": False, "freq": "1h"}, "`freq` needs a table in memory"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, options, message):
    path = german(tmp_path / "last.csv")
    with warnings.catch_warnings(), pytest.raises(DataError, match=message):
        warnings.simplefilter("ignore")
        table(path, **{"time_zone": ZONE, "missing": "last", **options}).setup()


def test_the_table_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "forecasting.md").read_text(encoding="utf-8")
    (code,), (config,) = (
        re.findall(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("python", "yaml")
    )
    exec(code, {})
    options = yaml.safe_load(config)
    data = SequenceTable(**options["data"]["init_args"])
    assert data.num_features == options["model"]["init_args"]["num_features"]
    batch = next(iter(data.val_dataloader()))
    assert batch.inputs.shape[1:] == (168 + 48, 11) and batch.targets.shape[1:] == (48, 1)


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("2024-03-01 22:00", "2024-03-01 23:00", "2024-03-02T00:00"),
        ("2024-03-01T22:00+01:00", "2024-03-01T23:00+01:00", "2024-03-01T23:00:00+00:00"),
        ("2024-03-01", "2024-03-02", "2024-03-03"),
    ],
)
def test_times_beyond_the_table_say_what_they_are(first, second, shown):
    """All of a column in one way; of UTC where offsets were told."""
    table = Series("", "", "", {"t": np.array([first, second])}, np.arange(2), "row")
    (one,) = (_zoned(_timed(table, "t", None), "t", None),)
    assert _shown(known_series(one, np.zeros((2, 1))).until(3), one.zone)[-1] == shown
    assert len({len(when) for when in _shown(one.times, one.zone)}) == 1


def test_series_that_are_short_or_end_early_are_told(tmp_path, monkeypatch):
    path = tmp_path / "sites.csv"
    steps = {"long": 60, "early": 50, "short": 9}
    rows = [f"{name},2024-01-01T00:{k:02},{k}" for name, n in steps.items() for k in range(n)]
    path.write_text("site,t,y\n" + "\n".join(rows) + "\n")
    data = SequenceTable(
        str(path), "forecast", "y", group="site", time="t", window=10, horizon=2, predict="future"
    )
    said: list[str] = []
    monkeypatch.setattr(forecasts, "rank_zero_info", said.append)
    with pytest.warns(UserWarning, match="left out: 'short' with 9"):
        data.setup()
    (line,) = said
    assert "earlier than 2024-01-01T00:59 in 1 series" in line
    assert "'early' 2024-01-01T00:49" in line


def test_a_table_without_times_may_have_what_is_known_ahead(tmp_path):
    """Seen to fail: an assertion of the code in the place of a forecast."""
    path = tmp_path / "rows.csv"
    rows = [f"{k if k < 40 else ''},{k % 7},{name}" for name in "ab" for k in range(43)]
    path.write_text("\n".join(["y,known,site", *rows]) + "\n")
    options = {"group": "site", "window": 5, "horizon": 3, "known": ["known"]}
    data = SequenceTable(str(path), "forecast", "y", **options, predict="future")
    rows_ahead = data.part("future")
    assert len(rows_ahead) == 2 and rows_ahead[0].inputs.shape == (8, 3)


def test_an_hour_that_clocks_leave_out(tmp_path):
    path = tmp_path / "spring.csv"
    path.write_text("Zeit;Last\n31.03.2024 01:30;1\n31.03.2024 02:30;2\n31.03.2024 03:30;3\n")
    form = {"separator": ";", "time_zone": ZONE, "time": "Zeit"}
    with pytest.raises(DataError, match="2024-03-31 02:30"):
        SequenceTable(str(path), "forecast", "Last", window=1, horizon=1, **form).setup()


def test_numbers_are_times_too(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("t,y\n" + "\n".join(f"{10 + 2 * k},{k}" for k in range(60) if k != 7) + "\n")
    data = SequenceTable(
        str(path), "forecast", "y", time="t", window=4, horizon=2, freq=2, missing="last"
    )
    assert len(data.part("train").targets[0]) == 60 + 2
    assert data.part("train").targets[0][7].isnan().all()


def even(path: Path, times: list[str], left_out: tuple[int, ...] = ()) -> SequenceTable:
    """A value for each time, on a grid of tenths."""
    kept = [f"{when},{k}" for k, when in enumerate(times) if k not in left_out]
    path.write_text("t,y\n" + "\n".join(kept) + "\n")
    options = {"time": "t", "window": 4, "horizon": 2, "predict": "future"}
    return SequenceTable(str(path), "forecast", "y", freq=0.1, missing="last", **options)


@pytest.mark.parametrize("first", [0.0, 17.3, 1.7e9])
@pytest.mark.parametrize("written", ["rounded", "added"])
def test_tenths_of_a_second_are_even(tmp_path, first, written):
    """Seen to fail: 0.1 + 0.2 beside the grid; 0.30000000000000004 as a time that is forecast."""
    if written == "rounded":
        times = [str(round(first + k / 10, 1)) for k in range(60)]
    else:
        times = list(np.cumsum([first, *[0.1] * 59]).astype(str))
    data = even(tmp_path / "t.csv", times, left_out=(7, 8))
    assert len(data.part("train").targets[0]) == 60 + 2
    assert torch.argwhere(data.part("train").targets[0][:60].isnan())[:, 0].tolist() == [7, 8]
    (series,) = data.series
    if written == "rounded":
        wanted = [round(first + k / 10, 1) for k in range(62)]
        assert series.until(62).tolist() == wanted
    with pytest.raises(DataError, match=r"not on the grid `freq: 0\.1` that starts at"):
        even(tmp_path / "t.csv", [*times[:20], str(first + 2.03), *times[21:]]).setup()
    with pytest.raises(DataError, match=r"not on the grid"):
        even(tmp_path / "t.csv", [*times[:20], str(first + 1.90001), *times[20:]]).setup()


def test_times_of_tenths_without_a_grid(tmp_path):
    """What is missing is told, and what is forecast goes on by tenths."""
    path = tmp_path / "t.csv"
    rows = [f"{1000 + k / 10},{k}" for k in range(40) if k not in (7, 8)]
    path.write_text("t,y\n" + "\n".join(rows) + "\n")
    data = SequenceTable(
        str(path), "forecast", "y", time="t", window=4, horizon=2, predict="future"
    )
    with pytest.warns(UserWarning, match="2 rows seem to be missing"):
        data.setup()
    (series,) = data.series
    assert series.until(138).tolist()[37:] == [round(1003.9 + k / 10, 1) for k in range(101)]


@pytest.mark.parametrize("freq", [None, "1h"])
@pytest.mark.parametrize("predict", ["test", "future"])
def test_sites_that_are_not_forecast_need_not_be_known(tmp_path, freq, predict):
    """Seen to fail: a site without loads, or with few, was refused for its weather."""
    hours = pd.date_range("2024-01-01", periods=60, freq="h").strftime("%Y-%m-%dT%H:%M")
    rows = [f"a,{hour},{k if k < 50 else ''},{k % 7}" for k, hour in enumerate(hours)]
    rows += [f"none,{hour},,{k if k < 3 else ''}" for k, hour in enumerate(hours[:20])]
    rows += [f"short,{hour},{k},{k if k < 3 else ''}" for k, hour in enumerate(hours[:7])]
    path = tmp_path / "t.csv"
    path.write_text("site,t,y,warm\n" + "\n".join(rows) + "\n")
    data = SequenceTable(
        str(path), "forecast", "y", group="site", time="t", window=8, horizon=3, known=["warm"],
        freq=freq, predict=predict,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="2 series have fewer steps .*'none' with 0, 'short' with"):
        data.setup()
    assert {series for series, _ in data.part(predict).starts} == {0}
