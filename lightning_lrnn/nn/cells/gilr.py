"""GILR: the gated impulse linear recurrence (Martin & Cundy, ICLR 2018, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.stack import Stack

__all__ = ["GILR", "GILRCell", "gilr"]


@gate
def gilr(g: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Decay g and impulse (1 - g) * j, from the pre-activations of g and j."""
    a = torch.sigmoid(g)
    return a, (1 - a) * torch.tanh(j)


class GILRCell(GatedCell):
    """One layer of `GILR` in one direction: V_g, V_j and b_g, b_j."""

    gate = gilr
    sizes = (2, 2)


class GILR(Stack):
    """Gated impulse linear recurrent layers, called as `torch.nn.GRU`.

        g_t = sigmoid(V_g x_t + b_g)
        j_t = tanh(V_j x_t + b_j)
        h_t = g_t * h_{t-1} + (1 - g_t) * j_t

    The gate g multiplies the old state: g -> 1 remembers. It is of x alone, so that the recurrence
    is linear; what is non-linear over time comes from stacking. Source: Martin & Cundy,
    "Parallelizing Linear Recurrent Neural Nets Over Sequence Length", ICLR 2018 (arXiv 1709.04057).

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`. The state is the output's: h_n and h_0 are
    (num_layers * directions, B, hidden_size). For 16-bit modules h_n is float32, as everything that
    is carried from window to window: a rounded state forgets increments below 1/256 of itself.

    Args:
        proj_size: must be 0.
    """

    cell_type = GILRCell
