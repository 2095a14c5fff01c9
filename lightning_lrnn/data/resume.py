"""Loaders of training whose epoch goes on where a checkpoint interrupted it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_lrnn.data.samplers import Order

__all__ = ["Loader", "Resumable", "TrainingLoader", "place_of", "take_up"]

Loader = TypeVar("Loader", bound="Resumable")
POSITION, EPOCH = "position", "epoch"


class Resumable:
    """A loader of training that Lightning asks for its place, and gives it back.

    The place is how many batches of an epoch were given out, and of which data (`form`). It counts
    if Lightning goes on inside an epoch as well, after as many batches, and then once: all other
    epochs are whole ones. An epoch begins with its first batch, and not with its iterator, which
    Lightning makes before it says which epoch it is, or loads a place.

    Attributes:
        trainer: of Lightning, which says whether an epoch goes on; None if none is known.
    """

    trainer: Any = None
    _place: tuple[int, int] = (0, 0)
    _loaded: dict[str, Any] | None = None

    def batches(self, first: int) -> Iterator[Any]:
        """The batches of an epoch from the `first` one on."""
        raise NotImplementedError

    def form(self) -> dict[str, Any]:
        """What a place refers to: it is one in data of the same form alone."""
        raise NotImplementedError

    def misfit(self, message: str) -> None:
        """Says that an epoch cannot go on; it begins anew if this returns."""
        rank_zero_warn(f"{message}; the epoch that it interrupted begins anew")

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch, or of what is left of one."""
        first = self._begin()
        for k, batch in enumerate(self.batches(first), first + 1):
            self._place = self._epoch(), k
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place, and what it refers to."""
        epoch, position = self._place
        return {POSITION: position, EPOCH: epoch, **self.form()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a place up, see the class."""
        self._loaded = state
        self._place = int(state.get(EPOCH, 0)), int(state.get(POSITION, 0))

    def _epoch(self) -> int:
        return 0

    def _go_on(self, epoch: int) -> None:
        """The rest of an epoch comes next."""

    def _begin(self) -> int:
        state, self._loaded = self._loaded, None
        if state is None:
            return 0
        epoch, position = self._place
        if self.trainer is None:
            first = position if position < len(self) else 0  # type: ignore[arg-type]
        else:
            first = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            # A batch may have been given out, and not trained on.
            if first not in (position, position - 1):
                return 0
        if not first:
            return 0
        here = self.form()
        differ = [f"{k} was {state.get(k)}, is {v}" for k, v in here.items() if state.get(k) != v]
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
        """What a place refers to."""
        return {**self.sampler.form(), "batch_size": self.batch_size}

    def _epoch(self) -> int:
        return self.sampler.epoch

    def _go_on(self, epoch: int) -> None:
        # Lightning counts an epoch that it ended half way as over, and has said the next one.
        self.sampler.set_epoch(epoch)


def place_of(trainer: Any) -> dict[str, Any]:
    """Where a trainer is in its training data; empty before, and without one."""
    loader = None if trainer is None else trainer.train_dataloader
    return loader.state_dict() if isinstance(loader, Resumable) else {}


def take_up(loader: Loader, trainer: Any, place: dict[str, Any]) -> Loader:
    """The loader, which goes on at a place if the trainer does."""
    loader.trainer = trainer
    if place:
        loader.load_state_dict(place)
    return loader
