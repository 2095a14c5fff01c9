"""The gated recurrence on a CPU: gate, readout and recurrence in one pass, forward and backward.

As `plain` does with the plain recurrence, with steps that are compiled for the gate. Of gates
that there is no vector code for (`codegen.uncompiled`) PyTorch evaluates gate and readout around
the plain recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn.backends.cpu import launch, plain
from lightning_lrnn.backends.cpu.huge_pages import empty, in_large_pages, resolved
from lightning_lrnn.backends.cpu.launch import spread
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.unfused import backward_around, forward_around, sequence

__all__ = ["gated_backward", "gated_forward", "prepared"]


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
    pieces = launch.pieces(x, launch.operations(gate, readout, False), parallel)
    code = launch.code(gate, readout, pre, False, exclusive, pieces)
    if code is None:
        run = partial(plain.forward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        return forward_around(run, gate, readout, pre, h0, *masks)
    pre = list(map(resolved, pre))
    emitted = empty(x, code.state)
    y = empty(x, code.output) if readout else emitted
    h = _state(emitted) if h0 is None else h0.clone()
    launch.walk(code, False, *_written(pre, y, emitted), h, masks, reverse, True, pieces)
    return y, emitted, h


def prepared(
    gate: str, readout: str, pre: Sequence[Tensor], y: Tensor, emitted: Tensor, h: Tensor,
    *, reverse: bool, exclusive: bool,
) -> Callable[[], None] | None:  # fmt: skip
    """A forward pass any number of times over the same memory, or None without vector code for it.

    Args:
        gate: program.
        readout: program, or "".
        pre: sequences and parameters.
        y: where the output goes.
        emitted: where the states go; `y` itself without a readout.
        h: the state (B, D) before; replaced by that after it.
        reverse: direction of the walk.
        exclusive: whether states before their steps are emitted.
    """
    pieces = launch.pieces(sequence(pre), launch.operations(gate, readout, False), True)
    code = launch.code(gate, readout, pre, False, exclusive, pieces)
    if code is None:
        return None
    tensors, outputs = _written(pre, y, emitted)
    masks = None, None
    return launch.prepared(code, False, tensors, outputs, h, masks, reverse, True, pieces)


def _written(
    pre: Sequence[Tensor], y: Tensor, emitted: Tensor
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The tensors of a forward pass, and those that are written, by their index among them."""
    n = len(pre)
    outputs = {n + 1: emitted} if y is emitted else {n: y, n + 1: emitted}
    return [*pre, y, emitted], outputs


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
    pieces = launch.pieces(x, launch.operations(gate, readout, True), parallel)
    code = launch.code(gate, readout, pre, True, exclusive, pieces)
    if code is None:
        run = partial(plain.backward, reverse=reverse, exclusive=exclusive, parallel=parallel)
        if into is not None and any(map(is_, into, pre)):
            into = None  # autograd would see PyTorch write there
        return backward_around(
            run, gate, readout, pre, emitted, h0, dy, dh_final, *masks, into=into
        )
    B, T, D = x.shape
    pre = list(map(resolved, pre))
    emitted, dy = resolved(emitted), spread(resolved(dy))
    c = _state(emitted) if dh_final is None else dh_final.clone()
    # Rounded as the states after it are.
    first = (_state(emitted) if h0 is None else h0).to(emitted.dtype)
    chunk, blocks, width, _ = pieces
    room = blocks * launch.rounded(width)
    gradients: list[Any] = []
    for p, given in zip(pre, into or [None] * n, strict=True):
        if p.ndim < 3:
            sums = np.complex128 if p.is_complex() else np.float64
            gradients.append(np.zeros((-(-T // chunk), B, room), sums))
        else:
            gradients.append(empty(x) if given is None else given)
    if into is not None:
        in_large_pages(next(g for g in gradients if isinstance(g, Tensor)))
    tensors = [*pre, dy, emitted, first, *gradients]
    outputs = {i: g for i, g in enumerate(gradients, n + 3) if isinstance(g, Tensor)}
    launch.walk(code, True, tensors, outputs, c, masks, reverse, exclusive, pieces)
    return [_reduced(g, p, D) for g, p in zip(gradients, pre, strict=True)], c


def _state(x: Tensor) -> Tensor:
    """Zeros."""
    return x.new_zeros((x.shape[0], x.shape[2]), dtype=state_dtype(x.dtype))


def _reduced(gradient: Any, p: Tensor, D: int) -> Tensor:
    """The gradient of a parameter from the sums of parts of time and rows, in a fixed order."""
    if isinstance(gradient, Tensor):
        return gradient
    total = gradient[..., :D].sum((0, 1) if p.ndim == 1 else 0)
    return torch.from_numpy(total).to(p.dtype)
