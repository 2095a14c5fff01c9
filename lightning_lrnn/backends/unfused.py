"""Gate and readout by PyTorch, around a plain recurrence: for what has no code for gates."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_

import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.backends.base import Prepared
from lightning_lrnn.core import reference
from lightning_lrnn.core.adjoint import adjoint
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.evaluation import decays_and_impulses, operands, read_out
from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.core.problem import Gradients, Problem, States, sequence_dtype
from lightning_lrnn.gates.derivative import pullback, readout_or_state

__all__ = ["EMPTY", "LOOP", "Unfused"]


class Unfused:
    """Computes gated recurrences by plain ones.

    In the dtype of the state, as compiled code does: bfloat16 rounds decays above 0.998 to 1. Only
    inputs, outputs and gradients have 16 bits, and each is rounded once.

    Args:
        plain: what computes a problem whose gate is the identity.
    """

    def __init__(self, plain: Callable[[Problem], Prepared]) -> None:
        self._plain = plain

    def forward(self, problem: Problem) -> States:
        """Decays and impulses, the recurrence, and what is read out."""
        if problem.is_plain:
            return self._plain(problem).forward(problem)
        a, b = decays_and_impulses(problem.gate, problem.pre)
        plain = problem._replace(gate=gates.IDENTITY, readout="", pre=(a, b))
        _, h, final = self._plain(plain).forward(plain)
        hidden = h.to(sequence_dtype(problem.x, is_complex=h.is_complex()))
        if not problem.readout:
            return States(hidden, hidden, final)
        y = read_out(problem.readout, h, problem.pre, problem.lengths)
        return States(y.contiguous(), hidden, final)

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        """The plain adjoint between the programs of the pullbacks of readout and gate."""
        if problem.is_plain:
            return self._plain(problem).backward(problem, h, gradients)
        x, pre, lengths = problem.x, problem.pre, problem.lengths
        kinds = tuple(p.is_complex() for p in pre)
        values, state = operands(pre), state_dtype(h.dtype)
        (a,) = gates.evaluate(_decay(problem.gate), values)
        a, h, dy = a.to(state).expand(x.shape), h.to(state), gradients.y
        dy = dy.to(state_dtype(dy.dtype))
        of_readout = pullback(readout_or_state(problem.readout, len(pre)), (h.is_complex(), *kinds))
        dh, *dx = gates.evaluate(of_readout, [h, *values, dy])
        dh = torch.as_tensor(dh, dtype=state).expand(x.shape)
        plain = problem._replace(gate=gates.IDENTITY, readout="", pre=(a, a))
        wanted = Gradients(dh, gradients.final)
        (da, db), dh0 = self._plain(plain).backward(plain, h, wanted)
        of_gate = gates.evaluate(pullback(problem.gate, kinds), [*values, da, db])
        padding = None if lengths is None else padding_mask(lengths, x)
        out = gradients.out or [None] * len(pre)
        if any(map(is_, out, pre)):
            out = [None] * len(pre)  # autograd would see PyTorch write there
        dpre = []
        for p, target, of_output, g in zip(pre, out, dx, of_gate, strict=True):
            g = torch.as_tensor(of_output + g).expand(x.shape)
            # The derivative at a NaN is NaN even where the gradient that reaches it is 0.
            g = g if padding is None else g.masked_fill(padding, 0)
            if p.ndim < 3:
                double = torch.complex128 if p.is_complex() else torch.float64
                g = g.sum((0, 1) if p.ndim == 1 else 1, dtype=double)
            dpre.append(g.to(p.dtype).contiguous() if target is None else target.copy_(g))
        return dpre, dh0


class _Loop:
    """One step after the other by PyTorch: for every device, and where a compiler is missing."""

    @torch.no_grad()
    def forward(self, problem: Problem) -> States:
        h, final = _loop(problem)
        return States(h, h, final)

    @torch.no_grad()
    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        da, db, dh0 = adjoint(_loop, problem, h, gradients)
        return [da.contiguous(), db.contiguous()], dh0


class _Empty:
    """Sequences of no element: the state stays as it is."""

    def forward(self, problem: Problem) -> States:
        b = problem.pre[1]
        final = b.new_zeros(b.shape[0], b.shape[2], dtype=state_dtype(b.dtype))
        h = b.new_empty(b.shape)
        return States(h, h, final if problem.h0 is None else problem.h0.clone())

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        zero = h.new_zeros(h.shape[0], h.shape[2], dtype=state_dtype(h.dtype))
        dh0 = zero if gradients.final is None else gradients.final.clone()
        return [torch.empty_like(h), torch.empty_like(h)], dh0


def _loop(problem: Problem) -> tuple[Tensor, Tensor]:
    (a, b), h0, lengths, reset, reverse, exclusive = problem[2:]
    y, final = reference.linear_recurrence(
        a, b, h0, reverse=reverse, exclusive=exclusive, lengths=lengths, reset=reset
    )
    return y, final.clone() if final is h0 else final


LOOP, EMPTY = Unfused(lambda _: _Loop()), Unfused(lambda _: _Empty())


def _decay(gate: str) -> str:
    """The program of a gate's decay alone."""
    program = gates.parse(gate)
    return str(gates.pruned(program._replace(outputs=program.outputs[:1])))
