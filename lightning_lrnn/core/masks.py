"""Padding and resets, as masks over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["padding_mask", "restarts"]


def padding_mask(lengths: Tensor, x: Tensor) -> Tensor:
    """(B, T, 1), True at padded steps."""
    return torch.arange(x.shape[1], device=x.device)[None, :, None] >= lengths[:, None, None]


def restarts(reset: Tensor, lengths: Tensor | None, *, reverse: bool) -> Tensor:
    """(B, T), True at the steps that no state passes into, in the direction of the recurrence.

    Forward that is where a document starts. In reverse a document is entered from its end: step t
    gets no state if the next document starts at t + 1, unless that step is padding.
    """
    if not reverse:
        return reset
    ends = F.pad(reset[:, 1:], (0, 1))
    if lengths is None:
        return ends
    steps = torch.arange(1, 1 + reset.shape[1], device=reset.device)
    return ends & (steps < lengths[:, None])
