"""Gradients of a recurrence by its backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lrnn.backends import Prepared, prepared
from lightning_lrnn.backends.recipes import Recipe
from lightning_lrnn.core.evaluation import read_out
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.core.pytorch import plain_eager
from lightning_lrnn.ops import profiling, projections, schema

__all__ = ["compute_gradients", "first_order_gradients", "zeros_of_output"]


def first_order_gradients(
    recipe: Recipe, problem: Problem, h: Tensor, gradients: Gradients, *, in_place: bool = False
) -> tuple[Sequence[Tensor], Tensor]:
    """Gradients of the pre-activations and of h0, by the backend, or the operator if traced.

    `in_place`: whether gradients may overwrite the pre-activations.
    """
    dy, dh_final, _ = gradients
    if plain_eager(*problem.pre, h, dy):
        if recipe.chunks:
            # CUDA kernels read their inputs as memory that the kernel does not write.
            in_place = in_place and h.device.type == "cpu"
            out = projections.gradients_of(problem.pre, in_place=in_place)
            gradients = Gradients(dy, dh_final, out)
        backend = recipe.backend or prepared(recipe.name, problem)
        return compute_gradients(backend, problem, h, gradients)
    gate, readout, pre, h0, *rest = problem
    if problem.is_plain:
        da, db, dh0 = schema.plain_backward(pre[0], h, h0, dy, dh_final, *rest, recipe.name)
        return [da, db], dh0
    dpre, dh0 = schema.gated_backward(gate, readout, pre, h, h0, dy, dh_final, *rest, recipe.name)
    return dpre, dh0


def compute_gradients(
    backend: Prepared, problem: Problem, h: Tensor, gradients: Gradients
) -> tuple[list[Tensor], Tensor]:
    """Runs a backend's backward pass: the gradients of the pre-activations and of h0."""
    if gradients.final is not None:
        gradients = gradients._replace(final=gradients.final.contiguous())
    if profiling.observer is None:
        return backend.backward(problem, h, gradients)
    with profiling.observer():
        return backend.backward(problem, h, gradients)


def zeros_of_output(problem: Problem, h: Tensor) -> Tensor:
    """The gradient of an output that nothing depends on."""
    dtype = h.dtype
    if problem.readout:
        none = [p[:, :0] if p.ndim == 3 else p for p in problem.pre]
        dtype = read_out(problem.readout, h[:, :0], none, None).dtype
    return torch.zeros((), dtype=dtype, device=h.device).expand(h.shape)
