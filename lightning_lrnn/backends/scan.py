"""Backend `scan`: parallel over time (Martin & Cundy 2018, section 2, Algorithm 1).

On CUDA the kernels of `cuda_src`, compiled by NVRTC when first used; on a CPU compiled code that
splits columns and time over the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lightning_lrnn.backends import Request
from lightning_lrnn.backends.compiled import fuses, gated, implementation, missing, wrong_dtype

__all__ = [
    "fuses",
    "run",
    "run_backward",
    "run_gated",
    "run_gated_backward",
    "unsupported_reasons",
]


def unsupported_reasons(request: Request) -> list[str]:
    """The dtype, and what the compiled code of the device lacks here."""
    return wrong_dtype(request.dtype) + missing(request.device.type)


def run(a: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """y and the final state, see `lightning_lrnn.backends`."""
    forward = partial(implementation(a.device.type).forward, parallel=True)
    y, h_final = forward(a, *arguments, **options)
    return y, h_final


def run_backward(a: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0, see `lightning_lrnn.backends`."""
    backward = partial(implementation(a.device.type).backward, parallel=True)
    da, db, dh0 = backward(a, *arguments, **options)
    return da, db, dh0


def run_gated(
    gate: str, readout: str, pre: Sequence[Tensor], *arguments: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the emitted states and the final state, see `lightning_lrnn.backends`."""
    forward = gated(pre[0].device.type).gated_forward
    y, h, h_final = forward(gate, readout, pre, *arguments, **options, parallel=True)
    return y, h, h_final


def run_gated_backward(
    gate: str, readout: str, pre: Sequence[Tensor], *arguments: Any, **options: Any
) -> tuple[list[Tensor], Tensor]:
    """Gradients of pre-activations, parameters and h0, see `lightning_lrnn.backends`."""
    backward = gated(pre[0].device.type).gated_backward
    dpre, dh0 = backward(gate, readout, pre, *arguments, **options, parallel=True)
    return dpre, dh0
