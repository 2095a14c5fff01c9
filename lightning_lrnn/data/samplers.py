"""In which order training sees the rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["Buckets", "Order", "SeededOrder", "part_of_data"]


def part_of_data(trainer: Any) -> tuple[int, int]:
    """Which part of the data is this process's, and how many parts there are.

    The strategy's own: processes that share a model, or a sequence, share a part.

    Args:
        trainer: of Lightning; None for a single process.
    """
    of_sampler = (trainer.distributed_sampler_kwargs if trainer else None) or {}
    return of_sampler.get("rank", 0), of_sampler.get("num_replicas", 1)


class Order(DistributedSampler[Any]):
    """The rows that a process sees in an epoch; made to be subclassed.

    They depend on nothing but the seed and the epoch, so that a process that goes on sees the same.
    Lightning says which epoch it is, also to a run that was resumed, and leaves a sampler that
    deals out rows itself in its place.

    Args:
        rows: what has the length.
        seed: at least 0.
        rank: number of this process.
        world_size: how many processes there are.

    Attributes:
        skip: rows that are left out at the beginning, since they were seen.
    """

    def __init__(self, rows: Sized, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset[Any], rows), world_size, rank, seed=seed)
        self.rows, self.skip = rows, 0

    def order(self) -> Iterable[int]:
        """The numbers of the rows of the epoch."""
        raise NotImplementedError

    def form(self) -> dict[str, int]:
        """What the order depends on, beside the epoch."""
        return {"rows": len(self.rows), "seed": self.seed, "processes": self.num_replicas}

    def __iter__(self) -> Iterator[int]:
        """The numbers of the rows, from the first one that was not seen."""
        return islice(self.order(), self.skip, None)


class SeededOrder(Order):
    """All rows, shuffled. Of several processes each has as many: the first ones come again."""

    def order(self) -> Iterable[int]:
        """The numbers of the rows of the epoch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
        dealt: list[int] = np.resize(order, self.total_size)[
            self.rank :: self.num_replicas
        ].tolist()
        return dealt


class Buckets(SeededOrder):
    """The same in an order in which rows of a batch are of like length: less padding to compute.

    As many rows as `pool` batches take are taken in the order before, sorted by length, cut into
    batches, and these are dealt out in an order in which long ones do not come last. A batch that
    is not full has the shortest rows and comes last.

    Args:
        rows: what has the length.
        seed: at least 0.
        part: number of this process, and how many there are.
        lengths: of every row.
        batch_size: rows of a batch.
        pool: batches to sort over; 1 changes nothing.
    """

    def __init__(
        self,
        rows: Sized,
        seed: int,
        part: tuple[int, int],
        lengths: Sequence[int],
        batch_size: int,
        pool: int,
    ) -> None:
        super().__init__(rows, seed, *part)
        self.lengths, self.batch_size, self.pool = lengths, batch_size, pool

    def form(self) -> dict[str, int]:
        """What the order depends on, beside the epoch."""
        return {**super().form(), "bucket": self.pool}

    def order(self) -> Iterator[int]:
        """The numbers of the rows, batch after batch."""
        rows = iter(super().order())
        while pooled := list(islice(rows, self.pool * self.batch_size)):
            # Batches come in the order in which the sampler dealt the first row of each.
            rank_in_pool = {row: i for i, row in enumerate(pooled)}
            pooled.sort(key=lambda row: self.lengths[row])
            short = len(pooled) % self.batch_size
            batches = [
                pooled[i : i + self.batch_size] for i in range(short, len(pooled), self.batch_size)
            ]
            for batch in sorted(batches, key=lambda batch: min(rank_in_pool[row] for row in batch)):
                yield from batch
            yield from pooled[:short]
