"""What a gate may use: the operations, and what PyTorch evaluates for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["CONDITIONS", "OPERATIONS"]


def _complex(real: Any, imag: Any) -> Any:
    """`torch.complex`, one part of which may be a number."""
    if isinstance(real, int | float):
        real = torch.full_like(imag, real)
    if isinstance(imag, int | float):
        imag = torch.full_like(real, imag)
    return torch.complex(real, imag)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "pow": torch.pow,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "softplus": F.softplus,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "erf": torch.erf,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "sgn": torch.sgn,
    "clamp": torch.clamp,
    "where": torch.where,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "complex": _complex,
    "polar": torch.polar,
    "real": torch.real,
    "imag": torch.imag,
    "conj": torch.conj,
    "detach": torch.detach,
}
"""Everything a gate may use: the program's name of an operation and its meaning."""

CONDITIONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
"""Operations whose result is a truth value."""
