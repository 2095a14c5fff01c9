"""Columns brought to mean 0 and standard deviation 1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scaling"]

CONSTANT = 2.0**-48
"""A standard deviation that is so small, against the largest value, is rounding."""


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
        rows = np.concatenate(parts).astype(np.float64)
        with warnings.catch_warnings():
            # An empty column is no reason to warn: it has its answer below.
            warnings.simplefilter("ignore", RuntimeWarning)
            largest = np.nanmax(np.abs(rows), 0, initial=0)
            # By a power of 2, so that no square is beyond what a float can be, and nothing is
            # rounded.
            unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)
            mean, std = unit * np.nanmean(rows / unit, 0), unit * np.nanstd(rows / unit, 0)
        constant = ~(std > CONSTANT * largest)
        return cls(np.where(np.isnan(mean), 0, mean), np.where(constant, 1, std))

    @classmethod
    def none(cls, features: int) -> Scaling:
        """The one that changes nothing."""
        return cls(np.zeros(features), np.ones(features))

    def where(self, columns: NDArray[np.bool_], other: Scaling) -> Scaling:
        """This one in the columns (F,) that are True, the other elsewhere."""
        return Scaling(
            np.where(columns, self.mean, other.mean), np.where(columns, self.std, other.std)
        )

    def __call__(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """x (T, F) scaled, in float32."""
        return ((x - self.mean) / self.std).astype(np.float32)
