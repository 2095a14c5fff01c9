"""Backend `serial`: one step after the other, columns side by side.

Compiled on a CPU and on CUDA (one thread per column, the paper's baseline); a loop of PyTorch
operations on every other device, and where the compiler is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends import Request
from lightning_lrnn.backends.compiled import fuses, gated, implementation, missing, wrong_dtype
from lightning_lrnn.core import reference as reference
from lightning_lrnn.core.adjoint import adjoint

__all__ = [
    "fuses",
    "run",
    "run_backward",
    "run_gated",
    "run_gated_backward",
    "unsupported_reasons",
]


def unsupported_reasons(request: Request) -> list[str]:
    """Only the dtype: the loop needs nothing but PyTorch."""
    return wrong_dtype(request.dtype)


def run(a: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """y and the final state, see `lightning_lrnn.backends`."""
    if missing(a.device.type):
        return _loop(a, *arguments, **options)
    forward = implementation(a.device.type).forward
    y, h_final = forward(a, *arguments, **options, parallel=False)
    return y, h_final


def run_backward(a: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0, see `lightning_lrnn.backends`."""
    if missing(a.device.type):
        return adjoint(_loop, a, *arguments, **options)
    backward = implementation(a.device.type).backward
    da, db, dh0 = backward(a, *arguments, **options, parallel=False)
    return da, db, dh0


def run_gated(
    gate: str, readout: str, pre: Sequence[Tensor], *arguments: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the emitted states and the final state, see `lightning_lrnn.backends`."""
    forward = gated(pre[0].device.type).gated_forward
    y, h, h_final = forward(gate, readout, pre, *arguments, **options, parallel=False)
    return y, h, h_final


def run_gated_backward(
    gate: str, readout: str, pre: Sequence[Tensor], *arguments: Any, **options: Any
) -> tuple[list[Tensor], Tensor]:
    """Gradients of pre-activations, parameters and h0, see `lightning_lrnn.backends`."""
    backward = gated(pre[0].device.type).gated_backward
    dpre, dh0 = backward(gate, readout, pre, *arguments, **options, parallel=False)
    return dpre, dh0


def _loop(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        y, h_final = reference.linear_recurrence(
            a, b, h0, reverse=reverse, exclusive=exclusive, lengths=lengths, reset=reset
        )
    return y, h_final.clone() if h_final is h0 else h_final
