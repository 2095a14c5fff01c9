"""Complex numbers as columns of real ones, (Re h_1, Im h_1, Re h_2, ...), and back.

Made of views, each of which autograd would note, and whose gradients it would copy; here either way
is one node. `torch.func` and tracing see the views.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.core.pytorch import plain_eager

__all__ = ["to_columns", "to_complex"]


def to_complex(columns: Tensor) -> Tensor:
    """Pairs of columns as complex numbers; a last one that has no other is real."""
    result: Tensor = (_ToComplex.apply if plain_eager(columns) else _complex)(columns)
    return result


def to_columns(z: Tensor, size: int) -> Tensor:
    """The first columns of complex numbers."""
    result: Tensor = (_ToColumns.apply if plain_eager(z) else _columns)(z, size)
    return result


def _complex(columns: Tensor) -> Tensor:
    if columns.shape[-1] % 2:
        columns = F.pad(columns, (0, 1))
    columns = columns.contiguous()
    if columns.storage_offset() % 2:  # where no complex number begins
        columns = columns.clone()
    return torch.view_as_complex(columns.unflatten(-1, (-1, 2)))


def _columns(z: Tensor, size: int) -> Tensor:
    # Also where size is all there is: the gradient of a narrow is dense, as that of a view of
    # complex numbers must be.
    return torch.view_as_real(z.resolve_conj()).flatten(-2).narrow(-1, 0, size)


class _ToComplex(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> Tensor:
        ctx.size = columns.shape[-1]
        return _complex(columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _columns(gradient, ctx.size)


class _ToColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, size: int) -> Tensor:
        return _columns(z, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _complex(gradient), None
