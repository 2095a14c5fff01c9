"""The recurrence in eager mode: the backend called directly, and its gradient.

The way through PyTorch's dispatcher costs more than a small recurrence; so where nothing can tell
the operator (`library`) from the Python function behind it, the function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends import Prepared
from lightning_lrnn.core.problem import Problem, States
from lightning_lrnn.core.pytorch import any_requires_grad
from lightning_lrnn.gates import derivative
from lightning_lrnn.ops import profiling, projections
from lightning_lrnn.ops.gradient import differentiate

__all__ = ["compute", "computed_by", "last_backend", "run", "save"]

_last: str | None = None


def computed_by(backend: str | None) -> None:
    """Notes which backend computes a recurrence; None for none so far."""
    global _last
    _last = backend


def last_backend() -> str | None:
    """The backend that computed the most recent recurrence of this process, None before any."""
    return _last


def run(name: str, backend: Prepared, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and final state, with a gradient where one is asked for.

    Args:
        name: of the backend.
        backend: prepared for problems of this form.
        problem: all of whose tensors are `plain_eager`.
    """
    gate, readout, pre, h0, lengths, reset, reverse, exclusive = problem
    if torch.is_grad_enabled() and any_requires_grad(*pre, h0):
        rest = gate, readout, lengths, reset, reverse, exclusive
        y, _, final = _differentiable(name, backend, rest, h0, *pre)
        return y, final
    y, _, final = compute(name, backend, problem)
    return y, final


def compute(name: str, backend: Prepared, problem: Problem) -> States:
    """What a backend computes, noted as the last of this process."""
    computed_by(name)
    if profiling.observer is None:
        return backend.forward(problem)
    with profiling.observer():
        return backend.forward(problem)


class _Differentiable(torch.autograd.Function):
    """With `ctx` in `forward`, and so not for torch.func: that is `functorch`.

    The form that torch.func takes inspects the signature of `forward` at every call.
    """

    @staticmethod
    def forward(
        ctx: Any, name: str, backend: Prepared, rest: Any, h0: Tensor | None, *pre: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        gate, readout, lengths, reset, reverse, exclusive = rest
        problem = Problem(gate, readout, pre, h0, lengths, reset, reverse, exclusive)
        y, h, final = compute(name, backend, problem)
        save(ctx, problem, h, name, backend)
        return y, h if readout else None, final

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        dh0, dpre = differentiate(ctx, *gradients)
        return None, None, None, dh0, *dpre


_differentiable: Callable[..., tuple[Tensor, Tensor | None, Tensor]] = _Differentiable.apply


def save(ctx: Any, problem: Problem, h: Tensor, name: str, backend: Prepared | None) -> None:
    """Keeps what the backward pass reads.

    Args:
        ctx: of the autograd function.
        problem: of the forward pass.
        h: its hidden states.
        name: of the backend.
        backend: prepared for problems of this form; None if only the name is known.
    """
    gate, readout, pre, h0, lengths, reset, ctx.reverse, ctx.exclusive = problem
    ctx.gate, ctx.readout, ctx.name, ctx.backend = gate, readout, name, backend
    kinds, ctx.dtypes, ctx.donated = [], [], True
    for p in pre:
        kinds.append(p.is_complex())
        ctx.dtypes.append(p.dtype)
        # Chunks of a projection that nobody else reads: their gradients may take their place.
        if p.ndim == 3 and type(p.grad_fn) is not projections.SPLIT:
            ctx.donated = False
    needed = derivative.needed(gate, readout, tuple(kinds))
    kept: list[Tensor | None] = list(pre)
    for i, p in enumerate(pre):
        if p.ndim == 3 and not needed[i]:
            kept[i] = None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*kept, h, h0, lengths, reset)
