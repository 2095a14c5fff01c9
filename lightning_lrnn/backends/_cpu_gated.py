"""The gated recurrence on a CPU: gate, readout and recurrence in one pass, forward and backward.

As `_numba` does with the plain recurrence, with steps that are compiled for the gate. Where it
would not walk row by row (a handful of columns, or few features), and for gates that there is no
vector code for (`_cpu_gate.uncompiled`), PyTorch evaluates gate and readout around the plain
recurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

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
DTYPE = {storage: dtype for dtype, storage in STORAGE.items()}


@cache
def _compiler() -> ModuleType:
    """Imported at the first call: llvmlite takes a while."""
    from lightning_lrnn.backends import _cpu_gate

    return _cpu_gate


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
    if not _compiled(gate, readout, pre, masks, reverse, parallel):
        run = partial(_numba.forward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        return forward_around(run, gate, readout, pre, h0, *masks)
    pre, pieces = list(map(_numba._detached, pre)), _numba._pieces(x, parallel)
    steps = _steps(gate, readout, pre, False, exclusive, pieces)
    emitted = _numba._empty(x, DTYPE[steps.state])
    y = _numba._empty(x, DTYPE[steps.output]) if readout else emitted
    h = _state(emitted) if h0 is None else h0.clone()
    places = [*map(_place, pre), _place(y), _place(emitted)]
    outputs = {len(pre): y, len(pre) + 1: emitted} if readout else {len(pre) + 1: emitted}
    direction = -1 if reverse else 1
    _run(steps, places, outputs, h, masks, direction, reverse, True, pieces)
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
    if not _compiled(gate, readout, pre, masks, not reverse, parallel):
        run = partial(_numba.backward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        return backward_around(
            run, gate, readout, pre, emitted, h0, dy, dh_final, *masks, into=into
        )
    B, T, D = x.shape
    pre, pieces = list(map(_numba._detached, pre)), _numba._pieces(x, parallel)
    emitted, dy = _numba._detached(emitted), _spread(_numba._detached(dy))
    steps = _steps(gate, readout, pre, True, exclusive, pieces)
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
    _run(steps, places, outputs, c, masks, direction, reverse, exclusive, pieces)
    return [_reduced(g, p, D) for g, p in zip(gradients, pre, strict=True)], c


def _run(
    steps: Any,
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
        flags, states, h.data_ptr(), parts, chunk, blocks, width, _compiler().address(steps),
        np.array(places, np.int64), np.array(list(outputs), np.int64),
        _numba._lengths(lengths, x), B, T, D, direction, steps.backward, inside,
        _numba._restarts(lengths, reset, reverse),
        _numba._past(*outputs.values(), alignment=_compiler().alignment()),
    )  # fmt: skip
    _threads.run_all(_numba._kernels().rows, [arguments] * workers)


def _compiled(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    masks: tuple[Tensor | None, ...],
    backwards: bool,
    parallel: bool,
) -> bool:
    """Whether the steps are compiled, not the gate evaluated by PyTorch."""
    plain = all(mask is None for mask in masks)
    layout, *_ = _numba._plan(sequence(pre), plain, backwards, parallel)[0]
    return layout is Layout.ROWS and not _compiler().uncompiled(gate, readout, _operands(pre))


def _steps(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    backward: bool,
    exclusive: bool,
    pieces: tuple[int, int, int, int],
) -> Any:
    divided = pieces[0] < sequence(pre).shape[1]
    return _compiler().Steps(gate, readout, _operands(pre), backward, exclusive, divided)


def _operands(pre: Sequence[Tensor]) -> tuple[Operand, ...]:
    return tuple(Operand(STORAGE[p.dtype], p.ndim == 3) for p in pre)


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
