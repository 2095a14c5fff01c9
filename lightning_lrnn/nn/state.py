"""The state of a stack: from the user's form to one tensor per cell and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_lrnn.nn.cell import Cell
from lightning_lrnn.nn.checks import check_state, form
from lightning_lrnn.nn.walk import Walk

if TYPE_CHECKING:
    from lightning_lrnn.nn.stack import Stack

__all__ = ["State", "last_output", "pack", "unpack"]

State = Tensor | tuple[Tensor, Tensor] | None
"""h for a cell with one state, (h, c) for one that remembers its output, None for zeros."""


def unpack(
    stack: Stack, hx: State, x: Tensor, batched: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The last outputs before this window, None if not told, and what is carried, None for zeros.

    Args:
        stack: whose state it is.
        hx: as the user gave it.
        x: input, (B, T, input_size).
        batched: whether the user's tensors have a batch dimension.
    """
    if hx is None:
        return None, None
    cell = _cell(stack)
    rows: tuple[int, ...] = (stack.num_layers * stack.directions, x.shape[0])
    if not batched:
        rows = rows[:1]
    if not cell.remembers_output:
        carry = check_state("h_0", hx, rows, (cell.state_size,), x, cell)
        return None, carry if batched else carry[:, None]
    if not isinstance(hx, tuple | list) or len(hx) != 2:
        raise ValueError(f"`hx` must be the pair (h_0, c_0), got {form(hx)}")
    h = check_state("h_0", hx[0], rows, (cell.output_size,), x, cell)
    carry = check_state("c_0", hx[1], rows, (cell.state_size, cell.hidden_size), x, cell)
    if carry.shape[-1] != cell.state_size:
        carry = cell.carry(h, carry)
    return (h, carry) if batched else (h[:, None], carry[:, None])


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
    stack: Stack, h_n: list[Tensor], carry_n: list[Tensor], batched: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """The final state in the user's form; the inverse of `unpack`."""
    h, carry = torch.stack(h_n), torch.stack(carry_n)
    if not batched:
        h, carry = h[:, 0], carry[:, 0]
    return (h, carry) if stack.cell_type.remembers_output else carry


def _cell(stack: Stack) -> Cell:
    cell = stack.cells[0]
    assert isinstance(cell, Cell)
    return cell
