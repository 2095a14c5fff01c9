"""The plain recurrence on a CPU: chooses what is walked side by side, allocates.

Rows are walked by the compiled steps of the gate that hands on what it is given (`launch`). With
one or two features four steps of time, or eight, are combined in one vector (`fold`). What is
divided, and how, depends on the shape alone: the bits of a result depend neither on the number of
threads nor on their timing.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends.cpu import launch
from lightning_lrnn.backends.cpu.huge_pages import empty, resolved
from lightning_lrnn.backends.cpu.launch import Code, spread
from lightning_lrnn.backends.cpu.operands import STORAGE
from lightning_lrnn.gates import IDENTITY

__all__ = ["backward", "forward", "missing", "plan"]

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
LONG = 1 << 15
"""Steps of all rows from which a vector of several pays for one more call."""
FOLD = 32
"""Bytes of the real parts of a vector that holds several steps: whatever registers the processor
has, so that bits do not depend on those."""
OF_FOLDED = 3
"""Times the operations of a step that is alone."""
ALL = slice(None)


@cache
def missing() -> list[str]:
    """Why this cannot run here; [] = it can."""
    if find_spec("llvmlite") is None:
        return ["llvmlite is not installed: pip install llvmlite"]
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
    a, b = resolved(a), resolved(b)
    y = empty(b)
    h = b.new_zeros(b.shape[0], b.shape[2]) if h0 is None else h0.clone()
    reverse, exclusive = bool(reverse), bool(exclusive)
    plain = lengths is None and reset is None
    for fold, steps in plan(b, plain, reverse, parallel, b.shape[1]):
        x, output = (_cut(a, steps), _cut(b, steps)), _cut(y, steps)
        if fold:
            _folded([*x], [output], h, False, reverse, exclusive)
        else:
            _forward_rows(*x, output, h, (lengths, reset), reverse, exclusive, parallel)
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
    a, y, dy = resolved(a), resolved(y), spread(resolved(dy))
    da, db = empty(y), empty(y)
    c = y.new_zeros(y.shape[0], y.shape[2]) if dh_final is None else dh_final.clone()
    first = y.new_zeros(c.shape) if h0 is None else h0
    reverse, exclusive = bool(reverse), bool(exclusive)
    plain = lengths is None and reset is None
    # The first step of the forward walk finds the state before it in h0, no other does.
    for fold, steps in plan(y, plain, not reverse, parallel, y.shape[1] - 1):
        x, outputs = (_cut(a, steps), _cut(dy, steps)), (_cut(da, steps), _cut(db, steps))
        if fold:
            shift = 0 if exclusive else 1 if reverse else -1
            before = y[:, steps.start + shift : steps.stop + shift]
            _folded([*x, before], [*outputs], c, True, not reverse, exclusive)
        else:
            inputs = *x, _cut(y, steps), first
            _backward_rows(*inputs, *outputs, c, (lengths, reset), reverse, exclusive, parallel)
    return da, db, c


def plan(
    x: Tensor, plain: bool, backwards: bool, parallel: bool, most: int
) -> list[tuple[bool, slice]]:
    """Parts of the work, in order: whether a vector holds several steps, and which steps.

    Args:
        x: of the shape of the work.
        plain: no padding, no resets; those are walked row by row.
        backwards: the walk is from the last step to the first.
        parallel: time may be divided.
        most: steps, from the first one of the walk, that may be folded.
    """
    B, T, D = x.shape
    columns = _columns(x)
    several = columns // D
    possible = plain and parallel and several > 2 and columns % D == 0
    if not possible or B * T < LONG or most < several:
        return [(False, ALL)]
    end = most // several * several

    def steps(begin: int, end: int) -> slice:
        return slice(T - end, T - begin) if backwards else slice(begin, end)

    return [(True, steps(0, end))] + [(False, steps(end, T))] * (end < T)


def _cut(x: Tensor, steps: slice) -> Tensor:
    """x[:, steps], but for what that costs where it is all of x."""
    return x if steps is ALL else x[:, steps]


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
    pieces = launch.pieces(b, launch.operations(IDENTITY, "", False), parallel)
    code = launch.code(IDENTITY, "", [a, b], False, exclusive, pieces)
    assert code is not None
    launch.walk(code, False, [a, b, None, y], {3: y}, h, masks, reverse, True, pieces)


def _backward_rows(
    a: Tensor,
    dy: Tensor,
    y: Tensor,
    h0: Tensor,
    da: Tensor,
    db: Tensor,
    c: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> None:
    """The steps of the adjoint; the first one of the forward walk is among these."""
    pieces = launch.pieces(y, launch.operations(IDENTITY, "", True), parallel)
    code = launch.code(IDENTITY, "", [a, a], True, exclusive, pieces)
    assert code is not None
    tensors = [a, None, dy, y, h0, da, db]
    launch.walk(code, True, tensors, {5: da, 6: db}, c, masks, reverse, exclusive, pieces)


def _columns(x: Tensor) -> int:
    """Of a vector that holds several steps."""
    return FOLD // (x.itemsize // 2 if x.is_complex() else x.itemsize)


@cache
def _fold(dtype: torch.dtype, *how: Any) -> Code:
    from lightning_lrnn.backends.cpu import fold as _cpu_fold  # llvmlite takes a while
    from lightning_lrnn.backends.cpu import llvm

    address = _cpu_fold.address(_cpu_fold.Fold(STORAGE[dtype], *how))
    return Code(address, llvm.vector_bytes(), dtype, dtype)


def _folded(
    inputs: list[Tensor],
    outputs: list[Tensor],
    h: Tensor,
    backward: bool,
    backwards: bool,
    exclusive: bool,
) -> None:
    """All steps (B, T, D) as steps of W columns.

    Args:
        inputs: in the order of `fold`.
        outputs: likewise; written.
        h: state (B, D) before the walk; replaced by that after it.
        backward: whether the steps are those of the adjoint.
        backwards: whether the walk is from the last step to the first.
        exclusive: of the forward walk.
    """
    B, T, D = outputs[0].shape
    W = _columns(h)

    def folded(x: Tensor) -> Tensor:
        if x.stride(1) != D or (D > 1 and x.stride(2) != 1):
            x = x.contiguous()
        return x.as_strided((B, T * D // W, W), (x.stride(0), W, 1))

    inputs, outputs = [folded(x) for x in inputs], [folded(x) for x in outputs]
    operations = OF_FOLDED * launch.operations(IDENTITY, "", backward)
    pieces = launch.pieces(outputs[0], operations, True)
    divided = pieces[0] < T * D // W
    code = _fold(h.dtype, W, D, backward, exclusive, not backwards, divided)
    tensors = [*inputs, *outputs]
    written = dict(enumerate(outputs, len(inputs)))
    state = torch.cat([h] * (W // D), 1)
    reverse = backwards is not backward
    launch.walk(code, backward, tensors, written, state, (None, None), reverse, True, pieces)
    h.copy_(state[:, :D])
