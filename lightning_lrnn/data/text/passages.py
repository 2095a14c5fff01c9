"""Passages of text, in memory or in their files, of which no more is read than is asked for."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lrnn.data.errors import DataError, why
from lightning_lrnn.data.paths import refuse_changed, stamp

__all__ = ["Passage", "Starts", "Text", "TextFile"]


class TextFile:
    """The bytes of a file that stays as it is; a slice is read when it is asked for.

    Neither mapped into memory, where a file that is cut short would end the process, nor kept open,
    so that it can be pickled.

    Args:
        path: of the file.
        error: raised for what cannot be read, and for a file that is another than it was.
    """

    def __init__(self, path: Path, error: type[DataError] = DataError) -> None:
        self.path, self.error = path.absolute(), error
        try:
            self._stamp = stamp(os.stat(path))
        except OSError as problem:
            raise error(f"{path} cannot be read: {why(problem)}") from problem

    def __len__(self) -> int:
        """Bytes of the file."""
        return self._stamp[0]

    def __getitem__(self, part: slice) -> bytes:
        """Returns consecutive bytes of the file."""
        start, stop, _ = part.indices(len(self))
        try:
            with self.path.open("rb") as file:
                same = stamp(os.fstat(file.fileno())) == self._stamp
                file.seek(start)
                content = file.read(stop - start) if same else b""
        except (OSError, MemoryError) as problem:
            raise self.error(f"{self.path} cannot be read: {why(problem)}") from problem
        if len(content) < stop - start or not same:
            refuse_changed(self.path, self.error)
        return content


class Passage(NamedTuple):
    """Some bytes of a document that follow each other: `source[start:stop]`."""

    name: str
    source: bytes | TextFile
    start: int
    stop: int

    @classmethod
    def whole(cls, name: str, source: bytes | TextFile) -> Passage:
        """Returns the passage that is a whole document."""
        return cls(name, source, 0, len(source))

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Passage:
        """Returns the passage of bytes `start` to `stop` of this one."""
        return self._replace(start=self.start + start, stop=min(self.start + stop, self.stop))

    def read(self) -> bytes:
        """Reads the bytes."""
        return self.source[self.start : self.stop]


class Text:
    """Passages one after the other, (N,) uint8; a slice is read when it is asked for."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self._ends = list(accumulate(passage.size for passage in passages))

    def __len__(self) -> int:
        """Number of bytes N."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, part: slice) -> Tensor:
        """Returns consecutive bytes, at least one."""
        start, stop, _ = part.indices(len(self))
        pieces = []
        i = bisect_right(self._ends, start)
        while start < stop:
            passage, end = self.passages[i], min(stop, self._ends[i])
            first = self._ends[i] - passage.size
            pieces.append(passage.part(start - first, end - first).read())
            start, i = end, i + 1
        return torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)


class Starts:
    """Whether a passage starts at a byte of their text, (N,) bool."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        ends = list(accumulate((passage.size for passage in passages), initial=0))
        self._starts, self._size = ends[:-1], ends[-1]

    def __len__(self) -> int:
        """Number of bytes N."""
        return self._size

    def __getitem__(self, part: slice) -> Tensor:
        """Returns, for consecutive bytes, whether a passage starts there."""
        start, stop, _ = part.indices(len(self))
        starts = torch.zeros(stop - start, dtype=torch.bool)
        inside = self._starts[bisect_left(self._starts, start) : bisect_left(self._starts, stop)]
        starts[torch.tensor(inside, dtype=torch.long) - start] = True
        return starts
