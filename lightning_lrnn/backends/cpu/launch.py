"""Compiled steps over the rows of tensors: writes the problem of `walk`, runs it on threads."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_lrnn.backends.cpu import threads, walk
from lightning_lrnn.backends.cpu.plan import Code, Direction, Division, rounded
from lightning_lrnn.backends.operands import STORAGE

__all__ = ["Launch", "spread"]

LARGE = 1 << 22
"""Bytes of an output from which it is written by non-temporal stores."""
SCRATCH, STATES, H, LENGTHS, RESTARTS, NONTEMPORAL = map(
    walk.FIELDS.index, ("scratch", "states", "h", "lengths", "restarts", "nontemporal")
)


class Launch:
    """One pass, forward or backward, over tensors of one form: only addresses are new in a call.

    Args:
        code: of the steps.
        division: of the work.
        direction: of the pass.
        tensors: of a first call, in the order of `codegen`; sums over time as (B, parts of time,
            columns); None for what is not there.
        written: indices of the sequences (B, T, D) that are written.
        h: the states (B, D) of a first call.
    """

    def __init__(
        self,
        code: Code,
        division: Division,
        direction: Direction,
        tensors: Sequence[Tensor | None],
        written: Sequence[int],
        h: Tensor,
    ) -> None:
        chunk, blocks, width, self._workers = division
        x = tensors[written[0]]
        assert x is not None
        B, T, D = x.shape
        parts = -(-T // chunk)
        self._walker = walk.walker(STORAGE[h.dtype])
        self._between = (parts - 1) * h.numel()
        self._room = self._between + self._workers * 3 * rounded(width)
        backward, reverse, inside = direction
        step = 1 if reverse is backward else -1
        work = {"parts": parts, "chunk": chunk, "blocks": blocks, "width": width}
        sizes = {"B": B, "T": T, "D": D}
        way = {"direction": step, "backward": backward, "inside": inside}
        self._words = walk.problem(
            {**work, **sizes, **way, "code": code.address},
            [_place(x) for x in tensors],
            written,
            (parts + 1) * B * blocks,
        )
        first = len(walk.FIELDS)
        self._addresses = [first + 4 * i for i in range(len(tensors))]
        self._written, self._alignment = written, code.alignment
        self._large = _large([y for i in written if (y := tensors[i]) is not None], code.alignment)

    def __call__(
        self,
        tensors: Sequence[Tensor | None],
        h: Tensor,
        lengths: Tensor | None = None,
        restarts: Tensor | None = None,
    ) -> None:
        """The pass over tensors of the shapes, strides and dtypes of those of the first call.

        Args:
            tensors: in the order of those of the first call.
            h: states (B, D) before the pass, replaced by those after it.
            lengths: int64 (B,), none beyond the sequence.
            restarts: bool (B, T), where no state passes into a step of the forward pass.
        """
        words, alive = self._addressed(tensors, h, lengths, restarts)
        if self._workers == 1:
            self._walker(words.buffer_info()[0], 0)
        else:
            threads.run(self._walker, words, self._workers, alive)

    def bound(self, tensors: Sequence[Tensor | None], h: Tensor) -> Callable[[], None]:
        """The pass over the same memory, any number of times."""
        words, alive = self._addressed(tensors, h, None, None)

        def run() -> None:
            threads.run(self._walker, words[:], self._workers, alive)

        return run

    def _addressed(
        self,
        tensors: Sequence[Tensor | None],
        h: Tensor,
        lengths: Tensor | None,
        restarts: Tensor | None,
    ) -> tuple[array[int], object]:
        """The problem of `walk` with all addresses, and what must stay alive meanwhile."""
        words, scratch = self._words[:], torch.empty(self._room, dtype=h.dtype)
        states = scratch.data_ptr()
        words[SCRATCH], words[STATES] = states + self._between * h.itemsize, states
        words[H] = h.data_ptr()
        if lengths is not None:
            words[LENGTHS] = lengths.data_ptr()
        if restarts is not None:
            words[RESTARTS] = restarts.data_ptr()
        for at, x in zip(self._addresses, tensors, strict=True):
            if x is not None:
                address = x.data_ptr()
                if not address:
                    raise ValueError(
                        "the storage of a tensor was freed: a sharded module has it in its "
                        "forward pass only"
                    )
                words[at] = address
        if self._large:
            addresses = [words[self._addresses[i]] for i in self._written]
            words[NONTEMPORAL] = all(address % self._alignment == 0 for address in addresses)
        return words, (tensors, h, lengths, restarts, scratch)


def _place(x: Tensor | None) -> tuple[int, int, int, int]:
    """Room for an address, and strides of rows, steps and columns, in bytes; 0 of a parameter."""
    if x is None:
        return 0, 0, 0, 0
    size = x.itemsize
    if x.ndim == 3:
        sB, sT, sD = x.stride()
    else:
        sB, sT, sD = x.stride(0) if x.ndim == 2 else 0, 0, x.stride(-1)
    return 0, size * sB, size * sT, size * sD


def spread(dy: Tensor) -> Tensor:
    """The same with columns side by side, where that takes one row: of the gradient of a sum."""
    if dy.stride() == (0, 0, 0):
        return dy[:1, :1].contiguous().expand(dy.shape)
    return dy


def _large(outputs: Sequence[Tensor], alignment: int) -> bool:
    """Whether outputs are written by non-temporal stores, before which caches need not read them.

    That is a quarter of the traffic, and what is large is not there any more when it is needed. The
    instruction wants aligned vectors, and cache lines, of 64 bytes, that are filled at once.
    """
    return all(
        x.nbytes >= LARGE
        and x.shape[2] * x.itemsize >= 64
        and not any(x.itemsize * stride % alignment for stride in x.stride()[:2])
        for x in outputs
    )
