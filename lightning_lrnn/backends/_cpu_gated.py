"""The gated recurrence on a CPU: gate, readout and recurrence in one pass, forward and backward.

As `_numba` does with the plain recurrence, with steps that are compiled for the gate. Where it
would not walk row by row (a handful of columns, or few features), and for gates that there is no
vector code for (`_cpu_gate.uncompiled`), PyTorch evaluates gate and readout around the plain
recurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn._dtypes import state_dtype
from lightning_lrnn._evaluation import backward_around, forward_around, sequence
from lightning_lrnn.backends import _numba, _threads
from lightning_lrnn.backends._cuda_gate import Operand
from lightning_lrnn.backends._numba import Layout

__all__ = ["gated_backward", "gated_forward"]

STORAGE = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
NARROW = 64
"""Features up to which some steps are taken at once: faster while they are few vectors."""
DTYPE = {storage: dtype for dtype, storage in STORAGE.items()}


OPERAND = {
    (dtype, ndim): Operand(storage, ndim == 3)
    for dtype, storage in STORAGE.items()
    for ndim in (1, 2, 3)
}


class Code(NamedTuple):
    """Compiled steps."""

    address: int
    alignment: int
    """Bytes that outputs must be aligned to if they are stored past the caches."""
    state: torch.dtype
    """Of the emitted states."""
    output: torch.dtype
    """Of y."""


@cache
def _code(
    gate: str, readout: str, operands: tuple[Operand, ...], backward: bool, *how: bool
) -> Code | None:
    """Steps for a gate, or None if PyTorch shall evaluate it; `how` as in `_cpu_gate.Steps`."""
    from lightning_lrnn.backends import _cpu_gate  # llvmlite takes a while

    if _cpu_gate.uncompiled(gate, readout, operands):
        return None
    steps = _cpu_gate.Steps(gate, readout, operands, backward, *how)
    dtypes = DTYPE[steps.state], DTYPE[steps.output]
    return Code(_cpu_gate.address(steps), _cpu_gate.alignment(), *dtypes)


def gated_forward(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the emitted states and h_final; arguments as for a backend's `run_gated`."""
    reverse, exclusive = bool(reverse), bool(exclusive)
    masks, x = (lengths, reset), sequence(pre)
    pieces = _numba._pieces(x, parallel)
    code = None
    if _in_rows(x, masks, reverse, parallel):
        code = _code(gate, readout, _operands(pre), False, exclusive, *_how(x, pieces))
    if code is None:
        run = partial(_numba.forward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        return forward_around(run, gate, readout, pre, h0, *masks)
    pre = list(map(_numba._detached, pre))
    emitted = _numba._empty(x, code.state)
    y = _numba._empty(x, code.output) if readout else emitted
    h = _state(emitted) if h0 is None else h0.clone()
    places = [*map(_place, pre), _place(y), _place(emitted)]
    outputs = {len(pre): y, len(pre) + 1: emitted} if readout else {len(pre) + 1: emitted}
    direction = -1 if reverse else 1
    _run(code, False, places, outputs, h, masks, direction, reverse, True, pieces)
    return y, emitted, h


def gated_backward(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    emitted: Tensor,
    h0: Tensor | None,
    dy: Tensor,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
    into: Sequence[Tensor | None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of `pre` and h0; arguments as for a backend's `run_gated_backward`."""
    reverse, exclusive = bool(reverse), bool(exclusive)
    masks, x, n = (lengths, reset), sequence(pre), len(pre)
    pieces = _numba._pieces(x, parallel)
    code = None
    if _in_rows(x, masks, not reverse, parallel):
        code = _code(gate, readout, _operands(pre), True, exclusive, *_how(x, pieces))
    if code is None:
        run = partial(_numba.backward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        return backward_around(
            run, gate, readout, pre, emitted, h0, dy, dh_final, *masks, into=into
        )
    B, T, D = x.shape
    pre = list(map(_numba._detached, pre))
    emitted, dy = _numba._detached(emitted), _spread(_numba._detached(dy))
    c = _state(emitted) if dh_final is None else dh_final.clone()
    # Rounded as the states after it are.
    first = (_state(emitted) if h0 is None else h0).to(emitted.dtype)
    chunk, blocks, width, _ = pieces
    room = blocks * _rounded(width)
    gradients: list[Any] = []
    for p, given in zip(pre, into or [None] * n, strict=True):
        if p.ndim < 3:
            sums = np.complex128 if p.is_complex() else np.float64
            gradients.append(np.zeros((-(-T // chunk), B, room), sums))
        else:
            gradients.append(_numba._empty(x) if given is None else given)
    if into is not None:
        _numba._in_large_pages(next(g for g in gradients if isinstance(g, Tensor)))
    places = [*map(_place, pre), _place(dy), _place(emitted), _place(first)]
    outputs = {}
    for g in gradients:
        if isinstance(g, Tensor):
            outputs[len(places)] = g
            places.append(_place(g))
        else:
            by_part, by_row, size = g.strides
            places.append((g.ctypes.data, by_row, by_part, size))
    direction = 1 if reverse else -1
    _run(code, True, places, outputs, c, masks, direction, reverse, exclusive, pieces)
    return [_reduced(g, p, D) for g, p in zip(gradients, pre, strict=True)], c


def _run(
    code: Code,
    backward: bool,
    places: list[tuple[int, int, int, int]],
    outputs: dict[int, Tensor],
    h: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    direction: int,
    reverse: bool,
    inside: bool,
    pieces: tuple[int, int, int, int],
) -> None:
    """The compiled steps over all of the work; the states `h` are replaced.

    `outputs` are the tensors among the `places`, by their index there; see
    `_numba_kernels.rows` for the rest.
    """
    x = next(iter(outputs.values()))
    B, T, D = x.shape
    lengths, reset = masks
    chunk, blocks, width, workers = pieces
    parts = -(-T // chunk)
    flags = np.zeros(1 + (parts + 1) * B * blocks, np.int64)
    states = np.empty((parts - 1) * h.numel(), _numba.NUMPY[h.dtype])
    arguments = (
        flags, states, h.data_ptr(), parts, chunk, blocks, width, code.address,
        np.array(places, np.int64), np.array(list(outputs), np.int64),
        _numba._lengths(lengths, x), B, T, D, direction, backward, inside,
        _numba._restarts(lengths, reset, reverse),
        _numba._past(*outputs.values(), alignment=code.alignment),
    )  # fmt: skip
    _threads.run_all(_numba._kernels().rows, [arguments] * workers)


def _in_rows(x: Tensor, masks: tuple[Tensor | None, ...], backwards: bool, parallel: bool) -> bool:
    """Whether the walk is row by row."""
    lengths, reset = masks
    plain = lengths is None and reset is None
    return _numba._plan(x, plain, backwards, parallel)[0][0] is Layout.ROWS


def _how(x: Tensor, pieces: tuple[int, int, int, int]) -> tuple[bool, bool]:
    """Whether time is divided, and rows are narrow."""
    _, T, D = x.shape
    return pieces[0] < T, D <= NARROW


def _operands(pre: Sequence[Tensor]) -> tuple[Operand, ...]:
    return tuple([OPERAND[p.dtype, p.ndim] for p in pre])


def _state(x: Tensor) -> Tensor:
    """Zeros."""
    return x.new_zeros((x.shape[0], x.shape[2]), dtype=state_dtype(x.dtype))


def _rounded(width: int) -> int:
    """Room for whole vectors."""
    room = int(_numba._kernels().ROOM)
    return -(-width // room) * room


def _place(x: Tensor) -> tuple[int, int, int, int]:
    """Address and strides of rows, steps and columns, in bytes; 0 where a parameter has none."""
    size = x.itemsize
    if x.ndim == 3:
        sB, sT, sD = x.stride()
    else:
        sB, sT, sD = x.stride(0) if x.ndim == 2 else 0, 0, x.stride(-1)
    return x.data_ptr(), size * sB, size * sT, size * sD


def _spread(dy: Tensor) -> Tensor:
    """The same with columns side by side, where that takes one row: of the gradient of a sum."""
    if dy.stride() == (0, 0, 0):
        return dy[:1, :1].contiguous().expand(dy.shape)
    return dy


def _reduced(gradient: Any, p: Tensor, D: int) -> Tensor:
    """The gradient of a parameter from the sums of parts of time and rows, in a fixed order."""
    if isinstance(gradient, Tensor):
        return gradient
    total = gradient[..., :D].sum((0, 1) if p.ndim == 1 else 0)
    return torch.from_numpy(total).to(p.dtype)
