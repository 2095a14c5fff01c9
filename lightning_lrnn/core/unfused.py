"""Gate and readout evaluated by PyTorch, around a recurrence that knows nothing of them.

In the dtype of the state, as compiled code evaluates them: of 16 bits, where decays above 0.998
are 1, only inputs and outputs are, and gradients; each is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.gates.derivative import pullback, readout_or_state

__all__ = [
    "backward_around",
    "broadcastable",
    "decays_and_impulses",
    "forward_around",
    "like_sequence",
    "operands",
    "padding_mask",
    "read_out",
    "sequence",
    "widened",
]


def sequence(pre: Sequence[Tensor]) -> Tensor:
    """The first pre-activation that varies over time."""
    return next(p for p in pre if p.ndim == 3)


def padding_mask(lengths: Tensor, x: Tensor) -> Tensor:
    """(B, T, 1), True at padded steps."""
    return torch.arange(x.shape[1], device=x.device)[None, :, None] >= lengths[:, None, None]


def like_sequence(x: Tensor, is_complex: bool) -> torch.dtype:
    """Dtype of what a gate or readout makes of sequences: theirs, whatever its parameters have."""
    if not is_complex or x.is_complex():
        return x.dtype
    return state_dtype(x.dtype).to_complex()


def broadcastable(p: Tensor) -> Tensor:
    """A parameter (B, D) as (B, 1, D)."""
    return p[:, None] if p.ndim == 2 else p


def widened(pre: Sequence[Tensor]) -> list[Tensor]:
    """All in the dtype of the state, real or complex as they are."""
    double = sequence(pre).dtype in (torch.float64, torch.complex128)
    real, pair = (torch.float64, torch.complex128) if double else (torch.float32, torch.complex64)
    return [p.to(pair if p.is_complex() else real) for p in pre]


def operands(pre: Sequence[Tensor]) -> list[Tensor]:
    """What a gate is evaluated of."""
    return list(map(broadcastable, widened(pre)))


def read_out(readout: str, h: Tensor, pre: Sequence[Tensor], lengths: Tensor | None) -> Tensor:
    """y (B, T, D), 0 at padded steps."""
    y: Tensor
    (y,) = gates.evaluate(readout, [h.to(state_dtype(h.dtype)), *operands(pre)])
    y = y.to(like_sequence(sequence(pre), y.is_complex())).expand(h.shape)
    return y if lengths is None else y.masked_fill(padding_mask(lengths, y), 0)


def decays_and_impulses(gate: str, pre: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """a and b (B, T, D), in the dtype of the state."""
    a, b = gates.evaluate(gate, operands(pre))
    x = sequence(pre)
    dtype = state_dtype(like_sequence(x, a.is_complex() or b.is_complex()))
    return a.to(dtype).expand(x.shape), b.to(dtype).expand(x.shape)


def forward_around(
    run: Callable[..., tuple[Tensor, Tensor]],
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    *arguments: Any,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the emitted states and the final state, by the plain recurrence `run`."""
    if gate == gates.IDENTITY and not readout:
        h, h_final = run(*pre, h0, lengths, *arguments, **options)
        return h, h, h_final
    a, b = decays_and_impulses(gate, pre)
    h, h_final = run(a, b, h0, lengths, *arguments, **options)
    emitted = h.to(like_sequence(sequence(pre), h.is_complex()))
    y = read_out(readout, h, pre, lengths).contiguous() if readout else emitted
    return y, emitted, h_final


def backward_around(
    run_backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    h: Tensor,
    h0: Tensor | None,
    dy: Tensor,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    *arguments: Any,
    into: Sequence[Tensor | None] | None = None,
    **options: Any,
) -> tuple[list[Tensor], Tensor]:
    """The gradients of `pre` and h0, by the plain adjoint and the programs of the pullbacks."""
    x, kinds = sequence(pre), tuple(p.is_complex() for p in pre)
    values, state = operands(pre), state_dtype(h.dtype)
    (a,) = gates.evaluate(_output(gate, 0), values)
    a, h, dy = a.to(state).expand(x.shape), h.to(state), dy.to(state_dtype(dy.dtype))
    of_readout = pullback(readout_or_state(readout, len(pre)), (h.is_complex(), *kinds))
    dh, *dx = gates.evaluate(of_readout, [h, *values, dy])
    dh = torch.as_tensor(dh, dtype=state).expand(x.shape)
    da, db, dh0 = run_backward(a, h, h0, dh, dh_final, lengths, *arguments, **options)
    padding = None if lengths is None else padding_mask(lengths, x)
    gradients = []
    shares = zip(gates.evaluate(pullback(gate, kinds), [*values, da, db]), dx, strict=True)
    for p, place, (of_gate, of_output) in zip(pre, into or [None] * len(pre), shares, strict=True):
        g = torch.as_tensor(of_output + of_gate).expand(x.shape)
        # The derivative at a NaN is NaN even where the gradient that reaches it is 0.
        g = g if padding is None else g.masked_fill(padding, 0)
        if p.ndim < 3:
            double = torch.complex128 if p.is_complex() else torch.float64
            g = g.sum((0, 1) if p.ndim == 1 else 1, dtype=double)
        gradients.append(g.to(p.dtype).contiguous() if place is None else place.copy_(g))
    return gradients, dh0


def _output(program: str, index: int) -> str:
    parsed = gates.parse(program)
    return str(gates.pruned(parsed._replace(outputs=parsed.outputs[index : index + 1])))
