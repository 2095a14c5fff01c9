"""RG-LRU: the real-gated linear recurrent unit of Griffin (De et al. 2024)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import Cell, linear
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.scan_context import ScanContext
from lightning_lrnn.nn.stack import Stack

__all__ = ["RGLRU", "RGLRUCell", "rg_lru"]

SHARPNESS = 8.0
"""The constant c of the paper."""
STEEPEST = 1000.0
"""Bound of the root's derivative, which it reaches at `LEAST`."""
LEAST = 1 / (2 * STEEPEST) ** 2
RING = (0.9, 0.999)
"""Range of the initial a where the recurrence gate is open."""


@gate
def rg_lru(r: Tensor, i: Tensor, u: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Decay a = exp(-c softplus(rate) r) and impulse sqrt(1 - a^2) * i * u.

    The root's derivative is clipped at 1000, as in the authors' code: it is infinite at a = 1.
    """
    log_a = -SHARPNESS * torch.sigmoid(r) * F.softplus(rate)
    square = 1 - torch.exp(2 * log_a)
    # Two branches, so that the derivative has a derivative.
    steep = torch.sqrt(square.detach()) + STEEPEST * (square - square.detach())
    root = torch.sqrt(torch.clamp(square, min=LEAST))
    scale = torch.where(square > LEAST, root, steep)
    return torch.exp(log_a), scale * torch.sigmoid(i) * u


class RGLRUCell(Cell):
    """One layer of `RGLRU` in one direction.

    Attributes:
        weight: W_a, W_x, block-diagonal: (2, blocks, hidden_size / blocks, hidden_size / blocks).
        bias: b_a, b_x: (2 * hidden_size), or None.
        rate: (hidden_size).
        weight_in: W_in (hidden_size, input_size), or None where the sizes agree.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        blocks: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        check_counts(blocks=blocks)
        if hidden_size % blocks:
            raise ValueError(f"`blocks` must divide hidden_size={hidden_size}, got {blocks}")
        width = hidden_size // blocks
        self.weight = self.parameter(2, blocks, width, width)
        self.bias = self.parameter(2 * hidden_size) if bias else None
        self.rate = self.parameter(hidden_size)
        same = input_size == hidden_size
        self.weight_in = None if same else self.parameter(hidden_size, input_size)
        self.reset_parameters()

    memory_in_bias = False
    sampled = "weight"

    @property
    def output_is_state(self) -> bool:
        """True: the cell has no readout."""
        return True

    def reset_parameters(self) -> None:
        """`rate` as in the paper, or by expected memory; blocks normal, by their own width.

        In the paper a^2 is uniform in the squares of `RING` where r = 1. With `memory` the decay at
        r = 1/2, where the gate starts, has that expected memory.
        """
        super().reset_parameters()
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight.shape[-1]))
        draw = torch.empty_like(self.rate, dtype=state_dtype(self.rate.dtype)).detach()
        if self.memory is None:
            low, high = RING
            square = draw.uniform_(low**2, high**2)
            forgotten = -square.log() / 2 / SHARPNESS
        else:
            u = memory_bias_(draw, self.memory).exp()
            forgotten = torch.log1p(1 / u) * 2 / SHARPNESS
        with torch.no_grad():
            self.rate.copy_(torch.log(torch.expm1(forgotten)))  # softplus(rate) = forgotten

    def layer(self, x: Tensor, carry: Tensor | None, context: ScanContext) -> tuple[Tensor, Tensor]:
        """The layer's equations."""
        u = x if self.weight_in is None else linear(x, self.weight_in)
        r, i = self._gates(u)
        return context.scan("state", rg_lru, r, i, u.to(r.dtype), self.rate, h0=carry)

    def _gates(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The pre-activations of r and i; each block of them sees its block of u."""
        blocks, width = self.weight.shape[1:3]
        if blocks == 1:
            r, i = linear(u, self.weight.flatten(0, 2), self.bias).chunk(2, -1)
            return r, i
        parts = torch.unflatten(u, -1, (blocks, width))
        pre = torch.einsum("btkw,gkvw->btgkv", parts, self.weight).flatten(2)
        r, i = (pre if self.bias is None else pre + self.bias).chunk(2, -1)
        return r, i


class RGLRU(Stack):
    """Real-gated linear recurrent units, called as `torch.nn.GRU`.

        r_t = sigmoid(W_a u_t + b_a)                                 the recurrence gate
        i_t = sigmoid(W_x u_t + b_x)                                 the input gate
        a_t = exp(-c softplus(rate) r_t),  c = 8
        h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * u_t

    where u_t = x_t, or W_in x_t if input_size is not hidden_size. Source: De et al., "Griffin:
    Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models", 2024 (arXiv
    2402.19427), section 2.4. The derivative of the root is clipped, and the state is float32 also
    in 16-bit modules, as in the authors' code. That scales the first input of a document by 1; here
    by the root, as every other.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size).

    Args:
        proj_size: must be 0.
        blocks: number of blocks of W_a and W_x, which are block-diagonal.
    """

    cell_type = RGLRUCell

    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, blocks: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(input_size, hidden_size, *args, blocks=blocks, **kwargs)
