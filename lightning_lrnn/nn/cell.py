"""What all cells share: one layer in one direction."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lrnn import _chunks
from lightning_lrnn._dtypes import state_dtype
from lightning_lrnn._operator import unobserved
from lightning_lrnn.gates import Gate
from lightning_lrnn.nn.memory import Memory
from lightning_lrnn.nn.walk import Walk

__all__ = ["Cell", "GatedCell", "chunks", "linear", "linear_sum"]


class Cell(nn.Module):
    """One layer in one direction. A cell writes down its parameters and its equations.

    A subclass makes its parameters in `__init__`, fills them in `reset_parameters`, and maps
    `forward(x, carry, walk)` to `(y, carry)`: x (B, T, input_size), y (B, T, output_size), and
    `carry` (B, state_size) in the dtype of the state, or None for zeros: all that the next window
    of the same sequence needs.

    Args:
        input_size: features of x.
        hidden_size: features of the state that is read out.
        bias: whether the pre-activations have a bias.
        proj_size: if not 0, the output is projected to this size.
        memory: expected memory of the units, see `memory_bias_`.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        projects: whether `proj_size` means something for this cell.
        remembers_output: whether the user's state is `(h, c)`, h the last output, as that of
            `torch.nn.LSTM`, and not the carried state alone, as that of `torch.nn.GRU`.
    """

    projects: ClassVar[bool] = False
    remembers_output: ClassVar[bool] = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        proj_size: int = 0,
        memory: Memory = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.output_size = proj_size or hidden_size
        self.has_bias, self.memory = bias, memory
        self._factory = {"device": device, "dtype": dtype}

    @property
    def state_size(self) -> int:
        """Features of the carried state."""
        return self.hidden_size

    @property
    def carry_dtype(self) -> torch.dtype:
        """Dtype of the carried state: float32 for 16-bit parameters, else theirs."""
        return state_dtype(next(self.parameters()).dtype)

    def carry(self, h: Tensor, c: Tensor) -> Tensor:
        """The carried state from `torch.nn.LSTM`'s: h (..., output_size), c (..., hidden_size)."""
        return c

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter of the cell's device and dtype."""
        return nn.Parameter(torch.empty(shape, **self._factory))

    def reset_parameters(self) -> None:
        """Weights uniform in ±1/sqrt(hidden_size) as in `torch.nn.LSTM`, biases 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.input_size}, {self.hidden_size}"


class GatedCell(Cell):
    """A cell with one state, whose pre-activations are one projection of its input.

    Attributes:
        gate: from the pre-activations to decay and impulse.
        readout: from the state and the pre-activations to the output; None for the state.
        sizes: number of projections, and how many of them, the first ones, have a bias.
        weight_ih: one matrix after the other: (projections * hidden_size, input_size).
        bias: likewise, (biases * hidden_size), or None.
    """

    gate: ClassVar[Gate]
    readout: ClassVar[Gate | None] = None
    sizes: tuple[int, int]

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        super().__init__(input_size, hidden_size, **options)
        weights, biases = self.sizes
        self.weight_ih = self.parameter(weights * hidden_size, input_size)
        self.bias = self.parameter(biases * hidden_size) if self.has_bias and biases else None
        self.reset_parameters()

    def pre_activations(self, x: Tensor) -> tuple[Tensor, ...]:
        """One projection, in chunks."""
        weights, biases = self.sizes
        bias: Tensor | None = self.bias
        if bias is not None and biases < weights:
            bias = F.pad(bias, (0, (weights - biases) * self.hidden_size))
        return chunks(linear(x, self.weight_ih, bias), weights)

    def forward(self, x: Tensor, h: Tensor | None, walk: Walk) -> tuple[Tensor, Tensor]:
        """Projection, gate, recurrence, readout."""
        pre = self.pre_activations(x)
        return walk.scan("state", self.gate, *pre, h0=h, readout=self.readout)


def chunks(projection: Tensor, n: int) -> tuple[Tensor, ...]:
    """The pre-activations in a projection (B, T, n * D), each (B, T, D), in place."""
    if unobserved(projection):
        return _chunks.split(projection, n)
    return projection.chunk(n, -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on (B, T, ·) that multiplies a time-major x where it lies.

    The matmul needs dense rows and would copy a transposed x; its product, transposed in turn,
    is read in place by the recurrence.
    """
    rows = x.transpose(0, 1)
    if rows.is_contiguous() and not x.is_contiguous():
        return F.linear(rows, weight, bias).transpose(0, 1)
    return F.linear(x, weight, bias)


def linear_sum(
    x: Tensor, weight_x: Tensor, s: Tensor, weight_s: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x weight_x^T + s weight_s^T + bias on (B, T, ·), the second product added by its matmul.

    Where x is time-major and s is not, one would have to be copied for that: there it is a sum.
    """
    if not x.is_contiguous():
        return linear(x, weight_x, bias) + F.linear(s, weight_s)
    total: Tensor = F.linear(x.flatten(0, 1), weight_x, bias)
    # Nothing keeps this result for its gradient. In place, autocast casts nothing.
    total.addmm_(s.flatten(0, 1).to(total.dtype), weight_s.to(total.dtype).t())
    return total.view(*x.shape[:2], total.shape[-1])
