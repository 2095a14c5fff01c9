"""A class that only the first symbol of a long sequence tells."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from lightning_lrnn.core.checks import check_choice, check_counts
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.sequences import SequenceRow
from lightning_lrnn.data.tasks.synthetic import SyntheticData

__all__ = ["LongMemory", "NextSymbol"]

SAMPLING = ("random", "balanced", "paired")


class LongMemory(SyntheticData):
    """The sign of the first symbol, asked for after the last.

        x_0 = +e_1 or -e_1, with probability 1/2: the class, 1 or 0
        x_t = e_k, k uniform over all `symbols`, for 0 < t < T

    The task with which Martin & Cundy (ICLR 2018, section 4.3) showed a dependency of 1,048,576
    steps, after problem 2b of Hochreiter & Schmidhuber, "Long Short-Term Memory" (Neural
    Computation 1997). Inputs are indices of one-hot vectors, (T,) int64: k for e_{k+1}, and
    `symbols` for -e_1, which is a symbol of its own here. Note that +e_1 comes again, about
    T / `symbols` times, and -e_1 never does.

    Args:
        steps: T.
        symbols: how many there are to draw from; the paper's p.
        sampling: of training rows. "random" for independent ones; "balanced": the classes take
            turns, so that what all sequences add to a gradient, whatever their class, cancels in a
            batch of an even size; "paired": besides, rows 2 k and 2 k + 1 differ in their first
            symbol alone, so that what the others add cancels too (common random numbers). Rows that
            are held out are independent.

    Raises:
        DataError: for arguments that cannot be.
    """

    classes = ("-", "+")

    def __init__(
        self,
        steps: int = 8192,
        symbols: int = 128,
        sampling: Literal["random", "balanced", "paired"] = "random",
        batch_size: int = 8,
        epoch_rows: int = 800,
        held_out: int = 1000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(steps, batch_size, epoch_rows, held_out, seed, num_workers)
        check_choice(SAMPLING, DataError, sampling=sampling)
        self.symbols, self.sampling = check_symbols(symbols), sampling
        self.siblings = 2 if sampling == "paired" else 1

    @property
    def num_features(self) -> int:
        """Symbols, with -e_1."""
        return self.symbols + 1

    def row(self, rng: np.random.Generator, k: int | None) -> SequenceRow:
        """One sequence and its class."""
        positive = int(rng.integers(2))
        if k is not None and self.sampling != "random":
            positive = k % 2
        symbols = rng.integers(self.symbols, size=self.steps)
        symbols[0] = 0 if positive else self.symbols
        return SequenceRow(torch.from_numpy(symbols), torch.tensor(positive))


class NextSymbol(SyntheticData):
    """Every next symbol is asked for, and only the last can be known: it is the first.

        x_0 = x_{T-1} = x or y, with probability 1/2
        x_t = a_k, k uniform over p - 1 symbols, for 0 < t < T - 1

    Problem 2b of Hochreiter & Schmidhuber, "Long Short-Term Memory" (Neural Computation 1997,
    section 5.2), which calls it solved when no output at the end is wrong by 0.25 or more in 10,000
    sequences. Inputs are x_0 to x_{T-2} and targets x_1 to x_{T-1}, (T - 1,) int64: 0 to p - 2 for
    the a_k, p - 1 for x, p for y.

    Args:
        lag: p, steps from the first symbol to the last: T = p + 1.
        symbols: p, one more than there are a_k; None for `lag`, as in the original.

    Raises:
        DataError: for arguments that cannot be.
    """

    def __init__(
        self,
        lag: int = 100,
        symbols: int | None = None,
        batch_size: int = 8,
        epoch_rows: int = 800,
        held_out: int = 10_000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        check_counts(1, DataError, lag=lag)
        super().__init__(lag, batch_size, epoch_rows, held_out, seed, num_workers)
        self.symbols = check_symbols(lag if symbols is None else symbols)
        self.classes = [*(f"a{k + 1}" for k in range(self.symbols - 1)), "x", "y"]

    @property
    def num_features(self) -> int:
        """Symbols, with x and y."""
        return self.symbols + 1

    def row(self, rng: np.random.Generator, k: int | None) -> SequenceRow:
        """One sequence, and what comes next at each of its steps."""
        symbols = rng.integers(self.symbols - 1, size=self.steps + 1)
        symbols[0] = symbols[-1] = self.symbols - 1 + rng.integers(2)
        sequence = torch.from_numpy(symbols)
        return SequenceRow(sequence[:-1], sequence[1:])


def check_symbols(symbols: int) -> int:
    """Returns them; raises DataError if there are too few to choose from."""
    check_counts(2, DataError, symbols=symbols)
    return symbols
