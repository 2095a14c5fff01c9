"""The state of a stack or a cell: from the user's form to one tensor per cell and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_lrnn.nn.checks import check_state, form
from lightning_lrnn.nn.walk import Walk

if TYPE_CHECKING:
    from lightning_lrnn.nn.cell import Cell

__all__ = ["State", "last_output", "pack", "unpack"]

State = Tensor | tuple[Tensor, Tensor] | None
"""h for a cell with one state, (h, c) for one that remembers its output, None for zeros."""


def unpack(
    cell: Cell, hx: State, rows: tuple[int, ...], x: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The last outputs before this window, None if not told, and what is carried, None for zeros.

    Args:
        cell: whose state it is.
        hx: as the user gave it.
        rows: its shape, but for the features.
        x: the input, for its device.
    """
    if hx is None:
        return None, None
    sizes = (cell.state_size, cell.hidden_size)
    if not cell.remembers_output:
        carry = check_state("h_0", hx, rows, sizes, x, cell)
        return None, _wide(cell, None, carry)
    if not isinstance(hx, tuple | list) or len(hx) != 2:
        raise ValueError(f"`hx` must be the pair (h_0, c_0), got {form(hx)}")
    h = check_state("h_0", hx[0], rows, (cell.output_size,), x, cell)
    carry = check_state("c_0", hx[1], rows, sizes, x, cell)
    return h, _wide(cell, h, carry)


def _wide(cell: Cell, h: Tensor | None, carry: Tensor) -> Tensor:
    return carry if carry.shape[-1] == cell.state_size else cell.carry(h, carry)


def last_output(y: Tensor, h_0: Tensor | None, walk: Walk) -> Tensor:
    """The output (B, ·) at the last step of the walk; in a row without steps that before it."""
    B, T, D = y.shape
    before = y.new_zeros(B, D) if h_0 is None else h_0.to(y.dtype)
    if T == 0:
        return before
    if walk.lengths is None:
        return y[:, 0] if walk.reverse else y[:, -1]
    last = y[:, 0]
    if not walk.reverse:
        t = (walk.lengths.long() - 1).clamp(0, T - 1)
        last = y.gather(1, t[:, None, None].expand(B, 1, D))[:, 0]
    return torch.where((walk.lengths > 0)[:, None], last, before)


def pack(
    cell: Cell, h_n: Sequence[Tensor], carry_n: Sequence[Tensor]
) -> Tensor | tuple[Tensor, Tensor]:
    """The final state of all layers in the user's form, each part (layers, B, ·)."""
    carry = torch.stack(list(carry_n))
    return (torch.stack(list(h_n)), carry) if cell.remembers_output else carry
