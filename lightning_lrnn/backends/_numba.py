"""The plain recurrence on a CPU: chooses what is walked side by side, allocates.

Rows of many features are walked by the compiled steps of the gate that hands on what it is given
(`_cpu_rows`). With few features the same one of several rows is walked side by side, and with a
handful of columns stretches of time (Algorithm 1 of the paper: the pairs of all stretches, their
carry, all stretches again), by the loops of `_numba_kernels`. What is divided, and how, depends on
the shape alone: the bits of a result depend neither on the number of threads nor on their timing.
"""

from __future__ import annotations

import ctypes
import sys
from enum import Enum, auto
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn.backends import _cpu_rows, _threads
from lightning_lrnn.backends._cpu_rows import array, kernels, place, spread, workers
from lightning_lrnn.gates import IDENTITY

__all__ = ["backward", "forward", "missing"]

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
HANDFUL = 16
"""Columns below which it is divided into STRETCHES instead."""
STRETCHES = 256
"""Of time. Many more than threads: they keep the sums of one thread independent, too."""
SHORT = 64
"""Steps of a stretch below which dividing is not worth the second reading of the inputs."""
NARROW = 8
"""Features below which rows are walked side by side: a vector register holds eight floats."""
LANES = 4
"""Columns, or stretches of time, walked side by side where features are few (see the kernels)."""
LARGE_PAGE = 1 << 21
"""Bytes, on x86 and, with ordinary pages of 4096 bytes, on ARM."""
MADV_HUGEPAGE = 14
ALL = slice(None)
NOWHERE = 0, 0, 0, 0
"""The place of a tensor that is not read."""


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
    for layout, *part in _plan(b, plain, reverse, parallel):
        x = _cut(a, *part), _cut(b, *part), _cut(y, *part), _cut(h, part[0])
        if layout is Layout.ROWS or not _forward_lanes(*x, layout, reverse, exclusive, parallel):
            _forward_rows(*x, (lengths, reset), reverse, exclusive, parallel)
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
    a, y, dy = _detached(a), _detached(y), spread(_detached(dy))
    da, db = _empty(y), _empty(y)
    c = y.new_zeros(y.shape[0], y.shape[2]) if dh_final is None else dh_final.clone()
    first = y.new_zeros(c.shape) if h0 is None else h0
    reverse, exclusive = bool(reverse), bool(exclusive)
    plain = lengths is None and reset is None
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
        _backward_rows(*inputs, *outputs, (lengths, reset), reverse, exclusive, parallel)
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
        if length > 2 * _cpu_rows.LINE:
            # Stretches at a distance of a power of two would share few places in a cache.
            line = _cpu_rows.LINE
            length = (length - line) // (2 * line) * (2 * line) + line
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
    masks: tuple[Tensor | None, Tensor | None],
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> None:
    """The steps of the gate that hands on what it is given."""
    pieces = _cpu_rows.pieces(b, parallel)
    code = _cpu_rows.code(IDENTITY, "", [a, b], False, exclusive, pieces)
    assert code is not None
    places = [place(a), place(b), NOWHERE, place(y)]
    _cpu_rows.walk(code, False, places, {3: y}, h, masks, reverse, True, pieces)


def _backward_rows(
    a: Tensor,
    dy: Tensor,
    y: Tensor,
    h0: Tensor | None,
    da: Tensor,
    db: Tensor,
    c: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> None:
    """`h0` is None if the first step of the forward walk is not among these."""
    pieces = _cpu_rows.pieces(y, parallel)
    code = _cpu_rows.code(IDENTITY, "", [a, a], True, exclusive, pieces)
    assert code is not None
    first = NOWHERE if h0 is None else place(h0)
    places = [place(a), NOWHERE, place(dy), place(y), first, place(da), place(db)]
    inside = exclusive or h0 is None
    _cpu_rows.walk(code, True, places, {5: da, 6: db}, c, masks, reverse, inside, pieces)


def _forward_lanes(
    a: Tensor, b: Tensor, y: Tensor, h: Tensor, layout: Layout, reverse: bool, exclusive: bool,
    parallel: bool,
) -> bool:  # fmt: skip
    """Computes y and h in place; False if that needs pairs which are not finite."""
    steps, workers = _units(b, layout, parallel)
    inputs = *_lanes(a, layout, reverse), *_lanes(b, layout, reverse)
    compiled = kernels()
    if layout is Layout.STRETCHES:
        A, B = np.empty((2, h.numel(), STRETCHES), array(h).dtype)
        pairs = A.reshape(-1, LANES), B.reshape(-1, LANES), False, False
        _threads.run_all(compiled.pair_lanes, [(_counter(), steps, *inputs, *pairs)] * workers)
        state = np.empty_like(A)
        if not compiled.carry(A, B, array(h), state):
            return False
    else:
        state = _states(h)
    outputs = *_lanes(y, layout, reverse), state.reshape(-1, LANES), exclusive
    _threads.run_all(compiled.forward_lanes, [(_counter(), steps, *inputs, *outputs)] * workers)
    _leave(h, state, layout)
    return True


def _backward_lanes(
    a: Tensor, dy: Tensor, before: Tensor, da: Tensor, db: Tensor, c: Tensor, layout: Layout,
    backwards: bool, exclusive: bool, parallel: bool,
) -> bool:  # fmt: skip
    """The same for the adjoint; `before` holds the state before each step."""
    steps, workers = _units(dy, layout, parallel)
    inputs = *_lanes(a, layout, backwards), *_lanes(dy, layout, backwards)
    compiled = kernels()
    if layout is Layout.STRETCHES:
        A, B = np.empty((2, c.numel(), STRETCHES), array(c).dtype)
        pairs = A.reshape(-1, LANES), B.reshape(-1, LANES), True, exclusive
        _threads.run_all(compiled.pair_lanes, [(_counter(), steps, *inputs, *pairs)] * workers)
        state = np.empty_like(A)
        if not compiled.carry(A, B, array(c), state):
            return False
    else:
        state = _states(c)
    flat_da, *places = _lanes(da, layout, backwards)
    outputs = (
        *_lanes(before, layout, backwards), flat_da, db.data_ptr(), *places,
        state.reshape(-1, LANES), exclusive,
    )  # fmt: skip
    _threads.run_all(compiled.backward_lanes, [(_counter(), steps, *inputs, *outputs)] * workers)
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
    return steps, workers(x.numel() // (LANES * steps), x.numel(), parallel)


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
