"""Complex numbers as columns of real ones, (Re h_1, Im h_1, Re h_2, ...), and back.

Made of views. The way back is one node of autograd: the gradient of columns may begin where no
complex number does, which the gradient of a view of complex numbers does not take. `torch.func` and
tracing see the views.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.core.pytorch import plain_eager

__all__ = ["to_columns", "to_complex"]


def to_complex(columns: Tensor) -> Tensor:
    """Pairs of columns as complex numbers; an odd last column becomes a real number."""
    if columns.shape[-1] % 2:
        columns = F.pad(columns, (0, 1))
    columns = columns.contiguous()
    if columns.storage_offset() % 2:  # where no complex number begins
        columns = columns.clone()
    return torch.view_as_complex(columns.unflatten(-1, (-1, 2)))


def to_columns(z: Tensor, size: int) -> Tensor:
    """The first `size` real columns of complex numbers."""
    result: Tensor = (_ToColumns.apply if plain_eager(z) else _columns)(z, size)
    return result


def _columns(z: Tensor, size: int) -> Tensor:
    # Also if `size` is the full width: the gradient of `narrow` is dense, as that of a view of
    # complex numbers must be.
    return torch.view_as_real(z.resolve_conj()).flatten(-2).narrow(-1, 0, size)


class _ToColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, size: int) -> Tensor:
        return _columns(z, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return to_complex(gradient), None
