"""The dtype of a state."""

from __future__ import annotations

import torch

__all__ = ["state_dtype"]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit sequences, else their own."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
