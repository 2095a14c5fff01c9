"""The gradient of a linear recurrence, which is a linear recurrence run backwards."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightning_lrnn.core.dtypes import state_dtype

__all__ = ["Recurrence", "adjoint"]


class Recurrence(Protocol):
    """Anything that computes a recurrence: a backend's `run`, or the differentiable operator."""

    def __call__(
        self,
        a: Tensor,
        b: Tensor,
        h0: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        *,
        reverse: bool,
        exclusive: bool,
    ) -> tuple[Tensor, Tensor]:
        """The outputs and the final state."""
        ...


def adjoint(
    recurrence: Recurrence,
    a: Tensor,
    y: Tensor,
    h0: Tensor | None,
    dy: Tensor,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0, by the recurrence itself (paper, section 2.3; complex: conjugates).

    With c_t the gradient of the state before step t and g_t that of h_t, for y_t = h_t:

        g_t = dy_t + c_{t+1},   c_t = conj(a_t) g_t,   db_t = g_t,   da_t = g_t conj(h_{t-1})

    so c is the recurrence of the decays conj(a) and the impulses conj(a) dy against the walk of
    time, its exclusive output is c_{t+1}, and nothing is shifted in memory. Where the outputs are
    exclusive, dy_t belongs to h_{t-1} instead: c_t = dy_t + conj(a_t) c_{t+1}, g_t = c_{t+1}.

    Differentiable if `recurrence` is; every backend without a `run_backward` uses it. In 16
    bits the gradients are computed in float32, and rounded at the end.

    Args:
        recurrence: how to compute it.
        a: decays (B, T, D).
        y: outputs of the forward pass (B, T, D).
        h0: initial state (B, D), or None for zeros.
        dy: gradient of y.
        dh_final: gradient of the final state (B, D), or None for zeros.
        lengths: as in the forward pass.
        reset: as in the forward pass.
        reverse: as in the forward pass.
        exclusive: as in the forward pass.

    Returns:
        da and db (B, T, D), dh0 (B, D).
    """
    dtype, state = y.dtype, state_dtype(y.dtype)
    a, y, dy = a.to(state), y.to(state), dy.to(state)
    decays = a.conj().resolve_conj()
    steps = torch.arange(y.shape[1], device=y.device)[None, :, None]
    padding = None if lengths is None else steps >= lengths[:, None, None]
    if padding is not None:
        dy = dy.masked_fill(padding, 0)
    restarts, inner = None, None
    if reset is not None:
        first = torch.zeros_like(reset[:, :1])
        # A border at the edge of the sequence cuts h0 off; between the steps there is none.
        inner = torch.cat([first, reset[:, 1:]], 1)
        restarts = (torch.cat([inner[:, 1:], first], 1) if reverse else reset)[:, :, None]
        if reverse and lengths is not None:
            restarts = restarts & (steps + 1 < lengths[:, None, None])

    impulses = dy if exclusive else decays * dy
    c, dh0 = recurrence(
        decays, impulses, dh_final, lengths, inner, reverse=not reverse, exclusive=True
    )
    g = c if exclusive else dy + c
    before = y if exclusive else _before(y, h0, lengths, steps, reverse)
    da = g * before.conj()
    if restarts is not None:
        da = da.masked_fill(restarts, 0)
    if reset is not None and not reverse:
        cut = reset[:, :1] if lengths is None else reset[:, :1] & (lengths[:, None] > 0)
        dh0 = dh0.masked_fill(cut, 0)
    if padding is not None:
        da, g = da.masked_fill(padding, 0), g.masked_fill(padding, 0)
    return da.to(dtype), g.to(dtype), dh0


def _before(
    y: Tensor, h0: Tensor | None, lengths: Tensor | None, steps: Tensor, reverse: bool
) -> Tensor:
    """The state before each step, from the states after each step."""
    h0 = torch.zeros_like(y[:, 0]) if h0 is None else h0.to(y.dtype)
    first = h0[:, None]
    if not reverse:
        return torch.cat([first, y[:, :-1]], 1)
    before = torch.cat([y[:, 1:], first], 1)
    if lengths is None:
        return before
    return torch.where(steps + 1 == lengths[:, None, None], first, before)
