"""Chunks of a projection: seen as one tensor again, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.core.problem import lie_as_chunks
from lightning_lrnn.core.pytorch import applied, is_batched, node_of

__all__ = ["SPLIT", "gradients_of", "joined", "split"]


def joined(chunks: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose `chunk(len(chunks), -1)` these are, or None if there is none."""
    if any(map(is_batched, chunks)) or not lie_as_chunks(chunks):
        return None
    first, *others = chunks
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    *sizes, width = first.shape
    for chunk in others:
        offset += width
        if chunk.storage_offset() != offset or chunk.untyped_storage().data_ptr() != storage:
            return None
    return first.as_strided((*sizes, len(chunks) * width), first.stride())


def split(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """`x.chunk(n, -1)` whose gradients, where they come as chunks, are not copied together.

    x is donated: the backward pass of a recurrence may leave gradients in the place of the
    chunks that went into it. Use `x.chunk` if something else reads one of them, and under
    torch.func.
    """
    return _split(x, n)


def gradients_of(pre: Sequence[Tensor], *, in_place: bool) -> list[Tensor | None] | None:
    """Outputs for the gradients of a projection's chunks, which are chunks of one tensor, too.

    Args:
        pre: sequences and parameters.
        in_place: whether gradients overwrite the sequences.

    Returns:
        A tensor per sequence, None per parameter; None if the sequences are no such chunks.
    """
    sequences = [p for p in pre if p.ndim == 3]
    projection = joined(sequences) if len(sequences) > 1 else None
    if projection is None:
        return None
    if in_place:
        return [p if p.ndim == 3 else None for p in pre]
    chunks = iter(torch.empty_like(projection).chunk(len(sequences), -1))
    return [next(chunks) if p.ndim == 3 else None for p in pre]


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> tuple[Tensor, ...]:
        return x.chunk(n, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = None if torch.is_grad_enabled() else joined(gradients)
        return torch.cat(gradients, -1) if whole is None else whole, None


_split: Callable[[Tensor, int], tuple[Tensor, ...]] = applied(_Split)
SPLIT = node_of(_Split)
"""The node of autograd that `split` leaves: the backward pass may write into its chunks."""
