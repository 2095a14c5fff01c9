"""Calls one recurrence as PyTorch's current mode needs it: eager, traced, in torch.func."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lrnn.backends import prepared, recipes
from lightning_lrnn.backends.portable import by_scan
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.core.pytorch import forward_mode, functorch, plain_eager
from lightning_lrnn.ops import double_backward, eager
from lightning_lrnn.ops import library as library  # registers
from lightning_lrnn.ops.functorch import differentiable
from lightning_lrnn.ops.schema import recurrence

__all__ = ["call"]


def call(name: str, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and final state, differentiable in eager mode, under torch.compile and torch.func.

    Args:
        name: of the backend.
        problem: one that the backend can compute.
    """
    gate, readout, pre, *arguments = problem
    if functorch() or forward_mode():
        # It raises for forward-mode derivatives, which do not exist, instead of dropping them.
        y, _, final = differentiable(gate, readout, *arguments, name, *pre)
    elif plain_eager(*pre, *problem.optional):
        return eager.run(recipes.of(name, prepared(name, problem), problem), problem)
    elif torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return by_scan(problem)
    else:
        y, _, final = recurrence(gate, readout, pre, *arguments, name)
    return y, final


double_backward.recurrence = call
