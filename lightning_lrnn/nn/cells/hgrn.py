"""HGRN: the hierarchically gated recurrent network (Qin, Yang & Zhong, NeurIPS 2023)."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.gates import gate
from lightning_lrnn.nn.cell import Cell, chunks, linear
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.scan_context import ScanContext
from lightning_lrnn.nn.stack import Stack

__all__ = ["HGRN", "HGRNCell", "hgrn"]


@gate
def hgrn(f: Tensor, i: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Decay l = bound + (1 - bound) * sigmoid(f), and impulse (1 - l) * silu(i)."""
    free = 1 - bound
    return bound + free * torch.sigmoid(f), free * torch.sigmoid(-f) * F.silu(i)


class HGRNCell(Cell):
    """One layer of `HGRN` in one direction.

    Attributes:
        weight_ih: W_f, W_i, W_g: (3 * hidden_size, input_size).
        weight_out: W_o (hidden_size, hidden_size).
        bias: b_f (hidden_size), or None.
        norm: of the output (hidden_size).
        bound: the layer's part of the lower bounds, before the softmax (hidden_size).
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, **options: Any
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        self.weight_ih = self.parameter(3 * hidden_size, input_size)
        self.weight_out = self.parameter(hidden_size, hidden_size)
        self.bias = self.parameter(hidden_size) if bias else None
        self.norm = self.parameter(hidden_size)
        self.bound = self.parameter(hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as `Cell`, b_f by expected memory, and all parts of the bounds equal."""
        super().reset_parameters()
        nn.init.ones_(self.norm)
        nn.init.zeros_(self.bound)
        if self.bias is not None:
            memory_bias_(self.bias, self.memory)

    def layer(
        self, x: Tensor, carry: Tensor | None, context: ScanContext, bound: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer's equations; the lowest layer, and a cell by itself, have a bound of 0."""
        H = self.hidden_size
        bias = None if self.bias is None else F.pad(self.bias, (0, 2 * H))
        f, i, g = chunks(linear(x, self.weight_ih, bias), 3)
        bound = torch.zeros_like(self.bound) if bound is None else bound
        h, h_n = context.scan("state", hgrn, f, i, bound.to(state_dtype(f.dtype)), h0=carry)
        y = F.rms_norm(h, (H,), self.norm.to(h.dtype), eps=1e-5) * F.silu(g)
        return linear(y, self.weight_out), h_n


def _whole(bound: Any) -> Tensor:
    """All of a parameter that FSDP has divided among processes and gathers in its own cell only.

    Each process has its own gradient of it, and FSDP takes the mean of these.
    """
    if not hasattr(bound, "full_tensor"):
        whole: Tensor = bound
        return whole
    from torch.distributed.tensor import Partial

    mesh = bound.device_mesh
    whole = bound.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    # The sum over processes of the gradients, each divided by their number.
    mean: Tensor = whole.detach() + (whole - whole.detach()) / mesh.size()
    return mean


class HGRN(Stack):
    """Hierarchically gated recurrent layers, called as `torch.nn.GRU`.

        m_t = sigmoid(W_f x_t + b_f)
        l_t = bound_k + (1 - bound_k) * m_t                          in layer k
        h_t = l_t * h_{t-1} + (1 - l_t) * silu(W_i x_t)
        y_t = W_o (norm(h_t) * silu(W_g x_t))

    The lower bounds belong to the stack: with shares = softmax over the layers of a parameter,
    bound_k = shares_2 + ... + shares_k, 0 in the first layer and larger in each one above: higher
    layers remember longer. Directions have their own. `norm` is the RMS norm.

    Source: Qin, Yang & Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence
    Modeling", NeurIPS 2023 (arXiv 2311.04823), in the real form, without the phase of the state,
    and with the gated norm, that flash-linear-attention keeps and HGRN2 (arXiv 2404.07904) starts
    from.

    `output, h_n = rnn(input, h_0)`, see `Stack.forward`; h_n and h_0 are (num_layers * directions,
    B, hidden_size). The paper says nothing of initial biases: that of f is by expected memory,
    which is the unit's in the first layer, and a lower bound of it above.

    Args:
        proj_size: must be 0.
    """

    cell_type = HGRNCell

    def for_cells(self) -> list[dict[str, Tensor]]:
        """The lower bound of each cell's decays."""
        parts = torch.stack([_whole(cell.bound) for cell in self.cells])
        shares = torch.unflatten(parts, 0, (self.num_layers, self.directions)).softmax(0)
        bounds = [total - shares[0] for total in accumulate(shares)]
        return [{"bound": bound} for of_layer in bounds for bound in of_layer]
