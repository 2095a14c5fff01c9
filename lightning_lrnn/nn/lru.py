"""LRU: the linear recurrent unit (Orvieto et al., ICML 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn._dtypes import state_dtype
from lightning_lrnn.nn.checks import is_pair
from lightning_lrnn.nn.diagonal import DiagonalCell
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.stack import Stack

__all__ = ["LRU", "LRUCell"]

TINY = 1e-6


class LRUCell(DiagonalCell):
    """One layer of `LRU` in one direction: B, C, D of a `DiagonalCell`, and three vectors.

    Attributes:
        nu: log of -log |a| (hidden_size).
        theta: log of the phase of a (hidden_size).
        gamma: log of the scale (hidden_size).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        ring: tuple[float, float] = (0.0, 1.0),
        max_phase: float = 2 * math.pi,
        **options: Any,
    ) -> None:
        if not is_pair(ring) or not 0 <= ring[0] < ring[1] <= 1:
            raise ValueError(f"`ring` must be radii, 0 <= inner < outer <= 1, got {ring}")
        if not 0 < max_phase <= 2 * math.pi:
            raise ValueError(f"`max_phase` must be in (0, 2 pi], got {max_phase}")
        super().__init__(input_size, hidden_size, bias, **options)
        self.ring, self.max_phase = ring, max_phase
        self.nu = self.parameter(hidden_size)
        self.theta = self.parameter(hidden_size)
        self.gamma = self.parameter(hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """a uniform on the ring, or |a| by expected memory; the scale sqrt(1 - |a|^2)."""
        super().reset_parameters()
        # Drawn in the dtype of the state, and away from a radius of 0 or 1 and a phase of 0, which
        # have no logarithm.
        draw = torch.empty_like(self.nu, dtype=state_dtype(self.nu.dtype))
        if self.memory is None:
            low, high = self.ring
            square = draw.clone().uniform_(low**2, high**2).clamp(TINY, 1 - TINY)
            forgotten = -square.log() / 2
        else:
            forgotten = torch.log1p(1 / memory_bias_(draw.clone(), self.memory).exp())
        self.nu.copy_(forgotten.log())
        self.theta.copy_(draw.uniform_(0, self.max_phase).clamp(min=TINY).log())
        self.gamma.copy_(torch.log(-torch.expm1(-2 * forgotten)) / 2)

    def transition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a = exp(-exp(nu) + i exp(theta)) and exp(gamma)."""
        nu, theta, gamma = (p.to(dtype) for p in (self.nu, self.theta, self.gamma))
        return torch.polar(torch.exp(-torch.exp(nu)), torch.exp(theta)), torch.exp(gamma)


class LRU(Stack):
    """Linear recurrent units, called as `torch.nn.GRU`; the state is complex.

        a = exp(-exp(nu) + i exp(theta))
        h_t = a * h_{t-1} + exp(gamma) * B x_t
        y_t = Re(C h_t) + D x_t

    with a constant a, in the unit circle whatever nu and theta are. What is non-linear goes between
    the layers of a model, and is not part of this one. Source: Orvieto et al., "Resurrecting
    Recurrent Neural Networks for Long Sequences", ICML 2023 (arXiv 2303.06349), sections 3.3 and
    3.4. At first a is uniform on a ring of the complex plane.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size), complex64 (complex128 in float64 modules).

    Args: see `Stack`; `proj_size` must be 0, there are no biases; and
        ring: inner and outer radius, in which |a| lies at first where no `memory` is asked for.
        max_phase: the largest phase of a at first.
    """

    cell_type = LRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        ring: tuple[float, float] = (0.0, 1.0),
        max_phase: float = 2 * math.pi,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, *args, ring=ring, max_phase=max_phase, **kwargs)
