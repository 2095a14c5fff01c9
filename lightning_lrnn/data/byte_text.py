"""Any text, byte by byte, split by file."""

from __future__ import annotations

import hashlib
import math
import sysconfig
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.errors import DataError, printable, why
from lightning_lrnn.data.paths import check_path, existing, files_below, read_bytes
from lightning_lrnn.data.splits import check_fractions
from lightning_lrnn.data.windows import Windows

__all__ = ["ByteText", "TextError"]

SPLITS = ("train", "val", "test")
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests"}


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

    Args:
        path: a file or a folder; None for the source files of the running Python's standard
            library, about 12 MB of real text that every machine has. (It varies with the patch
            version of Python.)
        pattern: files of a folder to take, as in `Path.glob`. Hidden files, empty files and those
            with a NUL byte (not text) are left out.
        batch_size: parallel streams B.
        window: time steps T of a batch.
        val_fraction: of the bytes.
        test_fraction: of the bytes.
        max_bytes: of all parts together, each of which has its share: where there is more, the last
            document of each is cut off. None for all.
        seed: of the split and of the order of documents.

    Raises:
        TextError: for arguments that cannot be. In `setup`: if there is no such path or no text in
            it, if it cannot be split in three, or if it is too short for one batch.
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
        self._splits: dict[str, list[_Document]] = {}
        self._training: Windows | None = None
        self._resume: dict[str, Any] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the text, once."""
        if not self._splits:
            self._splits = self._split(self._read())

    def train_dataloader(self) -> Windows:
        """Windows over the training files, from the position of the checkpoint if there is one."""
        self._training = self._windows("train")
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        count = len(self._training)
        self._training.end = int(limit * count) if isinstance(limit, float) else min(limit, count)
        if self._resume:
            self._training.load_state_dict(self._resume)
            self._resume = {}
        return self._training

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
        return self._training.state_dict() if self._training else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the position for the next `train_dataloader`.

        Lightning gives a loader its state back as well, but not to one that was already asked for
        when the optimizer was configured, as `Trainer.estimated_stepping_batches` does.
        """
        self._resume = state_dict

    def files(self, split: str = "train") -> list[str]:
        """Names of the files of "train", "val" or "test", in the order of the text."""
        return [document.name for document in self.documents(split)]

    def documents(self, split: str = "train") -> list[_Document]:
        """Name and content of the files of "train", "val" or "test"."""
        self.setup()
        if split not in self._splits:
            raise TextError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}")
        return self._splits[split]

    def held_out(self, split: str = "val") -> bytes:
        """The text of a split, as it is validated or tested on."""
        return b"".join(document.content for document in self.documents(split))

    def describe(self) -> str:
        """One line: how many files and bytes each part has."""
        parts = []
        for split in SPLITS:
            documents = self.documents(split)
            size = sum(len(document.content) for document in documents)
            parts.append(f"{split} {size / 1e6:.2f} MB in {len(documents)} files")
        return ", ".join(parts)

    def _windows(self, split: str) -> Windows:
        text, starts = _joined(self.documents(split))
        # The strategy's own: processes that share a model, as in tensor parallelism, share a rank.
        sampler = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        try:
            return Windows(
                text,
                starts,
                self.batch_size,
                self.window,
                complete=split != "train",
                rank=sampler.get("rank", 0),
                world_size=sampler.get("num_replicas", 1),
            )
        except ValueError as error:
            raise TextError(f"{split}: {error}") from None

    def _read(self) -> list[_Document]:
        root = existing(sysconfig.get_path("stdlib") if self.path is None else self.path, TextError)
        if root.is_file():
            return [_Document(printable(root.name), read_bytes(root, TextError))]
        pattern = "**/*.py" if self.path is None else self.pattern
        if "**" in pattern:
            # `Path.glob` passes over folders that cannot be listed.
            for _ in files_below(root, TextError):
                pass
        try:
            files = sorted(set(root.glob(pattern)))
        except (ValueError, NotImplementedError, OSError) as error:
            raise TextError(f"`pattern`: {pattern!r} cannot be matched: {why(error)}") from error
        documents = []
        for file in files:
            name = file.relative_to(root)
            skip = any(part.startswith(".") for part in name.parts)
            skip |= self.path is None and bool(NOT_THE_LIBRARY & set(name.parts))
            if skip or not file.is_file():
                continue
            content = read_bytes(file, TextError)
            if content and b"\0" not in content:
                documents.append(_Document(printable(name.as_posix()), content))
        if not documents:
            raise TextError(f"`path`: no text files match {pattern!r} in {str(root)!r}")
        return sorted(documents, key=self._order)

    def _order(self, document: _Document) -> bytes:
        return hashlib.sha256(f"{self.seed}:{document.name}".encode()).digest()

    def _split(self, documents: list[_Document]) -> dict[str, list[_Document]]:
        most = sum(len(document.content) for document in documents)
        total = min(most, self.max_bytes or most)
        if len(documents) == 1:
            (document,) = documents
            parts = self._cut(_Document(document.name, document.content[:total]))
        else:
            parts = {split: [] for split in SPLITS}
            left: dict[str, float] = {
                "val": self.val_fraction * total,
                "test": self.test_fraction * total,
            }
            room = total
            for document in documents:
                split = next((split for split, more in left.items() if more > 0), "train")
                content = document.content
                if total < most:
                    # So that a long file leaves as much to the others as it should.
                    share = room if split == "train" else math.ceil(left[split])
                    content = content[: min(share, room)]
                room -= len(content)
                if split != "train":
                    left[split] -= len(content)
                if content:
                    parts[split].append(_Document(document.name, content))
        for split, part in parts.items():
            if not any(document.content for document in part):
                raise TextError(
                    f"{len(documents)} file(s) with {total:,} bytes leave nothing for {split}: "
                    "give a single file of several lines, which is cut in three, or more files"
                )
        return parts

    def _cut(self, document: _Document) -> dict[str, list[_Document]]:
        content, parts, end = document.content, {}, len(document.content)
        for split, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            share = int(fraction * len(content))
            wanted = max(end - share, 0)
            # After the last line that ends before the share begins, where one does not long before.
            start = content.rfind(b"\n", max(wanted - share, 0), wanted) + 1
            if not start:
                start = wanted
                # Not inside a character of UTF-8.
                while 0 < start < end and content[start] & 0xC0 == 0x80:
                    start -= 1
            parts[split] = [_Document(document.name, content[start:end])]
            end = start
        return {"train": [_Document(document.name, content[:end])], **parts}


def _joined(documents: list[_Document]) -> tuple[Tensor, Tensor]:
    """The bytes of all documents (N,), and True at the first of each (N,)."""
    text = torch.frombuffer(bytearray(b"".join(d.content for d in documents)), dtype=torch.uint8)
    lengths = torch.tensor([len(document.content) for document in documents])
    starts = torch.zeros(len(text), dtype=torch.bool)
    starts[lengths.cumsum(0) - lengths] = True
    return text, starts
