"""Any text, byte by byte, split by file."""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.errors import DataError, printable, why
from lightning_lrnn.data.paths import check_path, existing, files_below, read_bytes
from lightning_lrnn.data.resume import position_of, resumed
from lightning_lrnn.data.samplers import part_of_data
from lightning_lrnn.data.splits import check_fractions
from lightning_lrnn.data.text.passages import Passage, Starts, Text, TextFile
from lightning_lrnn.data.text.windows import Windows

__all__ = ["ByteText", "TextError"]

SPLITS = ("train", "val", "test")
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests"}

IN_MEMORY = 2**26
"""Bytes up to which all files together are kept in memory; they may change from then on."""

LOOKED_AT = 2**24
"""Bytes at the beginning of a file that stays where it is, in which NUL would say it is no text."""

AT_ONCE = 2**20
"""Bytes of a text that are searched at once."""

CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 with which no character begins."""


class TextError(DataError):
    """The text that was asked for cannot be used; the message says why and what to do."""


class _Document(NamedTuple):
    name: str
    content: bytes


class ByteText(pl.LightningDataModule):
    """Windows over the bytes of a text, for language models with 256 symbols.

    Files are documents: the state of a model starts anew at the first byte of each (`reset`), and a
    file is in one of train, val and test as a whole. The split depends on nothing but names, sizes
    and `seed`: documents are sorted by the SHA-256 of "seed:relative/path"; in that order val takes
    documents until it has `val_fraction` of all bytes, then test, then train takes the rest. A
    single file is cut in three at line ends, or between characters where a line is too long: train,
    then val, then test.

    Batches are `TextBatch(inputs, targets, reset)`, (B, T) each; see `Windows`. Validation and test
    cover every held-out byte once, in consecutive windows; training leaves out the tail that would
    not fill a batch. Training can be resumed at any window.

    Files of more than 64 MiB together stay where they are: each process reads the streams that it
    trains on as it goes on, in memory that does not depend on the size of the text. These files
    must not change before the end.

    Args:
        path: a file or a folder; None for the source files of the running Python's standard
            library, about 12 MB of real text that every machine has. (It varies with the patch
            version of Python.)
        pattern: files of a folder to take, as in `Path.glob`. Hidden files, empty files and those
            with a NUL byte (not text) are left out; of files that stay where they are, 16 MiB are
            looked at for it.
        batch_size: parallel streams B.
        window: time steps T of a batch.
        val_fraction: of the bytes.
        test_fraction: of the bytes.
        max_bytes: of all parts together, each of which has its share: where there is more, the last
            document of each is cut off. None for all.
        seed: of the split and of the order of documents.

    Raises:
        TextError: for arguments that cannot be. In `setup`: if there is no such path or no text in
            it, if it cannot be split in three, or if it is too short for one batch. Later:
            if a file that is read in parts is no longer what it was.
    """

    def __init__(
        self,
        path: str | None = None,
        pattern: str = "**/*",
        batch_size: int = 32,
        window: int = 256,
        val_fraction: float = 0.04,
        test_fraction: float = 0.04,
        max_bytes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_path(path, TextError)
        check_counts(1, TextError, batch_size=batch_size, window=window)
        check_counts(0, TextError, seed=seed)
        check_fractions(val_fraction, test_fraction, TextError)
        if max_bytes is not None:
            check_counts(1, TextError, max_bytes=max_bytes)
        if not isinstance(pattern, str):
            raise TextError(f"`pattern` must be one of names, such as '**/*', got {pattern!r}")
        self.path, self.pattern = path, pattern
        self.batch_size, self.window = batch_size, window
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.max_bytes, self.seed = max_bytes, seed
        self._splits: dict[str, list[Passage]] = {}
        self._position: dict[str, Any] = {}

    def setup(self, stage: str | None = None) -> None:
        """Finds and splits the text, once."""
        if not self._splits:
            self._splits = self._split(self._read())

    def train_dataloader(self) -> Windows:
        """Windows over the training files."""
        return resumed(self._windows("train"), self.trainer, self._position)

    def val_dataloader(self) -> Windows:
        """Windows over the validation files, every byte once."""
        return self._windows("val")

    def test_dataloader(self) -> Windows:
        """Windows over the test files, every byte once."""
        return self._windows("test")

    def predict_dataloader(self) -> Windows:
        """Windows over the test files."""
        return self._windows("test")

    def state_dict(self) -> dict[str, Any]:
        """The position in the training text."""
        return position_of(self.trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the position for `train_dataloader`.

        Lightning gives a loader its state back as well, but not to one that was already asked for
        when the optimizer was configured, as `Trainer.estimated_stepping_batches` does.
        """
        self._position = state_dict

    def files(self, split: str = "train") -> list[str]:
        """Names of the files of "train", "val" or "test", in the order of the text."""
        return [passage.name for passage in self._passages(split)]

    def documents(self, split: str = "train") -> list[_Document]:
        """Name and content of the files of "train", "val" or "test", all of it in memory."""
        return [_Document(passage.name, passage.read()) for passage in self._passages(split)]

    def held_out(self, split: str = "val") -> bytes:
        """The text of a split, as it is validated or tested on, all of it in memory."""
        return b"".join(passage.read() for passage in self._passages(split))

    def describe(self) -> str:
        """One line: how many files and bytes each part has."""
        parts = []
        for split in SPLITS:
            passages = self._passages(split)
            size = sum(passage.size for passage in passages)
            parts.append(f"{split} {size / 1e6:.2f} MB in {len(passages)} files")
        return ", ".join(parts)

    def _passages(self, split: str) -> list[Passage]:
        self.setup()
        if split not in self._splits:
            raise TextError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}")
        return self._splits[split]

    def _windows(self, split: str) -> Windows:
        passages = self._passages(split)
        rank, world_size = part_of_data(self.trainer)
        try:
            return Windows(
                Text(passages),
                Starts(passages),
                self.batch_size,
                self.window,
                complete=split != "train",
                rank=rank,
                world_size=world_size,
            )
        except ValueError as error:
            raise TextError(f"{split}: {error}") from None

    def _read(self) -> list[Passage]:
        root = existing(sysconfig.get_path("stdlib") if self.path is None else self.path, TextError)
        if root.is_file():
            file = TextFile(root, TextError)
            in_memory = len(file) <= IN_MEMORY
            source = read_bytes(root, TextError) if in_memory else file
            return [Passage.whole(printable(root.name), source)]
        pattern = "**/*.py" if self.path is None else self.pattern
        if "**" in pattern:
            # `Path.glob` passes over folders that cannot be listed.
            for _ in files_below(root, TextError):
                pass
        try:
            files = sorted(set(root.glob(pattern)))
        except (ValueError, NotImplementedError, OSError) as error:
            raise TextError(f"`pattern`: {pattern!r} cannot be matched: {why(error)}") from error
        taken: list[TextFile] = []
        for path in files:
            parts = path.relative_to(root).parts
            skip = any(part.startswith(".") for part in parts)
            skip |= self.path is None and bool(NOT_THE_LIBRARY & set(parts))
            if not skip and path.is_file():
                taken.append(TextFile(path, TextError))
        in_memory = sum(map(len, taken)) <= IN_MEMORY
        passages = []
        for file in taken:
            source = read_bytes(file.path, TextError) if in_memory else file
            if len(source) and b"\0" not in source[: None if in_memory else LOOKED_AT]:
                name = file.path.relative_to(root.absolute()).as_posix()
                passages.append(Passage.whole(printable(name), source))
        if not passages:
            raise TextError(f"`path`: no text files match {pattern!r} in {str(root)!r}")
        return sorted(passages, key=self._order)

    def _order(self, passage: Passage) -> bytes:
        return hashlib.sha256(f"{self.seed}:{passage.name}".encode()).digest()

    def _split(self, passages: list[Passage]) -> dict[str, list[Passage]]:
        most = sum(passage.size for passage in passages)
        total = min(most, self.max_bytes or most)
        if len(passages) == 1:
            (passage,) = passages
            parts = self._cut(passage.part(0, total))
        else:
            parts = {split: [] for split in SPLITS}
            left: dict[str, float] = {
                "val": self.val_fraction * total,
                "test": self.test_fraction * total,
            }
            room = total
            for passage in passages:
                split = next((split for split, more in left.items() if more > 0), "train")
                if total < most:
                    # So that a long file leaves as much to the others as it should.
                    share = room if split == "train" else math.ceil(left[split])
                    passage = passage.part(0, min(share, room))
                room -= passage.size
                if split != "train":
                    left[split] -= passage.size
                if passage.size:
                    parts[split].append(passage)
        for split, part in parts.items():
            if not any(passage.size for passage in part):
                raise TextError(
                    f"{len(passages)} file(s) with {total:,} bytes leave nothing for {split}: "
                    "give a single file of several lines, which is cut in three, or more files"
                )
        return parts

    def _cut(self, passage: Passage) -> dict[str, list[Passage]]:
        parts, end = {}, passage.size
        for split, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            share = int(fraction * passage.size)
            wanted = max(end - share, 0)
            # After the last line that ends before the share begins, where one does not long before.
            start = 1 + _last(passage, max(wanted - share, 0), wanted, _line_end)
            if not start:
                # Not inside a character of UTF-8.
                start = max(_last(passage, 0, wanted + 1, _character), 0) if wanted < end else end
            parts[split] = [passage.part(start, end)]
            end = start
        return {"train": [passage.part(0, end)], **parts}


def _last(passage: Passage, start: int, stop: int, find: Callable[[bytes], int]) -> int:
    """The last position in [start, stop) that `find` returns, chunk by chunk; -1 if none."""
    while start < stop:
        first = max(start, stop - AT_ONCE)
        if (position := find(passage.part(first, stop).read())) >= 0:
            return first + position
        stop = first
    return -1


def _line_end(text: bytes) -> int:
    return text.rfind(b"\n")


def _character(text: bytes) -> int:
    """Where a character of UTF-8 begins for the last time, or -1."""
    return len(text.rstrip(CONTINUATION)) - 1
