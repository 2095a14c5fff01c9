"""A diagonal complex recurrence with a constant decay: what LRU and S5 have in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import Cell, linear
from lightning_lrnn.nn.scan_context import ScanContext

__all__ = ["DiagonalCell", "diagonal"]


@gate
def diagonal(u: Tensor, a: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Decay a and impulse scale * u; a and scale do not change over time."""
    return a, scale * u


class DiagonalCell(Cell):
    """h_t = a * h_{t-1} + scale * B x_t and y_t = Re(C h_t) + D x_t, in one direction.

    A subclass says what a and scale are, in `transition`. All parameters are real: what is complex
    has its real and its imaginary part in a dimension of 2.

    Attributes:
        B: (hidden_size, 2, input_size).
        C: (hidden_size, hidden_size, 2).
        D: (hidden_size, input_size).
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, **options: Any
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        self.B = self.parameter(hidden_size, 2, input_size)
        self.C = self.parameter(hidden_size, hidden_size, 2)
        self.D = self.parameter(hidden_size, input_size)

    memory_in_bias = False
    sampled = "B"

    @property
    def carry_dtype(self) -> torch.dtype:
        """Complex."""
        return torch.promote_types(self.B.dtype, torch.complex64)

    def reset_parameters(self) -> None:
        """Normal: |B x| and D x as large as |x|, and C h as |h|."""
        nn.init.normal_(self.B, std=math.sqrt(0.5 / self.input_size))
        nn.init.normal_(self.C, std=math.sqrt(1 / self.hidden_size))
        nn.init.normal_(self.D, std=math.sqrt(1 / self.input_size))

    def transition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a, complex, and scale, (hidden_size) each, from parameters cast to a real dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define `transition(dtype)`")

    def layer(self, x: Tensor, carry: Tensor | None, context: ScanContext) -> tuple[Tensor, Tensor]:
        """The layer's equations."""
        parts = linear(x, self.B.flatten(0, 1))
        # There are no complex numbers of 16-bit parts.
        parts = torch.unflatten(parts.to(state_dtype(parts.dtype)), -1, (-1, 2))
        u = torch.view_as_complex(parts)
        h, h_n = context.scan("state", diagonal, u, *self.transition(parts.dtype), h0=carry)
        # Re(C h) as a product of real numbers.
        parts, C = torch.view_as_real(h).flatten(-2), self.C * self.C.new_tensor([1, -1])
        return linear(parts.to(x.dtype), C.flatten(1)) + linear(x, self.D), h_n
