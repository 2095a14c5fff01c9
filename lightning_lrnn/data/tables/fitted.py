"""Scaling of columns by what is in the training part, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.scaling import Scaling
from lightning_lrnn.data.tables.files import Series
from lightning_lrnn.data.tables.rows import Span
from lightning_lrnn.data.tables.times import shown

__all__ = [
    "MOST",
    "Array",
    "ColumnScaling",
    "carried_on",
    "gaps_of",
    "refuse_empty",
    "refuse_gaps",
    "refuse_unknown",
    "report_filled",
]

Array = NDArray[np.float64]
MOST = 8
"""Columns, or series, that are named in a message."""
SAME = 1e-6
"""Part of what was constant in training by which it may differ."""
WIDER = 2
"""Ratio of standard deviations from which on one is far wider."""
CONSTANT = 1.0
"""Stands for the standard deviation of a column that is constant."""


class ColumnScaling(NamedTuple):
    """What was fitted to columns: the scaling of each series, and what stands in for no value.

    Attributes:
        names: of the columns, (F,).
        how: "standard", one scaling for all series; "group", each its own; or "none".
        common: mean and standard deviation of all series together.
        each: name of a series -> its own; for "group" alone.
    """

    names: list[str]
    how: str
    common: Scaling
    each: dict[str, Scaling]

    @classmethod
    def fit(
        cls,
        values: Sequence[Array],
        train: Sequence[Span],
        names: Sequence[str],
        how: str,
        series: Sequence[str],
    ) -> ColumnScaling:
        """By the steps of the training part.

        Args:
            values: of each series, (T, F), NaN where there is none.
            train: the steps to fit on.
            names: of the columns, (F,).
            how: see above. A column without value in the training part of a series has the scaling
                of all there.
            series: their names.

        Raises:
            DataError: if a column has no value in the training part.
        """
        parts = {span.series: values[span.series][span.start : span.stop] for span in train}
        every = np.concatenate(list(parts.values()))
        refuse_empty(np.isnan(every).all(0), names)
        common = Scaling.of([every])
        each = {}
        if how == "group":
            each = {
                series[i]: common.where(np.asarray(np.isnan(part).all(0)), Scaling.of([part]))
                for i, part in parts.items()
            }
        return cls(list(names), how, common, each)

    def of(self, series: str) -> Scaling:
        """That of a series; of one that was not there, that of all."""
        return Scaling.none(len(self.names)) if self.how == "none" else self._fitted(series)

    def _fitted(self, series: str) -> Scaling:
        return self.each.get(series, self.common)

    def inputs(self, series: str, values: Array) -> Tensor:
        """Scaled values (T, F) in float32, with the mean in the place of NaN."""
        filled = np.where(np.isnan(values), self._fitted(series).mean, values)
        return self.scaled(series, filled)

    def scaled(self, series: str, values: Array) -> Tensor:
        """Scaled values (T, F) in float32.

        Raises:
            DataError: for one that float32 has no number for.
        """
        with np.errstate(over="ignore"):
            scaled = self.of(series)(values)
        if np.isinf(scaled).any():
            step, column = np.argwhere(np.isinf(scaled))[0]
            raise DataError(
                f"column {self.names[column]!r} of series {series!r} has "
                f"{values[step, column]:.6g} at step {step + 1}, too large for float32 in this "
                f"scaling ({self.how}): take another `scaling`, or another unit"
            )
        return torch.from_numpy(scaled)

    def state(self) -> dict[str, Any]:
        """As it is kept in a checkpoint: tensors and plain values."""
        return {
            "names": list(self.names),
            "how": self.how,
            "series": list(self.each),
            "mean": _stacked([self.common.mean, *(one.mean for one in self.each.values())]),
            "std": _stacked([self.common.std, *(one.std for one in self.each.values())]),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ColumnScaling:
        """Returns the scaling whose `state` it is."""
        common, *each = (
            Scaling(mean.numpy(), std.numpy())
            for mean, std in zip(state["mean"], state["std"], strict=True)
        )
        return cls(
            list(state["names"]),
            state["how"],
            common,
            dict(zip(state["series"], each, strict=True)),
        )

    def shifts(self, other: ColumnScaling, apart: Container[str]) -> list[str]:
        """What columns have that lie elsewhere in other data, a line each; of each group, if so.

        Elsewhere is a mean more than a standard deviation away, or a standard deviation of less
        than half or more than twice. A column that is constant there alone is none by that.

        Args:
            other: fitted to the other data.
            apart: columns that are left out.
        """
        pairs = {"": (self.common, other.common)}
        if self.how == "group":
            both = [name for name in other.each if name in self.each]
            pairs = {f" of {name}": (self.each[name], other.each[name]) for name in both}
        lines = []
        for place, (trained, there) in pairs.items():
            far = abs(there.mean - trained.mean) > trained.std
            ratio = np.where(there.std == CONSTANT, 1, there.std / trained.std)
            constant = trained.std == CONSTANT
            far |= np.where(
                constant,
                abs(there.mean - trained.mean) > SAME * abs(trained.mean),
                (ratio > WIDER) | (ratio * WIDER < 1),
            )
            lines += [
                f"{name}{place}: {_text(trained, i)} in training, {_text(there, i)} here"
                for i, name in enumerate(self.names)
                if far[i] and name not in apart
            ]
        return lines if self.how != "none" else []


def _text(scaling: Scaling, column: int) -> str:
    mean, std = scaling.mean[column], scaling.std[column]
    return f"always {mean:.6g}" if std == CONSTANT else f"{mean:.6g} ± {std:.6g}"


def _stacked(rows: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float64))


def carried_on(values: Array) -> Array:
    """Values (T, F), with that of the step before where there is none; NaN before the first."""
    steps = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.asarray(np.take_along_axis(values, np.maximum.accumulate(steps), 0))


def refuse_empty(empty: NDArray[np.bool_], names: Sequence[str]) -> None:
    """Raises DataError if a column (F,) is empty in the training part."""
    if empty.any():
        raise DataError(
            f"column {names[int(np.argmax(empty))]!r} has no value in the training part: leave "
            "it out, or make that part larger"
        )


def gaps_of(x: Array, stop: int, known: NDArray[np.bool_], until: int) -> NDArray[np.bool_]:
    """Where inputs (T, F) have no value, of those that a forecast reads.

    Args:
        x: the inputs of a series.
        stop: steps of which all are read.
        known: (F,), those that are read ahead as well.
        until: steps of which these are read.
    """
    gaps = np.isnan(x)
    gaps[stop:] &= known
    gaps[until:] = False
    return gaps


def refuse_gaps(
    series: Sequence[Series],
    gaps: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
    categories: Sequence[str],
) -> None:
    """Raises DataError if a column, by its name in the table, has a gap (T, F)."""
    for one, where in zip(series, gaps, strict=True):
        if where.any():
            step, column = np.argwhere(where)[0]
            argument = "categories" if names[column] in categories else "features"
            raise DataError(
                f"column {names[column]!r} of {one.source} has no value at {one.where(int(step))}"
                f"{_time_of(one, step)}: fill it, leave the column out of `{argument}`, or set "
                "`missing: last` or `mean`"
            )


def report_filled(
    series: Sequence[Series],
    gaps: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
    missing: str,
) -> None:
    """Tells of each column how many gaps (T, F) are filled, and where the longest is."""
    columns = []
    # The columns of a category have their gaps together.
    for name, column in {name: i for i, name in enumerate(names)}.items():
        count = sum(int(where[:, column].sum()) for where in gaps)
        if count:
            runs = [_longest_run(where[:, column]) for where in gaps]
            most = max(range(len(runs)), key=lambda i: runs[i][1])
            start, length = runs[most]
            one = series[most]
            place = _time_of(one, start) or f" (step {start + 1})"
            columns.append(f"{name} {count:,}, at most {length:,} in a row, of {one.name}{place}")
    if columns:
        more = f"; and {len(columns) - MOST} more columns" if len(columns) > MOST else ""
        rank_zero_info(
            f"`missing: {missing}` fills values that are missing: {'; '.join(columns[:MOST])}{more}"
        )


def _longest_run(gaps: NDArray[np.bool_]) -> tuple[int, int]:
    """First step and length of the longest run of gaps (T,)."""
    edges = np.flatnonzero(np.diff(np.pad(gaps.astype(np.int8), 1)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(np.argmax(lengths))
    return int(edges[2 * longest]), int(lengths[longest])


def _time_of(series: Series, step: int) -> str:
    """The time of a step in brackets, if there is one."""
    if series.times is None:
        return ""
    return f" ({shown(series.times[step : step + 1], series.zone)[0]})"


def refuse_unknown(
    series: Sequence[Series],
    features: Sequence[Array],
    names: Sequence[str],
    categories: Sequence[str],
    known: NDArray[np.bool_],
    stops: Sequence[int],
) -> None:
    """Raises DataError if a feature that is known ahead, bool (F,), ends before that.

    It is no gap, which something else could stand in for. Names are those in the table.
    """
    for one, x, stop in zip(series, features, stops, strict=True):
        lasts = np.where(np.isnan(x), -1, np.arange(len(x))[:, None]).max(0, initial=-1)
        ends = known & (lasts < stop - 1)
        if ends.any():
            column = int(np.argmax(ends))
            name, last = names[column], int(lasts[column])
            argument = "categories" if name in categories else "known"
            after = f" after {one.where(last)}{_time_of(one, last)}" if last >= 0 else ""
            raise DataError(
                f"column {name!r} of {one.source} is in `{argument}`, but has no value{after}, and "
                f"the forecast reaches to step {stop}{_time_of(one, stop - 1)}: give rows with it "
                f"behind the last target, or leave it out of `{argument}`"
            )
