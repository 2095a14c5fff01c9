"""GILR-LSTM, GILR-GRU and GILR-RNN: the layers of `torch.nn` with GILR as linear surrogate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.core.checks import check_choice
from lightning_lrnn.nn.cells.surrogate import SurrogateRNNCell
from lightning_lrnn.nn.stack import Stack

__all__ = ["GILRGRU", "GILRLSTM", "GILRRNN", "GILRGRUCell", "GILRLSTMCell", "GILRRNNCell"]

OUTPUTS = {"tanh": "LSTM", "identity": "LSTM_IDENTITY"}
NONLINEARITIES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}


class GILRLSTMCell(SurrogateRNNCell):
    """One layer of `GILRLSTM` in one direction."""

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
        cell = _one_of("output_activation", output_activation, OUTPUTS)
        self.output_activation = output_activation
        super().__init__(input_size, hidden_size, bias, cell=cell, **options)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **options: Any
    ) -> None:
        """Reads a checkpoint of version 0.1 too.

        There one matrix was V_g, V_j, V_f, V_i, V_o, V_z, and there was one bias in this order.
        """
        H, S = self.hidden_size, self.output_size
        whole = state_dict.get(prefix + "weight_ih")
        if not self.shares and whole is not None and len(whole) == 2 * S + 4 * H:
            sizes = [2 * S, 4 * H]
            of_surrogate, of_gates = whole.split(sizes)
            state_dict[prefix + "surrogate.0.weight_ih"] = of_surrogate
            state_dict[prefix + "weight_ih"] = _in_order_of_torch(of_gates)
            state_dict[prefix + "weight_hh"] = _in_order_of_torch(state_dict[prefix + "weight_hh"])
            if (bias := state_dict.pop(prefix + "bias", None)) is not None:
                of_surrogate, of_gates = bias.split(sizes)
                state_dict[prefix + "surrogate.0.bias"] = of_surrogate
                state_dict[prefix + "bias_ih"] = _in_order_of_torch(of_gates)
                state_dict[prefix + "bias_hh"] = torch.zeros_like(of_gates)
        super()._load_from_state_dict(state_dict, prefix, *others, **options)


class GILRLSTM(Stack):
    """LSTM layers that are parallel over time, called as `torch.nn.LSTM`.

        g_t = sigmoid(V_g x_t + b_g)
        j_t = tanh(V_j x_t + b_j)
        s_t = g_t * s_{t-1} + (1 - g_t) * j_t                        the surrogate
        i_t, f_t, o_t = sigmoid(W_{i,f,o} x_t + b_{i,f,o} + U_{i,f,o} s_{t-1} + b'_{i,f,o})
        z_t = tanh(W_z x_t + b_z + U_z s_{t-1} + b'_z)
        c_t = f_t * c_{t-1} + i_t * z_t
        y_t = o_t * tanh(c_t), or o_t * c_t

    Two linear recurrences, one after the other. The gates see the surrogate of the step before.
    Source: Martin & Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length", ICLR
    2018 (arXiv 1709.04057), section 3.2. It is `SurrogateRNN` with an LSTM and GILR.

    `output, (h_n, c_n) = rnn(input, (h_0, c_0))`, see `Stack.forward`:

    - h_n (num_layers * directions, B, H or proj_size) is the last output of each layer.
    - c_n (num_layers * directions, B, H + surrogate) is the cell and the surrogate, side by side:
      all that the next window needs; with a `surrogate_size` it is exactly H wide. It is float32 in
      16-bit modules.
    - c_0 as wide as c_n continues from there; h_0 is then not used, except as the h_n of rows
      without a step. c_0 H wide, with any values: the cell starts at c_0, the surrogate at h_0.

    Args:
        surrogate_size: as in `SurrogateRNN`.
        surrogate_layers: as in `SurrogateRNN`.
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
        surrogate_size: float | None = None,
        surrogate_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"output_activation": output_activation}
        kwargs |= {"surrogate_size": surrogate_size, "surrogate_layers": surrogate_layers}
        super().__init__(input_size, hidden_size, *args, **kwargs)
        self.output_activation = output_activation


class GILRGRUCell(SurrogateRNNCell):
    """One layer of `GILRGRU` in one direction."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, **options: Any
    ) -> None:
        super().__init__(input_size, hidden_size, bias, cell="GRU", **options)


class GILRGRU(Stack):
    """GRU layers that are parallel over time, called as `torch.nn.GRU`.

        s_t = g_t * s_{t-1} + (1 - g_t) * j_t                        as in `GILRLSTM`
        r_t, z_t = sigmoid(W_{r,z} x_t + b_{r,z} + U_{r,z} s_{t-1} + b'_{r,z})
        n_t = tanh(W_n x_t + b_n + r_t * (U_n s_{t-1} + b'_n))
        h_t = z_t * h_{t-1} + (1 - z_t) * n_t

    The gate z multiplies the old state: z -> 1 remembers. Source: Martin & Cundy, ICLR 2018 (arXiv
    1709.04057), section 3.2. It is `SurrogateRNN` with a GRU and GILR.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`. h_n (num_layers * directions, B, H +
    surrogate) is the state and the surrogate, side by side; with a `surrogate_size` it is the last
    output, exactly H wide. h_0 H wide is taken too: the surrogate starts at 0.

    Args:
        surrogate_size: as in `SurrogateRNN`.
        surrogate_layers: as in `SurrogateRNN`.
    """

    cell_type = GILRGRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        surrogate_size: float | None = None,
        surrogate_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"surrogate_size": surrogate_size, "surrogate_layers": surrogate_layers}
        super().__init__(input_size, hidden_size, *args, **kwargs)


class GILRRNNCell(SurrogateRNNCell):
    """One layer of `GILRRNN` in one direction."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        nonlinearity: str = "tanh",
        **options: Any,
    ) -> None:
        cell = _one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        super().__init__(input_size, hidden_size, bias, cell=cell, **options)


class GILRRNN(Stack):
    """RNN layers that are parallel over time, called as `torch.nn.RNN`.

        s_t = g_t * s_{t-1} + (1 - g_t) * j_t                        as in `GILRLSTM`
        h_t = tanh(W x_t + b + U s_{t-1} + b'), or relu(...)

    Source: Martin & Cundy, ICLR 2018 (arXiv 1709.04057), section 3.2. It is `SurrogateRNN` with an
    RNN and GILR. All memory is in the surrogate.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`. h_n (num_layers * directions, B, H +
    surrogate) is the last output and the surrogate, side by side; with a `surrogate_size` it is the
    last output, exactly H wide. h_0 H wide is taken too: the surrogate starts at 0.

    Args:
        surrogate_size: as in `SurrogateRNN`.
        surrogate_layers: as in `SurrogateRNN`.
        nonlinearity: "tanh" or "relu".
    """

    cell_type = GILRRNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        nonlinearity: str = "tanh",
        surrogate_size: float | None = None,
        surrogate_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"nonlinearity": nonlinearity}
        kwargs |= {"surrogate_size": surrogate_size, "surrogate_layers": surrogate_layers}
        super().__init__(input_size, hidden_size, *args, **kwargs)


def _one_of(name: str, value: str, known: dict[str, str]) -> str:
    check_choice(known, **{name: value})
    return known[value]


def _in_order_of_torch(rows: Tensor) -> Tensor:
    """Rows of f, i, o, z as i, f, z, o."""
    f, i, o, z = rows.chunk(4)
    return torch.cat([i, f, z, o])
