"""The sum of two marked numbers of a long sequence."""

from __future__ import annotations

import numpy as np
import torch

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.sequences import SequenceRow
from lightning_lrnn.data.tasks.synthetic import SyntheticData

__all__ = ["Adding"]


class Adding(SyntheticData):
    """Two of T numbers are marked, one in each half; their sum is asked for after the last step.

    Features are a number, uniform in [0, 1), and its mark, 0 or 1; the target is (1, 1), as for
    `lightning_lrnn.modules.Forecaster`. Who always says 1 has a mean square error of 1/6, an RMSE
    of 0.41. After the adding problem of Hochreiter & Schmidhuber, "Long Short-Term Memory" (Neural
    Computation 1997, section 5.4), in the form with one mark in each half and a fixed length.

    Args:
        steps: T, at least 2.

    Raises:
        DataError: for arguments that cannot be.
    """

    def __init__(
        self,
        steps: int = 1024,
        batch_size: int = 32,
        epoch_rows: int = 3200,
        held_out: int = 1000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        # One for each number.
        check_counts(2, DataError, steps=steps)
        super().__init__(steps, batch_size, epoch_rows, held_out, seed, num_workers)

    def row(self, rng: np.random.Generator, k: int | None) -> SequenceRow:
        """One sequence and its sum."""
        numbers = rng.random(self.steps, dtype=np.float32)
        half = self.steps // 2
        marked = [rng.integers(half), rng.integers(half, self.steps)]
        marks = np.zeros_like(numbers)
        marks[marked] = 1
        inputs = torch.from_numpy(np.stack([numbers, marks], -1))
        return SequenceRow(inputs, torch.from_numpy(numbers[marked].sum(keepdims=True)[None]))
