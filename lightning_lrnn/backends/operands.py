"""How the tensors of a gate lie in memory, as the code that is made of it knows them."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["DTYPE", "OPERAND", "STORAGE", "Operand"]

STORAGE = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
DTYPE = {storage: dtype for dtype, storage in STORAGE.items()}


class Operand(NamedTuple):
    """How a pre-activation or a parameter lies in memory."""

    storage: str
    """Its dtype: f32, f64, f16, bf16, c64 or c128."""
    varies: bool
    """Over time: (B, T, D). Else it is a parameter, (D,) or (B, D)."""


OPERAND = {
    (dtype, ndim): Operand(storage, ndim == 3)
    for dtype, storage in STORAGE.items()
    for ndim in (1, 2, 3)
}
