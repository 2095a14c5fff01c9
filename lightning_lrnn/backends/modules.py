"""Modules as backends: the form in which third parties may write one."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from lightning_lrnn.backends.base import Prepared, Request
from lightning_lrnn.backends.unfused import Unfused
from lightning_lrnn.core.adjoint import adjoint
from lightning_lrnn.core.problem import Gradients, Problem, States

__all__ = ["ModuleBackend"]


class ModuleBackend:
    """A module with two functions, as a backend.

        unsupported_reasons(request: Request) -> list[str]      # [] = it runs
        run(a, b, h0, lengths, reset, *, reverse, exclusive) -> (y, h_final)

    and, if it has a faster adjoint than the one made of `run`,

        run_backward(a, y, h0, dy, dh_final, lengths, reset, *, reverse, exclusive)
            -> (da, db, dh0)

    or, made of operations that PyTorch itself differentiates, for all gates that it takes,

        run_differentiable(gate, readout, pre, h0, lengths, reset, *, reverse, exclusive)
            -> (y, h_final)

    and, if it can compile gates and readouts into its loop,

        fuses(request: Request) -> bool
        run_gated(gate, readout, pre, h0, lengths, reset, *, reverse, exclusive)
            -> (y, h, h_final)                                  # h: the hidden states
        run_gated_backward(gate, readout, pre, h, h0, dy, dh_final, lengths, reset, *, reverse,
                           exclusive, into=None) -> ([dpre, ...], dh0)

    where `gate` and `readout` are programs (`lightning_lrnn.gates`), `readout` "" for none, and
    `pre` are sequences (B, T, D) and parameters (D,) or (B, D). Backward, those that
    `lightning_lrnn.gates.derivative.needed` leaves out have a shape and a dtype, but no values.
    `into`: where the gradients of sequences go if not into new tensors, (B, T, D) of equal strides,
    that of D 1; None in the places of parameters. Otherwise shapes and meanings are those of
    `lightning_lrnn.linear_recurrence`.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.uses_autograd = hasattr(module, "run_differentiable")

    def reasons(self, request: Request) -> list[str]:
        """Returns the reasons that the module gives."""
        reasons: list[str] = self.module.unsupported_reasons(request)
        return reasons

    def prepared(self, problem: Problem) -> Prepared:
        """With gates by the module, if it takes them, or by PyTorch around its recurrence."""
        x = problem.x
        request = Request(x.device, x.dtype, problem.gate, problem.readout)
        fuses = getattr(self.module, "fuses", None)
        if problem.is_plain or self.uses_autograd or (fuses is not None and fuses(request)):
            return self
        return Unfused(lambda _: self)

    def forward(self, problem: Problem) -> States:
        """By `run`, `run_gated` or `run_differentiable`."""
        gate, readout, pre, *rest, reverse, exclusive = problem
        flags = {"reverse": reverse, "exclusive": exclusive}
        if self.uses_autograd:
            y, final = self.module.run_differentiable(gate, readout, list(pre), *rest, **flags)
            return States(y, y, final)
        if problem.is_plain:
            y, final = self._run(problem)
            return States(y, y, final)
        return States(*self.module.run_gated(gate, readout, pre, *rest, **flags))

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        """By `run_backward`, `run_gated_backward`, or the adjoint made of `run`."""
        gate, readout, pre, h0, *masks, reverse, exclusive = problem
        dy, final, out = gradients
        flags = {"reverse": reverse, "exclusive": exclusive}
        if not problem.is_plain:
            options = flags if out is None else flags | {"into": out}
            dpre, dh0 = self.module.run_gated_backward(
                gate, readout, pre, h, h0, dy, final, *masks, **options
            )
            return dpre, dh0
        if hasattr(self.module, "run_backward"):
            results = self.module.run_backward(pre[0], h, h0, dy, final, *masks, **flags)
        else:
            results = adjoint(self._run, problem, h, gradients)
        da, db, dh0 = (g.contiguous() for g in results)
        return [da, db], dh0

    def _run(self, problem: Problem) -> tuple[Tensor, Tensor]:
        _, _, pre, *rest, reverse, exclusive = problem
        y, final = self.module.run(*pre, *rest, reverse=reverse, exclusive=exclusive)
        return y, final
