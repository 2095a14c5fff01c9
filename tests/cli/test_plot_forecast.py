"""`lightning-lrnn plot` of a forecast: what is read, what of it is drawn, and what is told.

Seen to fail: windows in the place of the last one, levels in the order of the file, actual values
of another series, of all times, and no interval of a single step.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import error_line

from lightning_lrnn.cli import main, plot_forecast
from lightning_lrnn.cli.figures import PlotError
from lightning_lrnn.cli.plot_forecast import (
    MOST,
    WIDTH,
    Forecast,
    actual_values,
    draw_forecast,
    read_forecast,
)

pytest.importorskip("matplotlib")

LEVELS = "0.5,0.1,0.9,0.25,0.75"
"""Not in order, as no file of ours has them."""


@pytest.fixture(autouse=True)
def _tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    days = [(shop, k, d) for k, shop in enumerate("ab") for d in range(30)]
    rows = [f"{shop},2024-01-{d + 1:02},{100 * k + d}" for shop, k, d in days]
    Path("sales.csv").write_text("\n".join(["shop,day,sold", *rows]))
    write("forecast.csv", ["shop"], [["a"], ["b"]], starts=(27, 28))


def write(file: str, names: list[str], series: list[list[str]], starts: tuple[int, ...]) -> None:
    """Windows of two days from each start; a quantile is its level times 10 above the day."""
    rows = [",".join([*names, "day", "steps_ahead", "target", LEVELS])]
    for of in series:
        for start in starts:
            for ahead in (1, 2):
                day = start + ahead
                cells = [str(day - 1 + 10 * float(level)) for level in LEVELS.split(",")]
                rows.append(",".join([*of, f"2024-01-{day:02}", str(ahead), "sold", *cells]))
    Path(file).write_text("\n".join(rows))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, and not written."""
    drawn: list[Any] = []

    def keep(figure: Any, path: Path) -> Path:
        drawn.append(figure)
        return path

    monkeypatch.setattr(plot_forecast, "write", keep)
    return drawn


def test_forecasts_are_read_by_series_and_the_last_window_counts() -> None:
    one, two = read_forecast(Path("forecast.csv"))
    assert (one.names, two.names) == ({"shop": "a"}, {"shop": "b"})
    assert one.levels == (0.1, 0.25, 0.5, 0.75, 0.9) and len(one.times) == 4
    last = one.last()
    assert list(last.times) == [np.datetime64("2024-01-29"), np.datetime64("2024-01-30")]
    assert last.quantiles.tolist()[0] == [29.0, 30.5, 33.0, 35.5, 37.0]
    # Windows that follow each other are one line.
    write("apart.csv", ["shop"], [["a"]], starts=(20, 22, 24))
    (apart,) = read_forecast(Path("apart.csv"))
    assert len(apart.last().times) == 6


def test_two_intervals_the_widest_and_the_one_of_half_of_the_values() -> None:
    def of(*levels: float) -> list[tuple[float, float]]:
        one = Forecast({}, "y", "t", np.arange(1), levels, np.zeros((1, len(levels))))
        return [(levels[i], levels[k]) for i, k in one.intervals()]

    assert of(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) == [(0.1, 0.9), (0.2, 0.8)]
    assert of(0.05, 0.25, 0.5, 0.75, 0.95) == [(0.05, 0.95), (0.25, 0.75)]
    assert of(0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99) == [(0.01, 0.99), (0.3, 0.7)]
    assert of(0.1, 0.5, 0.9) == [(0.1, 0.9)]
    assert of(0.5) == []


def test_actual_values_are_of_the_series_and_around_the_forecast() -> None:
    shown = [one.last() for one in read_forecast(Path("forecast.csv"))]
    of_a, of_b = actual_values(Path("sales.csv"), shown)
    assert of_a is not None and of_b is not None
    # Twenty days before, and the two that are forecast.
    assert of_a[1].tolist() == [float(day) for day in range(8, 30)]
    assert of_b[1].tolist() == [100.0 + day for day in range(8, 30)]
    early = Forecast({"shop": "b"}, "sold", "day", shown[1].times - np.timedelta64(5, "D"), (), [])
    (series,) = actual_values(Path("sales.csv"), [early])  # type: ignore[list-item]
    assert series is not None and series[1].tolist() == [100.0 + day for day in range(3, 25)]


def test_series_without_names_or_times_and_those_of_a_folder() -> None:
    Path("y.csv").write_text("y\n" + "\n".join(map(str, range(9))))
    one = Forecast({}, "y", "step", np.array([8, 9, 10]), (0.5,), np.zeros((3, 1)))
    (series,) = actual_values(Path("y.csv"), [one])
    assert series is not None and series[0].tolist() == list(range(1, 10))
    Path("folder").mkdir()
    for name in ("north", "south"):
        Path("folder", f"{name}.csv").write_text("day,sold\n" + f"1,{len(name)}\n2,7\n")
    one = Forecast({"series": "south"}, "sold", "day", np.array([3]), (0.5,), np.zeros((1, 1)))
    (series,) = actual_values(Path("folder"), [one])
    assert series is not None and series[1].tolist() == [5.0, 7.0]


def test_a_config_says_how_its_table_is_written(figures: list[Any]) -> None:
    pytest.importorskip("pandas")
    hours = [f"Köln;31.03.2024 0{h}:00;{h},5" for h in (0, 1, 3, 4)]
    Path("load.csv").write_text("\n".join(["Ort;Zeit;kW", *hours]), encoding="cp1252")
    how = "path: load.csv, separator: ';', decimal: ',', encoding: cp1252, time_zone: Europe/Berlin"
    Path("load.yaml").write_text(f"data: {{class_path: X, init_args: {{{how}}}}}")
    rows = [f"Köln,2024-03-31T{hour}:00:00+02:00,kW,1" for hour in ("04", "05")]
    Path("zone.csv").write_text("\n".join(["Ort,Zeit,target,0.5", *rows]))
    draw_forecast(Path("zone.csv"), Path("load.yaml"))
    (panel,) = figures[0].axes
    median, actual = panel.lines
    # 02:00 to 03:00 was left out that night: 00, 01, 03 and 04 o'clock are an hour apart.
    assert actual.get_ydata().tolist() == [0.5, 1.5, 3.5, 4.5]
    assert set(np.diff(actual.get_xdata())) == {np.timedelta64(1, "h")}
    assert median.get_xdata()[0] == actual.get_xdata()[3]
    assert panel.get_xlabel() == "Zeit (Europe/Berlin),\n2024-03-31"
    assert ticks(panel)[-1] == "05:00"
    # By itself a file says by how much its clocks differ from UTC.
    draw_forecast(Path("zone.csv"))
    (panel,) = figures[1].axes
    assert panel.get_xlabel() == "Zeit (UTC+02:00),\n2024-03-31"
    assert {tick[:3] for tick in ticks(panel)} == {"04:"}
    rows[0] = rows[0].replace("04:00:00+02:00", "01:00:00+01:00")
    Path("spring.csv").write_text("\n".join(["Ort,Zeit,target,0.5", *rows]))
    draw_forecast(Path("spring.csv"))
    assert figures[2].axes[0].get_xlabel() == "Zeit (UTC),\n2024-03-31"
    table = "Ort,Zeit,kW\n" + "\n".join(hours).replace(",", ".").replace(";", ",")
    Path("plain.csv").write_text(table, encoding="utf-8")
    with pytest.raises(PlotError, match=r"plain\.csv have none: give --actual the config whose"):
        draw_forecast(Path("zone.csv"), Path("plain.csv"))
    Path("load.yaml").write_text("model: X")
    bad = "time_zone: Mars, path: load.csv, separator: ';', decimal: ',', encoding: cp1252"
    Path("mars.yaml").write_text(f"data: {{{bad}}}")
    with pytest.raises(PlotError, match="cannot be read: `time_zone` must be such as 'Europe/Ber"):
        draw_forecast(Path("zone.csv"), Path("mars.yaml"))
    with pytest.raises(PlotError, match=r"load\.yaml is no config whose `data` have a `path`"):
        draw_forecast(Path("zone.csv"), Path("load.yaml"))


def test_a_newer_table_is_read_as_the_config_says(figures: list[Any]) -> None:
    text = Path("sales.csv").read_text().replace(",", ";")
    Path("old.csv").write_text(text.replace("a;2024-01-28;27", "a;2024-01-28;99"))
    Path("newer.csv").write_text(text)
    Path("sales.yaml").write_text("data: {path: old.csv, separator: ';'}")
    for table in (None, Path("newer.csv")):
        draw_forecast(Path("forecast.csv"), Path("sales.yaml"), None, "a", table)
    old, new = (figure.axes[0].lines[1].get_ydata().tolist() for figure in figures)
    assert new == list(range(8, 30)) and old != new
    assert all(len(figure.axes) == 1 for figure in figures)


def test_labels_of_panels_side_by_side_are_whole(figures: list[Any]) -> None:
    """Seen to fail: that of the right panel was cut at the edge of the figure."""
    rows = [f"{s},2024-03-{d:02}T04:00:00+01:00,kW,1" for s in "ab" for d in range(1, 29)]
    Path("zone.csv").write_text("\n".join(["Ort,Zeitpunkt,target,0.5", *rows]))
    Path("t.csv").write_text("Ort,Zeitpunkt,kW\na,2024-02-01,1\nb,2024-02-01,1\n")
    Path("t.yaml").write_text("data: {path: t.csv, time_zone: Europe/Berlin}")
    draw_forecast(Path("zone.csv"), Path("t.yaml"))
    figure = figures[0]
    figure.canvas.draw()
    for panel in figure.axes:
        box = panel.xaxis.label.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("series", "titles"),
    [
        ("h", ["kW, site h", "l, site h"]),
        ("h, b", ["kW, site b", "l, site b", "kW, site h", "l, site h"]),
        ("l", [f"l, site {name}" for name in "abcdef"]),
        ("l,h,a", ["l, site a", "l, site h"]),
    ],
)
def test_series_are_chosen(figures: list[Any], series: str, titles: list[str]) -> None:
    """Seen to fail: of eight sites with two targets each only the first three were drawn."""
    rows = [
        f"{site},{k},{target},1" for site in "abcdefgh" for k in (1, 2) for target in ("kW", "l")
    ]
    Path("sites.csv").write_text("\n".join(["site,step,target,0.5", *rows]))
    draw_forecast(Path("sites.csv"), series=series)
    assert [panel.get_title() for panel in figures[0].axes] == titles


def ticks(panel: Any) -> list[str]:
    """The texts at the axis of times, within it."""
    low, high = panel.get_xlim()
    panel.figure.canvas.draw()
    pairs = zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
    return [label.get_text() for place, label in pairs if low <= place <= high]


def test_what_is_drawn(figures: list[Any]) -> None:
    draw_forecast(Path("forecast.csv"), Path("sales.csv"))
    (figure,) = figures
    assert [panel.get_title() for panel in figure.axes] == ["sold, shop a", "sold, shop b"]
    panel = figure.axes[1]
    assert panel.get_xlabel() == "day,\n2024-01-09 to 2024-01-30" and panel.get_ylabel() == "sold"
    median, actual = panel.lines
    assert median.get_ydata().tolist() == [33.0, 34.0] and len(actual.get_ydata()) == 22
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "80% of values are expected here (quantiles 0.1 to 0.9)",
        "50% of values are expected here (quantiles 0.25 to 0.75)",
        "median forecast: as likely above as below",
        "actual values (sales.csv)",
    ]
    outer, inner = (band.get_paths()[0].get_extents() for band in panel.collections)
    assert (outer.y0, outer.y1, inner.y0, inner.y1) == (29.0, 38.0, 30.5, 36.5)
    assert figure.get_suptitle() == "forecast.csv: the last forecast"


def test_no_panel_is_empty(figures: list[Any]) -> None:
    write("three.csv", ["shop"], [["a"], ["b"], ["c"]], starts=(3,))
    draw_forecast(Path("three.csv"))
    assert len(figures[0].axes) == 3


def test_of_many_series_the_first_are_drawn_and_of_one_step_bars(figures: list[Any]) -> None:
    write("many.csv", ["shop"], [[f"{k:02}"] for k in range(9)], starts=(3,))
    draw_forecast(Path("many.csv"))
    assert len(figures[0].axes) == MOST
    assert figures[0].get_suptitle() == "many.csv: forecasts of the first 6 of 9 (--series chooses)"
    Path("step.csv").write_text(f"step,target,{LEVELS}\n31,$y$,3,1,5,2,4")
    draw_forecast(Path("step.csv"))
    (panel,) = figures[1].axes
    assert panel.get_title() == "" and panel.get_ylabel() == r"\$y\$"
    bars = [bar.get_segments()[0][:, 1].tolist() for bar in panel.collections]
    assert bars == [[1.0, 5.0], [2.0, 4.0]]


def size(png: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width // 2, height // 2


def test_the_command_draws_dates_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "forecast.csv", "--actual", "sales.csv"]) == 0
    assert capsys.readouterr().out == "forecast.png\n"
    Path("long.csv").write_text(
        f"after,target,{LEVELS}\n" + "".join(f"{k},y,3,1,5,2,4\n" for k in range(50))
    )
    assert main(["plot", "long.csv", "--output", "new/long.png"]) == 0
    assert size(Path("forecast.png"))[0] == size(Path("new/long.png"))[0] == WIDTH


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["forecast.csv", "--actual", "none.csv"], "actual values cannot be read: `path`: there"),
        (["forecast.csv", "--actual", "other.csv"], "has no column 'sold'; there are shop, day, x"),
        (["forecast.csv", "--actual", "far.csv"], "far.csv has none of the series a, b: give"),
        (["forecast.csv", "--actual", "hours.csv"], "hours.csv are numbers, those of the forecast"),
        (["forecast.csv", "sales.csv"], "drawn by itself: give one file, and no --metric"),
        (["forecast.csv", "--metric", "loss"], "drawn by itself: give one file, and no --metric"),
        (["sales.csv", "--actual", "sales.csv"], "--actual is for a forecast, and sales.csv is no"),
        (
            ["forecast.csv", "--actual", "latin.csv"],
            "such as cp1252 or latin-1. Give --actual the co",
        ),
        (["forecast.csv", "--series", "a,z"], "--series: there is no 'z'; there are a, sold, b"),
        (["forecast.csv", "--table", "sales.csv"], "--table is read as a config says: give that"),
        (
            ["forecast.csv", "--table", "far.csv", "--actual", "sales.csv"],
            "--table is read as a config says, and sales.csv is none: Give --actual the config",
        ),
        (["sales.csv", "--series", "a"], "--series is for a forecast, and sales.csv is none"),
        (["bad.csv"], "bad.csv is no table of WriteForecast: column '0.5' of bad.csv"),
        (["odd.csv"], "column 'day' of odd.csv has 'soon' for a time"),
        (["empty.csv"], "empty.csv is no table of WriteForecast: empty.csv is empty but for its"),
        (["forecast.csv", "--output", "."], "the figure cannot be written to ., a folder"),
    ],
)
def test_mistakes_are_told(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.csv").write_text("shop,day,x\na,2024-01-01,1")
    Path("far.csv").write_text("shop,day,sold\nc,2024-01-01,1")
    Path("hours.csv").write_text("shop,day,sold\na,1,1\nb,1,1")
    Path("latin.csv").write_bytes("shop,day,sold\nä,1,1".encode("latin-1"))
    Path("bad.csv").write_text("day,target,0.5\n1,y,much")
    Path("odd.csv").write_text("day,target,0.5\nsoon,y,1")
    Path("empty.csv").write_text("day,target,0.5\n")
    assert answer in error_line(capsys, "plot", *words)


def test_a_forecast_by_itself_needs_its_file() -> None:
    Path("x.csv").write_text("day,target,0.5,more\n1,y,1,2")
    with pytest.raises(PlotError, match=r"x\.csv is no table of WriteForecast: could not convert"):
        read_forecast(Path("x.csv"))
