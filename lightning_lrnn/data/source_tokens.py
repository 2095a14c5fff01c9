"""Python source, every byte with the kind of token that it belongs to."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.data.byte_text import ByteText
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.sequence_data import SequenceData
from lightning_lrnn.data.sequences import SequenceRow, SequenceRows
from lightning_lrnn.data.splits import PARTS
from lightning_lrnn.data.tables.rows import Span, step_spans
from lightning_lrnn.data.text.windows import IGNORE

__all__ = ["SourceTokens"]

CLASSES = ("whitespace", "comment", "string", "number", "keyword", "name", "operator")
WHITESPACE, COMMENT, STRING, NUMBER, KEYWORD, NAME, OPERATOR = range(len(CLASSES))
NONE = 255
KINDS = {
    tokenize.COMMENT: COMMENT,
    tokenize.STRING: STRING,
    tokenize.NUMBER: NUMBER,
    tokenize.NAME: NAME,
    tokenize.OP: OPERATOR,
    # What is no token, for the versions that go on after it.
    tokenize.ERRORTOKEN: NONE,
}
# From Python 3.12 on an f-string is many tokens; here it is one string in all versions.
STRING_STARTS, STRING_ENDS = (
    {getattr(tokenize, f"{letter}STRING_{word}", None) for letter in "FT"} - {None}
    for word in ("START", "END")
)


class SourceTokens(SequenceData):
    """Which kind of token each byte of Python source belongs to, as the module `tokenize` says.

    Whether a byte is inside a string or a comment was decided many steps before: what a model of
    single bytes cannot know. The inputs are the 8 bits of a byte, the lowest first, as -1 and 1.
    Text comes from files as in `ByteText`, and is split by file; each file is cut into windows, the
    last of which may be shorter. What `tokenize` refuses, from there to the end of the file, has no
    class (`IGNORE`).

    Args:
        path: a file or a folder; None for the source files of the running Python's standard
            library.
        window: steps of a sequence, in bytes.
        max_bytes: of all files together; None for all. A megabyte takes some seconds to read.

    Raises:
        DataError: for arguments that cannot be. In `setup`: if there is no such path, or nothing
            to split in it.
    """

    def __init__(
        self,
        path: str | None = None,
        window: int = 256,
        max_bytes: int | None = 600_000,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        packed: bool = False,
        bucket: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            packed=packed,
            bucket=bucket,
            drop_last=drop_last,
            num_workers=num_workers,
        )
        check_counts(1, DataError, window=window)
        self.window = window
        self.text = ByteText(
            path,
            "**/*.py",
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            max_bytes=max_bytes,
            seed=seed,
        )
        self.classes = CLASSES

    def make_parts(self) -> dict[str, SequenceRows]:
        """Reads the files and their tokens."""
        parts: dict[str, SequenceRows] = {}
        for name in PARTS:
            sources = [source for _, source in self.text.documents(name)]
            spans = [
                span
                for i, source in enumerate(sources)
                for span in step_spans(Span(i, 0, len(source)), self.window, self.window)
            ]
            parts[name] = _Rows(sources, [token_classes(source) for source in sources], spans)
        return parts


def token_classes(source: bytes) -> Tensor:
    """The class of every byte of Python source, (N,) int64.

    What is between tokens, line ends and indentation too, is whitespace.
    """
    lines = io.BytesIO(source).readlines()
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    # The mark is no part of the first line for `tokenize`.
    mark = 3 if source.startswith(b"\xef\xbb\xbf") else 0

    def place(row: int, column: int) -> int:
        if row > len(lines):
            return len(source)
        start = starts[row - 1] + (mark if row == 1 else 0)
        line = source[start : starts[row]]
        # Columns are counted in characters; the end of a last line without line end lies behind it.
        past = column if line.isascii() else len(line.decode()[:column].encode())
        return min(start + past, len(source))

    kinds = bytearray([NONE]) * len(source)
    done, depth, opened = 0, 0, 0

    def put(kind: int, start: int, stop: int) -> int:
        """What lies between what was done and `start` is whitespace."""
        kinds[done:start] = bytes([WHITESPACE]) * (start - done)
        kinds[start:stop] = bytes([kind]) * (stop - start)
        return stop

    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.ENCODING:
                if token.string not in ("utf-8", "ascii"):
                    break
                continue
            start, stop = place(*token.start), place(*token.end)
            if token.type in STRING_STARTS:
                opened = opened if depth else start
                depth += 1
            elif token.type in STRING_ENDS:
                depth -= 1
                if not depth:
                    done = put(STRING, opened, stop)
            elif not depth and start >= done:
                kind = KINDS.get(token.type, WHITESPACE)
                if kind == NAME and keyword.iskeyword(token.string):
                    kind = KEYWORD
                done = put(kind, start, stop)
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):
        pass
    classes = torch.frombuffer(kinds, dtype=torch.uint8).long()
    return classes.masked_fill(classes == NONE, IGNORE)


class _Rows:
    """Windows over sources; the bits are made when they are asked for."""

    def __init__(
        self, sources: Sequence[bytes], classes: Sequence[Tensor], spans: Sequence[Span]
    ) -> None:
        self.sources, self.classes, self.spans = sources, classes, spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> SequenceRow:
        i, start, stop = self.spans[index]
        window = torch.frombuffer(bytearray(self.sources[i][start:stop]), dtype=torch.uint8)
        bits = (window[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        return SequenceRow(2 * bits.float() - 1, self.classes[i][start:stop])
