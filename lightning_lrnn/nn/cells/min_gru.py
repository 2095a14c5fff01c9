"""minGRU: a GRU without its recurrent weights (Feng et al. 2024, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.stack import Stack

__all__ = ["MinGRU", "MinGRUCell", "min_gru"]


@gate
def min_gru(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Decay 1 - sigmoid(z), which is sigmoid(-z) without cancellation, and impulse."""
    return torch.sigmoid(-z), torch.sigmoid(z) * v


class MinGRUCell(GatedCell):
    """One layer of `MinGRU` in one direction: W_z, W_v and b_z, b_v."""

    gate = min_gru
    sizes = (2, 2)

    def reset_parameters(self) -> None:
        """Initialises as `GatedCell`, with -b_z by expected memory, as sigmoid(-z) forgets."""
        super().reset_parameters()
        if self.bias is not None:
            self.bias.detach()[: self.hidden_size].neg_()


class MinGRU(Stack):
    """minGRU layers, called as `torch.nn.GRU`.

        z_t = sigmoid(W_z x_t + b_z)
        v_t = W_v x_t + b_v                                          the candidate
        h_t = (1 - z_t) * h_{t-1} + z_t * v_t

    The gate z lets new values in: z -> 0 remembers. Source: Feng, Tung, Ahmed, Bengio &
    Hajimirsadeghi, "Were RNNs All We Needed?", 2024 (arXiv 2410.01201), section 3.1. This is their
    linear form, with states of either sign; their form in logarithms, which needs positive states,
    is for frameworks without a scan of the linear one.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size). The paper says nothing of initial biases: that of z is by expected memory.

    Args:
        proj_size: must be 0.
    """

    cell_type = MinGRUCell
