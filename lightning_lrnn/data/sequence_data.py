"""What the data modules of feature sequences share; made to be subclassed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_lrnn.core.checks import check_counts, check_flags
from lightning_lrnn.core.subclasses import Renamed, inherit_arguments
from lightning_lrnn.data.errors import DataError, why
from lightning_lrnn.data.paths import existing
from lightning_lrnn.data.resume import TrainingLoader, position_of, resumed
from lightning_lrnn.data.samplers import Buckets, Order, SeededOrder, part_of_data
from lightning_lrnn.data.sequences import SequenceRows, collate
from lightning_lrnn.data.splits import PARTS, check_fractions
from lightning_lrnn.data.text.windows import IGNORE

__all__ = ["SequenceData", "state_of"]

FITTED = "fitted_data"
"""Key of a data module's state; by it the modules find that in a checkpoint."""
KIND = "kind"
POSITION = "place"


class SequenceData(pl.LightningDataModule):
    """Sequences in three parts. A subclass says which, in `make_parts`.

    Batches are `SequenceBatch`, padded or packed. Training sees the rows in an order that depends
    on `seed` and the epoch alone; validation, test and prediction (of the test part) see all of
    them in their own order. Rows are dealt out to several processes. An epoch that a checkpoint
    interrupts goes on at its next batch.

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

    What `make_parts` fits on the training part (a scaling, say) it puts into `fitted`, and takes
    from `trained` if that is there: what belongs to a trained model. A checkpoint keeps it, and it
    comes back with `fit`, `validate`, `test` and `predict` by `ckpt_path`, and with a model of this
    package also by `load_from_checkpoint`.

    Attributes:
        classes: names of the classes; empty for forecasts.
        fitted: tensors and plain values by name; empty if nothing was fitted.
        trained: the same, of a trained model; None if it is to be fitted here.

    Raises:
        DataError: for arguments that cannot be; from `setup`, for data that cannot be.
    """

    classes: Sequence[str] = ()
    fitted: dict[str, Any]
    trained: dict[str, Any] | None
    given = Renamed("trained")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        inherit_arguments(cls)

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
        check_counts(1, DataError, batch_size=batch_size)
        check_counts(0, DataError, seed=seed, bucket=bucket, num_workers=num_workers)
        check_flags(DataError, packed=packed, drop_last=drop_last)
        check_fractions(val_fraction, test_fraction)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_fraction, self.test_fraction, self.seed = val_fraction, test_fraction, seed
        self.packed, self.bucket, self.drop_last = packed, bucket, drop_last
        self.fitted, self.trained = {}, None
        self._parts: dict[str, SequenceRows] = {}
        self._class_weights: Tensor | None = None
        self._position: dict[str, Any] = {}

    def make_parts(self) -> dict[str, SequenceRows]:
        """The rows of "train", "val" and "test"; sets `classes` if there are some. Called once."""
        raise NotImplementedError(f"{type(self).__name__} must define `make_parts()`")

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the data, once.

        A trainer that does not fit waits for a batch: by then it has loaded the checkpoint, with
        what was fitted to other data.
        """
        if self.trainer is not None and stage in ("validate", "test", "predict"):
            return
        self._make()

    def state_dict(self) -> dict[str, Any]:
        """What was fitted on the training part and where training is, for the checkpoint."""
        position = position_of(self.trainer)
        return {**self._state_of_fitted(), **({POSITION: position} if position else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what was fitted from a checkpoint; what was made with another is made anew.

        Training goes on where it was, if the trainer does.

        Args:
            state_dict: what `state_dict` returned. What another class fitted counts for nothing.
        """
        self._position = state_dict.get(POSITION, {})
        self._take_fitted(state_dict)

    def _state_of_fitted(self) -> dict[str, Any]:
        return {FITTED: {KIND: type(self).__qualname__, **self.fitted}} if self.fitted else {}

    def _take_fitted(self, state_dict: dict[str, Any]) -> None:
        state = state_dict.get(FITTED)
        if not isinstance(state, dict) or state.get(KIND) != type(self).__qualname__:
            return
        self.trained = {name: value for name, value in state.items() if name != KIND}
        if self._parts and not _equal(self.trained, self.fitted):
            self._parts, self._class_weights = {}, None

    def _make(self) -> None:
        if self._parts:
            return
        model = getattr(self.trainer, "lightning_module", None)
        if self.trained is None and (state := getattr(model, "data_state", None)):
            self._take_fitted(state)
        self._parts = self.make_parts()

    def part(self, name: str) -> SequenceRows:
        """The rows of "train", "val" or "test"."""
        self._make()
        if name not in self._parts:
            raise DataError(f"a part must be one of {', '.join(PARTS)}, got {name!r}")
        return self._parts[name]

    @property
    def num_features(self) -> int:
        """Number of features of a time step."""
        return int(self.part("train")[0].inputs.shape[-1])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for forecasts."""
        self._make()
        return len(self.classes)

    @property
    def class_weights(self) -> Tensor:
        """Factor of each class in a loss, (num_classes,).

        1 / (how often the class occurs in the training part), times what makes the mean over the
        classes that occur there 1; 0 for the others.
        """
        if self._class_weights is None:
            rows = self.part("train")
            if rows[0].targets.is_floating_point():
                raise DataError("a forecast has no classes, and no `class_weights`")
            targets = torch.cat([rows[i].targets.reshape(-1) for i in range(len(rows))])
            counts = torch.bincount(targets[targets != IGNORE], minlength=self.num_classes)
            weights = (1 / counts.double()).masked_fill(counts == 0, 0)
            self._class_weights = (weights * (counts > 0).sum() / weights.sum()).float()
        return self._class_weights

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training part, shuffled."""
        rows = self.part("train")
        # A model of this package keeps it, also where it is used without a checkpoint.
        if hasattr(model := getattr(self.trainer, "lightning_module", None), "data_state"):
            cast(Any, model).data_state = self._state_of_fitted()
        how: dict[str, Any] = {"batch_size": self.batch_size, "drop_last": self.drop_last}
        if getattr(self.trainer, "overfit_batches", 0):
            # In order, as Lightning would have it, so that the same batches come again.
            return self._loader(rows, **how)
        loader = self._loader(rows, TrainingLoader, sampler=self._order(rows), **how)
        return resumed(cast(TrainingLoader, loader), self.trainer, self._position)

    def _order(self, rows: SequenceRows) -> Order:
        """Returns the order in which training sees rows."""
        part = part_of_data(self.trainer)
        if self.bucket > 1:
            lengths = [len(rows[i].inputs) for i in range(len(rows))]
            return Buckets(rows, self.seed, part, lengths, self.batch_size, self.bucket)
        return SeededOrder(rows, self.seed, *part)

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
        clauses = []
        for name in PARTS:
            rows = self.part(name)
            # Rows that are not in memory say so themselves.
            known = getattr(rows, "lengths", None)
            lengths = known or [len(rows[i].inputs) for i in range(len(rows))]
            shortest, longest = min(lengths), max(lengths)
            span = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
            clauses.append(f"{name} {len(rows):,} sequences of {span} steps")
        return ", ".join(clauses)

    def _loader(
        self, rows: SequenceRows, loader_class: type[DataLoader[Any]] = DataLoader, **options: Any
    ) -> DataLoader[Any]:
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        single = getattr(device, "type", "cpu") == "mps"
        return loader_class(
            cast(Dataset[Any], rows),
            collate_fn=cast(Any, partial(collate, packed=self.packed, single=single)),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Its own, so that loading leaves the model's random numbers alone.
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )


def state_of(checkpoint: str) -> dict[str, Any]:
    """What `SequenceData.state_dict` returned when a checkpoint was saved.

    Raises:
        DataError: if there is none in the file, or it cannot be read.
    """
    path = existing(checkpoint, what="checkpoint")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Of a broken file PyTorch raises of all kinds.
        raise DataError(f"`checkpoint`: {path} cannot be read: {why(error)[:200]}") from error
    for state in loaded.values() if isinstance(loaded, dict) else ():
        if isinstance(state, dict) and FITTED in state:
            return state
    raise DataError(f"`checkpoint`: {path} has nothing that was fitted to data")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b) if type(a) is type(b) else False
