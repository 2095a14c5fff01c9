"""SRU: the simple recurrent unit, version 1 (Lei, Zhang & Artzi, 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.scan_context import ScanContext
from lightning_lrnn.nn.stack import Stack

__all__ = ["SRU", "SRUCell", "sru"]


@gate
def sru(f: Tensor, r: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse (1 - f) * v; r and x are for the readout."""
    return torch.sigmoid(f), torch.sigmoid(-f) * v


@gate
def highway(c: Tensor, f: Tensor, r: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """r * tanh(c) + (1 - r) * x: the reset gate r weighs state against input."""
    return torch.sigmoid(r) * torch.tanh(c) + torch.sigmoid(-r) * x


class SRUCell(GatedCell):
    """One layer of `SRU` in one direction: W_f, W_r, W (and W_x) and b_f, b_r."""

    gate = sru
    readout = highway

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, **options: Any
    ) -> None:
        self.sizes = (3 if input_size == hidden_size else 4, 2)
        super().__init__(input_size, hidden_size, bias, **options)

    def pre_activations(
        self, projection: Tensor, x: Tensor, context: ScanContext
    ) -> tuple[Tensor, ...]:
        """The projections, and the input itself where it has the size of the state."""
        pre = super().pre_activations(projection, x, context)
        return pre if len(pre) == 4 else (*pre, x.to(projection.dtype))


class SRU(Stack):
    """Simple recurrent units, called as `torch.nn.GRU`: they carry one state, c.

        f_t = sigmoid(W_f x_t + b_f),  r_t = sigmoid(W_r x_t + b_r)
        v_t = W x_t
        c_t = f_t * c_{t-1} + (1 - f_t) * v_t
        y_t = r_t * tanh(c_t) + (1 - r_t) * x_t                      the highway

    Where input_size is not hidden_size, W_x x_t stands for x_t in the last line. Source: Lei, Zhang
    & Artzi, "Training RNNs as Fast as CNNs", 2017 (arXiv 1709.02755v1). In this first version the
    gates do not see c; in the later one (EMNLP 2018) they do, which is no linear recurrence.

    `output, c_n = rnn(input, c_0)`, see `Stack.forward`; c_n and c_0 are (num_layers * directions,
    B, hidden_size).

    Args:
        proj_size: must be 0.
    """

    cell_type = SRUCell
