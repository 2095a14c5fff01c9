"""What the data modules of made-up tasks share; made to be subclassed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.samplers import Order, part_of_data
from lightning_lrnn.data.sequence_data import SequenceData
from lightning_lrnn.data.sequences import SequenceRow, SequenceRows
from lightning_lrnn.data.splits import PARTS

__all__ = ["SyntheticData"]


class SyntheticData(SequenceData):
    """Rows drawn at random by a rule. A subclass says it, in `row`.

    Training never sees a row twice: row k of the stream depends on `seed` and k alone. Validation
    and test have rows of their own, independent and the same for every seed.

    Args:
        steps: T of every row.
        epoch_rows: training rows until the next validation.
        held_out: rows for validation, and as many others for test.

    Attributes:
        siblings: consecutive training rows that are made of the same random numbers.

    Raises:
        DataError: for arguments that cannot be.
    """

    siblings = 1

    def __init__(
        self,
        steps: int,
        batch_size: int = 8,
        epoch_rows: int = 800,
        held_out: int = 1000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, num_workers=num_workers)
        check_counts(1, DataError, steps=steps, epoch_rows=epoch_rows, held_out=held_out)
        self.steps, self.epoch_rows, self.held_out = steps, epoch_rows, held_out

    def row(self, rng: np.random.Generator, k: int | None) -> SequenceRow:
        """A row of `steps` steps.

        Args:
            rng: what it is drawn from.
            k: its number in the stream of training; None for a row that is held out.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `row(rng, k)`")

    def make_parts(self) -> dict[str, SequenceRows]:
        """Returns rows that are drawn when they are read."""
        return {
            "train": _Stream(self),
            **{part: _HeldOut(self, number) for number, part in enumerate(PARTS) if number},
        }

    def _order(self, rows: SequenceRows) -> Order:
        return _NeverTwice(rows, self.seed, *part_of_data(self.trainer))

    def describe(self) -> str:
        """One line: how many sequences and steps there are."""
        return (
            f"sequences of {self.steps:,} steps, ever new ones to train on, "
            f"{self.held_out:,} for validation and {self.held_out:,} for test"
        )


@dataclass
class _Stream:
    """As many rows as an epoch has; those of later epochs come after them."""

    data: SyntheticData

    def __len__(self) -> int:
        return self.data.epoch_rows

    def __getitem__(self, k: int) -> SequenceRow:
        data = self.data
        return data.row(np.random.default_rng([0, data.seed, k // data.siblings]), k)


@dataclass
class _HeldOut:
    data: SyntheticData
    part: int

    def __len__(self) -> int:
        return self.data.held_out

    def __getitem__(self, k: int) -> SequenceRow:
        return self.data.row(np.random.default_rng([self.part, k]), None)


class _NeverTwice(Order):
    """Rows 0 to N - 1 in the first epoch, N to 2 N - 1 in the second, and so on.

    Of several processes each has as many: those that are over are left out.
    """

    def __len__(self) -> int:
        return len(self.rows) // self.num_replicas

    def order(self) -> Iterable[int]:
        start, own = self.epoch * len(self.rows), len(self) * self.num_replicas
        return range(start + self.rank, start + own, self.num_replicas)
