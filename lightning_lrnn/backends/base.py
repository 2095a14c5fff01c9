"""What a backend is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_lrnn.core.problem import Gradients, Problem, States

__all__ = ["Backend", "BackendError", "Request"]


class BackendError(RuntimeError):
    """The backend that was asked for cannot run, or does not exist."""


class Request(NamedTuple):
    """What a backend is asked for, as far as it decides whether it can run.

    Attributes:
        device: of all tensors.
        dtype: of the sequences.
        gate: program of the gate; "" where only the machine is asked about.
        readout: program of the readout, or "".
    """

    device: torch.device
    dtype: torch.dtype
    gate: str = ""
    readout: str = ""


class Backend(Protocol):
    """Computes recurrences, forward and backward, on real tensors of at least one element."""

    differentiable: bool
    """Whether `forward` is made of operations that PyTorch differentiates; then there is no
    `backward`, and the hidden states that `forward` returns are not read."""

    def reasons(self, request: Request) -> list[str]:
        """Why it cannot do what it is asked for; [] = it can."""
        ...

    def prepared(self, problem: Problem) -> Backend:
        """The backend for problems of the form of this one.

        The form: programs, flags, and of each tensor shape, strides, dtype and device. What depends
        on nothing else is decided here, once.
        """
        ...

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
