"""minLSTM: an LSTM without its recurrent weights (Feng et al. 2024, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.stack import Stack

__all__ = ["MinLSTM", "MinLSTMCell", "min_lstm"]


@gate
def min_lstm(f: Tensor, i: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Shares f / (f + i) and i / (f + i) of two sigmoids, both scaled so that f + i is not 0."""
    shift = torch.clamp(torch.minimum(f, i), max=0).detach()  # it cancels
    one = torch.exp(shift)
    of_i, of_f = one + torch.exp(shift - f), one + torch.exp(shift - i)
    whole = 1 / (of_f + of_i)
    return of_f * whole, of_i * whole * v


class MinLSTMCell(GatedCell):
    """One layer of `MinLSTM` in one direction: W_f, W_i, W_v and b_f, b_i, b_v."""

    gate = min_lstm
    sizes = (3, 3)

    def reset_parameters(self) -> None:
        """Initialises as `GatedCell`, and the biases of both gates by expected memory.

        A memory of u steps needs f / i = u. Either gate is at most 1, so the other one makes the
        ratio: with b_f = 0, b_i = -log(2 u - 1) for u >= 1, and the reverse below.
        """
        super().reset_parameters()
        if self.bias is not None:
            f, i, _ = self.bias.detach().chunk(3)
            log_u = memory_bias_(torch.empty_like(f), self.memory)
            smaller = -torch.log(2 * log_u.abs().exp() - 1)
            f.copy_(torch.where(log_u < 0, smaller, 0))
            i.copy_(torch.where(log_u < 0, 0, smaller))


class MinLSTM(Stack):
    """minLSTM layers, called as `torch.nn.GRU`: they have one state.

        f_t = sigmoid(W_f x_t + b_f),  i_t = sigmoid(W_i x_t + b_i)
        v_t = W_v x_t + b_v                                          the candidate
        h_t = f_t / (f_t + i_t) * h_{t-1} + i_t / (f_t + i_t) * v_t

    Source: Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, "Were RNNs All We Needed?", 2024 (arXiv
    2410.01201), section 3.2, the linear form, with states of either sign.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size). The paper says nothing of initial biases: those of f and i are by expected
    memory.

    Args:
        proj_size: must be 0.
    """

    cell_type = MinLSTMCell
