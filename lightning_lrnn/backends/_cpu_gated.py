"""The gated recurrence on a CPU: gate, readout and recurrence in one pass, forward and backward.

As `_numba` does with the plain recurrence, with steps that are compiled for the gate. Where it
would not walk row by row (a handful of columns, or few features), PyTorch evaluates gate and
readout around the plain recurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn._dtypes import state_dtype
from lightning_lrnn._evaluation import backward_around, forward_around, sequence
from lightning_lrnn.backends import Request, _numba, _threads
from lightning_lrnn.backends._cuda_gate import Operand
from lightning_lrnn.backends._numba import Layout

__all__ = ["gated_backward", "gated_forward", "unfused"]

STORAGE = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
}
COMPLEX = frozenset({"complex", "polar", "imag"})
"""Operations that make complex numbers, or take them."""


def unfused(request: Request) -> list[str]:
    """Why PyTorch evaluates a gate on a CPU, not compiled code; [] = it is compiled."""
    reasons = [] if request.dtype in STORAGE else [f"{request.dtype} is not real"]
    for program in filter(None, (request.gate, request.readout)):
        used = COMPLEX & {step.operation for step in gates.parse(program).steps}
        reasons += [f"there is no vector code for {operation}" for operation in sorted(used)]
    return reasons


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
    if not _in_rows(pre, masks, reverse, parallel):
        run = partial(_numba.forward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        return forward_around(run, gate, readout, pre, h0, *masks)
    h = _state(x) if h0 is None else h0.clone()
    emitted = _numba._empty(x)
    y = _numba._empty(x) if readout else emitted
    places = [*map(_place, pre), _place(y), _place(emitted)]
    outputs = {len(pre): y, len(pre) + 1: emitted} if readout else {len(pre) + 1: emitted}
    _run(
        (gate, readout, _operands(pre), False, exclusive), places, outputs, h, masks,
        -1 if reverse else 1, reverse, True, _numba._pieces(x, parallel),
    )  # fmt: skip
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
    if not _in_rows(pre, masks, not reverse, parallel):
        run = partial(_numba.backward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        return backward_around(
            run, gate, readout, pre, emitted, h0, dy, dh_final, *masks, into=into
        )
    B, _, D = x.shape
    c = _state(x) if dh_final is None else dh_final.clone()
    # Rounded as the states after it are.
    first = (_state(x) if h0 is None else h0).to(x.dtype)
    pieces = _numba._pieces(x, parallel)
    chunk, blocks, width, _ = pieces
    parts = -(-x.shape[1] // chunk)
    room = blocks * _rounded(width)
    gradients: list[Any] = []
    for p, given in zip(pre, into or [None] * n, strict=True):
        if p.ndim < 3:
            gradients.append(np.zeros((parts, B, room)))
        else:
            gradients.append(_numba._empty(x) if given is None else given)
    if into is not None:
        _numba._in_large_pages(next(g for g in gradients if isinstance(g, Tensor)))
    dy = _spread(dy)
    places = [*map(_place, pre), _place(dy), _place(emitted), _place(first)]
    outputs = {}
    for g in gradients:
        if isinstance(g, Tensor):
            outputs[len(places)] = g
            places.append(_place(g))
        else:
            places.append((g.ctypes.data, 8 * room, 8 * room * B, 8))
    _run(
        (gate, readout, _operands(pre), True, exclusive), places, outputs, c, masks,
        1 if reverse else -1, reverse, exclusive, pieces,
    )  # fmt: skip
    return [_reduced(g, p, D) for g, p in zip(gradients, pre, strict=True)], c


def _run(
    steps: tuple[Any, ...],
    places: list[tuple[int, int, int, int]],
    outputs: dict[int, Tensor],
    h: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    direction: int,
    reverse: bool,
    inside: bool,
    pieces: tuple[int, int, int, int],
) -> None:
    """The compiled steps over all of the work; the states `h` are replaced."""
    x = next(iter(outputs.values()))
    B, T, D = x.shape
    lengths, reset = masks
    chunk, blocks, width, workers = pieces
    parts = -(-T // chunk)
    compiler = _compiler()
    function = compiler.address(compiler.Steps(*steps, parts > 1))
    flags = np.zeros(1 + (parts + 1) * B * blocks, np.int64)
    states = np.empty((parts - 1) * h.numel(), _numba.NUMPY[h.dtype])
    past = _numba._past(*outputs.values(), alignment=compiler.lanes(8 * h.itemsize) * x.itemsize)
    arguments = (
        flags, states, h.data_ptr(), parts, chunk, blocks, width, function,
        np.array(places, np.int64), np.array(list(outputs), np.int64),
        _numba._lengths(lengths, x), B, T, D, direction, steps[3], inside,
        _numba._restarts(lengths, reset, reverse), past,
    )  # fmt: skip
    _threads.run_all(_numba._kernels().rows, [arguments] * workers)


def _in_rows(
    pre: Sequence[Tensor], masks: tuple[Tensor | None, ...], backwards: bool, parallel: bool
) -> bool:
    """Whether the walk is row by row, and all operands real."""
    plain = all(mask is None for mask in masks)
    layout, *_ = _numba._plan(sequence(pre), plain, backwards, parallel)[0]
    return layout is Layout.ROWS and not any(p.is_complex() for p in pre)


def _operands(pre: Sequence[Tensor]) -> tuple[Operand, ...]:
    return tuple(Operand(STORAGE[p.dtype], p.ndim == 3) for p in pre)


def _state(x: Tensor) -> Tensor:
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
