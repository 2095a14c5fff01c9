"""The operator with its gradient, in the form that torch.func takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends import recipes
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.core.pytorch import below_autograd
from lightning_lrnn.ops.eager import save
from lightning_lrnn.ops.gradient import differentiate
from lightning_lrnn.ops.schema import recurrence

__all__ = ["differentiable"]


class _Differentiable(torch.autograd.Function):
    """The recurrence for torch.func; tensors come by position, so that autograd sees each.

    torch.func does not see an autograd.Function inside an operator's autograd kernel.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: str, readout: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with below_autograd():
            result: tuple[Tensor, Tensor, Tensor] = recurrence(
                gate, readout, arguments[6:], *arguments[:6]
            )
        return result

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        gate, readout, h0, lengths, reset, reverse, exclusive, name, *pre = inputs
        problem = Problem(gate, readout, pre, h0, lengths, reset, reverse, exclusive)
        y, h, _ = output
        save(ctx, recipes.of(name, None, problem), problem, h if readout else y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        dh0, dpre = differentiate(ctx, *gradients)
        return None, None, dh0, *[None] * 5, *dpre


differentiable: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Differentiable.apply
