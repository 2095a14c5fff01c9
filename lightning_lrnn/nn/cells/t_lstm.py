"""T-LSTM: the strongly typed LSTM (Balduzzi & Ghifary, ICML 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.stack import Stack

__all__ = ["TLSTM", "TLSTMCell", "t_lstm"]


@gate
def t_lstm(f: Tensor, z: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse (1 - f) * z; o is for the readout."""
    return torch.sigmoid(f), torch.sigmoid(-f) * z


@gate
def output(c: Tensor, f: Tensor, z: Tensor, o: Tensor) -> Tensor:
    """The readout c * o."""
    return c * torch.tanh(o)


class TLSTMCell(GatedCell):
    """One layer of `TLSTM` in one direction: W and V of f, z and o, side by side; b_f, b_z, b_o."""

    gate = t_lstm
    readout = output
    sizes = (3, 3)
    window = 2


class TLSTM(Stack):
    """Strongly typed LSTM layers, called as `torch.nn.GRU`: they carry one state, c.

        z_t = V_z x_{t-1} + W_z x_t + b_z
        f_t = sigmoid(V_f x_{t-1} + W_f x_t + b_f)
        o_t = tanh(V_o x_{t-1} + W_o x_t + b_o)
        c_t = f_t * c_{t-1} + (1 - f_t) * z_t
        y_t = c_t * o_t

    The gates see the input before, not the state. Source: Balduzzi & Ghifary, "Strongly-Typed
    Recurrent Neural Networks", ICML 2016 (arXiv 1602.02218), section 3.

    `output, c_n = rnn(input, c_0)`, see `Stack.forward`. c_n (num_layers * directions, B, 4 *
    hidden_size) is the state and, side by side, the last input's part of the f, z and o of the next
    step. c_0 is that, or hidden_size wide, with no input before the first.

    The paper says nothing of initial biases: that of f is by expected memory.

    Args:
        proj_size: must be 0.
    """

    cell_type = TLSTMCell
