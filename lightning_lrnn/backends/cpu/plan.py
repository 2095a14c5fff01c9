"""How work on rows is divided among threads, and which steps are compiled for it.

Rows are independent, so they are what is divided first, among `torch.get_num_threads()` threads,
and with too few rows for those strips of columns; no result depends on how. Only where more than
twice as many threads are there as rows and strips is time divided instead, into parts that depend
on the shape alone, taken in order by whoever is free (`walk`). So the bits of a result depend on
whether time is divided, and neither on the number of threads nor on their timing otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lrnn.backends.cpu import threads
from lightning_lrnn.backends.operands import DTYPE, OPERAND, Operand
from lightning_lrnn.core.problem import sequence
from lightning_lrnn.gates import OPERATIONS, parse

__all__ = ["Code", "Division", "code", "divided", "operations", "rounded"]

LINE = 32
"""Features of a block are a multiple of this: cores fetch 128 bytes, two cache lines, at a time."""
COLUMNS_OF_A_BLOCK = 1 << 13
"""Columns of a block at most: their states stay in the first-level cache."""
OPERATIONS_OF_A_THREAD = 1 << 20
"""Operations for each thread, some 50 us, below which waking it costs more than it saves."""
OPERATIONS_ON_A_TAKEN_CORE = 1 << 23
"""The same, where the thread has no core to itself: see `threads.have_cores`."""
THREADS_OF_A_ROW = 4
"""Threads for each row from which it is divided into strips of columns: what is read in strips
takes up to three times as long."""
OPERATIONS_TO_DIVIDE = 1 << 23
"""Operations below which time is not divided."""
THREADS_OF_A_PART = 2
"""Threads for each row and `LINE` of features above which time is divided: pairs take as long as
the walk that follows, so fewer threads gain nothing."""
COLUMNS_OF_AN_OPERATION = 4
"""Columns (rows times features) for each operation on an element up to which time is divided. The
pairs are two operations more: with more columns they take as long as what another thread saves."""
BYTES_OF_A_PART = 1 << 18
"""Bytes of one sequence in a part of time: two of them stay in a second-level cache."""
COLUMNS_OF_VECTORS = 32
"""Columns that the states of a block are rounded up to: whole vectors of any dtype."""
NARROW_COLUMNS = 64
"""Columns of a block up to which some steps are taken at once: faster while vectors are few."""


class Division(NamedTuple):
    """The division of the work into time chunks and blocks of features."""

    chunk: int
    """Steps of a time chunk."""
    blocks: int
    """Blocks of a row."""
    width: int
    """Features of a block."""
    workers: int
    """Largest number of threads."""


class Direction(NamedTuple):
    """The direction of a pass over time."""

    backward: bool
    """Whether the steps are those of the adjoint."""
    reverse: bool
    """Whether the forward pass runs backwards in time."""
    inside: bool
    """Whether all states before a step are among the hidden states, see `walk.FIELDS`."""


class Code(NamedTuple):
    """The compiled steps of a gate, and what tensors they want."""

    address: int
    alignment: int
    """Bytes that outputs must be aligned to if they are written by non-temporal stores."""
    state: torch.dtype
    """Dtype of the hidden states."""
    output: torch.dtype
    """Dtype of the output y."""


def code(
    programs: tuple[str, str],
    pre: Sequence[Tensor],
    division: Division,
    *,
    backward: bool,
    exclusive: bool,
    pairs: bool = False,
) -> Code | None:
    """Steps for a gate and a readout, or None if PyTorch shall evaluate them.

    `pairs`: whether pairs are asked for though time is not divided.
    """
    operands = tuple([OPERAND[p.dtype, p.ndim] for p in pre])
    in_parts = pairs or division.chunk < sequence(pre).shape[1]
    narrow = division.width <= NARROW_COLUMNS
    return _code(*programs, operands, backward, exclusive, in_parts, narrow)


@cache
def _code(gate: str, readout: str, operands: tuple[Operand, ...], *how: bool) -> Code | None:
    from lightning_lrnn.backends.cpu import codegen  # llvmlite takes a while

    if codegen.uncompiled(gate, readout, operands):
        return None
    steps = codegen.Steps(gate, readout, operands, *how)
    dtypes = DTYPE[steps.state], DTYPE[steps.output]
    return Code(codegen.address(steps), codegen.alignment(), *dtypes)


def rounded(width: int) -> int:
    """Columns of a block with room for whole vectors."""
    return -(-width // COLUMNS_OF_VECTORS) * COLUMNS_OF_VECTORS


@cache
def operations(gate: str, readout: str, *, backward: bool) -> int:
    """On an element, about: what is computed, read and written; 4 of the plain recurrence."""
    programs = [parse(program) for program in (gate, readout) if program]
    computed = sum(OPERATIONS[step.operation].cost for p in programs for step in p.steps)
    forward = 1 + computed + programs[0].inputs + len(programs)
    return 2 * forward if backward else forward


def divided(x: Tensor, operations: int, *, parallel: bool) -> Division:
    """How the work on a sequence is divided among threads.

    Whether there are parts, which decide about bits, depends on the shape, the operations on an
    element and the number of threads; how long they are, on the shape alone.
    """
    B, T, D = x.shape
    if not parallel:
        return Division(T, *_blocks(D, 1), 1)
    work = x.numel() * operations
    least = OPERATIONS_OF_A_THREAD if threads.have_cores() else OPERATIONS_ON_A_TAKEN_CORE
    workers = min(threads.count(), work // least)
    enough = threads.count() > THREADS_OF_A_PART * B * -(-D // LINE)
    few = B * D <= COLUMNS_OF_AN_OPERATION * operations
    if work >= OPERATIONS_TO_DIVIDE and few and enough:
        # A multiple of the steps taken at once.
        chunk = max(BYTES_OF_A_PART // (D * x.itemsize) // LINE, 1) * LINE
        if T > 3 * chunk:  # with fewer parts a thread waits too long for its last
            return Division(chunk, 1, D, max(1, min(B * -(-T // chunk), workers)))
    blocks, width = _blocks(D, workers // B if workers >= THREADS_OF_A_ROW * B else 1)
    return Division(T, blocks, width, max(1, min(B * blocks, workers)))


def _blocks(D: int, wanted: int) -> tuple[int, int]:
    """Blocks in a row, and features of a block."""
    width = -(-D // max(wanted, -(-D // COLUMNS_OF_A_BLOCK)))
    width = min(D, -(-width // LINE) * LINE)
    return -(-D // width), width
