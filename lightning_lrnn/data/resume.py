"""Loaders of training whose epoch goes on where a checkpoint interrupted it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_lrnn.data.samplers import Order

__all__ = ["Loader", "Resumable", "TrainingLoader", "position_of", "resumed"]

Loader = TypeVar("Loader", bound="Resumable")
POSITION, EPOCH = "position", "epoch"


class Resumable:
    """A loader of training whose position Lightning saves and restores.

    The position is how many batches of an epoch were given out, and of which data (`form`). It is
    used once, if Lightning goes on inside an epoch as well and after as many batches: all other
    epochs are whole ones. An epoch begins with its first batch, and not with its iterator, which
    Lightning makes before it says which epoch it is, or loads a position.

    Attributes:
        trainer: of Lightning, which says whether an epoch goes on; None if none is known.
    """

    trainer: Any = None
    _position: tuple[int, int] = (0, 0)
    _loaded: dict[str, Any] | None = None

    def batches(self, first: int) -> Iterator[Any]:
        """The batches of an epoch from the `first` one on."""
        raise NotImplementedError

    def form(self) -> dict[str, Any]:
        """What a position depends on: it is valid for data of the same form alone."""
        raise NotImplementedError

    def misfit(self, message: str) -> None:
        """Says that an epoch cannot go on; it begins anew if this returns."""
        rank_zero_warn(f"{message}; the epoch that it interrupted begins anew")

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch, or of what is left of one."""
        first = self._begin()
        for k, batch in enumerate(self.batches(first), first + 1):
            self._position = self._epoch(), k
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the position and the form of the data that it refers to."""
        epoch, position = self._position
        return {POSITION: position, EPOCH: epoch, **self.form()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position, see the class."""
        self._loaded = state
        self._position = int(state.get(EPOCH, 0)), int(state.get(POSITION, 0))

    def _epoch(self) -> int:
        return 0

    def _go_on(self, epoch: int) -> None:
        """Called before the rest of an interrupted epoch is loaded."""

    def _begin(self) -> int:
        state, self._loaded = self._loaded, None
        if state is None:
            return 0
        epoch, position = self._position
        if self.trainer is None:
            first = position if position < len(self) else 0  # type: ignore[arg-type]
        else:
            first = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            # A batch may have been given out, and not trained on.
            if first not in (position, position - 1):
                return 0
        if not first:
            return 0
        form = self.form()
        differ = [f"{k} was {state.get(k)}, is {v}" for k, v in form.items() if state.get(k) != v]
        if differ:
            self.misfit(
                "the checkpoint's position in the training data does not fit these data "
                f"({'; '.join(differ)})"
            )
            return 0
        self._go_on(epoch)
        return first


class TrainingLoader(Resumable, DataLoader[Any]):  # type: ignore[misc]
    """A DataLoader whose sampler is an `Order`; what was seen of an epoch is not loaded again."""

    sampler: Order

    def batches(self, first: int) -> Iterator[Any]:
        """The batches of an epoch from the `first` one on."""
        self.sampler.skip = first * (self.batch_size or 1)
        return DataLoader.__iter__(self)

    def form(self) -> dict[str, Any]:
        """What a position depends on: the order of rows, and the batch size."""
        return {**self.sampler.form(), "batch_size": self.batch_size}

    def _epoch(self) -> int:
        return self.sampler.epoch

    def _go_on(self, epoch: int) -> None:
        # Lightning counts an epoch that it ended half way as over, and has said the next one.
        self.sampler.set_epoch(epoch)


def position_of(trainer: Any) -> dict[str, Any]:
    """A trainer's position in its training data; empty before training and without a trainer."""
    loader = None if trainer is None else trainer.train_dataloader
    return loader.state_dict() if isinstance(loader, Resumable) else {}


def resumed(loader: Loader, trainer: Any, position: dict[str, Any]) -> Loader:
    """Returns the loader, which resumes at a position if the trainer resumes its epoch."""
    loader.trainer = trainer
    if position:
        loader.load_state_dict(position)
    return loader
