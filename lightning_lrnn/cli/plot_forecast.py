"""The figure of a forecast: of each series the median, intervals, and what was and what came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from lightning_lrnn.cli.figures import PlotError, new_figure, plain_text, write
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.packages import package_file
from lightning_lrnn.data.tables.columns import numbers
from lightning_lrnn.data.tables.csv_files import CsvFormat
from lightning_lrnn.data.tables.files import Series, listed, read_series
from lightning_lrnn.data.tables.forecasts import STEPS_AHEAD
from lightning_lrnn.data.tables.times import TimeError, check_zone, has_offset, to_times

__all__ = ["Forecast", "actual_values", "draw_forecast", "read_forecast"]

WIDTH, ROW, LEGEND = 800, 230, 130
MOST = 6
"""Number of series that are drawn."""
FEW = 20
"""A forecast of fewer steps is drawn with dots."""
PAST = 3
"""What is shown of the past, times the steps ahead; and at least FEW steps."""
WIDE, NARROW, MEDIAN = "#c6dbef", "#8fbfe0", "#08519c"

CONFIG = "Give --actual the config (.yaml) whose `data` say how the table is written"

Values = tuple[NDArray[Any], NDArray[np.float64]]
"""Times (T,) and values (T,)."""


@dataclass(frozen=True)
class Forecast:
    """What is forecast of one target of one series, window after window.

    Attributes:
        names: column of group -> its value.
        target: its column.
        time: the column of times.
        times: (N,) numbers or dates; of UTC, if they have a `zone`.
        levels: of the quantiles, rising, 0.5 among them.
        quantiles: (N, levels).
        zone: whose clocks dates are shown by; None if they are written without offset.
    """

    names: dict[str, str]
    target: str
    time: str
    times: NDArray[Any]
    levels: tuple[float, ...]
    quantiles: NDArray[np.float64]
    zone: tzinfo | None = None

    def last(self) -> Forecast:
        """The last window where windows overlap; where they follow each other, all of them."""
        back = np.flatnonzero(self.times[1:] <= self.times[:-1])
        start = int(back[-1]) + 1 if len(back) else 0
        return replace(self, times=self.times[start:], quantiles=self.quantiles[start:])

    def intervals(self) -> list[tuple[int, int]]:
        """Indices of the lower and the upper level: of the outermost pair, and of one inside it.

        That is the one next to half of the values.
        """
        pairs = [(i, len(self.levels) - 1 - i) for i in range(len(self.levels) // 2)]
        coverage = [abs(self.levels[upper] - self.levels[lower] - 0.5) for lower, upper in pairs]
        inside = sorted(range(1, len(pairs)), key=lambda i: round(coverage[i], 6))[:1]
        return pairs[:1] + [pairs[i] for i in inside]


def read_forecast(path: Path) -> list[Forecast]:
    """The forecasts in a file of WriteForecast, one for each target of each series.

    Raises:
        PlotError: for cells that are no numbers or times, and for a file without rows.
    """
    try:
        (table,) = read_series(path)
        header = list(table.columns)
        levels = {name: float(name) for name in header[header.index("target") + 1 :]}
        # Those of before this column was there are read too.
        *names, time = [name for name in header[: header.index("target")] if name != STEPS_AHEAD]
        all_series = read_series(path, [*names, "target"])
        ordered = sorted(levels, key=lambda name: levels[name])
        return [
            Forecast(
                dict(zip(names, series.groups, strict=False)),
                series.groups[-1],
                time,
                to_times(series.cells(time)),
                tuple(levels[name] for name in ordered),
                numbers(series, ordered),
                _zone_of(series, time),
            )
            for series in all_series
        ]
    except TimeError as error:
        raise PlotError(f"column {time!r} of {path} {error.args[1]}") from error
    except (DataError, ValueError) as error:
        raise PlotError(f"{path} is no table of WriteForecast: {error}") from error


def actual_values(
    path: Path, forecasts: Sequence[Forecast], table: Path | None = None
) -> list[Values | None]:
    """What a table, or a folder of them, has of the series that are forecast; None for nothing.

    Args:
        path: of the data that the forecast was made from, with the same names of columns; or of a
            config, whose data say where they are and how they are written.
        forecasts: at least one.
        table: what is read in the place of a config's table, written as that.

    Raises:
        PlotError: for a table without such columns, times of another kind, or none of the series.
    """
    names, time = list(forecasts[0].names), forecasts[0].time
    try:
        config = path
        path, form, written, zone = _source(path, table)
        check_zone(zone)
        columns = read_series(path, form=form)[0].columns
        # As `forecast_table` calls the files of a folder, and steps without times.
        group = [] if names == ["series"] and "series" not in columns else names
        by = None if time == "step" and "step" not in columns else time
        series = read_series(path, group, by, form, written, zone)
        by_group = {each.groups or ((each.name,) if names else ()): each for each in series}
        values = [_values(by_group.get(tuple(f.names.values())), f, path) for f in forecasts]
    except DataError as error:
        # Of options of data that the command does not have.
        hint = f". {CONFIG}" if path == config and "`" in str(error) else ""
        raise PlotError(f"the actual values cannot be read: {error}{hint}") from error
    if not any(values):
        wanted = listed(", ".join(f.names.values()) for f in forecasts)
        raise PlotError(f"{path} has none of the series {wanted}: give the table of these")
    return values


def _values(series: Series | None, forecast: Forecast, path: Path) -> Values | None:
    """Times and values of a series from before a forecast to its end; None without it."""
    if series is None:
        return None
    times = np.arange(1, len(series) + 1) if series.times is None else series.times
    own, wanted = ("dates" if x.dtype.kind == "M" else "numbers" for x in (times, forecast.times))
    if own != wanted:
        raise PlotError(
            f"the times of {path} are {own}, those of the forecast {wanted}: give the table that "
            "the forecast was made from"
        )
    if forecast.zone and series.zone is None and not _zoned(series, forecast.time):
        raise PlotError(
            f"the times of the forecast have an offset, those of {path} have none: give --actual "
            "the config whose data have the `time_zone`"
        )
    first = int(np.searchsorted(times, forecast.times[0]))
    stop = int(np.searchsorted(times, forecast.times[-1], side="right"))
    shown = slice(max(0, first - max(PAST * len(forecast.times), FEW)), stop)
    return times[shown], numbers(series, [forecast.target])[shown, 0]


def _source(
    path: Path, table: Path | None = None
) -> tuple[Path, CsvFormat, str | None, str | None]:
    """A table, how it is written, and format and zone of its times; of a config those of its data.

    Raises:
        PlotError: for a config without data that have a path.
    """
    if path.suffix not in (".yaml", ".yml"):
        if table is not None:
            raise PlotError(f"--table is read as a config says, and {path} is none: {CONFIG}")
        return path, CsvFormat(), None, None
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        options = data.get("init_args", data)
        if table is None and options.get("package"):
            table = package_file(options["package"], options["path"])
        table = table or Path(options["path"])
        form = CsvFormat(*(options.get(k, v) for k, v in CsvFormat()._asdict().items()))
        return table, form, options.get("time_format"), options.get("time_zone")
    except (OSError, KeyError, TypeError, AttributeError, UnicodeError, yaml.YAMLError) as error:
        raise PlotError(
            f"{path} is no config whose `data` have a `path` ({error!r}): give that, or the table"
        ) from error


def _zone_of(series: Series, time: str) -> tzinfo | None:
    """The clocks by which a forecast is written, as far as its offsets tell; of several, UTC."""
    cells = {c.decode() if isinstance(c, bytes) else str(c) for c in series.columns[time]}
    if not all(map(has_offset, cells)):
        return None
    try:
        zones = {datetime.fromisoformat(cell.strip()).tzinfo for cell in cells}
    except ValueError:
        zones = set()
    return zones.pop() if len(zones) == 1 else timezone.utc


def _zoned(series: Series, time: str) -> bool:
    """Whether text has times with an offset; what is no text says so itself."""
    first = series.columns[time][0] if time in series.columns else ""
    return not isinstance(first, bytes | str) or has_offset(first)


def draw_forecast(
    path: Path,
    actual: Path | None = None,
    output: Path | None = None,
    series: str | None = None,
    table: Path | None = None,
) -> Path:
    """Draws the last forecasts of the first series in a file of WriteForecast.

    Args:
        path: of the file.
        actual: the table with what was, and perhaps what came; None for none.
        output: of the PNG; None for one beside the file.
        series: what is drawn: values of group or targets, with commas between them; None for all.
        table: see `actual_values`.

    Returns:
        The path of the PNG.

    Raises:
        PlotError: if there is nothing to draw, or it cannot be written.
        ModuleNotFoundError: without matplotlib.
    """
    forecasts = _chosen(read_forecast(path), series)
    shown = [forecast.last() for forecast in forecasts[:MOST]]
    values: list[Values | None] = [None] * len(shown)
    if actual:
        values = actual_values(actual, shown, table)
        if zone := _source(actual)[-1]:
            # Offsets in a file do not say what clocks show at other times.
            shown = [
                forecast if forecast.zone is None else replace(forecast, zone=ZoneInfo(zone))
                for forecast in shown
            ]
    across = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // across)
    figure = new_figure(WIDTH, ROW * rows + LEGEND)
    panels = list(figure.subplots(rows, across, squeeze=False).flat)
    for panel, forecast, known in zip(panels, shown, values, strict=False):
        _draw(panel, forecast, known, actual)
    for panel in panels[len(shown) :]:
        panel.remove()
    figure.suptitle(plain_text(f"{path.name}{_drawn_part(forecasts)}"), fontsize=10)
    handles = {
        name: handle
        for panel in figure.axes
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False
    )
    return write(figure, output or path.with_suffix(".png"))


def _chosen(forecasts: list[Forecast], series: str | None) -> list[Forecast]:
    """Those with one of the names, of which each has to be there."""
    if series is None:
        return forecasts
    names = [name.strip() for name in series.split(",")]
    by_name: dict[str, None] = {}
    for forecast in forecasts:
        by_name |= dict.fromkeys([*forecast.names.values(), forecast.target])
    if unknown := [name for name in names if name not in by_name]:
        raise PlotError(f"--series: there is no {unknown[0]!r}; there are {listed(by_name)}")
    targets = {forecast.target for forecast in forecasts}
    chosen_targets = targets.intersection(names) or targets
    groups = {*names} - targets
    return [
        forecast
        for forecast in forecasts
        if forecast.target in chosen_targets
        and (not groups or groups.intersection(forecast.names.values()))
    ]


def _drawn_part(forecasts: Sequence[Forecast]) -> str:
    """A title's part that says how much of a file is drawn; empty if it is all."""
    text = "the last forecast" if len(forecasts[0].last().times) < len(forecasts[0].times) else ""
    if len(forecasts) > MOST:
        text = f"{text or 'forecasts'} of the first {MOST} of {len(forecasts)} (--series chooses)"
    return text and f": {text}"


def _draw(panel: Any, forecast: Forecast, actual: Values | None, table: Path | None) -> None:
    """Draws a series; intervals first, so that lines are above them."""
    times = forecast.times
    styles = zip(forecast.intervals(), ((WIDE, 14), (NARROW, 8)), strict=False)
    for (lower, upper), (colour, width) in styles:
        low, high = forecast.levels[lower], forecast.levels[upper]
        label = f"{high - low:.0%} of values are expected here (quantiles {low:g} to {high:g})"
        ends = forecast.quantiles[:, lower], forecast.quantiles[:, upper]
        if len(times) > 1:
            panel.fill_between(times, *ends, color=colour, linewidth=0, label=label)
        else:
            panel.vlines(times, *ends, color=colour, linewidth=width, label=label)
    median = forecast.quantiles[:, forecast.levels.index(0.5)]
    dots = "." if len(times) < FEW else ""
    label = "median forecast: as likely above as below"
    panel.plot(times, median, color=MEDIAN, marker=dots, label=label)
    if actual is not None and table is not None:
        label = f"actual values ({plain_text(table.name)})"
        panel.plot(*actual, color="black", linewidth=1, marker=dots, markersize=4, label=label)
    _name_axes(panel, forecast, times if actual is None else np.append(actual[0], forecast.times))


def _name_axes(panel: Any, forecast: Forecast, times: NDArray[Any]) -> None:
    """Labels the axes; those of dates with the first and the last day."""
    label = forecast.time
    if times.dtype.kind == "M":
        from matplotlib import dates

        # Evenly spaced: a tick at the first of a month lay on the one before.
        clocks = forecast.zone or timezone.utc
        locator: Any = dates.AutoDateLocator(clocks, 3, 6, False)  # type: ignore[no-untyped-call]
        formatter: Any = dates.ConciseDateFormatter(  # type: ignore[no-untyped-call]
            locator,
            clocks,
            formats=["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S.%f"],
            zero_formats=["", "%b %Y", "%d %b", "%d %b", "%H:%M", "%H:%M"],
            show_offset=False,
        )
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(formatter)
        ends = (t.astype("datetime64[s]").item() for t in (times.min(), times.max()))
        local_ends = (end.replace(tzinfo=timezone.utc).astimezone(clocks) for end in ends)
        days = dict.fromkeys(f"{end:%Y-%m-%d}" for end in local_ends)
        label += f"{f' ({clocks})' if forecast.zone else ''},\n{' to '.join(days)}"
    panel.set_xlabel(plain_text(label))
    panel.set_ylabel(plain_text(forecast.target))
    names = ", ".join(f"{column} {value}" for column, value in forecast.names.items())
    panel.set_title(plain_text(names and f"{forecast.target}, {names}"), fontsize=10)
    panel.grid(alpha=0.3)
