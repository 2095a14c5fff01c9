"""QRNN: the quasi-recurrent neural network (Bradbury et al., ICLR 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.core.checks import check_choice, check_counts, check_numbers
from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import GatedCell
from lightning_lrnn.nn.scan_context import ScanContext
from lightning_lrnn.nn.stack import Stack

__all__ = ["QRNN", "QRNNCell", "f_pooling", "fo_pooling"]


@gate
def f_pooling(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse (1 - f) * z; 1 - sigmoid(f) is sigmoid(-f) without cancellation."""
    return torch.sigmoid(f), torch.sigmoid(-f) * torch.tanh(z)


@gate
def fo_pooling(f: Tensor, o: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and impulse of `f_pooling`; o is for the readout."""
    return torch.sigmoid(f), torch.sigmoid(-f) * torch.tanh(z)


@gate
def output_gate(c: Tensor, f: Tensor, o: Tensor, z: Tensor) -> Tensor:
    """The readout o * c."""
    return torch.sigmoid(o) * c


@gate
def ifo_pooling(f: Tensor, i: Tensor, o: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse i * z; o is for the readout."""
    return torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(z)


@gate
def ifo_output(c: Tensor, f: Tensor, i: Tensor, o: Tensor, z: Tensor) -> Tensor:
    """The readout o * c."""
    return torch.sigmoid(o) * c


POOLINGS = {
    "f": (2, f_pooling, None),
    "fo": (3, fo_pooling, output_gate),
    "ifo": (4, ifo_pooling, ifo_output),
}
"""Projections, gate and readout. The forget gate comes first, in "ifo" the input gate second."""

KEEP = 1e4
"""A pre-activation whose sigmoid is 1, and 0 with the other sign, in every dtype."""


class QRNNCell(GatedCell):
    """One layer of `QRNN` in one direction: W_f, (W_i,) (W_o,) W_z and their biases."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        window: int = 2,
        pooling: str = "fo",
        zoneout: float = 0.0,
        **options: Any,
    ) -> None:
        check_counts(window=window)
        check_choice(POOLINGS, pooling=pooling)
        check_numbers(0, 1, zoneout=zoneout)
        projections, self.gate, self.readout = POOLINGS[pooling]
        self.sizes = (projections, projections)
        self.window, self.pooling, self.zoneout = window, pooling, zoneout
        super().__init__(input_size, hidden_size, bias, **options)

    def pre_activations(
        self, projection: Tensor, x: Tensor, context: ScanContext
    ) -> tuple[Tensor, ...]:
        """The projections; where a unit is zoned out, f is 1 and i is 0: it keeps its state."""
        pre = super().pre_activations(projection, x, context)
        if not self.zoneout or not self.training or not context.dropout:
            return pre
        # In float32: a 16-bit draw is not fine enough.
        zoned_out = torch.rand(pre[0].shape, device=x.device) < self.zoneout
        if self.pooling != "ifo":
            f, *others = pre
            return f.masked_fill(zoned_out, KEEP), *others
        f, i, *others = pre
        return f.masked_fill(zoned_out, KEEP), i.masked_fill(zoned_out, -KEEP), *others

    def extra_repr(self) -> str:
        """Sizes, window and pooling."""
        return f"{super().extra_repr()}, window={self.window}, pooling={self.pooling!r}"


class QRNN(Stack):
    """Quasi-recurrent layers, called as `torch.nn.GRU`: they carry one state, c.

        z_t = tanh(W_z * x),  f_t, i_t, o_t = sigmoid(W_{f,i,o} * x)
        "f":    c_t = f_t * c_{t-1} + (1 - f_t) * z_t,    y_t = c_t
        "fo":   c_t = f_t * c_{t-1} + (1 - f_t) * z_t,    y_t = o_t * c_t
        "ifo":  c_t = f_t * c_{t-1} + i_t * z_t,          y_t = o_t * c_t

    where W * x is a causal convolution over the last inputs, x_t, x_{t-1}, ... (in reverse x_t,
    x_{t+1}, ...), with a bias. The gate f multiplies the old state: f -> 1 remembers. Source:
    Bradbury, Merity, Xiong & Socher, "Quasi-Recurrent Neural Networks", ICLR 2017 (arXiv
    1611.01576), section 2.1. (The authors' code names 1 - f of the paper f.)

    `output, c_n = rnn(input, c_0)`, see `Stack.forward`. c_n (num_layers * directions, B,
    hidden_size * (1 + (window - 1) * projections)) is the state and, side by side, the part of the
    last window - 1 inputs in the projections of the next steps: all that the next window of the
    sequence needs. c_0 is that, or hidden_size wide, with no inputs before the first.

    The paper says nothing of initial biases: that of f is by expected memory.

    Args:
        proj_size: must be 0.
        window: how many inputs the convolution sees, the present one included.
        pooling: "f", "fo" or "ifo".
        zoneout: probability, while training, that a unit keeps its state in a step.
    """

    cell_type = QRNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        window: int = 2,
        pooling: str = "fo",
        zoneout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"window": window, "pooling": pooling, "zoneout": zoneout}
        super().__init__(input_size, hidden_size, *args, **kwargs)
