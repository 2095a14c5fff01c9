"""The recurrence in eager mode: the backend called directly, and its gradient.

The dispatcher's ways into Python take longer than a small recurrence; so where nothing can tell the
operator (`library`) from the Python function behind it, that is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends import Backend
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.core.pytorch import any_requires_grad
from lightning_lrnn.ops.gradient import differentiate, save
from lightning_lrnn.ops.running import compute

__all__ = ["run"]


def run(name: str, backend: Backend, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and final state, with a gradient where one is asked for.

    Args:
        name: of the backend.
        backend: prepared for problems of this form.
        problem: all of whose tensors are `unobserved`.
    """
    gate, readout, pre, h0, lengths, reset, reverse, exclusive = problem
    if torch.is_grad_enabled() and any_requires_grad(*pre, h0):
        rest = gate, readout, lengths, reset, reverse, exclusive
        y, _, final = _differentiable(name, backend, rest, h0, *pre)
        return y, final
    y, _, final = compute(name, backend, problem)
    return y, final


class _Differentiable(torch.autograd.Function):
    """In the form that torch.func does not take.

    For the other one PyTorch inspects the signature of `forward` at every call.
    """

    @staticmethod
    def forward(
        ctx: Any, name: str, backend: Backend, rest: Any, h0: Tensor | None, *pre: Tensor
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
