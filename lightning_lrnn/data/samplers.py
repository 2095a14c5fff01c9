"""In which order training sees the rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, RandomSampler, Sampler

__all__ = ["Buckets", "SeededOrder", "part_of_data"]


def part_of_data(trainer: Any) -> tuple[int, int]:
    """Which part of the data is this process's, and how many parts there are.

    The strategy's own: processes that share a model, or a sequence, share a part.

    Args:
        trainer: of Lightning; None for a single process.
    """
    of_sampler = (trainer.distributed_sampler_kwargs if trainer else None) or {}
    return of_sampler.get("rank", 0), of_sampler.get("num_replicas", 1)


class SeededOrder(RandomSampler):
    """All rows in an order that depends on nothing but the seed and the epoch.

    Lightning says which epoch it is, also to a run that was resumed.

    Args:
        rows: what has the length.
        seed: at least 0.
    """

    def __init__(self, rows: Sized, seed: int) -> None:
        super().__init__(rows)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """The numbers of the rows."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self))
        return iter([int(row) for row in order])


class Buckets(BatchSampler):
    """Batches of rows of like length, so that there is less padding to compute.

    As many rows as `pool` batches take are taken in the order of the sampler, sorted by length, cut
    into batches, and these are dealt out in an order in which long ones do not come last.

    Args:
        sampler: the order before; under several processes Lightning puts that of a process here.
        lengths: of every row.
        batch_size: rows of a batch.
        drop_last: leave out a last batch that is not full.
        pool: batches to sort over; 1 changes nothing.
    """

    def __init__(
        self,
        sampler: Sampler[int] | Iterable[int],
        lengths: Sequence[int],
        batch_size: int,
        drop_last: bool,
        pool: int,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.lengths, self.pool = lengths, pool

    def __iter__(self) -> Iterator[list[int]]:
        """The numbers of the rows, batch by batch."""
        rows = iter(self.sampler)
        while pooled := list(islice(rows, self.pool * self.batch_size)):
            # A batch is known by the row that the sampler dealt first, which lies anywhere.
            place = {row: i for i, row in enumerate(pooled)}
            pooled.sort(key=lambda row: self.lengths[row])
            batches = [
                pooled[i : i + self.batch_size] for i in range(0, len(pooled), self.batch_size)
            ]
            if len(batches[-1]) < self.batch_size and self.drop_last:
                batches.pop()
            yield from sorted(batches, key=lambda batch: min(place[row] for row in batch))
