"""Projections of the last inputs: a causal convolution, continued from sequence to sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.nn.scan_context import ScanContext

__all__ = ["causal_conv"]


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: int,
    overlap: Tensor | None,
    context: ScanContext,
) -> tuple[Tensor, Tensor]:
    """p_t = bias + sum_j weight_j x_{t-j}, j = 0 ... size - 1: overlap and add.

    The products of the last inputs with the later weights belong to time steps after the end. They
    are the overlap, which the next part of the sequence adds: so the state has one size, whatever
    that of the input. Products across the start of a document count as 0, and in reverse x_{t+j}
    stands for x_{t-j}. Padding is 0 in x already.

    Args:
        x: (B, T, input_size).
        weight: weight_0, weight_1, ... side by side: (N, size * input_size).
        bias: (N), or None.
        size: inputs that a time step sees, at least 2.
        overlap: of the part of the sequence before, (B, (size - 1) * N), that of the first time
            step first; None for 0.
        context: direction, lengths and resets.

    Returns:
        p (B, T, N), and the overlap for the next part of the sequence.
    """
    T = x.shape[1]
    past = size - 1
    # Zeros after the last time step (in reverse, before the first): one sum gives the overlap, too.
    ends = [(past - j, j) if context.reverse else (j, past - j) for j in range(size)]
    document = None
    if context.reset is not None:
        document = _document_ids(context.reset, context.lengths, past, context.reverse)
    total: Tensor
    if T == 1:
        total = _one_step(x[:, 0], weight, bias, size, context.reverse)
    else:
        taps = [F.pad(x, (0, 0, *end)) for end in ends]
        if document is not None:
            ids = document[:, past:] if context.reverse else document[:, :T]
            for j, end in enumerate(ends):
                other = F.pad(ids, end, value=-1) != document
                taps[j] = taps[j].masked_fill(other[..., None], 0)
        total = F.linear(torch.cat(taps, -1), weight, bias)

    if overlap is not None:
        overlap = torch.unflatten(overlap, -1, (past, -1)).to(total.dtype)
    if context.lengths is None and document is None:
        first, after = slice(past), slice(T, None)
        if context.reverse:
            first, after = after, first
        if overlap is not None:
            total[:, first] += overlap.flip(1) if context.reverse else overlap
        overlap = total[:, after].flip(1) if context.reverse else total[:, after]
    else:
        overlap = _ragged_overlap(total, overlap, past, document, context)
    overlap = overlap.clone() if bias is None else overlap - bias
    return (total[:, past:] if context.reverse else total[:, :T]), overlap.flatten(1)


def _one_step(x: Tensor, weight: Tensor, bias: Tensor | None, size: int, reverse: bool) -> Tensor:
    """p of one time step x (B, input_size) and of the zeros around it, (B, size, N).

    The zeros are not multiplied: each weight is read once.
    """
    weights = torch.unflatten(weight, -1, (size, -1)).permute(1, 2, 0)
    inputs = x.expand(size, *x.shape)
    if bias is None:
        total = torch.bmm(inputs, weights)
    else:
        total = torch.baddbmm(bias, inputs, weights)
    return (total.flip(0) if reverse else total).transpose(0, 1)


def _ragged_overlap(
    total: Tensor, overlap: Tensor | None, past: int, document: Tensor | None, context: ScanContext
) -> Tensor:
    """Adds the overlap where it is of the same document, and returns the next one."""
    B, T = total.shape[0], total.shape[1] - past
    last = T if context.lengths is None else context.lengths.long().clamp(0, T)[:, None]
    steps = torch.arange(past, device=total.device).expand(B, past)
    first, after = (
        (last + past - 1 - steps, past - 1 - steps) if context.reverse else (steps, last + steps)
    )
    if overlap is not None:
        if document is not None:
            source = document[:, -1:] if context.reverse else torch.zeros_like(document[:, :1])
            overlap = overlap.masked_fill((document.gather(1, first) != source)[..., None], 0)
        total.scatter_add_(1, _rows(first, total), overlap)
    return total.gather(1, _rows(after, total))


def _document_ids(reset: Tensor, lengths: Tensor | None, past: int, reverse: bool) -> Tensor:
    """The number of the document at each time step and at those around it, (B, T + past).

    Resets in the padding do not count.
    """
    if lengths is not None:
        reset = reset & ~padding_mask(lengths, reset)[..., 0]
    number = reset.long().cumsum(1)
    B, T = number.shape
    zero = number.new_zeros(B, past)
    if T == 0:
        return zero
    if reverse:
        return torch.cat([number[:, :1].expand(B, past), number], 1)
    return torch.cat([number, number[:, -1:].expand(B, past)], 1)


def _rows(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, like.shape[-1])
