"""T-GRU: the strongly typed gated recurrent unit (Balduzzi & Ghifary, ICML 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.stack import Stack

__all__ = ["TGRU", "TGRUCell", "t_gru"]


@gate
def t_gru(f: Tensor, z: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse z * o."""
    return torch.sigmoid(f), z * torch.tanh(o)


class TGRUCell(GatedCell):
    """One layer of `TGRU` in one direction: W and V of f, z and o, side by side; b_f, b_z, b_o."""

    gate = t_gru
    sizes = (3, 3)
    window = 2


class TGRU(Stack):
    """Strongly typed GRU layers, called as `torch.nn.GRU`.

        z_t = V_z x_{t-1} + W_z x_t + b_z
        f_t = sigmoid(V_f x_{t-1} + W_f x_t + b_f)
        o_t = tanh(V_o x_{t-1} + W_o x_t + b_o)
        h_t = f_t * h_{t-1} + z_t * o_t

    The gates see the input before, not the state. Source: Balduzzi & Ghifary, "Strongly-Typed
    Recurrent Neural Networks", ICML 2016 (arXiv 1602.02218), section 3.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`. h_n (num_layers * directions, B, 4 *
    hidden_size) is the state and, side by side, the last input's part of the f, z and o of the next
    step. h_0 is that, or hidden_size wide, with no input before the first.

    The paper says nothing of initial biases: that of f is by expected memory.

    Args:
        proj_size: must be 0.
    """

    cell_type = TGRUCell
