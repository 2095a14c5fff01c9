"""Quantiles of Student's t distribution, which torch.distributions does not have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["student_t_quantiles"]

POINTS = 2048


def student_t_quantiles(df: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of the standard distribution, to about four digits for df from 1 to 1000.

    With t = sqrt(df) tan(angle) the density is proportional to cos(angle)^(df - 1), smooth and on a
    bounded interval: it is summed up by the midpoint rule and the sum inverted by interpolation.

    Args:
        df: degrees of freedom, (...).
        levels: q between 0 and 1, (Q,).

    Returns:
        (..., Q).
    """
    width = math.pi / 2 / POINTS
    middles = (torch.arange(POINTS, device=df.device, dtype=df.dtype) + 0.5) * width
    density = torch.exp((df[..., None] - 1) * middles.cos().log())
    # Of the positive half: from 0 at angle 0 to 1 at a right angle.
    share = torch.nn.functional.pad(density.cumsum(-1), (1, 0))
    share = share / share[..., -1:]
    wanted = (2 * levels - 1).abs().expand(*df.shape, -1).contiguous()
    right = torch.searchsorted(share, wanted).clamp(1, POINTS)
    low, high = share.gather(-1, right - 1), share.gather(-1, right)
    part = (wanted - low) / (high - low).clamp(min=torch.finfo(df.dtype).tiny)
    angle = (right - 1 + part) * width
    return torch.sign(levels - 0.5) * df[..., None].sqrt() * angle.tan()
