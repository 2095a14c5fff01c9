"""Compiled steps over the rows of tensors: writes the task of `walk`, runs it on threads."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn.backends.cpu import threads, walk
from lightning_lrnn.backends.cpu.plan import Code, Direction, Division, rounded
from lightning_lrnn.backends.operands import STORAGE

__all__ = ["Launch", "spread", "zeros_of"]

LARGE = 1 << 22
"""Bytes of an output from which it is written by non-temporal stores."""
FIRST = len(walk.FIELDS)
"""The word of the address of the first tensor; every fourth from there is one."""
SMALL = 1 << 12
"""Bytes of room for states up to which it is copied with the task."""
SCRATCH, STATES, INITIAL, H, PAIRS, LENGTHS, RESTARTS, NONTEMPORAL = map(
    walk.FIELDS.index,
    ("scratch", "states", "initial", "h", "pairs", "lengths", "restarts", "nontemporal"),
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
        self._pairs = parts, 2, B, D
        self._walker = walk.walker(STORAGE[h.dtype])
        between = (parts - 1) * h.numel()
        room = between + self._workers * 3 * rounded(width)
        self._between, self._room, self._dtype = between * h.itemsize, room, h.dtype
        self._zeros = zeros_of(x, h.dtype)
        backward, reverse, inside = direction
        step = 1 if reverse is backward else -1
        work = {"parts": parts, "chunk": chunk, "blocks": blocks, "width": width}
        sizes = {"B": B, "T": T, "D": D, "code": code.address}
        way = {"direction": step, "backward": backward, "inside": inside}
        self._words = walk.task(
            {**work, **sizes, **way, "initial": self._zeros.data_ptr()},
            [_strides(x) for x in tensors],
            written,
            (parts + 1) * B * blocks,
        )
        # A little room stands behind the task: no tensor to allocate.
        self._behind = 8 * len(self._words) if room * h.itemsize <= SMALL else 0
        if self._behind:
            self._words.frombytes(bytes(-(-room * h.itemsize // 8) * 8))
        self._written, self._alignment = written, code.alignment
        self._large = _large([y for i in written if (y := tensors[i]) is not None], code.alignment)

    def __call__(
        self,
        tensors: Sequence[Tensor | None],
        h: Tensor,
        initial: Tensor | None = None,
        lengths: Tensor | None = None,
        restarts: Tensor | None = None,
    ) -> None:
        """The pass over tensors of the shapes, strides and dtypes of those of the first call.

        Args:
            tensors: in the order of those of the first call.
            h: where the states (B, D) after the pass go.
            initial: those before it, zeros if None; `h` itself may be given.
            lengths: int64 (B,), none beyond the sequence.
            restarts: bool (B, T), where no state passes into a step of the forward pass.
        """
        words = self._words[:]
        room = self._write(words, tensors, h, initial, lengths, restarts)
        if self._workers == 1:
            self._walker(words.buffer_info()[0], 0)
        else:
            alive = tensors, h, initial, lengths, restarts, room
            threads.run(self._walker, words, self._workers, alive)

    def pairs(
        self,
        tensors: Sequence[Tensor | None],
        lengths: Tensor | None = None,
        restarts: Tensor | None = None,
    ) -> Tensor:
        """What each part of time does to whatever state comes in: (parts, 2, B, D), A before B.

        Nothing else is written; the code must be one that was made for pairs.
        """
        pairs = torch.empty(self._pairs, dtype=self._dtype, device="cpu")
        words = self._words[:]
        room = self._write(words, tensors, pairs, None, lengths, restarts)
        words[PAIRS] = words[H]
        alive = tensors, pairs, lengths, restarts, room
        threads.run(self._walker, words, self._workers, alive)
        return pairs

    def bound(
        self, tensors: Sequence[Tensor | None], h: Tensor, initial: Tensor | None
    ) -> Callable[[], None]:
        """The pass over the same memory, any number of times."""

        def run() -> None:
            words = fresh[:]
            if self._behind:
                self._place_states(words)
            threads.run(self._walker, words, self._workers, alive)

        fresh = self._words[:]
        alive = tensors, h, initial, self._write(fresh, tensors, h, initial)
        return run

    def _write(
        self,
        words: array[int],
        tensors: Sequence[Tensor | None],
        h: Tensor,
        initial: Tensor | None = None,
        lengths: Tensor | None = None,
        restarts: Tensor | None = None,
    ) -> Tensor | None:
        """The addresses of a call; returns what must stay alive beside the arguments."""
        words[H] = h.data_ptr()
        if initial is not None:
            words[INITIAL] = initial.data_ptr()
        if lengths is not None:
            words[LENGTHS] = lengths.data_ptr()
        if restarts is not None:
            words[RESTARTS] = restarts.data_ptr()
        at = FIRST
        for x in tensors:
            if x is not None:
                words[at] = x.data_ptr() or _freed()
            at += 4
        if self._large:
            addresses = [words[FIRST + 4 * i] for i in self._written]
            words[NONTEMPORAL] = all(address % self._alignment == 0 for address in addresses)
        return self._place_states(words)

    def _place_states(self, words: array[int]) -> Tensor | None:
        """Room for the states between parts and those that threads work on."""
        room = None
        if self._behind:
            states = words.buffer_info()[0] + self._behind
        else:
            room = torch.empty(self._room, dtype=self._dtype, device="cpu")
            states = room.data_ptr()
        words[STATES], words[SCRATCH] = states, states + self._between
        return room


def zeros_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A state (B, D) of zeros for sequences (B, T, D), which nothing writes."""
    B, _, D = x.shape
    size = B * D * dtype.itemsize
    return _zeros(1 << size.bit_length())[:size].view(dtype).view(B, D)


@cache
def _zeros(size: int) -> Tensor:
    # Not PyTorch's, whose threads of OpenMP, once started, hang in a process that is forked later.
    return torch.from_numpy(np.zeros(size, np.uint8))


def _freed() -> int:
    raise ValueError(
        "the storage of a tensor was freed: a sharded module has it in its forward pass only"
    )


def _strides(x: Tensor | None) -> tuple[int, int, int, int]:
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
