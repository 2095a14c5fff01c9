"""LRU: the linear recurrent unit (Orvieto et al., ICML 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lrnn.core.checks import check_numbers
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.pytorch import plain_eager
from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import Cell, linear
from lightning_lrnn.nn.cells.diagonal import DiagonalCell
from lightning_lrnn.nn.complex_columns import to_columns, to_complex
from lightning_lrnn.nn.memory import Memory, is_pair, memory_bias_
from lightning_lrnn.nn.scan_context import ScanContext
from lightning_lrnn.nn.stack import Stack

__all__ = ["LRU", "LRUCell", "LRUStateCell"]

TINY = 1e-6


@gate
def constant(u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Decay a, which does not change over time, and impulse u."""
    return a, u


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
        check_ring(ring, max_phase)
        super().__init__(input_size, hidden_size, bias, **options)
        self.ring, self.max_phase = ring, max_phase
        self.nu = self.parameter(hidden_size)
        self.theta = self.parameter(hidden_size)
        self.gamma = self.parameter(hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """a uniform on the ring, or |a| by expected memory; the scale sqrt(1 - |a|^2)."""
        super().reset_parameters()
        draw_(self.nu, self.theta, self.gamma, self.ring, self.max_phase, self.memory)

    def transition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a = exp(-exp(nu) + i exp(theta)) and exp(gamma)."""
        nu, theta, gamma = (p.to(dtype) for p in (self.nu, self.theta, self.gamma))
        return decay(nu, theta), torch.exp(gamma)


class LRUStateCell(Cell):
    """The recurrence of an `LRU` in one direction, whose output is the state: Re h and Im h.

        h_t = a * h_{t-1} + (exp(gamma) * B) x_t,  y_t = (Re h_1, Im h_1, Re h_2, Im h_2, ...)

    The hidden_size columns of y are those of hidden_size / 2 complex units; of an odd number the
    last is a unit with a real a. The linear surrogate of `SurrogateRNN` by the name of "LRU", whose
    readout C and D its matrices U and W have. At first no a turns faster than once in four steps:
    to what reads Re and Im a phase and its negative are the same, and waves in data are slow.

    Attributes:
        B: (hidden_size, input_size), rows as the columns of y.
        nu: log of -log |a| (units).
        theta: log of the phase of a (complex units).
        gamma: log of the scale (units).
    """

    memory_in_bias = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        ring: tuple[float, float] = (0.0, 1.0),
        max_phase: float = math.pi / 2,
        **options: Any,
    ) -> None:
        check_ring(ring, max_phase)
        super().__init__(input_size, hidden_size, bias, **options)
        self.ring, self.max_phase = ring, max_phase
        units = (hidden_size + 1) // 2
        self.B = self.parameter(hidden_size, input_size)
        self.nu = self.parameter(units)
        self.theta = self.parameter(hidden_size // 2)
        self.gamma = self.parameter(units)
        self.reset_parameters()

    @property
    def sample(self) -> Tensor:
        """B, for the device and dtype of the parameters."""
        return self.B

    @property
    def output_is_state(self) -> bool:
        """True: the cell has no readout."""
        return True

    def reset_parameters(self) -> None:
        """Initialises a and its scale as an `LRU` does, and B from a normal distribution."""
        nn.init.normal_(self.B, std=math.sqrt(0.5 / self.input_size))
        draw_(self.nu, self.theta, self.gamma, self.ring, self.max_phase, self.memory)

    def layer(self, x: Tensor, carry: Tensor | None, context: ScanContext) -> tuple[Tensor, Tensor]:
        """The layer's equations."""
        S = self.hidden_size
        dtype = state_dtype(self.B.dtype)
        nu, theta, gamma = (p.to(dtype) for p in (self.nu, self.theta, self.gamma))
        a, B = transition(nu, theta, gamma, self.B)
        u = linear(x, B)
        dtype = state_dtype(u.dtype)
        h_0 = None if carry is None else to_complex(carry.to(dtype).clone())
        h, h_n = context.scan("state", constant, to_complex(u.to(dtype)), a, h0=h_0)
        return to_columns(h, S).to(u.dtype), to_columns(h_n, S)


def decay(nu: Tensor, theta: Tensor) -> Tensor:
    """a = exp(-exp(nu) + i exp(theta)), of units that have no theta real."""
    phase = torch.exp(theta)
    if len(theta) < len(nu):
        phase = F.pad(phase, (0, len(nu) - len(theta)))
    return torch.polar(torch.exp(-torch.exp(nu)), phase)


def transition(nu: Tensor, theta: Tensor, gamma: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """a, and exp(gamma) * B in the dtype of B, of which each unit has two rows."""
    vectors = nu, theta, gamma, B
    result: tuple[Tensor, Tensor]
    result = (_Transition.apply if plain_eager(*vectors) else _transition)(*vectors)
    return result


def _transition(nu: Tensor, theta: Tensor, gamma: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    return decay(nu, theta), (_of_rows(torch.exp(gamma), B) * B).to(B.dtype)


def _of_rows(units: Tensor, B: Tensor) -> Tensor:
    """One number per unit, repeated for its two rows of B, as a column."""
    return units.repeat_interleave(2)[: len(B), None]


class _Transition(torch.autograd.Function):
    """`_transition` as one node of autograd: a small layer takes as long for nine."""

    @staticmethod
    def forward(
        ctx: Any, nu: Tensor, theta: Tensor, gamma: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor]:
        a, scaled = _transition(nu, theta, gamma, B)
        ctx.save_for_backward(nu, theta, gamma, B, a, scaled)
        return a, scaled

    @staticmethod
    def backward(ctx: Any, of_a: Tensor, of_scaled: Tensor) -> tuple[Tensor, ...]:
        nu, theta, gamma, B, a, scaled = ctx.saved_tensors
        of_log = of_a * a.conj()
        of_row = (of_scaled * scaled).sum(1, dtype=gamma.dtype)
        if len(B) % 2:
            of_row = F.pad(of_row, (0, 1))
        return (
            -torch.exp(nu) * of_log.real,
            torch.exp(theta) * of_log.imag[: len(theta)],
            of_row.view(-1, 2).sum(1),
            (_of_rows(torch.exp(gamma), B) * of_scaled).to(B.dtype),
        )


def check_ring(ring: Any, max_phase: float) -> None:
    """Raises for radii or a phase out of range."""
    if not is_pair(ring) or not 0 <= ring[0] < ring[1] <= 1:
        raise ValueError(f"`ring` must be radii, 0 <= inner < outer <= 1, got {ring}")
    check_numbers(0, max_phase=max_phase)
    if not 0 < max_phase <= 2 * math.pi:
        raise ValueError(f"`max_phase` must be in (0, 2 pi], got {max_phase}")


@torch.no_grad()
def draw_(
    nu: Tensor,
    theta: Tensor,
    gamma: Tensor,
    ring: tuple[float, float],
    max_phase: float,
    memory: Memory,
) -> None:
    """Fills the vectors of an LRU: a uniform on the ring, or |a| by expected memory.

    Radii and phases are spread evenly: of few units drawn one by one, often none has a phase near
    that of a wave in the data.
    """
    # Drawn in the dtype of the state, and away from a radius of 0 or 1 and a phase of 0, which
    # have no logarithm.
    draw = torch.empty_like(nu, dtype=state_dtype(nu.dtype))
    if memory is None:
        low, high = ring
        square = _evenly_(draw, low**2, high**2).clamp(TINY, 1 - TINY)
        forgotten = -square.log() / 2
    else:
        forgotten = torch.log1p(1 / memory_bias_(draw, memory).exp())
    nu.copy_(forgotten.log())
    phase = _evenly_(torch.empty_like(theta, dtype=draw.dtype), 0, max_phase)
    theta.copy_(phase.clamp(min=TINY).log())
    gamma.copy_(torch.log(-torch.expm1(-2 * forgotten)) / 2)


def _evenly_(draw: Tensor, low: float, high: float) -> Tensor:
    """Fills a vector by stratified sampling: one of its n numbers in each n-th of the range."""
    stratum = torch.rand_like(draw).argsort()
    return draw.uniform_().add_(stratum).mul_((high - low) / max(1, draw.numel())).add_(low)


class LRU(Stack):
    """Linear recurrent units, called as `torch.nn.GRU`; the state is complex.

        a = exp(-exp(nu) + i exp(theta))
        h_t = a * h_{t-1} + exp(gamma) * B x_t
        y_t = Re(C h_t) + D x_t

    with a constant a, in the unit circle for all nu and theta. Non-linear functions go between the
    layers of a model, and are not part of this one. Source: Orvieto et al., "Resurrecting
    Recurrent Neural Networks for Long Sequences", ICML 2023 (arXiv 2303.06349), sections 3.3 and
    3.4. At first a is uniform on a ring of the complex plane.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size), complex64 (complex128 in float64 modules).

    Args:
        bias: without effect, as there are no biases.
        proj_size: must be 0.
        ring: inner and outer radius, the range of the initial |a| without a `memory`.
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
