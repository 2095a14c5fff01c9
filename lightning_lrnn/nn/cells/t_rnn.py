"""T-RNN: the strongly typed vanilla RNN (Balduzzi & Ghifary, ICML 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.stack import Stack

__all__ = ["TRNN", "TRNNCell", "t_rnn"]


@gate
def t_rnn(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse (1 - f) * z; 1 - sigmoid(f) is sigmoid(-f) without cancellation."""
    return torch.sigmoid(f), torch.sigmoid(-f) * z


class TRNNCell(GatedCell):
    """One layer of `TRNN` in one direction: V, W and b."""

    gate = t_rnn
    sizes = (2, 1)


class TRNN(Stack):
    """Strongly typed RNN layers, called as `torch.nn.GRU`.

        z_t = W x_t
        f_t = sigmoid(V x_t + b)
        h_t = f_t * h_{t-1} + (1 - f_t) * z_t

    The state is a mean of projected inputs: nothing in it is squashed. Source: Balduzzi & Ghifary,
    "Strongly-Typed Recurrent Neural Networks", ICML 2016 (arXiv 1602.02218), section 3.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size). The paper says nothing of initial biases: b is by expected memory.

    Args:
        proj_size: must be 0.
    """

    cell_type = TRNNCell
