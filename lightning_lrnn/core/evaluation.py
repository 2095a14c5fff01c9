"""Gate and readout evaluated by PyTorch.

In the dtype of the state, as compiled code evaluates them: bfloat16 rounds decays above 0.998 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.core.problem import sequence, sequence_dtype

__all__ = ["broadcastable", "decays_and_impulses", "operands", "read_out", "widened"]


def broadcastable(p: Tensor) -> Tensor:
    """A parameter (B, D) as (B, 1, D)."""
    return p[:, None] if p.ndim == 2 else p


def widened(pre: Sequence[Tensor]) -> list[Tensor]:
    """All pre-activations in the dtype of the state, real or complex as they are."""
    double = sequence(pre).dtype in (torch.float64, torch.complex128)
    real, pair = (torch.float64, torch.complex128) if double else (torch.float32, torch.complex64)
    return [p.to(pair if p.is_complex() else real) for p in pre]


def operands(pre: Sequence[Tensor]) -> list[Tensor]:
    """Pre-activations as arguments of a gate: in the state's dtype, and broadcastable."""
    return list(map(broadcastable, widened(pre)))


def read_out(readout: str, h: Tensor, pre: Sequence[Tensor], lengths: Tensor | None) -> Tensor:
    """y (B, T, D), 0 at padded steps."""
    y: Tensor
    (y,) = gates.evaluate(readout, [h.to(state_dtype(h.dtype)), *operands(pre)])
    y = y.to(sequence_dtype(sequence(pre), is_complex=y.is_complex())).expand(h.shape)
    return y if lengths is None else y.masked_fill(padding_mask(lengths, y), 0)


def decays_and_impulses(gate: str, pre: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """a and b (B, T, D), in the dtype of the state."""
    a, b = gates.evaluate(gate, operands(pre))
    x = sequence(pre)
    dtype = state_dtype(sequence_dtype(x, is_complex=a.is_complex() or b.is_complex()))
    return a.to(dtype).expand(x.shape), b.to(dtype).expand(x.shape)
