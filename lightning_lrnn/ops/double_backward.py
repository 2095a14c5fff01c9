"""The gradient of a gradient: the same mathematics by operations that PyTorch differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.backends.recipes import Recipe
from lightning_lrnn.core.adjoint import adjoint
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.evaluation import decays_and_impulses, read_out, widened
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.ops.first_order import first_order_gradients, zeros_of_output

__all__ = ["gradients"]


def recurrence(name: str, problem: Problem) -> tuple[Tensor, Tensor]:
    """The differentiable recurrence; `ops.call`, which imports this module, replaces it."""
    raise NotImplementedError


def gradients(
    name: str,
    problem: Problem,
    h: Tensor,
    dy: Tensor | None,
    of_h: Tensor | None,
    dh_final: Tensor | None,
) -> tuple[Sequence[Tensor], Tensor]:
    """Gradients of the pre-activations and of h0; arguments as for `gradient.differentiate`."""
    pre: Sequence[Tensor] = problem.pre
    if not problem.is_plain:
        state = state_dtype(h.dtype)
        pre, h, dy, of_h = widened(pre), h.to(state), _in_state(dy), _in_state(of_h)
    dh, of_readout = None if problem.readout else dy, None
    if problem.readout and dy is not None:

        def readout(h: Tensor, *pre: Tensor) -> Tensor:
            return read_out(problem.readout, h, pre, problem.lengths)

        dh, *of_readout = torch.func.vjp(readout, h, *pre)[1](dy)
    if of_h is not None and problem.readout:
        dh = of_h if dh is None else dh + of_h
    if problem.is_plain:
        (da, db), dh0 = _recurrence(name, problem, pre[0], h, dh, dh_final)
        return [da, db], dh0

    def gate(*pre: Tensor) -> tuple[Tensor, Tensor]:
        return decays_and_impulses(problem.gate, pre)

    (a, _), of_gate = torch.func.vjp(gate, *pre)[:2]
    gradient, dh0 = _recurrence(name, problem, a, h, dh, dh_final)
    dpre = list(of_gate(tuple(gradient)))
    if of_readout is not None:
        dpre = [g + d for g, d in zip(dpre, of_readout, strict=True)]
    return dpre, dh0


def _recurrence(
    name: str,
    problem: Problem,
    a: Tensor,
    h: Tensor,
    dh: Tensor | None,
    dh_final: Tensor | None,
) -> tuple[Sequence[Tensor], Tensor]:
    """Gradients of decays and impulses, and of h0."""
    plain = problem._replace(gate=gates.IDENTITY, readout="", pre=(a, a))
    if not torch.is_grad_enabled():
        dh = zeros_of_output(plain, h) if dh is None else dh
        return first_order_gradients(Recipe(name), plain, h, Gradients(dh, dh_final))

    dh = torch.zeros_like(h) if dh is None else dh
    da, db, dh0 = adjoint(partial(recurrence, name), plain, h, Gradients(dh, dh_final))
    return [da, db], dh0


def _in_state(x: Tensor | None) -> Tensor | None:
    """A tensor in the dtype of its state; None for None."""
    return None if x is None else x.to(state_dtype(x.dtype))
