"""The recurrence on a CPU: plans the loops of `_numba_kernels`, allocates, runs them on threads.

Columns are independent, so they are what is divided first, among `torch.get_num_threads()` threads;
no result depends on how. Only where there are too few columns to keep all cores busy is time
divided too, into parts that depend on the shape alone: parts of a row that are taken in order by
whoever is free (see the kernels), or, for a handful of columns, stretches walked side by side
(Algorithm 1 of the paper: the pairs of all stretches, their carry, all stretches again). So the
bits of a result depend neither on the number of threads nor on their timing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from enum import Enum, auto
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn.backends import _threads

__all__ = ["backward", "forward", "missing"]

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
LINE = 32
"""Features of a block are a multiple of this: cores fetch 128 bytes, two cache lines, at a time."""
WIDE = 1024
"""Columns of a block at most: their states stay in the first-level cache."""
FEW = 512
"""Columns (rows times features) below which time is divided, if all threads may be used."""
PART = 1 << 17
"""Bytes of one sequence in a part of time: two of them stay in a second-level cache."""
HANDFUL = 16
"""Columns below which it is divided into STRETCHES instead."""
STRETCHES = 256
"""Of time. Many more than threads: they keep the sums of one thread independent, too."""
SHORT = 64
"""Steps of a stretch below which dividing is not worth the second reading of the inputs."""
NARROW = 8
"""Features below which rows are walked side by side: a vector register holds eight floats."""
SMALL = 1 << 15
"""Elements below which waking a thread costs more than it saves."""
LANES = 4
"""Columns, or stretches of time, walked side by side where features are few (see the kernels)."""
LARGE = 1 << 22
"""Bytes of an output from which it is stored past the caches."""
ALIGNMENT = 32
"""Bytes of a vector of the kernels."""
LARGE_PAGE = 1 << 21
"""Bytes, on x86 and, with ordinary pages of 4096 bytes, on ARM."""
MADV_HUGEPAGE = 14
ALL = slice(None)
NOTHING = np.empty(0, np.uint8)
NO_LENGTHS = np.empty(0, np.int64)
NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}


class Layout(Enum):
    """What is walked side by side."""

    ROWS = auto()
    """The features of a row, which stand side by side in memory too; row after row."""
    COLUMNS = auto()
    """The same feature of `LANES` rows."""
    STRETCHES = auto()
    """`LANES` stretches of time of one feature of one row."""


@cache
def missing() -> list[str]:
    """Why this cannot run here; [] = it can."""
    if find_spec("numba") is None:
        return ["numba is not installed: pip install numba"]
    return []


@cache
def _kernels() -> ModuleType:
    """Imported at the first call: Numba takes half a second."""
    from lightning_lrnn.backends import _numba_kernels

    return _numba_kernels


def forward(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, T, D) and the final state (B, D); arguments as for a backend's `run`.

    Args:
        a: decays (B, T, D), any strides.
        b: impulses (B, T, D), any strides.
        h0: initial state, or None.
        lengths: int64 (B,), or None.
        reset: bool (B, T), or None.
        reverse: walk from the last step to the first.
        exclusive: y_t is the state before step t.
        parallel: on all threads and, for few columns, over time; else one step after the other.
    """
    if b.dtype in SIXTEEN_BIT:
        y, h_final = forward(
            a.float(), b.float(), h0, lengths, reset,
            reverse=reverse, exclusive=exclusive, parallel=parallel,
        )  # fmt: skip
        return y.to(b.dtype), h_final
    a, b = _detached(a), _detached(b)
    y = b.new_empty(b.shape)
    h = b.new_zeros(b.shape[0], b.shape[2]) if h0 is None else h0.clone()
    reverse, exclusive = bool(reverse), bool(exclusive)
    plain = lengths is None and reset is None
    masks = lengths, _restarts(lengths, reset, reverse)
    for layout, *part in _plan(b, plain, reverse, parallel):
        x = _cut(a, *part), _cut(b, *part), _cut(y, *part), _cut(h, part[0])
        if layout is Layout.ROWS or not _forward_lanes(*x, layout, reverse, exclusive, parallel):
            _forward_rows(*x, *masks, reverse, exclusive, parallel)
    return y, h


def backward(
    a: Tensor,
    y: Tensor,
    h0: Tensor | None,
    dy: Tensor,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """da, db (B, T, D) and dh0 (B, D); arguments as for a backend's `run_backward`."""
    if y.dtype in SIXTEEN_BIT:
        da, db, dh0 = backward(
            a.float(), y.float(), h0, dy.float(), dh_final, lengths, reset,
            reverse=reverse, exclusive=exclusive, parallel=parallel,
        )  # fmt: skip
        return da.to(y.dtype), db.to(y.dtype), dh0
    a, y, dy = _detached(a), _detached(y), _detached(dy)
    da, db = _empty(y), _empty(y)
    c = y.new_zeros(y.shape[0], y.shape[2]) if dh_final is None else dh_final.clone()
    first = y.new_zeros(c.shape) if h0 is None else h0
    reverse, exclusive = bool(reverse), bool(exclusive)
    plain = lengths is None and reset is None
    masks = lengths, _restarts(lengths, reset, reverse)
    for layout, rows, steps in _plan(y, plain, not reverse, parallel):
        x = _cut(a, rows, steps), _cut(dy, rows, steps)
        outputs = _cut(da, rows, steps), _cut(db, rows, steps), _cut(c, rows)
        done = False
        if layout is not Layout.ROWS:
            # The first step of the forward walk is never among these.
            shift = 0 if exclusive else 1 if reverse else -1
            before = y[rows, steps.start + shift : steps.stop + shift]
            done = _backward_lanes(*x, before, *outputs, layout, not reverse, exclusive, parallel)
        if done:
            continue
        begins = steps is ALL or (steps.stop == y.shape[1] if reverse else steps.start == 0)
        inputs = *x, _cut(y, rows, steps), _cut(first, rows) if begins else None
        _backward_rows(*inputs, *outputs, *masks, reverse, exclusive, parallel)
    return da, db, c


def _plan(
    x: Tensor, plain: bool, backwards: bool, parallel: bool
) -> list[tuple[Layout, slice, slice]]:
    """Parts of the work, in order: layout, rows, steps.

    Args:
        x: of the shape of the work.
        plain: no padding, no resets; those are walked row by row.
        backwards: the walk is from the last step to the first.
        parallel: time may be divided.
    """
    B, T, D = x.shape

    def steps(begin: int, end: int) -> slice:
        return slice(T - end, T - begin) if backwards else slice(begin, end)

    if plain and parallel and B * D < HANDFUL and T > STRETCHES * SHORT:
        # The last step is left out: the adjoint finds the state before it elsewhere.
        length = (T - 1) // STRETCHES
        if length > 2 * LINE:
            # Stretches at a distance of a power of two would share few places in a cache.
            length = (length - LINE) // (2 * LINE) * (2 * LINE) + LINE
        end = STRETCHES * length
        return [
            (Layout.STRETCHES, ALL, steps(0, end)),
            (Layout.ROWS, ALL, steps(end, T)),
        ]
    lanes = B // LANES * LANES
    if plain and D < NARROW and lanes and T > 1:
        parts: list[tuple[Layout, slice, slice]] = [
            (Layout.COLUMNS, slice(0, lanes), steps(0, T - 1)),
            (Layout.ROWS, slice(0, lanes), steps(T - 1, T)),
        ]
        return parts + [(Layout.ROWS, slice(lanes, B), steps(0, T))] * (lanes < B)
    return [(Layout.ROWS, ALL, ALL)]


def _cut(x: Tensor, *part: slice) -> Tensor:
    """x[part], but for what that costs where it is all of x."""
    for p in part:
        if p is not ALL:
            return x[part]
    return x


def _forward_rows(
    a: Tensor,
    b: Tensor,
    y: Tensor,
    h: Tensor,
    lengths: Tensor | None,
    restarts: Any,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> None:
    arguments = (
        *_flat(a), *_flat(b), *_flat(y), _lengths(lengths, b), *b.shape, reverse, exclusive,
        restarts, _past(y),
    )  # fmt: skip
    _run_rows(_kernels().forward_rows, b, h, parallel, arguments)


def _backward_rows(
    a: Tensor,
    dy: Tensor,
    y: Tensor,
    h0: Tensor | None,
    da: Tensor,
    db: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    restarts: Any,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> None:
    """`h0` is None if the first step of the forward walk is not among these."""
    arguments = (
        *_flat(a), *_flat(dy), *_flat(y), (c if h0 is None else h0).data_ptr(), h0 is not None,
        *_flat(da), db.data_ptr(), _lengths(lengths, y), *y.shape, reverse, exclusive, restarts,
        _past(da, db),
    )  # fmt: skip
    _run_rows(_kernels().backward_rows, y, c, parallel, arguments)


def _forward_lanes(
    a: Tensor, b: Tensor, y: Tensor, h: Tensor, layout: Layout, reverse: bool, exclusive: bool,
    parallel: bool,
) -> bool:  # fmt: skip
    """Computes y and h in place; False if that needs pairs which are not finite."""
    steps, workers = _units(b, layout, parallel)
    inputs = *_lanes(a, layout, reverse), *_lanes(b, layout, reverse)
    kernels = _kernels()
    if layout is Layout.STRETCHES:
        A, B = np.empty((2, h.numel(), STRETCHES), _array(h).dtype)
        pairs = A.reshape(-1, LANES), B.reshape(-1, LANES), False, False
        _threads.run_all(kernels.pair_lanes, [(_counter(), steps, *inputs, *pairs)] * workers)
        state = np.empty_like(A)
        if not kernels.carry(A, B, _array(h), state):
            return False
    else:
        state = _states(h)
    outputs = *_lanes(y, layout, reverse), state.reshape(-1, LANES), exclusive
    _threads.run_all(kernels.forward_lanes, [(_counter(), steps, *inputs, *outputs)] * workers)
    _leave(h, state, layout)
    return True


def _backward_lanes(
    a: Tensor, dy: Tensor, before: Tensor, da: Tensor, db: Tensor, c: Tensor, layout: Layout,
    backwards: bool, exclusive: bool, parallel: bool,
) -> bool:  # fmt: skip
    """The same for the adjoint; `before` holds the state before each step."""
    steps, workers = _units(dy, layout, parallel)
    inputs = *_lanes(a, layout, backwards), *_lanes(dy, layout, backwards)
    kernels = _kernels()
    if layout is Layout.STRETCHES:
        A, B = np.empty((2, c.numel(), STRETCHES), _array(c).dtype)
        pairs = A.reshape(-1, LANES), B.reshape(-1, LANES), True, exclusive
        _threads.run_all(kernels.pair_lanes, [(_counter(), steps, *inputs, *pairs)] * workers)
        state = np.empty_like(A)
        if not kernels.carry(A, B, _array(c), state):
            return False
    else:
        state = _states(c)
    flat_da, *places = _lanes(da, layout, backwards)
    outputs = (
        *_lanes(before, layout, backwards), flat_da, db.data_ptr(), *places,
        state.reshape(-1, LANES), exclusive,
    )  # fmt: skip
    _threads.run_all(kernels.backward_lanes, [(_counter(), steps, *inputs, *outputs)] * workers)
    _leave(c, state, layout)
    return True


def _states(h: Tensor) -> Any:
    """(B, D) as (B / LANES, D, LANES)."""
    B, D = h.shape
    return np.ascontiguousarray(h.numpy().reshape(B // LANES, LANES, D).swapaxes(1, 2))


def _leave(h: Tensor, state: Any, layout: Layout) -> None:
    """Writes the states of the lanes, as they are at last, into h (B, D)."""
    if layout is Layout.STRETCHES:
        h.numpy()[:] = state[:, -1].reshape(h.shape)
    else:
        h.numpy()[:] = state.swapaxes(1, 2).reshape(h.shape)


def _lanes(x: Tensor, layout: Layout, backwards: bool) -> tuple[int, Any, int, int]:
    """Where a tensor begins, where each unit of it does, strides between lanes and steps."""
    B, T, D = x.shape
    flat, (sB, sT, sD) = _flat(x)
    origin = 0
    if backwards:
        origin, sT = (T - 1) * sT, -sT
    if layout is Layout.STRETCHES:
        between_lanes = T // STRETCHES * sT
        row, feature, group = np.ogrid[:B, :D, : STRETCHES // LANES]
        starts = origin + row * sB + feature * sD + group * (LANES * between_lanes)
    else:
        between_lanes = sB
        group, feature = np.ogrid[: B // LANES, :D]
        starts = origin + group * (LANES * sB) + feature * sD
    return flat, starts.reshape(-1).astype(np.int64), between_lanes, sT


def _units(x: Tensor, layout: Layout, parallel: bool) -> tuple[int, int]:
    """Steps of every unit of LANES lanes, and workers."""
    T = x.shape[1]
    steps = T // STRETCHES if layout is Layout.STRETCHES else T
    return steps, _workers(x.numel() // (LANES * steps), x.numel(), parallel)


def _pieces(x: Tensor, parallel: bool) -> tuple[int, int, int, int]:
    """Steps of a part of time, blocks in a row, features of a block, workers."""
    B, T, D = x.shape
    if parallel and B * D < FEW:
        # A multiple of the steps taken at once.
        chunk = max(PART // (D * x.itemsize) // LINE, 1) * LINE
        if chunk < T:
            return chunk, 1, D, _workers(B * -(-T // chunk), x.numel(), parallel)
    blocks = -(-D // WIDE)
    if parallel and x.numel() >= SMALL:
        threads = _threads.count()
        most = max(blocks, D // LINE)
        while blocks < most and B * blocks % threads and B * blocks < 4 * threads:
            blocks += 1
    width = -(-D // blocks)
    width = min(D, -(-width // LINE) * LINE)
    blocks = -(-D // width)
    return T, blocks, width, _workers(B * blocks, x.numel(), parallel)


def _workers(pieces: int, elements: int, parallel: bool) -> int:
    """Threads worth waking: the kernels divide the pieces among them."""
    return max(1, min(pieces, _threads.count(), elements // SMALL)) if parallel else 1


def _run_rows(
    kernel: Callable[..., None], x: Tensor, h: Tensor, parallel: bool, arguments: tuple[Any, ...]
) -> None:
    """A kernel for rows on tensors of the shape of `x`; the states `h` are replaced."""
    chunk, blocks, width, workers = _pieces(x, parallel)
    parts = -(-x.shape[1] // chunk)
    flags = np.zeros(1 + (parts + 1) * x.shape[0] * blocks, np.int64)
    states = np.empty((parts - 1) * h.numel(), NUMPY[x.dtype])
    pieces = flags, states, h.data_ptr(), parts, chunk, blocks, width
    _threads.run_all(kernel, [(*pieces, *arguments)] * workers)


def _counter() -> Any:
    """Of the pieces taken."""
    return np.zeros(1, np.int64)


def _empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor; a large one in large pages.

    For gradients: y, da and db of a training step are freed together, which is enough for the
    allocator to return them to the system, so each step gets its pages anew. Large ones are 512
    times fewer. (The y of a forward pass alone is mostly memory that is still there.)
    """
    return _in_large_pages(like.new_empty(like.shape, dtype=dtype or like.dtype))


def _in_large_pages(x: Tensor) -> Tensor:
    """The same, its memory in large pages if it is large and new."""
    storage = x.untyped_storage()
    if storage.nbytes() >= 2 * LARGE_PAGE and sys.platform == "linux":
        begin = -(-storage.data_ptr() // LARGE_PAGE) * LARGE_PAGE
        end = (storage.data_ptr() + storage.nbytes()) // LARGE_PAGE * LARGE_PAGE
        # Advice: where it cannot be followed, nothing happens.
        _madvise()(begin, end - begin, MADV_HUGEPAGE)
    return x


@cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _detached(x: Tensor) -> Tensor:
    """In memory what it stands for: a conjugate is made."""
    return x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x


def _flat(x: Tensor) -> tuple[int, tuple[int, ...]]:
    """Where a tensor begins, and its strides."""
    return x.data_ptr(), x.stride()


def _array(x: Tensor) -> Any:
    """A contiguous tensor as a flat array."""
    return x.view(-1).numpy()


def _past(*outputs: Tensor, alignment: int = ALIGNMENT) -> bool:
    """Whether outputs are stored past the caches, which for that need not read them first.

    That is a quarter of the traffic, and what is large is not there any more when it is needed. The
    instruction wants aligned vectors, and lines that are filled at once: not those of narrow rows.
    """
    return all(
        x.nbytes >= LARGE
        and x.shape[2] > 2 * LINE
        and not any(
            n % alignment for n in (x.data_ptr(), *(x.itemsize * s for s in x.stride()[:2]))
        )
        for x in outputs
    )


def _lengths(lengths: Tensor | None, x: Tensor) -> Any:
    return NO_LENGTHS if lengths is None else np.clip(lengths.numpy(), 0, x.shape[1])


def _restarts(lengths: Tensor | None, reset: Tensor | None, reverse: bool) -> Any:
    """By time, whether no state passes into a step of the forward walk; empty if it always does."""
    if reset is None:
        return NOTHING
    if reverse:
        # A document begins at t + 1: the walk enters it from its end, step t is outside.
        starts = torch.zeros_like(reset)
        starts[:, :-1] = reset[:, 1:]
        if lengths is not None:
            steps = torch.arange(1, reset.shape[1] + 1)
            starts &= steps < lengths[:, None]
        reset = starts
    return _array(reset.view(torch.uint8))
