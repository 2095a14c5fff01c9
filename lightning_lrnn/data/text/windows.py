"""Consecutive windows over a text, in parallel streams, from any position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.resume import Resumable

__all__ = ["IGNORE", "Sliced", "TextBatch", "Windows"]

IGNORE = -100
"""Target of a position that is padding; what `torch.nn.functional.cross_entropy` ignores."""

AHEAD = 2**15
"""Bytes of a stream that are read at once, so that a file is not opened for each window."""


class Sliced(Protocol):
    """A tensor (N,), or what gives parts of one that need not be in memory."""

    def __len__(self) -> int:
        """Length N of the sequence."""
        ...

    def __getitem__(self, part: slice, /) -> Tensor:
        """Some values that follow each other."""
        ...


class TextBatch(NamedTuple):
    """One window of every stream. B = streams, T = window.

    Attributes:
        inputs: (B, T) int64, the byte before each target; 0 where a document starts.
        targets: (B, T) int64, the bytes to predict; `IGNORE` at padding.
        reset: (B, T) bool, True where a document (or a stream) starts.
    """

    inputs: Tensor
    targets: Tensor
    reset: Tensor


class Windows(Resumable):
    """Windows of `batch_size` parallel streams; window k + 1 of a stream continues window k.

    Stream b is the b-th of `batch_size` consecutive parts of the text, so that a recurrent state
    carried from batch to batch sees each part as one long sequence. The first target of a document
    is predicted from byte 0, all others from the byte before, so that every byte is a target once.

    Not a `torch.utils.data.DataLoader`: a batch is a slice of memory, for which workers would only
    cost, and a distributed sampler must not deal windows out in another order. With several
    processes each has its own streams, `batch_size` of them, and reads nothing else but the byte
    before each.

    Args:
        text: (N,) uint8, documents one after the other.
        starts: (N,) bool, True at the first byte of each document.
        batch_size: streams B of this process.
        window: steps T of a batch.
        complete: cover every byte, the last windows padded with `IGNORE`; otherwise leave out the
            last bytes, fewer than `world_size` * B * T, that would not fill a window of every
            stream.
        rank: number of this process.
        world_size: how many processes there are.

    Raises:
        ValueError: if the text is shorter than one window of every stream, unless `complete`.
    """

    def __init__(
        self,
        text: Sliced,
        starts: Sliced,
        batch_size: int,
        window: int,
        *,
        complete: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        streams = batch_size * world_size
        self.batch_size, self.window = batch_size, window
        self.stream_length = -(-len(text) // streams) if complete else len(text) // streams
        self.windows = self.stream_length // window
        if complete:
            self.windows = -(-self.stream_length // window)
        else:
            self.stream_length = self.windows * window
        if self.windows < 1:
            raise ValueError(
                f"the text has {len(text):,} bytes, fewer than batch_size * window = "
                f"{streams:,} * {window:,} = {streams * window:,}: "
                "make one of them smaller or give more text"
            )
        self._text, self._starts = text, starts
        self._first = rank * batch_size * self.stream_length
        self._ahead: dict[int, tuple[int, Tensor]] = {}

    def __len__(self) -> int:
        """Number of windows in an epoch."""
        return self.windows

    def batches(self, first: int) -> Iterator[TextBatch]:
        """Yields the windows from number `first` on."""
        return map(self.__getitem__, range(first, self.windows))

    def __getitem__(self, k: int) -> TextBatch:
        """Returns window k of every stream."""
        if not 0 <= k < self.windows:
            raise IndexError(f"window {k} of {self.windows}")
        shape = (self.batch_size, self.window)
        inputs = torch.zeros(shape, dtype=torch.long)
        targets = torch.full(shape, IGNORE)
        reset = torch.zeros(shape, dtype=torch.bool)
        for b in range(self.batch_size):
            start = self._first + b * self.stream_length + k * self.window
            stop = min(start + self.window, self._end(b))
            steps = stop - start
            if steps > 0:
                text = self._read(b, max(start - 1, 0), stop)
                inputs[b, :steps] = text[:steps] if start else torch.cat([text[:1], text[:-1]])
                targets[b, :steps] = text[-steps:]
                reset[b, :steps] = self._starts[start:stop]
        inputs.masked_fill_(reset, 0)
        reset[:, 0] |= k == 0
        return TextBatch(inputs, targets, reset)

    def _end(self, b: int) -> int:
        """The byte at which stream b ends."""
        return min(self._first + (b + 1) * self.stream_length, len(self._text))

    def _read(self, b: int, start: int, stop: int) -> Tensor:
        """Bytes of stream b, of those that were read at once if they are there."""
        first, text = self._ahead.get(b, (0, torch.empty(0)))
        if not first <= start < stop <= first + len(text):
            first, text = start, self._text[start : max(stop, min(start + AHEAD, self._end(b)))]
            self._ahead[b] = first, text
        return text[start - first : stop - first]

    def misfit(self, message: str) -> None:
        """Refuses a position in other streams.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{message}: resume with the same data arguments, or start a new run from the "
            "checkpoint's weights with `load_from_checkpoint`"
        )

    def form(self) -> dict[str, int]:
        """What a position depends on: the streams and their windows."""
        return {
            "batch_size": self.batch_size,
            "window": self.window,
            "stream_length": self.stream_length,
        }
