"""Gradients that come as a batch, of `torch.autograd.grad(..., is_grads_batched=True)`.

And of `torch.autograd.functional.jacobian(..., vectorize=True)`. PyTorch makes the batch with its
older vmap, which takes no rules for operators of others: each gradient is computed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.core.pytorch import add_batch_dim, is_batched, remove_batch_dim

__all__ = ["one_by_one"]

LEVELS = 64
"""Of batches in batches, at most."""


def one_by_one(
    differentiate: Callable[..., Sequence[Tensor | None]], gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """What a function makes of each of a batch of gradients, as a batch.

    Args:
        differentiate: from gradients, or None for none, to gradients.
        gradients: at least one of them a batch.
    """
    level, size = next(_innermost(x) for x in gradients if x is not None and is_batched(x))
    each = [_unbatched(x, level, size) for x in gradients]
    found = [differentiate(*one) for one in zip(*each, strict=True)]
    return tuple(
        None if of_one[0] is None else add_batch_dim(torch.stack(of_one), 0, level)
        for of_one in zip(*found, strict=True)
    )


def _innermost(x: Tensor) -> tuple[int, int]:
    """The level of a batch, and how many are in it."""
    for level in reversed(range(LEVELS)):
        # Of a level that it has not, the size is that which is given.
        if size := remove_batch_dim(x, level, 0, 0).shape[0]:
            return level, int(size)
    raise ValueError("a batch of gradients must not be empty")


def _unbatched(x: Tensor | None, level: int, size: int) -> Sequence[Any]:
    return [None] * size if x is None else remove_batch_dim(x, level, size, 0).unbind()
