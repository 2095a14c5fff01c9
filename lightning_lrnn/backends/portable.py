"""The recurrence by PyTorch's own operators, for programs that run without this package.

ONNX and other processes know neither the operator nor its backends. There a recurrence is one
`scan` of PyTorch's over any number of time steps, of which ONNX makes a `Scan`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.core.evaluation import operands, read_out
from lightning_lrnn.core.masks import padding_mask, restarts
from lightning_lrnn.core.problem import Problem, sequence_dtype

__all__ = ["by_scan"]


def by_scan(problem: Problem) -> tuple[Tensor, Tensor]:
    """The output (B, T, D), contiguous, and the final state (B, D) of a recurrence.

    The same as `core.reference.linear_recurrence` between gate and readout. Complex numbers travel
    as pairs of real ones, (..., 2), since neither ONNX nor AOTInductor computes with others.
    """
    a, b = gates.evaluate(problem.gate, operands(problem.pre))
    h0, shape = problem.h0, problem.x.shape
    is_complex = a.is_complex() or b.is_complex()
    if is_complex:
        a, b, shape = _pairs(a), _pairs(b), torch.Size([*shape, 2])
        h0 = None if h0 is None else _pairs(h0)
    final, h = _scan(a.expand(shape), b.expand(shape), h0, problem)
    if is_complex:
        final, h = torch.view_as_complex(final), torch.view_as_complex(h)
    if problem.readout:
        return read_out(problem.readout, h, problem.pre, problem.lengths).contiguous(), final
    return h.to(sequence_dtype(problem.x, is_complex=is_complex)), final


def _pairs(z: Tensor) -> Tensor:
    """Real and imaginary part side by side, (..., 2)."""
    return torch.view_as_real(z) if z.is_complex() else torch.stack([z, torch.zeros_like(z)], -1)


def _product(a: Tensor, h: Tensor) -> Tensor:
    """Returns the product of complex numbers, each a pair of real ones."""
    (re, im), (x, y) = a.unbind(-1), h.unbind(-1)
    return torch.stack([re * x - im * y, re * y + im * x], -1)


def _scan(a: Tensor, b: Tensor, h0: Tensor | None, problem: Problem) -> tuple[Tensor, Tensor]:
    """The final state, and the hidden states (B, T, ...), contiguous, 0 at padded steps."""
    reverse, exclusive = problem.reverse, problem.exclusive
    multiply = torch.mul if a.ndim == 3 else _product
    masks = _masks(problem, a.ndim)

    def step(h: Tensor, a: Tensor, b: Tensor, *masks_of_step: Any) -> tuple[Tensor, Tensor]:
        mask = dict(zip(masks, masks_of_step, strict=False))
        before = torch.where(mask["start"], 0, h) if "start" in mask else h
        after = multiply(a, before) + b
        h = torch.where(mask["padding"], h, after) if "padding" in mask else after
        # A copy: `scan` refuses two outputs in the same memory.
        return h, (before if exclusive else h).clone()

    first = b.new_zeros(b.shape[0], *b.shape[2:]) if h0 is None else h0
    along = [x.transpose(0, 1) for x in (a, b, *masks.values())]
    along = [x.flip(0) for x in along] if reverse else along
    # Of sizes that vary Inductor knows that of time and those it is given: the number of rows.
    sizes = tuple(size for size in b.shape[:1] if isinstance(size, torch.SymInt))
    final, h = torch.ops.higher_order.scan(step, [first], along, sizes)
    h = (h.flip(0) if reverse else h).transpose(0, 1).contiguous()
    return final, h.masked_fill(masks["padding"], 0) if "padding" in masks else h


def _masks(problem: Problem, ndim: int) -> dict[str, Tensor]:
    """True at padded steps, and at those that no state passes into; (B, T, 1) or (B, T, 1, 1)."""
    masks = {}
    if problem.lengths is not None:
        masks["padding"] = padding_mask(problem.lengths, problem.x)
    if problem.reset is not None:
        starts = restarts(problem.reset, problem.lengths, reverse=problem.reverse)
        masks["start"] = starts[..., None]
    return masks if ndim == 3 else {name: mask[..., None] for name, mask in masks.items()}
