"""The recurrence on a CPU: plans the loops of `_numba_kernels`, allocates, runs them on threads.

Columns are independent, so they are what is divided first, among `torch.get_num_threads()` threads;
no result depends on how. Only where a sequence has too few columns to fill the vector unit is time
divided too (`chunked`), into a number of chunks that depends on T alone. So the bits of a result
depend on neither the number of threads nor their timing.

Sixteen-bit tensors are computed in float32 copies: the state is never rounded.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn.backends import _threads

__all__ = ["backward", "forward", "missing"]

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
NARROW = 8
"""Columns below which time is divided: a vector register holds eight floats."""
CHUNKS = 64
"""Chunks of time, side by side as if they were columns."""
SHORT = 64
"""Steps of a chunk below which dividing is not worth the second reading of the inputs."""
LINE = 16
"""Columns of a block are a multiple of this: 64 bytes of float32."""
WIDE = 1024
"""Columns of a block at most: their states stay in the first-level cache."""
SMALL = 1 << 15
"""Elements below which waking a thread costs more than it saves."""
NOTHING = np.empty(0, np.uint8)


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
    B, T, D = b.shape
    y = torch.empty((B, T, D), dtype=b.dtype)
    h_final = torch.zeros((B, D), dtype=b.dtype) if h0 is None else h0.clone()
    if parallel and _divides_time(B, T, D, lengths, reset):
        _chunked_forward(a, b, y, h_final, reverse, exclusive)
        return y, h_final
    arguments = (
        *_flat(a), *_flat(b), _array(y), _array(h_final), _lengths(lengths, B, T), T, D,
        _dense(a, b), reverse, exclusive, _restarts(lengths, reset, reverse),
    )  # fmt: skip
    _run_units(_kernels().forward_rows, arguments, B, T, D, parallel)
    return y, h_final


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
    B, T, D = y.shape
    da, db = torch.empty((2, B, T, D), dtype=y.dtype)
    dh0 = torch.zeros((B, D), dtype=y.dtype) if dh_final is None else dh_final.clone()
    first = torch.zeros((B, D), dtype=y.dtype) if h0 is None else h0
    if parallel and _divides_time(B, T, D, lengths, reset):
        _chunked_backward(a, y, first, dy, da, db, dh0, reverse, exclusive)
        return da, db, dh0
    arguments = (
        *_flat(a), *_flat(dy), *_flat(y), _array(first), _array(da), _array(db), _array(dh0),
        _lengths(lengths, B, T), T, D, _dense(a, dy, y), reverse, exclusive,
        _restarts(lengths, reset, reverse),
    )  # fmt: skip
    _run_units(_kernels().backward_rows, arguments, B, T, D, parallel)
    return da, db, dh0


def _run_units(
    kernel: Any, arguments: tuple[Any, ...], B: int, T: int, D: int, parallel: bool
) -> None:
    """Divides rows, and the columns of a row if there are few rows, among the threads."""
    threads = _threads.count() if parallel and B * T * D >= SMALL else 1
    blocks = -(-D // WIDE)
    if B * blocks % threads:
        blocks = max(blocks, min(-(-D // LINE), -(-4 * threads // B)))
    width = LINE * -(-D // (blocks * LINE))
    blocks = -(-D // width)
    edges = [B * blocks * i // threads for i in range(threads + 1)]
    _threads.run_all(
        kernel,
        [(begin, end, blocks, width, *arguments) for begin, end in pairwise(edges)],
    )


def _divides_time(B: int, T: int, D: int, lengths: Tensor | None, reset: Tensor | None) -> bool:
    """Whether time is divided: by shape alone. Padding and resets are walked column by column."""
    return B * D < NARROW and T >= CHUNKS * SHORT and lengths is None and reset is None


class _Chunks:
    """The first steps of a walk as CHUNKS stretches of equal length, and the steps that are left.

    A lane is one column of one stretch; all lanes take their steps side by side, which keeps as
    many independent sums in flight as there are lanes.
    """

    def __init__(self, T: int, reverse: bool) -> None:
        # At least one step is left: the end of a walk is a case of its own in the backward pass.
        self.steps = (T - 1) // CHUNKS
        covered = CHUNKS * self.steps
        self.reverse = reverse
        self.covered = slice(T - covered, T) if reverse else slice(0, covered)
        self.left = slice(0, T - covered) if reverse else slice(covered, T)

    def lanes(self, x: Tensor, shift: int = 0) -> tuple[Any, ...]:
        """Array, start, step and lane offsets of a tensor (B, T, D), `shift` steps further on."""
        array, (sB, sT, sD) = _flat(x)
        t = self.covered.start + (self.steps - 1 if self.reverse else 0) + shift
        B, _, D = x.shape
        rows, chunks, columns = np.ogrid[:B, :CHUNKS, :D]
        offset = (rows * sB + chunks * self.steps * sT + columns * sD).reshape(-1)
        return array, t * sT, -sT if self.reverse else sT, offset

    def carry(self, A: Any, B: Any, state: Any) -> Any:
        """The state before each stretch; `state` (B, D) becomes that after the last of them."""
        before = np.empty_like(A)
        for chunk in reversed(range(CHUNKS)) if self.reverse else range(CHUNKS):
            before[:, chunk] = state
            with np.errstate(all="ignore"):  # overflow and NaN are results like any other
                moved = A[:, chunk] * state + B[:, chunk]
            state[:] = np.where(state == 0, B[:, chunk], moved)
        return before


def _identities(like: Tensor, B: int, D: int) -> tuple[Any, Any]:
    shape, dtype = (B, CHUNKS, D), _array(like).dtype
    return np.ones(shape, dtype), np.zeros(shape, dtype)


def _side_by_side(kernel: Any, lanes: list[tuple[Any, ...]], *arguments: Any) -> None:
    """Divides lanes among the threads; what follows the operands is per lane if it is an array."""
    threads = _threads.count()
    size = lanes[0][3].size
    edges = [size * i // threads for i in range(threads + 1)]
    calls = []
    for begin, end in pairwise(edges):
        operands = [(*lane[:3], lane[3][begin:end]) for lane in lanes]
        rest = [v[begin:end] if isinstance(v, np.ndarray) and v.size == size else v
                for v in arguments]  # fmt: skip
        calls.append((*(value for operand in operands for value in operand), *rest))
    _threads.run_all(kernel, calls)


def _chunked_forward(
    a: Tensor, b: Tensor, y: Tensor, h: Tensor, reverse: bool, exclusive: bool
) -> None:
    """Algorithm 1 of the paper: the pairs of all chunks, their carry, all chunks again."""
    B, T, D = b.shape
    chunks = _Chunks(T, reverse)
    inputs = [chunks.lanes(a), chunks.lanes(b)]
    pair_A, pair_B = _identities(y, B, D)
    _side_by_side(
        _kernels().forward_pairs, inputs, pair_A.reshape(-1), pair_B.reshape(-1), chunks.steps
    )
    states = chunks.carry(pair_A, pair_B, h.numpy())
    _side_by_side(
        _kernels().forward, [*inputs, chunks.lanes(y)], False, states.reshape(-1), chunks.steps,
        exclusive, NOTHING, 0, 0,
    )  # fmt: skip
    y[:, chunks.left], h[:] = forward(
        a[:, chunks.left], b[:, chunks.left], h, None, None,
        reverse=reverse, exclusive=exclusive, parallel=False,
    )  # fmt: skip


def _chunked_backward(
    a: Tensor,
    y: Tensor,
    h0: Tensor,
    dy: Tensor,
    da: Tensor,
    db: Tensor,
    c: Tensor,
    reverse: bool,
    exclusive: bool,
) -> None:
    """The same for the adjoint, which walks the other way."""
    B, T, D = y.shape
    chunks = _Chunks(T, not reverse)
    inputs = [chunks.lanes(a), chunks.lanes(dy)]
    pair_A, pair_B = _identities(y, B, D)
    _side_by_side(
        _kernels().backward_pairs, inputs, pair_A.reshape(-1), pair_B.reshape(-1), chunks.steps,
        exclusive,
    )  # fmt: skip
    states = chunks.carry(pair_A, pair_B, c.numpy())
    before = chunks.lanes(y, 0 if exclusive else 1 if reverse else -1)
    out, *places = chunks.lanes(db)
    _side_by_side(
        _kernels().backward, [*inputs, before, (_array(da), *places)], out, False,
        states.reshape(-1), _array(h0)[:0], chunks.steps, exclusive, NOTHING, 0, 0,
    )  # fmt: skip
    left = chunks.left
    da[:, left], db[:, left], c[:] = backward(
        a[:, left], y[:, left], h0, dy[:, left], c, None, None,
        reverse=reverse, exclusive=exclusive, parallel=False,
    )  # fmt: skip


def _flat(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """A tensor's memory as a flat array that starts at its first element, and its strides."""
    x = x.detach().resolve_conj().resolve_neg()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span,), (1,)).numpy(), x.stride()


def _array(x: Tensor) -> Any:
    """A contiguous tensor as a flat array."""
    return x.detach().view(-1).numpy()


def _dense(*tensors: Tensor) -> bool:
    return all(x.stride(2) == 1 or x.shape[2] == 1 for x in tensors)


def _lengths(lengths: Tensor | None, B: int, T: int) -> Any:
    return np.full(B, T) if lengths is None else np.clip(lengths.numpy(), 0, T)


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
