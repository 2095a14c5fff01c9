"""The gradient of a linear recurrence, which is a linear recurrence run backwards."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.masks import padding_mask, restarts
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY

__all__ = ["Recurrence", "adjoint"]


class Recurrence(Protocol):
    """Anything that computes a recurrence: a loop, a third party's `run`, or the operator."""

    def __call__(self, problem: Problem, /) -> tuple[Tensor, Tensor]:
        """The hidden states and the final state of a plain recurrence."""
        ...


def adjoint(
    recurrence: Recurrence, problem: Problem, h: Tensor, gradients: Gradients
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0, by the recurrence itself (paper, section 2.3; complex: conjugates).

    With c_t the gradient of the state before step t and g_t that of h_t, for y_t = h_t:

        g_t = dy_t + c_{t+1},   c_t = conj(a_t) g_t,   db_t = g_t,   da_t = g_t conj(h_{t-1})

    so c is the recurrence of the decays conj(a) and the impulses conj(a) dy in the other direction
    of time, its exclusive output is c_{t+1}, and no tensor is shifted in memory. If outputs are
    exclusive, dy_t belongs to h_{t-1} instead: c_t = dy_t + conj(a_t) c_{t+1}, g_t = c_{t+1}.

    Differentiable if `recurrence` is. In 16 bits the gradients are computed in float32, and rounded
    at the end.

    Args:
        recurrence: how to compute it.
        problem: a plain recurrence, as in the forward pass; its impulses are not read.
        h: the hidden states of the forward pass (B, T, D).
        gradients: of the hidden states and of the final state.

    Returns:
        da and db (B, T, D), dh0 (B, D).
    """
    a, (y, dh_final, _) = problem.pre[0], gradients
    h0, lengths, reset, reverse, exclusive = problem[3:]
    dtype, state = h.dtype, state_dtype(h.dtype)
    a, h, dy = a.to(state), h.to(state), y.to(state)
    decays = a.conj().resolve_conj()
    padding = None if lengths is None else padding_mask(lengths, h)
    if padding is not None:
        dy = dy.masked_fill(padding, 0)
    starts, inner = None, None
    if reset is not None:
        # A border at the edge of the sequence cuts h0 off; between the steps there is none.
        inner = torch.cat([torch.zeros_like(reset[:, :1]), reset[:, 1:]], 1)
        starts = restarts(reset, lengths, reverse=reverse)[:, :, None]

    impulses = dy if exclusive else decays * dy
    pre, backwards = (decays, impulses), not reverse
    c, dh0 = recurrence(Problem(IDENTITY, "", pre, dh_final, lengths, inner, backwards, True))
    g = c if exclusive else dy + c
    before = h if exclusive else _before(h, h0, lengths, reverse=reverse)
    da = g * before.conj()
    if starts is not None:
        da = da.masked_fill(starts, 0)
    if reset is not None and not reverse:
        cut = reset[:, :1] if lengths is None else reset[:, :1] & (lengths[:, None] > 0)
        dh0 = dh0.masked_fill(cut, 0)
    if padding is not None:
        da, g = da.masked_fill(padding, 0), g.masked_fill(padding, 0)
    return da.to(dtype), g.to(dtype), dh0


def _before(h: Tensor, h0: Tensor | None, lengths: Tensor | None, *, reverse: bool) -> Tensor:
    """The state before each step, from the states after each step."""
    h0 = torch.zeros_like(h[:, 0]) if h0 is None else h0.to(h.dtype)
    first = h0[:, None]
    if not reverse:
        return torch.cat([first, h[:, :-1]], 1)
    before = torch.cat([h[:, 1:], first], 1)
    if lengths is None:
        return before
    steps = torch.arange(h.shape[1], device=h.device)[None, :, None]
    return torch.where(steps + 1 == lengths[:, None, None], first, before)
