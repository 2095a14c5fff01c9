"""What the data modules of feature sequences share; made to be subclassed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.samplers import Buckets, SeededOrder
from lightning_lrnn.data.sequences import SequenceRows, collate
from lightning_lrnn.data.splits import PARTS, check_fractions
from lightning_lrnn.data.windows import IGNORE

__all__ = ["SequenceData"]


class SequenceData(pl.LightningDataModule):
    """Sequences in three parts. A subclass says which, in `make_parts`.

    Batches are `SequenceBatch`, padded or packed. Training sees the rows in an order that depends
    on `seed` and the epoch alone; validation, test and prediction (of the test part) see all of
    them in their own order. Under several processes Lightning deals the rows out.

    Args:
        batch_size: rows of a batch, of each process.
        val_fraction: of what is split.
        test_fraction: of what is split.
        seed: of the split and of the order in training, at least 0.
        packed: batches have a `PackedSequence` in place of padded inputs and lengths.
        bucket: sort so many training batches at a time by length, which saves padding; 0 or 1 for
            not at all.
        drop_last: leave out the last training batch if it is not full.
        num_workers: processes that load batches. All data lie in memory: more than 0 rarely pays.

    Attributes:
        classes: names of the classes; empty for forecasts.

    Raises:
        DataError: for arguments that cannot be; from `setup`, for data that cannot be.
    """

    classes: Sequence[str] = ()

    def __init__(
        self,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        packed: bool = False,
        bucket: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"`batch_size` must be at least 1, got {batch_size}")
        if min(seed, bucket, num_workers) < 0:
            raise DataError(
                "`seed`, `bucket` and `num_workers` must be at least 0, got "
                f"{seed}, {bucket} and {num_workers}"
            )
        check_fractions(val_fraction, test_fraction)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_fraction, self.test_fraction, self.seed = val_fraction, test_fraction, seed
        self.packed, self.bucket, self.drop_last = packed, bucket, drop_last
        self._parts: dict[str, SequenceRows] = {}
        self._class_weights: Tensor | None = None

    def make_parts(self) -> dict[str, SequenceRows]:
        """The rows of "train", "val" and "test"; sets `classes` if there are some. Called once."""
        raise NotImplementedError(f"{type(self).__name__} must define `make_parts()`")

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the data, once."""
        if not self._parts:
            self._parts = self.make_parts()

    def part(self, name: str) -> SequenceRows:
        """The rows of "train", "val" or "test"."""
        self.setup()
        if name not in self._parts:
            raise DataError(f"a part must be one of {', '.join(PARTS)}, got {name!r}")
        return self._parts[name]

    @property
    def num_features(self) -> int:
        """Features of a step."""
        return int(self.part("train")[0].inputs.shape[-1])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for forecasts."""
        self.setup()
        return len(self.classes)

    @property
    def class_weights(self) -> Tensor:
        """Factor of each class in a loss, (num_classes,).

        1 / (how often the class occurs in the training part), times what makes the mean over the
        classes that occur there 1; 0 for the others.
        """
        if self._class_weights is None:
            rows = self.part("train")
            targets = torch.cat([rows[i].targets.reshape(-1) for i in range(len(rows))])
            if targets.is_floating_point():
                raise DataError("a forecast has no classes, and no `class_weights`")
            counts = torch.bincount(targets[targets != IGNORE], minlength=self.num_classes)
            weights = (1 / counts.double()).masked_fill(counts == 0, 0)
            self._class_weights = (weights * (counts > 0).sum() / weights.sum()).float()
        return self._class_weights

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training part, shuffled."""
        rows = self.part("train")
        order = SeededOrder(rows, self.seed)
        # To take the same batches again and again Lightning changes the sampler of a loader, not
        # that of buckets.
        overfit = getattr(self.trainer, "overfit_batches", 0)
        if self.bucket > 1 and not overfit:
            lengths = [len(rows[i].inputs) for i in range(len(rows))]
            buckets = Buckets(order, lengths, self.batch_size, self.drop_last, self.bucket)
            return self._loader(rows, batch_sampler=buckets)
        return self._loader(
            rows, sampler=order, batch_size=self.batch_size, drop_last=self.drop_last
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of the validation part, in order."""
        return self._loader(self.part("val"), batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of the test part, in order."""
        return self._loader(self.part("test"), batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the test part, in order."""
        return self._loader(self.part("test"), batch_size=self.batch_size)

    def describe(self) -> str:
        """One line: how many sequences and steps each part has."""
        told = []
        for name in PARTS:
            rows = self.part(name)
            lengths = [len(rows[i].inputs) for i in range(len(rows))]
            shortest, longest = min(lengths), max(lengths)
            span = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
            told.append(f"{name} {len(rows):,} sequences of {span} steps")
        return ", ".join(told)

    def _loader(self, rows: SequenceRows, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            cast(Dataset[Any], rows),
            collate_fn=cast(Any, partial(collate, packed=self.packed)),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Its own, so that loading leaves the model's random numbers alone.
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )
