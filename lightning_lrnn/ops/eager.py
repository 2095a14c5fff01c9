"""The recurrence in eager mode: the backend called directly, and its gradient.

PyTorch's dispatcher costs more than a small recurrence. Where no mode of PyTorch needs to see the
operator (`library`), the Python function behind it is called directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends import Prepared
from lightning_lrnn.backends.recipes import Recipe
from lightning_lrnn.core.problem import Problem, States
from lightning_lrnn.core.pytorch import any_requires_grad, applied
from lightning_lrnn.ops import profiling, projections
from lightning_lrnn.ops.gradient import differentiate

__all__ = ["compute", "last_backend", "record_backend", "run", "save"]

_last: str | None = None


def record_backend(backend: str | None) -> None:
    """Records the backend that computes a recurrence; None resets the record."""
    global _last
    _last = backend


def last_backend() -> str | None:
    """The backend that computed the most recent recurrence of this process, None before any."""
    return _last


def run(recipe: Recipe, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and final state, with a gradient where one is asked for.

    Args:
        recipe: of problems of this form.
        problem: all of whose tensors are `plain_eager`.
    """
    if not recipe.dense:
        problem = problem.dense()
    pre, h0 = problem.pre, problem.h0
    wants_gradient = recipe.wants_gradient
    if wants_gradient is None:
        wants_gradient = any_requires_grad(*pre, h0)
    if wants_gradient and torch.is_grad_enabled():
        y, *_, final = _differentiable(recipe, problem, h0, *pre)
    else:
        assert recipe.backend is not None
        y, _, final = compute(recipe.name, recipe.backend, problem)
    return y, final


def compute(name: str, backend: Prepared, problem: Problem) -> States:
    """Runs a backend's forward pass, and records the backend as the last one used."""
    record_backend(name)
    if profiling.observer is None:
        return backend.forward(problem)
    with profiling.observer():
        return backend.forward(problem)


class _Differentiable(torch.autograd.Function):
    """The recurrence for autograd, with `ctx` in `forward`, which torch.func does not take.

    The form for torch.func, in `functorch`, inspects the signature of `forward` at every call.
    """

    @staticmethod
    def forward(
        ctx: Any, recipe: Recipe, problem: Problem, h0: Tensor | None, *pre: Tensor
    ) -> tuple[Tensor, ...]:
        assert recipe.backend is not None
        y, h, final = compute(recipe.name, recipe.backend, problem)
        save(ctx, recipe, problem, h)
        return (y, h, final) if problem.readout else (y, final)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        of_h = others[0] if len(others) == 2 else None
        dh0, dpre = differentiate(ctx, dy, of_h, others[-1])
        return None, None, dh0, *dpre


_differentiable: Callable[..., tuple[Tensor, ...]] = applied(_Differentiable)


def save(ctx: Any, recipe: Recipe, problem: Problem, h: Tensor) -> None:
    """Saves what the backward pass reads.

    Args:
        ctx: of the autograd function.
        recipe: of the problem.
        problem: of the forward pass.
        h: its hidden states.
    """
    gate, readout, pre, h0, lengths, reset, reverse, exclusive = problem
    saved: list[Tensor | None] = [*pre]
    for i in recipe.unread:
        saved[i] = None
    # Chunks of a projection that nothing else reads: their gradients may overwrite them.
    donated = recipe.chunks and all(
        [type(p.grad_fn) is projections.SPLIT for p in pre if p.ndim == 3]
    )
    ctx.options = recipe, gate, readout, reverse, exclusive, donated
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*saved, h, h0, lengths, reset)
