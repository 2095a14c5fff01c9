"""The gradient of a recurrence: of first order, of higher order, and of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.core.problem import Gradients, problem_of
from lightning_lrnn.core.pytorch import add_batch_dim, is_batched, keep_graph, remove_batch_dim
from lightning_lrnn.ops import double_backward
from lightning_lrnn.ops.first_order import first_order_gradients, zeros_of_output

__all__ = ["differentiate"]

LEVELS = 64
"""Largest depth of nested batches."""


def differentiate(
    ctx: Any,
    dy: Tensor | None,
    of_h: Tensor | None,
    dh_final: Tensor | None,
    *,
    again: bool = False,
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """Gradients of h0 and of the pre-activations.

    Args:
        ctx: what `eager.save` has filled.
        dy: gradient of the output.
        of_h: gradient of the hidden states, which the gradient of a gradient depends on.
        dh_final: gradient of the final state.
        again: whether a later call reads the saved tensors again.
    """
    incoming = dy, of_h, dh_final
    for x in incoming:
        if x is not None and is_batched(x):
            return _batched(ctx, incoming)
    recipe, gate, readout, reverse, exclusive, donated = ctx.options
    *pre, h, h0, lengths, reset = ctx.saved_tensors
    first_order = of_h is None and not torch.is_grad_enabled()
    for i in recipe.unread:
        pre[i] = (_placeholder if first_order else _zeros)(h, recipe.dtypes[i])
    problem = problem_of((gate, readout, pre, h0, lengths, reset, reverse, exclusive))
    if first_order:
        gradients = Gradients(zeros_of_output(problem, h) if dy is None else dy, dh_final)
        in_place = donated and not again and not keep_graph()
        dpre, dh0 = first_order_gradients(recipe, problem, h, gradients, in_place=in_place)
    else:
        dpre, dh0 = double_backward.gradients(recipe.name, problem, h, dy, of_h, dh_final)
        dpre = [g.to(dtype) for g, dtype in zip(dpre, recipe.dtypes, strict=True)]
    return None if h0 is None else dh0, dpre


def _placeholder(h: Tensor, dtype: torch.dtype) -> Tensor:
    """Replaces a tensor that was not saved: only its shape and dtype are read."""
    return h if h.dtype == dtype else h.new_empty((), dtype=dtype).expand(h.shape)


def _zeros(h: Tensor, dtype: torch.dtype) -> Tensor:
    """Replaces a tensor that was not saved, and does not affect the result."""
    return h.new_zeros((), dtype=dtype).expand(h.shape)


def _batched(
    ctx: Any, incoming: Sequence[Tensor | None]
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """Gradients of a batch, of `is_grads_batched=True` or `jacobian(vectorize=True)`.

    PyTorch uses its older vmap there, which has no rules for custom operators: each entry of the
    batch is computed by itself.
    """

    def flat(*one: Tensor | None) -> list[Tensor | None]:
        dy, of_h, dh_final = one
        dh0, dpre = differentiate(ctx, dy, of_h, dh_final, again=True)
        return [dh0, *dpre]

    dh0, *dpre = _map_batch(flat, incoming)
    return dh0, dpre


def _map_batch(
    differentiate: Callable[..., Sequence[Tensor | None]], gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Applies a function to each entry of a batch of gradients, and batches the results.

    Args:
        differentiate: from gradients, or None for none, to gradients.
        gradients: at least one of them a batch.
    """
    level, size = next(_innermost(x) for x in gradients if x is not None and is_batched(x))
    each = [_unbatched(x, level, size) for x in gradients]
    results = [differentiate(*one) for one in zip(*each, strict=True)]
    return tuple(
        None if of_one[0] is None else add_batch_dim(torch.stack(of_one), 0, level)
        for of_one in zip(*results, strict=True)
    )


def _innermost(x: Tensor) -> tuple[int, int]:
    """The level and the size of the innermost batch."""
    for level in reversed(range(LEVELS)):
        # Without a batch at this level, the size is the one passed, 0.
        if size := remove_batch_dim(x, level, 0, 0).shape[0]:
            return level, int(size)
    raise ValueError("a batch of gradients must not be empty")


def _unbatched(x: Tensor | None, level: int, size: int) -> Sequence[Any]:
    return [None] * size if x is None else remove_batch_dim(x, level, size, 0).unbind()
