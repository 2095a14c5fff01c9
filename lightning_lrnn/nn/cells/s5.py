"""S5: the simplified state space layer (Smith, Warrington & Linderman, ICLR 2023)."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.nn.cells.diagonal import DiagonalCell
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.stack import Stack

__all__ = ["S5", "S5Cell"]

STEPS = (1e-3, 1e-1)
"""Range of the initial time of a step."""
LARGEST_RATE = -1e-4
"""Upper bound of the real part of an eigenvalue: negative, so that no state grows."""


class S5Cell(DiagonalCell):
    """One layer of `S5` in one direction: B, C, D of a `DiagonalCell`, and three vectors.

    Attributes:
        rate: real parts of the eigenvalues (hidden_size).
        frequency: their imaginary parts (hidden_size).
        log_step: log of the time of a step (hidden_size).
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, **options: Any
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        self.rate = self.parameter(hidden_size)
        self.frequency = self.parameter(hidden_size)
        self.log_step = self.parameter(hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The eigenvalues of HiPPO-N; steps log-uniform in `STEPS`, or by expected memory."""
        super().reset_parameters()
        nn.init.constant_(self.rate, -0.5)
        if not self.frequency.is_meta:
            self.frequency.copy_(torch.from_numpy(hippo_frequencies(self.hidden_size)))
        if self.memory is None:
            self.log_step.uniform_(*map(math.log, STEPS))
        else:
            draw = torch.empty_like(self.log_step, dtype=state_dtype(self.log_step.dtype))
            u = memory_bias_(draw, self.memory).exp()
            self.log_step.copy_(torch.log(torch.log1p(1 / u) / 0.5))

    def transition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a = exp(eigenvalue * step) and (a - 1) / eigenvalue, by zero-order hold."""
        if self.frequency.dtype == torch.float16:
            raise TypeError(
                "the frequencies of S5 do not fit into torch.float16: keep its parameters in "
                "torch.bfloat16 or torch.float32 (autocast does)"
            )
        rate, frequency = self.rate.to(dtype).clamp(max=LARGEST_RATE), self.frequency.to(dtype)
        step = self.log_step.to(dtype).exp()
        grown, phase = torch.expm1(rate * step), frequency * step
        a = torch.polar(grown + 1, phase)
        # a - 1 without cancellation.
        change = torch.complex(
            grown * torch.cos(phase) - 2 * torch.sin(phase / 2) ** 2, (grown + 1) * torch.sin(phase)
        )
        return a, change / torch.complex(rate, frequency)


@cache
def hippo_frequencies(n: int) -> np.ndarray:
    """The positive imaginary parts of the eigenvalues of the 2n x 2n HiPPO-N matrix, (n).

    It is -1/2 on the diagonal, and else skew-symmetric with the entries sqrt((i + 1/2)(j + 1/2)).
    In NumPy, since the result is cached and no mode of PyTorch may change it.
    """
    root = np.sqrt(np.arange(0.5, 2 * n))
    skew = np.triu(np.outer(root, root), 1)
    frequencies: np.ndarray = np.linalg.eigvalsh(1j * (skew - skew.T))[n:]
    return frequencies


class S5(Stack):
    """Simplified state space layers, called as `torch.nn.GRU`; the state is complex.

        a = exp(eigenvalue * step)
        h_t = a * h_{t-1} + (a - 1) / eigenvalue * B x_t             zero-order hold
        y_t = Re(C h_t) + D x_t

    with one constant eigenvalue and step per unit of the state, one for each conjugate pair, so C
    is twice the paper's. Non-linear functions go between the layers of a model, and are not part of
    this one. Source: Smith, Warrington & Linderman, "Simplified State Space Layers
    for Sequence Modeling", ICLR 2023 (arXiv 2208.04933), sections 3 and 4, with D a matrix. At
    first the eigenvalues are those of the HiPPO-N matrix, and B and C are drawn in its basis, where
    they are complex normal too; log step is uniform.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size), complex64 (complex128 in float64 modules).

    Args:
        bias: without effect, as there are no biases.
        proj_size: must be 0.
    """

    cell_type = S5Cell
