"""Projections of the last inputs: a causal convolution that is carried from window to window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.nn.scan_context import Walk

__all__ = ["windowed"]


def windowed(
    x: Tensor, weight: Tensor, bias: Tensor | None, size: int, begun: Tensor | None, walk: Walk
) -> tuple[Tensor, Tensor]:
    """p_t = bias + sum_j weight_j x_{t-j}, j = 0 ... size - 1, along a walk.

    What an input gives to the steps after the last one is `begun`, which the next window adds: so
    the state has one size, whatever the input's. Steps of another document give nothing, and in
    reverse x_{t+j} stands for x_{t-j}. Padding is 0 in x already.

    Args:
        x: (B, T, input_size).
        weight: weight_0, weight_1, ... side by side: (N, size * input_size).
        bias: (N), or None.
        size: inputs that a step sees, at least 2.
        begun: of the window before, (B, (size - 1) * N): that of the first step first; None for 0.
        walk: direction, lengths and documents.

    Returns:
        p (B, T, N) and `begun` for the next window.
    """
    T = x.shape[1]
    past = size - 1
    # Zeros after the last step let the same sum give what was begun: in reverse, before step 0.
    ends = [(past - j, j) if walk.reverse else (j, past - j) for j in range(size)]
    document = None
    if walk.reset is not None:
        document = _documents(walk.reset, walk.lengths, past, walk.reverse)
    total: Tensor
    if T == 1:
        total = _of_one_step(x[:, 0], weight, bias, size, walk.reverse)
    else:
        taps = [F.pad(x, (0, 0, *end)) for end in ends]
        if document is not None:
            of_steps = document[:, past:] if walk.reverse else document[:, :T]
            for j, end in enumerate(ends):
                other = F.pad(of_steps, end, value=-1) != document
                taps[j] = taps[j].masked_fill(other[..., None], 0)
        total = F.linear(torch.cat(taps, -1), weight, bias)

    if begun is not None:
        begun = torch.unflatten(begun, -1, (past, -1)).to(total.dtype)
    if walk.lengths is None and document is None:
        first, after = slice(past), slice(T, None)
        if walk.reverse:
            first, after = after, first
        if begun is not None:
            total[:, first] += begun.flip(1) if walk.reverse else begun
        begun = total[:, after].flip(1) if walk.reverse else total[:, after]
    else:
        begun = _of_each_row(total, begun, past, document, walk)
    begun = begun.clone() if bias is None else begun - bias
    return (total[:, past:] if walk.reverse else total[:, :T]), begun.flatten(1)


def _of_one_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, size: int, reverse: bool
) -> Tensor:
    """p of one step x (B, input_size) and of the zeros around it, (B, size, N).

    Those are not multiplied: a step reads every weight once.
    """
    weights = torch.unflatten(weight, -1, (size, -1)).permute(1, 2, 0)
    inputs = x.expand(size, *x.shape)
    if bias is None:
        total = torch.bmm(inputs, weights)
    else:
        total = torch.baddbmm(bias, inputs, weights)
    return (total.flip(0) if reverse else total).transpose(0, 1)


def _of_each_row(
    total: Tensor, begun: Tensor | None, past: int, document: Tensor | None, walk: Walk
) -> Tensor:
    """Adds what was begun, where it is of the same document, and takes what begins."""
    B, T = total.shape[0], total.shape[1] - past
    last = T if walk.lengths is None else walk.lengths.long().clamp(0, T)[:, None]
    steps = torch.arange(past, device=total.device).expand(B, past)
    first, after = (
        (last + past - 1 - steps, past - 1 - steps) if walk.reverse else (steps, last + steps)
    )
    if begun is not None:
        if document is not None:
            source = document[:, -1:] if walk.reverse else torch.zeros_like(document[:, :1])
            begun = begun.masked_fill((document.gather(1, first) != source)[..., None], 0)
        total.scatter_add_(1, _rows(first, total), begun)
    return total.gather(1, _rows(after, total))


def _documents(reset: Tensor, lengths: Tensor | None, past: int, reverse: bool) -> Tensor:
    """The number of the document at each step and at those around it, (B, T + past).

    Resets in the padding are none.
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
