"""GILR-LSTM: an LSTM whose gates see a linear surrogate (Martin & Cundy, ICLR 2018)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import Cell, chunks, linear, linear_sum
from lightning_lrnn.nn.gilr import gilr
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.nn.walk import Walk

__all__ = ["GILRLSTM", "GILRLSTMCell", "lstm"]


@gate
def lstm(f: Tensor, i: Tensor, o: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse i * z of the cell, from pre-activations; o is for the readout."""
    return torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(z)


@gate
def output_tanh(c: Tensor, f: Tensor, i: Tensor, o: Tensor, z: Tensor) -> Tensor:
    """The readout of `torch.nn.LSTM`."""
    return torch.sigmoid(o) * torch.tanh(c)


@gate
def output_identity(c: Tensor, f: Tensor, i: Tensor, o: Tensor, z: Tensor) -> Tensor:
    """The readout of the paper."""
    return torch.sigmoid(o) * c


READOUTS = {"tanh": output_tanh, "identity": output_identity}


class GILRLSTMCell(Cell):
    """One layer of `GILRLSTM` in one direction. H = hidden_size, S = proj_size or H.

    Attributes:
        weight_ih: V_g, V_j, V_f, V_i, V_o, V_z: (2 * S + 4 * H, input_size).
        weight_hh: U_f, U_i, U_o, U_z: (4 * H, S).
        bias: in the order of `weight_ih`: (2 * S + 4 * H), or None.
        weight_hr: the projection (S, H), or None.
    """

    projects = True
    remembers_output = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        output_activation: str = "tanh",
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        if output_activation not in READOUTS:
            raise ValueError(
                f"`output_activation` must be one of {', '.join(READOUTS)}, "
                f"got {output_activation!r}"
            )
        self.output_activation = output_activation
        H, S = hidden_size, self.output_size
        self.weight_ih = self.parameter(2 * S + 4 * H, input_size)
        self.weight_hh = self.parameter(4 * H, S)
        self.bias = self.parameter(2 * S + 4 * H) if bias else None
        self.weight_hr = self.parameter(S, H) if S != H else None
        self.reset_parameters()

    @property
    def state_size(self) -> int:
        """Cell and surrogate, side by side."""
        return self.hidden_size + self.output_size

    def carry(self, h: Tensor | None, c: Tensor) -> Tensor:
        """The cell starts at c, the surrogate at h."""
        assert h is not None
        return torch.cat([c, h], -1)

    def reset_parameters(self) -> None:
        """As every cell, and the biases of g and f by expected memory.

        Where a memory of m steps is asked for, b_i = -b_f / 2: an input gate near 1 / sqrt(m), with
        which a sum of independent impulses keeps its variance however long the memory. Chrono
        initialisation has b_i = -b_f, for impulses that add up.
        """
        super().reset_parameters()
        if self.bias is not None:
            H, S = self.hidden_size, self.output_size
            g, _, f, i, _, _ = self.bias.detach().split([S, S, H, H, H, H])
            memory_bias_(g, self.memory)
            memory_bias_(f, self.memory)
            if self.memory is not None:
                i.copy_(-f / 2)

    def layer(self, x: Tensor, carry: Tensor | None, walk: Walk) -> tuple[Tensor, Tensor]:
        """The layer's equations."""
        H, S = self.hidden_size, self.output_size
        c, s = (None, None) if carry is None else carry.split([H, S], -1)
        for_surrogate, for_gates = self.weight_ih.split([2 * S, 4 * H])
        biases = (None, None) if self.bias is None else self.bias.split([2 * S, 4 * H])
        # The gates see the surrogate before their step: s_{t-1}.
        pre = chunks(linear(x, for_surrogate, biases[0]), 2)
        s, s_n = walk.scan("surrogate", gilr, *pre, h0=s, exclusive=True)
        pre = chunks(linear_sum(x, for_gates, s, self.weight_hh, biases[1]), 4)
        y, c_n = walk.scan("cell", lstm, *pre, h0=c, readout=READOUTS[self.output_activation])
        if self.weight_hr is not None:
            y = F.linear(y, self.weight_hr)
        return y, torch.cat([c_n, s_n], -1)


class GILRLSTM(Stack):
    """LSTM layers that are parallel over time, called as `torch.nn.LSTM`.

        g_t = sigmoid(V_g x_t + b_g)
        j_t = tanh(V_j x_t + b_j)
        s_t = g_t * s_{t-1} + (1 - g_t) * j_t                        the surrogate
        f_t, i_t, o_t = sigmoid(U_{f,i,o} s_{t-1} + V_{f,i,o} x_t + b_{f,i,o})
        z_t = tanh(U_z s_{t-1} + V_z x_t + b_z)
        c_t = f_t * c_{t-1} + i_t * z_t
        y_t = o_t * tanh(c_t), or o_t * c_t

    Two linear recurrences, one after the other. The gates see the surrogate of the step before.
    Source: Martin & Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length", ICLR
    2018 (arXiv 1709.04057), section 3.2. It has the parameters of an LSTM, 4 H (H + input_size + 1)
    (one bias, not two), and 2 H (input_size + 1) for the surrogate.

    `output, (h_n, c_n) = rnn(input, (h_0, c_0))`, see `Stack.forward`:

    - h_n (num_layers * directions, B, H or proj_size) is the last output of each layer.
    - c_n (num_layers * directions, B, H + surrogate) is the cell and the surrogate, side by side:
      all that the next window needs. It is float32 in 16-bit modules.
    - c_0 as wide as c_n continues from there; h_0 is then not used, except as the h_n of rows
      without a step. c_0 H wide, with any values: the cell starts at c_0, the surrogate at h_0.

    Args: see `Stack`, and
        output_activation: "tanh" reads out o * tanh(c) as `torch.nn.LSTM` does, "identity" o * c,
            as the paper.

    With `proj_size` the surrogate has that size, and the output is W_hr y_t as in `torch.nn.LSTM`.
    """

    cell_type = GILRLSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        output_activation: str = "tanh",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            input_size, hidden_size, *args, output_activation=output_activation, **kwargs
        )
        self.output_activation = output_activation
