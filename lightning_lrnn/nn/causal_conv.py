"""Projections of the last inputs: a causal convolution, continued from sequence to sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.core.ranks import Ranks, gathered
from lightning_lrnn.nn.scan_context import ScanContext, select_rank

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
        context: direction, lengths and resets; over ranks x is a segment, and both overlaps are
            those of the whole sequence.

    Returns:
        p (B, T, N), and the overlap for the next part of the sequence.

    Raises:
        ValueError: for a segment that is shorter than the window.
    """
    T = x.shape[1]
    past = size - 1
    if context.ranks is not None and T < past:
        raise ValueError(
            f"a segment of {T} time steps is shorter than the {past} that a window of {size} "
            f"looks back: its first ones would see inputs of two ranks before; give each of the "
            f"{context.ranks.size} ranks at least {past} time steps"
        )
    lengths = context.lengths if context.ranks is None else context.within(T)
    # Zeros after the last time step (in reverse, before the first): one sum gives the overlap, too.
    ends = [(past - j, j) if context.reverse else (j, past - j) for j in range(size)]
    document = None
    if context.reset is not None:
        document = _document_ids(context.reset, lengths, past, context.reverse)
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

    sums = _Sums(total, past, lengths, document, context.reverse)
    if overlap is not None:
        overlap = torch.unflatten(overlap, -1, (past, -1)).to(total.dtype)
    if context.ranks is not None:
        overlap = _over_ranks(context.ranks, sums, bias, overlap, context)
    else:
        if overlap is not None:
            sums.add(overlap)
        overlap = sums.overlap(bias)
    return (total[:, past:] if context.reverse else total[:, :T]), overlap.flatten(1)


class _Sums(NamedTuple):
    """Sums of products: at T time steps and the `past` ones after them, in reverse before them."""

    total: Tensor
    past: int
    lengths: Tensor | None
    document: Tensor | None
    reverse: bool

    def add(self, overlap: Tensor) -> None:
        """Adds the overlap (B, past, N) of the part before to steps of the same document."""
        total, past, lengths, document, reverse = self
        if lengths is None and document is None:
            start = total.shape[1] - past if reverse else 0
            total[:, start : start + past] += overlap.flip(1) if reverse else overlap
            return
        steps, last = self._steps()
        first = last + past - 1 - steps if reverse else steps
        if document is not None:
            source = document[:, -1:] if reverse else torch.zeros_like(document[:, :1])
            overlap = overlap.masked_fill((document.gather(1, first) != source)[..., None], 0)
        total.scatter_add_(1, _rows(first, total), overlap)

    def overlap(self, bias: Tensor | None) -> Tensor:
        """The overlap for the next part of the sequence, (B, past, N), without the bias."""
        total, past, lengths, document, reverse = self
        if lengths is None and document is None:
            after = total[:, :past].flip(1) if reverse else total[:, total.shape[1] - past :]
        else:
            steps, last = self._steps()
            rows = torch.arange(total.shape[0], device=total.device)[:, None]
            # Not by `gather`, which saves the sums for its gradient: `add` changes them later.
            after = total[rows, past - 1 - steps if reverse else last + steps]
        return after.clone() if bias is None else after - bias

    def _steps(self) -> tuple[Tensor, Tensor]:
        """0 ... past - 1 for each row (B, past), and how many time steps it has, (B, 1)."""
        B, T = self.total.shape[0], self.total.shape[1] - self.past
        steps = torch.arange(self.past, device=self.total.device).expand(B, self.past)
        if self.lengths is None:
            return steps, steps.new_full((B, 1), T)
        return steps, self.lengths.long().clamp(0, T)[:, None]


def _over_ranks(
    ranks: Ranks,
    sums: _Sums,
    bias: Tensor | None,
    overlap: Tensor | None,
    context: ScanContext,
) -> Tensor:
    """Adds the overlap of the segment before, and returns that of the whole sequence.

    A segment is no shorter than the window, so its overlap depends on its own inputs alone, except
    where the scan of a row starts in it, in reverse perhaps a few steps before its end.
    """
    B, T = sums.total.shape[0], sums.total.shape[1] - sums.past
    if not context.reverse or context.lengths is None:
        starts = sums.total.new_full(
            (B,), ranks.before(reverse=context.reverse) is None, dtype=torch.bool
        )
    else:
        starts = context.last_ranks(T) == ranks.rank
    starts = starts[:, None, None]
    if overlap is not None:
        sums.add(torch.where(starts, overlap, 0))
    own = sums.overlap(bias)
    if context.reverse and context.reset is not None and ranks.rank > 0:
        # Where a document starts, no overlap passes to the segment before.
        own = own.masked_fill(context.reset[:, :1, None], 0)
    whole = gathered(own, ranks)
    before = whole[ranks.before(reverse=context.reverse) or 0]
    sums.add(torch.where(starts, 0, before))
    if context.lengths is None or context.reverse:
        return whole[0 if context.reverse else -1]
    # The last segment of a short row passes on the overlap of the segment before.
    return select_rank(gathered(sums.overlap(bias), ranks), context.ends(T))


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
