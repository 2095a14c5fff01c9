"""The protocols of a backend."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_lrnn.core.problem import Gradients, Problem, States

__all__ = ["Backend", "BackendError", "Pairs", "Prepared", "Request"]


class BackendError(RuntimeError):
    """The backend that was asked for cannot run, or does not exist."""


class Request(NamedTuple):
    """The part of a problem that decides whether a backend can run it.

    Attributes:
        device: of all tensors.
        dtype: of the sequences.
        gate: program of the gate; "" to ask about the machine alone.
        readout: program of the readout, or "".
    """

    device: torch.device
    dtype: torch.dtype
    gate: str = ""
    readout: str = ""


class Prepared(Protocol):
    """Computes recurrences of one form, on tensors with storage and at least one element."""

    def forward(self, problem: Problem) -> States:
        """Output, hidden states and final state."""
        ...

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of `problem.pre`, of their shapes and dtypes, and of h0.

        Pre-activations that `lightning_lrnn.gates.derivative.needed` leaves out have a shape and a
        dtype, but no values.
        """
        ...


@runtime_checkable
class Pairs(Protocol):
    """Optional methods of `Prepared`: a recurrence over ranks then takes fewer passes.

    Each may return None, or values that are not finite: these are then computed by the methods of
    `Prepared`.
    """

    def pair(self, problem: Problem) -> tuple[Tensor, Tensor] | None:
        """The steps' map of the state, A h + B: A and B (B, D), in the dtype of the state.

        A row in which the state starts anew has A = 0; one without valid steps A = 1 and B = 0.
        """
        ...

    def adjoint_impulse(self, problem: Problem, h: Tensor, dy: Tensor) -> Tensor | None:
        """C (B, D): the gradient of the state before the steps, that of the last being 0.

        Args:
            problem: of the forward pass.
            h: its hidden states.
            dy: the gradient of its output.
        """
        ...


class Backend(Protocol):
    """A way to compute recurrences."""

    uses_autograd: bool
    """Whether `forward` is made of operations that PyTorch differentiates; then `backward` is not
    called, and the hidden states that `forward` returns are not read."""

    def reasons(self, request: Request) -> list[str]:
        """Why it cannot run such a problem; [] = it can."""
        ...

    def prepared(self, problem: Problem) -> Prepared:
        """An object that computes problems of the form of this one, see `Problem.form`.

        Choices that depend on the form alone are made here, once.
        """
        ...
