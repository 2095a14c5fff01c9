"""Rows walked by compiled steps on a CPU: plans the pieces, compiles, runs them on threads.

Rows are independent, so they are what is divided first, among `torch.get_num_threads()` threads,
and with too few rows for those strips of columns; no result depends on how. Only where there are
too few columns to keep all cores busy is time divided too, into parts that depend on the shape
alone, taken in order by whoever is free (`walk`). So the bits of a result depend neither
on the number of threads nor on their timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn.backends.cpu import threads as _threads
from lightning_lrnn.backends.cpu.operands import DTYPE, OPERAND, STORAGE, Operand
from lightning_lrnn.gates import parse

__all__ = ["Code", "code", "operations", "pieces", "prepared", "rounded", "spread", "walk"]

LINE = 32
"""Features of a block are a multiple of this: cores fetch 128 bytes, two cache lines, at a time."""
WIDE = 1 << 13
"""Columns of a block at most: their states stay in the first-level cache."""
COSTLY = frozenset("exp sigmoid tanh silu softplus log sin cos erf gelu pow".split())
"""Operations that are counted as eight."""
WORTH = 1 << 20
"""Operations for each thread, some 50 us, below which waking it costs more than it saves."""
STRIPS = 4
"""Threads for each row from which the plain recurrence is divided into strips of columns: what is
read in strips takes up to three times as long. Of gates, which compute more, it is 2."""
DIVIDED = 1 << 23
"""Operations below which time is not divided."""
PLAIN = 8
"""Operations on an element of the plain recurrence, backward."""
FEW = 4
"""Columns (rows times features) for each operation on an element up to which time is divided. The
pairs are two operations more: with more columns they take as long as what another thread saves."""
PART = 1 << 18
"""Bytes of one sequence in a part of time: two of them stay in a second-level cache."""
LARGE = 1 << 22
"""Bytes of an output from which it is stored past the caches."""
ROOM = 32
"""Columns that the states of a block are rounded up to: whole vectors of any dtype."""
NARROW = 64
"""Columns of a block up to which some steps are taken at once: faster while vectors are few."""


class Code(NamedTuple):
    """Compiled steps."""

    address: int
    alignment: int
    """Bytes that outputs must be aligned to if they are stored past the caches."""
    state: torch.dtype
    """Of the emitted states."""
    output: torch.dtype
    """Of y."""


def code(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    backward: bool,
    exclusive: bool,
    pieces: tuple[int, int, int, int],
) -> Code | None:
    """Steps for a gate, or None if PyTorch shall evaluate it."""
    T = next(p for p in pre if p.ndim == 3).shape[1]
    operands = tuple([OPERAND[p.dtype, p.ndim] for p in pre])
    divided, narrow = pieces[0] < T, pieces[2] <= NARROW
    return _code(gate, readout, operands, backward, exclusive, divided, narrow)


@cache
def _code(gate: str, readout: str, operands: tuple[Operand, ...], *how: bool) -> Code | None:
    from lightning_lrnn.backends.cpu import codegen  # llvmlite takes a while

    if codegen.uncompiled(gate, readout, operands):
        return None
    steps = codegen.Steps(gate, readout, operands, *how)
    dtypes = DTYPE[steps.state], DTYPE[steps.output]
    return Code(codegen.address(steps), codegen.alignment(), *dtypes)


def walk(*work: Any) -> None:
    """The compiled steps over all of the work; arguments as for `prepared`."""
    prepared(*work)()


def prepared(
    code: Code,
    backward: bool,
    tensors: Sequence[Any],
    outputs: dict[int, Tensor],
    h: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    reverse: bool,
    inside: bool,
    pieces: tuple[int, int, int, int],
) -> Callable[[], None]:
    """The walk, any number of times over the same memory.

    Args:
        code: of the steps.
        backward: whether they are of the adjoint.
        tensors: all of them, in the order of `codegen`; arrays for sums; None for what is not
            there.
        outputs: those of shape (B, T, D) that are written, by their index among the tensors.
        h: states (B, D) before the walk; replaced by those after it.
        masks: lengths and reset.
        reverse: of the forward walk.
        inside: see `walk.FIELDS`.
        pieces: what `pieces` says.
    """
    from lightning_lrnn.backends.cpu import walk  # llvmlite takes a while

    x = next(iter(outputs.values()))
    B, T, D = x.shape
    lengths, reset = masks
    chunk, blocks, width, workers = pieces
    parts = -(-T // chunk)
    steps, restarts = _steps(lengths, x), _restarts(lengths, reset, reverse)
    between = (parts - 1) * h.numel()
    scratch = h.new_empty(between + workers * 3 * rounded(width))
    begin = scratch.data_ptr()
    problem = walk.problem(
        (
            parts, chunk, blocks, width, code.address, begin + between * h.itemsize, begin,
            h.data_ptr(), 0 if steps is None else steps.data_ptr(),
            0 if restarts is None else restarts.data_ptr(), B, T, D,
            1 if reverse is backward else -1, backward, inside,
            _past(*outputs.values(), alignment=code.alignment),
        ),
        [place(tensor) for tensor in tensors],
        list(outputs),
        (parts + 1) * B * blocks,
    )  # fmt: skip
    walker = walk.walker(STORAGE[h.dtype])
    kept = tensors, h, steps, restarts, scratch

    def run() -> None:
        _threads.run(walker, problem[:], workers, kept)

    return run


def rounded(width: int) -> int:
    """Columns of a block with room for whole vectors."""
    return -(-width // ROOM) * ROOM


def place(x: Any) -> tuple[int, int, int, int]:
    """Address and strides of rows, steps and columns, in bytes; 0 where a parameter has none.

    Of an array of sums, (parts of time, rows, columns), that of parts is in the place of steps.
    """
    if x is None:
        return 0, 0, 0, 0
    if isinstance(x, np.ndarray):
        by_part, by_row, by_column = x.strides
        return x.ctypes.data, by_row, by_part, by_column
    size, address = x.itemsize, x.data_ptr()
    if not address:
        raise ValueError(
            "the storage of a tensor was freed: a sharded module has it in its forward pass only"
        )
    if x.ndim == 3:
        sB, sT, sD = x.stride()
    else:
        sB, sT, sD = x.stride(0) if x.ndim == 2 else 0, 0, x.stride(-1)
    return address, size * sB, size * sT, size * sD


def spread(dy: Tensor) -> Tensor:
    """The same with columns side by side, where that takes one row: of the gradient of a sum."""
    if dy.stride() == (0, 0, 0):
        return dy[:1, :1].contiguous().expand(dy.shape)
    return dy


@cache
def operations(gate: str, readout: str, backward: bool) -> int:
    """On an element, about: what is computed, read and written; 4 of the plain recurrence."""
    programs = [parse(program) for program in (gate, readout) if program]
    computed = sum(8 if step.operation in COSTLY else 1 for p in programs for step in p.steps)
    forward = 1 + computed + programs[0].inputs + len(programs)
    return 2 * forward if backward else forward


def pieces(x: Tensor, operations: int, parallel: bool) -> tuple[int, int, int, int]:
    """Steps of a part of time, blocks in a row, features of a block, workers.

    The parts, which decide about bits, depend on the shape and the operations on an element alone.
    """
    B, T, D = x.shape
    if not parallel:
        return T, *_blocks(D, 1), 1
    work = x.numel() * operations
    threads = min(_threads.count(), work // WORTH)
    if work >= DIVIDED and B * D <= FEW * operations:
        # A multiple of the steps taken at once.
        chunk = max(PART // (D * x.itemsize) // LINE, 1) * LINE
        if T > 3 * chunk:  # with fewer parts a thread waits too long for its last
            return chunk, 1, D, max(1, min(B * -(-T // chunk), threads))
    strips = STRIPS if operations <= PLAIN else 2
    blocks, width = _blocks(D, threads // B if threads >= strips * B else 1)
    return T, blocks, width, max(1, min(B * blocks, threads))


def _blocks(D: int, wanted: int) -> tuple[int, int]:
    """Blocks in a row, and features of a block."""
    width = -(-D // max(wanted, -(-D // WIDE)))
    width = min(D, -(-width // LINE) * LINE)
    return -(-D // width), width


def _past(*outputs: Tensor, alignment: int) -> bool:
    """Whether outputs are stored past the caches, which for that need not read them first.

    That is a quarter of the traffic, and what is large is not there any more when it is needed. The
    instruction wants aligned vectors, and cache lines, of 64 bytes, that are filled at once.
    """
    return all(
        x.nbytes >= LARGE
        and x.shape[2] * x.itemsize >= 64
        and not any(
            n % alignment for n in (x.data_ptr(), *(x.itemsize * s for s in x.stride()[:2]))
        )
        for x in outputs
    )


def _steps(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """Lengths, none beyond the sequence."""
    return None if lengths is None else lengths.clamp(0, x.shape[1])


def _restarts(lengths: Tensor | None, reset: Tensor | None, reverse: bool) -> Tensor | None:
    """By time, whether no state passes into a step of the forward walk; None if it always does."""
    if reset is None or not reverse:
        return reset
    # A document begins at t + 1: the walk enters it from its end, step t is outside.
    starts = torch.zeros_like(reset)
    starts[:, :-1] = reset[:, 1:]
    if lengths is not None:
        steps = torch.arange(1, reset.shape[1] + 1)
        starts &= steps < lengths[:, None]
    return starts
