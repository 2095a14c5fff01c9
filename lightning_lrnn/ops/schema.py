"""The operators as PyTorch knows them: names, signatures, and their FLOP counts.

In `torch.utils.flop_counter` PyTorch counts matmuls, and not what is pointwise around them.
Likewise here: h = a * h + b is one multiply-add per step and feature, backward two (the state's
gradient and the decay's); gates none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = [
    "adjoint_impulse",
    "gated_backward",
    "library",
    "pair",
    "plain_backward",
    "recurrence",
]

# The operators. A gate's program passes through the schema as text, so that a backend which
# compiles gates into its kernel needs no other signature; `h` is the state where `y` is not.
library = torch.library.Library("lightning_lrnn", "DEF")
library.define(
    "gated_recurrence(str gate, str readout, Tensor[] pre, Tensor? h0, Tensor? lengths,"
    " Tensor? reset, bool reverse, bool exclusive, str backend, Tensor? given=None)"
    " -> (Tensor y, Tensor h, Tensor h_final)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "recurrence_backward(Tensor a, Tensor y, Tensor? h0, Tensor? dy, Tensor? dh_final,"
    " Tensor? lengths, Tensor? reset, bool reverse, bool exclusive, str backend)"
    " -> (Tensor da, Tensor db, Tensor dh0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "gated_backward(str gate, str readout, Tensor[] pre, Tensor h, Tensor? h0, Tensor? dy,"
    " Tensor? dh_final, Tensor? lengths, Tensor? reset, bool reverse, bool exclusive, str backend,"
    " Tensor? given=None) -> (Tensor[] dpre, Tensor dh0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# What a segment of time does to the state that comes in: see `backends.pairs`. `given` is for the
# operators above, and empty where a backend has nothing to give.
library.define(
    "pair(str gate, str readout, Tensor[] pre, Tensor? lengths, Tensor? reset, bool reverse,"
    " str backend) -> (Tensor A, Tensor B, Tensor given)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "adjoint_impulse(str gate, str readout, Tensor[] pre, Tensor h, Tensor dy, Tensor? lengths,"
    " Tensor? reset, bool reverse, bool exclusive, str backend) -> (Tensor C, Tensor given)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
recurrence = torch.ops.lightning_lrnn.gated_recurrence.default
plain_backward = torch.ops.lightning_lrnn.recurrence_backward.default
gated_backward = torch.ops.lightning_lrnn.gated_backward.default
pair = torch.ops.lightning_lrnn.pair.default
adjoint_impulse = torch.ops.lightning_lrnn.adjoint_impulse.default

REAL, COMPLEX = 2, 8
"""Floating-point operations of one multiply-add."""


def _forward(*_: Any, out_val: tuple[Tensor, Tensor, Tensor]) -> int:
    """FLOPs of `gated_recurrence`."""
    y, _h, h_final = out_val
    return _multiply_adds(1, y, h_final)


def _plain_backward(a: Tensor, y: Tensor, *_: Any, out_val: Any) -> int:
    """FLOPs of `recurrence_backward`."""
    return _multiply_adds(2, y, y)


def _gated_backward(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, *_: Any, out_val: Any
) -> int:
    """FLOPs of `gated_backward`."""
    return _multiply_adds(2, h, h)


def _multiply_adds(passes: int, sequence: Tensor, state: Tensor) -> int:
    return passes * sequence.numel() * (COMPLEX if state.is_complex() else REAL)


for _formula, _operator in (
    (_forward, "gated_recurrence"),
    (_plain_backward, "recurrence_backward"),
    (_gated_backward, "gated_backward"),
):
    register_flop_formula(getattr(torch.ops.lightning_lrnn, _operator), get_raw=True)(_formula)
