"""Symbols to be repeated after a long time."""

from __future__ import annotations

import numpy as np
import torch

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.sequences import SequenceRow
from lightning_lrnn.data.tasks.long_memory import check_symbols
from lightning_lrnn.data.tasks.synthetic import SyntheticData
from lightning_lrnn.data.text.windows import IGNORE

__all__ = ["Copying"]


class Copying(SyntheticData):
    """The first symbols of a sequence, asked for in their order when the delay is over.

        K symbols, `delay` blanks, K signs to recall

    Inputs are (2 K + delay,) int64: the symbols, then `symbols` for blank and `symbols` + 1 for the
    sign. Targets are the symbols at the last K steps, and `IGNORE` before, where there is nothing
    to learn. After the copying problem of Arjovsky, Shah & Bengio, "Unitary Evolution Recurrent
    Neural Networks" (ICML 2016, section 5.1), which asks for blanks at all other steps as well, and
    gives the sign once.

    Args:
        delay: blanks between the last symbol and the first sign, at least 0.
        length: K, symbols to remember.
        symbols: how many there are to draw from.

    Raises:
        DataError: for arguments that cannot be.
    """

    def __init__(
        self,
        delay: int = 200,
        length: int = 10,
        symbols: int = 8,
        batch_size: int = 32,
        epoch_rows: int = 3200,
        held_out: int = 1000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        check_counts(0, DataError, delay=delay)
        check_counts(1, DataError, length=length)
        super().__init__(2 * length + delay, batch_size, epoch_rows, held_out, seed, num_workers)
        self.delay, self.length, self.symbols = delay, length, check_symbols(symbols)
        self.classes = [str(k) for k in range(symbols)]

    @property
    def num_features(self) -> int:
        """Number of features: the symbols, the blank and the sign to begin."""
        return self.symbols + 2

    def row(self, rng: np.random.Generator, k: int | None) -> SequenceRow:
        """One sequence, and what it is to recall."""
        asked = torch.from_numpy(rng.integers(self.symbols, size=self.length))
        inputs = torch.full((self.steps,), self.symbols)
        targets = torch.full((self.steps,), IGNORE)
        inputs[: self.length] = targets[-self.length :] = asked
        inputs[-self.length :] = self.symbols + 1
        return SequenceRow(inputs, targets)
