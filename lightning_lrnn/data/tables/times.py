"""Times as they are written, as what can be sorted and continued."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.packages import import_package
from lightning_lrnn.data.tables.cells import Column, Unlike, label, to_numbers

__all__ = [
    "TimeError",
    "check_format",
    "check_zone",
    "even",
    "following",
    "has_offset",
    "local",
    "pandas",
    "shown",
    "to_times",
    "to_utc",
    "usual_step",
]

MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
LONG_MONTHS = (
    "january february march april may june july august september october november december".split()
)
CLOCK = (
    r"(?:(?:[T ]\s*|,\s+)(?P<h>\d{1,2}):(?P<min>\d\d)(?::(?P<s>\d\d)(?:[.,](?P<f>\d{1,9}))?)?"
    r"(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?\s*(?P<zone>Z|z|UTC|GMT|[+-]\d\d:?(?:\d\d)?)?)?"
)
FORMS = {
    "year first": r"(?P<y>\d{4})(?P<p>[-/.])(?P<m>\d{1,2})(?:(?P=p)(?P<d>\d{1,2}))?",
    "day or month first": r"(?P<one>\d{1,2})(?P<p>[-/.])(?P<two>\d{1,2})(?P=p)(?P<y>\d{4})",
    "day, name": r"(?P<d>\d{1,2})[-/. ]\s*(?P<name>[A-Za-z]{3,9})[-/., ]\s*(?P<y>\d{4})",
    "name, day": r"(?P<name>[A-Za-z]{3,9})\.? (?P<d>\d{1,2}),? (?P<y>\d{4})",
}
PATTERNS = {form: re.compile(pattern + CLOCK, re.ASCII) for form, pattern in FORMS.items()}
AMBIGUOUS = "day or month first"
DAY = 86_400
PER_SECOND = 1_000_000_000
DIGITS = 6
"""Of a spacing of floats, behind the first one, that are not their rounding."""
OFFSET = re.compile(r":\d\d(?:[.,]\d+)?\s*(?:Z|z|UTC|GMT|[+-]\d\d:?(?:\d\d)?)$", re.ASCII)
EXTRA = "lightning-lrnn[table]"
WANTED = (
    "times are numbers, or dates as 2020-01-31, 2020-01-31 23:59:59.5 or 31.12.2020 23:59, all of "
    "one kind"
)


class TimeError(Exception):
    """Times that cannot be sorted. Its arguments are the step, or None, and what is wrong."""


class _Time(NamedTuple):
    """As written; `one` and `two` are month and day, but for AMBIGUOUS, where it is not known."""

    kind: str
    year: int
    one: int
    two: int
    second: int
    nano: int
    zoned: bool


def to_times(values: Column, form: str | None = None, decimal: str = ".") -> Column:
    """Times that can be sorted, (T,): numbers, datetime64 (of UTC, if with a zone) or timedelta64.

    Args:
        values: numbers, times, or text: ISO 8601 and its like, with or without clock, fractions and
            offset; dates with the year at the end if it can be told which number is the month; or
            with English names of months.
        form: of text, in the way of `datetime.strptime`; None for those.
        decimal: what numbers have in the place of a point.

    Raises:
        TimeError: for a step without time, or with one that is not understood.
    """
    if values.dtype.kind in "OSU":
        times = _of_text(values, form, decimal)
    else:
        times = values
    if times.dtype.kind not in "iufMm":
        raise TimeError(None, f"has {times.dtype} where times are wanted: {WANTED}")
    none = np.isnat(times) if times.dtype.kind in "Mm" else np.isnan(times)
    if none.any():
        raise TimeError(int(np.argmax(none)), f"has no time: {WANTED}")
    return times


def _of_text(values: Column, form: str | None, decimal: str) -> Column:
    if form is None:
        try:
            numbers = to_numbers(values, decimal)
        except Unlike as error:
            step, shown = error.args[0]
            if step:
                if label(values[0]) is None:
                    raise TimeError(0, f"has no time: {WANTED}") from None
                raise TimeError(
                    step, f"has {shown!r} for a time, after numbers: {WANTED}"
                ) from None
        else:
            if numbers.dtype.kind in "iuf":
                return numbers
    read = _reader(form) if form else _read
    seen: dict[Any, _Time] = {}
    times_read: list[_Time] = []
    first = ""
    for step, cell in enumerate(values):
        value = _text(cell) if isinstance(cell, bytes) else cell
        if label(value) is None:
            raise TimeError(step, f"has no time: {WANTED}")
        if not isinstance(value, (str, date)):
            raise TimeError(step, f"has {str(value)!r} for a time: {WANTED}")
        if cell in seen:
            times_read.append(seen[cell])
            continue
        try:
            time = _of_object(value) if isinstance(value, date) else read(str(value).strip())
        except (ValueError, OverflowError) as error:
            raise TimeError(step, f"has {str(value)!r} for a time, {error}: {WANTED}") from None
        times_read.append(time)
        seen[cell] = time
        first = first or str(value)
        if time.kind != times_read[0].kind:
            raise TimeError(
                step,
                f"has the time {str(value)!r}, written in another way ({time.kind}) than {first!r} "
                f"({times_read[0].kind}): write all in one",
            )
        if time.zoned != times_read[0].zoned:
            raise TimeError(
                step, f"has {str(value)!r} beside {first!r}: all times have an offset, or none has"
            )
    times_joined = _joined(times_read)
    if isinstance(times_joined, int):
        shown = _text(values[times_joined]).strip()
        day, month = (_format(shown, *order) for order in (("%d", "%m"), ("%m", "%d")))
        raise TimeError(
            times_joined,
            f"has the date {shown!r}, of which it cannot be told whether day or month comes first: "
            f"give `time_format: {day!r}`, or {month!r}, or write dates as 2020-01-31",
        )
    return times_joined


def _text(cell: Any) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def _format(text: str, one: str, two: str) -> str:
    """How strptime would read a time of the form AMBIGUOUS, given what its first numbers are."""
    match = PATTERNS[AMBIGUOUS].fullmatch(text)
    assert match is not None
    hour = "%I" if match["half"] else "%H"
    parts = {"one": one, "two": two, "y": "%Y", "h": hour, "min": "%M", "s": "%S", "f": "%f"}
    parts |= {"half": "%p", "zone": "%z"}
    for name, directive in reversed(parts.items()):
        start, stop = match.span(name)
        if start >= 0:
            stop += name == "half"  # its "M"
            text = text[:start] + directive + text[stop:]
    return text


def _of_object(value: date) -> _Time:
    if not isinstance(value, datetime):
        return _Time("date", value.year, value.month, value.day, 0, 0, False)
    nano = value.microsecond * 1000
    offset = value.utcoffset()
    if offset:
        value = value.astimezone(timezone.utc)
    second = value.hour * 3600 + value.minute * 60 + value.second
    return _Time("time", value.year, value.month, value.day, second, nano, offset is not None)


def _reader(form: str) -> Callable[[str], _Time]:
    def read(text: str) -> _Time:
        return _of_object(datetime.strptime(text, form))

    return read


def _read(text: str) -> _Time:
    matches = ((form, pattern.fullmatch(text)) for form, pattern in PATTERNS.items())
    form, match = next(((form, match) for form, match in matches if match), ("", None))
    if match is None:
        raise ValueError("which is in no known format (`time_format` names one for strptime)")
    fields = match.groupdict()
    if "name" in fields:
        name = fields["name"].lower()
        of = LONG_MONTHS if name in LONG_MONTHS else MONTHS
        if name not in of:
            raise ValueError(f"of which {fields['name']!r} is no month")
        one, two = of.index(name) + 1, int(fields["d"])
    elif form == AMBIGUOUS:
        one, two = int(fields["one"]), int(fields["two"])
    else:
        one, two = int(fields["m"]), int(fields["d"] or 1)
    second, nano = _clock(fields)
    return _Time(form, int(fields["y"]), one, two, second, nano, fields["zone"] is not None)


def _clock(fields: dict[str, str | None]) -> tuple[int, int]:
    """Seconds of the day, of UTC if there is a zone, and nanoseconds."""
    hour, minute, second = (int(fields[name] or 0) for name in ("h", "min", "s"))
    if fields["half"]:
        if not 1 <= hour <= 12:
            raise ValueError("which is no hour")
        hour = hour % 12 + (12 if fields["half"] in "pP" else 0)
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError("which is no time of a day")
    zone = fields["zone"] or "Z"
    offset = 0
    if zone[0] in "+-":
        offset = int(zone[1:3]) * 3600 + int(zone[3:].lstrip(":") or 0) * 60
        offset = -offset if zone[0] == "-" else offset
    return hour * 3600 + minute * 60 + second - offset, int((fields["f"] or "").ljust(9, "0"))


def _joined(times: Sequence[_Time]) -> Column | int:
    """The times; or the first of which day and month cannot be told apart."""
    year, one, two, second, nano = (
        np.array([time[i] for time in times], dtype=np.int64) for i in range(1, 6)
    )
    month, day = one, two
    if times and times[0].kind == AMBIGUOUS:
        month_first, day_first = (one <= 12).all(), (two <= 12).all()
        if month_first and day_first and (one != two).any():
            return int(np.argmax(one != two))
        if day_first and not month_first:
            month, day = two, one
    wrong = (month < 1) | (month > 12) | (day < 1)
    months = (year - 1970) * 12 + month - 1
    start = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    end = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    wrong |= start + day > end
    if wrong.any():
        raise TimeError(int(np.argmax(wrong)), "has a date that there is not")
    seconds = (start + day - 1) * DAY + second
    if not (nano % 1000).any():
        return (seconds * 1_000_000 + nano // 1000).view("datetime64[us]")
    limit = np.iinfo(np.int64).max // PER_SECOND - 1
    if (abs(seconds) > limit).any():
        raise TimeError(
            int(np.argmax(abs(seconds) > limit)),
            "has nanoseconds outside of the years 1678 to 2261: leave them out",
        )
    return (seconds * PER_SECOND + nano).view("datetime64[ns]")


def check_format(form: str | None) -> None:
    """Raises DataError for what `datetime.strptime` does not know as a format."""
    if form is None:
        return
    problem = "" if isinstance(form, str) and "%" in form else "it names no part of a time"
    try:
        # No text fits; a directive that there is not is told before that.
        datetime.strptime("", form if not problem else "%Y")
    except ValueError as error:
        problem = problem or (
            str(error) if "directive" in str(error) or "stray" in str(error) else ""
        )
    if problem:
        raise DataError(f"`time_format` must be as strptime has it, got {form!r}: {problem}")


def following(times: Column, steps: int) -> NDArray[Any]:
    """The times after the last one, (steps,), in the step that most of them have; by months, if so.

    Args:
        times: rising, what `to_times` returns; of a single one a step is 1, or a day.
        steps: how many.
    """
    ahead = np.arange(1, steps + 1)
    last = times[-1]
    if times.dtype.kind == "M" and len(times) > 1:
        days = times.astype("datetime64[D]")
        months = days.astype("datetime64[M]")
        within = days - months.astype("datetime64[D]")
        ends = (months + 1).astype("datetime64[D]") - 1
        apart = np.unique(np.diff(months.astype(np.int64)))
        clock = times - days
        of_months = len(apart) == 1 and apart[0] > 0 and (clock == clock[0]).all()
        if of_months and (days == ends).all():
            until = (months[-1] + apart[0] * ahead + 1).astype("datetime64[D]") - 1
            return np.asarray((until + clock[0]).astype(times.dtype))
        if of_months and (within == within[0]).all() and within[0] < np.timedelta64(28, "D"):
            until = (months[-1] + apart[0] * ahead).astype("datetime64[D]") + within[0]
            return np.asarray((until + clock[0]).astype(times.dtype))
    step: Any = np.timedelta64(1, "D") if times.dtype.kind in "Mm" else times.dtype.type(1)
    if len(times) > 1:
        step = usual_step(times)
    if times.dtype.kind == "f":
        return even(last, step, steps + 1)[1:]
    if times.dtype.kind in "iu":
        return np.asarray(int(last) + int(step) * ahead)
    return np.asarray((last + step * ahead).astype(times.dtype))


def usual_step(times: Column) -> Any:
    """The spacing that most of the times, at least two, have; of floats, but for their rounding."""
    apart = np.diff(times)
    if times.dtype.kind == "f" and (middle := float(np.median(apart))) > 0:
        apart = np.round(apart, DIGITS - math.floor(math.log10(middle)))
    values, counts = np.unique(apart, return_counts=True)
    return values[np.argmax(counts)]


def even(first: Any, step: float, count: int) -> NDArray[Any]:
    """Times that are a step apart, with as many decimals as the first one and the step have.

    So 0.1 and 0.2 are followed by 0.3 and not by 0.30000000000000004.
    """
    exponents = (Decimal(repr(float(x))).as_tuple().exponent for x in (first, step))
    decimals = max(0, *(-int(exponent) for exponent in exponents))
    return np.asarray(np.round(first + step * np.arange(count), decimals))


def has_offset(cell: Any) -> bool:
    """Whether a date says how far it is from UTC."""
    return isinstance(cell, bytes | str) and OFFSET.search(_text(cell).strip()) is not None


def shown(times: Column, zone: str | None) -> list[str]:
    """Dates as ISO 8601 writes them, of a zone with their offset."""
    if times.dtype.kind != "M":
        return [str(when) for when in times]
    if zone is None:
        # All of a column in one way: pandas reads no column of which midnight alone has no clock.
        units: Any = ("D", "m", "s", "ms", "us", "ns")
        unit = next(u for u in units if (times.astype(f"datetime64[{u}]") == times).all())
        return [str(when) for when in np.datetime_as_string(times, unit=unit)]
    return [when.isoformat() for when in local(times, zone)]


def local(times: Column, zone: str | None) -> Any:
    """Dates of UTC as those of a zone, a pandas.DatetimeIndex."""
    return pandas().DatetimeIndex(times).tz_localize("UTC").tz_convert(zone or "UTC")


def check_zone(zone: Any) -> None:
    """Raises DataError for a zone that there is not; None is none."""
    if zone is None:
        return
    try:
        known = isinstance(zone, str) and bool(zone and local(np.empty(0, "M8[ns]"), zone).tz)
    except (KeyError, ValueError, ModuleNotFoundError, OSError):  # by what is installed
        known = False
    if not known:
        raise DataError(f"`time_zone` must be such as 'Europe/Berlin', got {zone!r}")


def to_utc(times: Column, zone: str) -> Column:
    """Dates that the clocks of a zone show, in the order of time, as those of UTC.

    Of an hour that clocks repeat in autumn the first time that a date comes is that of summer.

    Raises:
        ValueError: for dates that clocks leave out in spring.
    """
    index = pandas().DatetimeIndex(times)
    zoned = index.tz_localize(zone, ambiguous=~index.duplicated(), nonexistent="raise")
    dates: Column = zoned.tz_convert("UTC").tz_localize(None).to_numpy().astype(times.dtype)
    return dates


def pandas() -> Any:
    """The package, imported now: it takes a while."""
    return import_package("pandas", "`freq`, `time_zone` or `time_features`", EXTRA)
