"""The protocols of a backend."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_lrnn.core.problem import Gradients, Problem, States

__all__ = ["Backend", "BackendError", "GivesStates", "Pairs", "Prepared", "Request"]


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
    `Prepared`. The last value is for `GivesStates.after`, or None.
    """

    def pair(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """The steps' map of the state, A h + B: A and B (B, D), in the dtype of the state.

        A row in which the state starts anew has A = 0; one without valid steps A = 1 and B = 0.
        """
        ...

    def adjoint_impulse(
        self, problem: Problem, h: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """C (B, D): the gradient of the state before the steps, that of the last being 0.

        Args:
            problem: of the forward pass.
            h: its hidden states.
            dy: the gradient of its output.
        """
        ...


@runtime_checkable
class GivesStates(Pairs, Protocol):
    """What computes the pairs of parts of a segment keeps them for the pass over its steps.

    Its backend has `kept_words(problem, *, backward) -> int`, the length of what it keeps, 0 for
    nothing: known before anything is computed, as torch.compile asks.
    """

    def after(self, given: Tensor) -> Prepared:
        """Likewise prepared; its parts wait for no other.

        Args:
            given: int64 (`kept_words`,), of the same steps, by `pair` for `forward`, by
                `adjoint_impulse` for `backward`.
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
