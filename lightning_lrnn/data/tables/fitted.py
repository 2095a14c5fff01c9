"""Scaling of columns by what is in the training part, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.scaling import Scaling
from lightning_lrnn.data.tables.files import Series
from lightning_lrnn.data.tables.rows import Span

__all__ = ["Array", "ColumnScaling", "carried_on", "refuse_empty", "refuse_gaps", "refuse_unknown"]

Array = NDArray[np.float64]
SAME = 1e-6
"""Difference of means, in standard deviations, and of these, that is none."""


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

    def differences(self, other: ColumnScaling) -> list[str]:
        """What the columns that the other one scales differently have, for a message."""
        texts = []
        for i, name in enumerate(self.names):
            mean, std = self.common.mean[i], self.common.std[i]
            mean_here, std_here = other.common.mean[i], other.common.std[i]
            if max(abs(mean - mean_here), abs(std - std_here)) > SAME * std:
                texts.append(
                    f"{name} {mean:.6g} ± {std:.6g}, here {mean_here:.6g} ± {std_here:.6g}"
                )
        return texts


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


def refuse_gaps(
    series: Sequence[Series], features: Sequence[Array], names: Sequence[str], stops: Sequence[int]
) -> None:
    """Raises DataError if a feature is NaN in the first so many steps of a series."""
    for one, x, stop in zip(series, features, stops, strict=True):
        if np.isnan(x[:stop]).any():
            step, column = np.argwhere(np.isnan(x))[0]
            raise DataError(
                f"column {names[column]!r} of {one.source} has no value at {one.where(int(step))}: "
                "fill it, leave the column out of `features`, or set `missing: last` or `mean`"
            )


def refuse_unknown(
    series: Sequence[Series],
    features: Sequence[Array],
    names: Sequence[str],
    known: NDArray[np.bool_],
    stops: Sequence[int],
) -> None:
    """Raises DataError if a feature that is known ahead, bool (F,), ends before that.

    It is no gap, which something else could stand in for.
    """
    for one, x, stop in zip(series, features, stops, strict=True):
        ends = known & np.isnan(x[stop - 1])
        if stop and ends.any():
            column = int(np.argmax(ends))
            after = int(np.flatnonzero(~np.isnan(x[:stop, column]))[-1:].sum())
            raise DataError(
                f"column {names[column]!r} of {one.source} is `known`, but has no value after "
                f"{one.where(after)}, and the forecast reaches to step {stop}: give rows with it "
                "behind the last target, or leave it out of `known`"
            )
