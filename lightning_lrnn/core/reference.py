"""The recurrence as a loop in plain PyTorch: the definition, which every backend must meet."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_recurrence"]


def linear_recurrence(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`lightning_lrnn.linear_recurrence`, one step after the other, differentiable by autograd.

    Equivalent to, for one row without padding and resets:

        for t in range(T):
            h = a[t] * h + b[t]
            y[t] = h

    Same arguments and results as `lightning_lrnn.linear_recurrence`; runs on every device.
    """
    B, T, D = b.shape
    dtype = torch.float32 if b.dtype in (torch.float16, torch.bfloat16) else b.dtype
    decays, impulses = a.expand(B, T, D).to(dtype).unbind(1), b.to(dtype).unbind(1)
    zero = torch.zeros(B, D, dtype=dtype, device=b.device)
    h = zero if h0 is None else h0.to(dtype)
    y = [zero] * T
    for t in reversed(range(T)) if reverse else range(T):
        before = h
        border = t + 1 if reverse else t
        if reset is not None and border < T:
            starts = reset[:, border]
            if lengths is not None:
                starts = starts & (border < lengths)
            before = torch.where(starts[:, None], zero, before)
        after = decays[t] * before + impulses[t]
        if lengths is None:
            h, y[t] = after, before if exclusive else after
        else:
            valid = (t < lengths)[:, None]
            y[t] = torch.where(valid, before if exclusive else after, zero)
            h = torch.where(valid, after, h)
    return (torch.stack(y, 1).to(b.dtype) if T else b.new_empty(B, 0, D)), h
