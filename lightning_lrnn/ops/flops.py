"""What a recurrence counts for in `torch.utils.flop_counter`.

PyTorch counts matmuls, and not what is pointwise around them. Likewise here: h = a * h + b is one
multiply-add per step and feature, backward two (the state's gradient and the decay's); gates none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lightning_lrnn.ops import schema as schema  # defines the operators

REAL, COMPLEX = 2, 8
"""Floating-point operations of one multiply-add."""


def forward(*_: Any, out_val: tuple[Tensor, Tensor, Tensor]) -> int:
    """Of `gated_recurrence`."""
    y, _h, h_final = out_val
    return _multiply_adds(1, y, h_final)


def recurrence_backward(a: Tensor, y: Tensor, *_: Any, out_val: Any) -> int:
    """Of `recurrence_backward`."""
    return _multiply_adds(2, y, y)


def gated_backward(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, *_: Any, out_val: Any
) -> int:
    """Of `gated_backward`."""
    return _multiply_adds(2, h, h)


def _multiply_adds(passes: int, sequence: Tensor, state: Tensor) -> int:
    return passes * sequence.numel() * (COMPLEX if state.is_complex() else REAL)


for _formula, _name in (
    (forward, "gated_recurrence"),
    (recurrence_backward, "recurrence_backward"),
    (gated_backward, "gated_backward"),
):
    register_flop_formula(getattr(torch.ops.lightning_lrnn, _name), get_raw=True)(_formula)
