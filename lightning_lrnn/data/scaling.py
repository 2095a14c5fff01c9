"""Columns brought to mean 0 and standard deviation 1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "Scaling"]

CONSTANT = 2.0**-48
"""A standard deviation that is so small, against the largest value, is rounding."""


class Moments(NamedTuple):
    """What rows have, by column, (F,) each; NaN does not count.

    Attributes:
        known: values that there are.
        largest: of their absolute values.
        mean: NaN without values.
        std: the population's; ".
    """

    known: NDArray[np.float64]
    largest: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.floating]) -> Moments:
        """The moments of an array (T, F), NaN left out."""
        rows = rows.astype(np.float64)
        with warnings.catch_warnings():
            # An empty column is no reason to warn: it has its answer below.
            warnings.simplefilter("ignore", RuntimeWarning)
            largest = np.nanmax(np.abs(rows), 0, initial=0)
            unit = _unit(largest)
            mean, std = unit * np.nanmean(rows / unit, 0), unit * np.nanstd(rows / unit, 0)
        return cls((~np.isnan(rows)).sum(0, dtype=np.float64), largest, mean, std)

    @classmethod
    def together(cls, parts: Sequence[Moments]) -> Moments:
        """Those of all rows of which these are the parts, at least one."""
        known, largest, mean, std = (np.stack(values) for values in zip(*parts, strict=True))
        every, most = known.sum(0), largest.max(0)
        unit = _unit(most)
        share = known / np.maximum(every, 1)
        means, stds = (np.where(known > 0, values / unit, 0) for values in (mean, std))
        middle = (share * means).sum(0)
        spread = np.sqrt((share * (stds**2 + (means - middle) ** 2)).sum(0))
        none = np.where(every > 0, 0, np.nan)
        return cls(every, most, unit * middle + none, unit * spread + none)

    def scaling(self) -> Scaling:
        """To mean 0 and standard deviation 1."""
        constant = ~(self.std > CONSTANT * self.largest)
        return Scaling(np.where(np.isnan(self.mean), 0, self.mean), np.where(constant, 1, self.std))


def _unit(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """A power of 2, so that no square is beyond what a float can be, and nothing is rounded."""
    return np.asarray(np.ldexp(1.0, np.frexp(largest)[1] - 1))


class Scaling(NamedTuple):
    """(x - mean) / std, by column.

    Attributes:
        mean: (F,), 0 for a column without any value.
        std: (F,), the population's; 1 for a column that is constant, or has no value.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, parts: Sequence[NDArray[np.floating]]) -> Scaling:
        """That of all rows of arrays (T, F) together; NaN is left out.

        Args:
            parts: at least one.
        """
        return Moments.of(np.concatenate(parts)).scaling()

    @classmethod
    def none(cls, features: int) -> Scaling:
        """Returns a scaling that changes nothing."""
        return cls(np.zeros(features), np.ones(features))

    def where(self, columns: NDArray[np.bool_], other: Scaling) -> Scaling:
        """This one in the columns (F,) that are True, the other elsewhere."""
        return Scaling(
            np.where(columns, self.mean, other.mean), np.where(columns, self.std, other.std)
        )

    def __call__(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """Returns x (T, F), scaled, in float32."""
        return ((x - self.mean) / self.std).astype(np.float32)
