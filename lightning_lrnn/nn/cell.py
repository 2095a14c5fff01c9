"""The base classes of cells: one layer in one direction, or a single step."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.pytorch import plain_eager
from lightning_lrnn.gates import Gate, parse, state_is_complex
from lightning_lrnn.nn.causal_conv import causal_conv
from lightning_lrnn.nn.checks import (
    check_cell,
    check_gated,
    check_state,
    check_step,
    form,
    options_of,
    refuse_options,
    refuse_script,
)
from lightning_lrnn.nn.memory import Memory, memory_bias_
from lightning_lrnn.nn.scan_context import ScanContext, StepContext
from lightning_lrnn.ops import projections

__all__ = ["Cell", "GatedCell", "State", "chunks", "linear", "linear_sum"]

State = Tensor | tuple[Tensor, Tensor] | None
"""h for a cell with one state, (h, c) for one that remembers its output, None for zeros."""


class Cell(nn.Module):
    """One layer in one direction: its parameters and its equations.

    A subclass makes its parameters in `__init__`, fills them in `reset_parameters`, and maps
    `layer(x, carry, context)` to `(y, carry)`: x (B, T, input_size), y (B, T, output_size), and
    `carry` (B, state_size) in the dtype of the state, or None for zeros: all that the next window
    of the same sequence needs.

    Called by itself, a cell makes a single step, as `torch.nn.LSTMCell` and `GRUCell` do.

    Args:
        input_size: features of x.
        hidden_size: features of the state that is read out.
        bias: whether the pre-activations have a bias.
        proj_size: if not 0, the output is projected to this size.
        memory: expected memory of the units, see `memory_bias_`.
        device: of the parameters.
        dtype: of the parameters.
        unknown: none; what is given is refused by name.

    Attributes:
        projects: whether `proj_size` means something for this cell.
        remembers_output: whether the user's state is `(h, c)`, h the last output, as that of
            `torch.nn.LSTM`, and not the carried state alone, as that of `torch.nn.GRU`. Where a
            layer is a drop-in for one of PyTorch, it is set for the cells.
        memory_in_bias: whether `memory` is the bias of a gate.
        sampled: the name of one of its weights.

    Raises:
        ValueError: for arguments that cannot be, with their value.
    """

    projects: ClassVar[bool] = False
    remembers_output: bool = False
    memory_in_bias: ClassVar[bool] = True
    sampled: ClassVar[str] = "weight_ih"
    weight_ih: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        proj_size: int = 0,
        memory: Memory = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            refuse_options(type(self), unknown, options_of(type(self)))
        cell_name = type(self).__name__.removesuffix("Cell")
        traits = (self.projects, self.memory_in_bias)
        check_cell(cell_name, *traits, input_size, hidden_size, bias, proj_size, memory, dtype)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.output_size = proj_size or hidden_size
        self.memory = memory
        self._factory = {"device": device, "dtype": dtype}

    @property
    def state_size(self) -> int:
        """Features of the carried state."""
        return self.hidden_size

    @property
    def packed_size(self) -> int:
        """Features of the user's state, beside the last output."""
        return self.state_size

    @property
    def carry_dtype(self) -> torch.dtype:
        """Dtype of the carried state: float32 for 16-bit parameters, else theirs."""
        return state_dtype(self.sample.dtype)

    @property
    def sample(self) -> Tensor:
        """One of the parameters, for its device and dtype; replicas have no `parameters()`."""
        weight: Tensor = getattr(self, self.sampled)
        if isinstance(weight, nn.Parameter) or not self._parameters:
            return weight
        # A parametrized weight is computed before each call; the last one may be of another dtype.
        return next((p for p in self._parameters.values() if p is not None), weight)

    @property
    def output_is_state(self) -> bool:
        """Whether the output is the carried state itself."""
        return False

    def carry(self, h: Tensor | None, c: Tensor) -> Tensor:
        """The carried state from c (..., hidden_size) and, where it is part of it, h."""
        return F.pad(c, (0, self.state_size - c.shape[-1]))

    def unpack(
        self, hx: State, rows: tuple[int, ...], device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Splits the user's state into the last output, None if absent, and the carried state.

        Args:
            hx: as the user gave it; None gives None, None.
            rows: its shape, but for the features.
            device: of the input.
        """
        if hx is None:
            return None, None
        dtype = self.carry_dtype
        sizes = (self.packed_size, self.hidden_size)
        h, c, name = None, hx, "h_0"
        if self.remembers_output:
            if not isinstance(hx, tuple | list) or len(hx) != 2:
                raise ValueError(f"`hx` must be the pair (h_0, c_0), got {form(hx)}")
            # An output is real even if the state is complex.
            of_output = state_dtype(self.sample.dtype)
            h = check_state("h_0", hx[0], rows, (self.output_size,), device, of_output)
            c, name = hx[1], "c_0"
        carry = check_state(name, c, rows, sizes, device, dtype)
        return h, carry if carry.shape[-1] == self.state_size else self.carry(h, carry)

    def pack(self, carry: Tensor) -> Tensor:
        """The part of the carried state that is in the user's state, beside the last output."""
        return carry

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

    def layer(self, x: Tensor, carry: Tensor | None, context: ScanContext) -> tuple[Tensor, Tensor]:
        """The layer's equations; `context.scan` is the recurrence."""
        raise NotImplementedError(f"{type(self).__name__} must define `layer(x, carry, context)`")

    def forward(
        self,
        input: Tensor,
        hx: State = None,
        context: ScanContext | None = None,
        **of_stack: Tensor,
    ) -> Tensor | tuple[Tensor, Any]:
        """A single time step; or, for a stack, `layer` over a sequence.

        Args:
            input: (B, input_size) or (input_size,).
            hx: the state that the step before returned; zeros if None.
            context: of the scans; given by a stack only.
            of_stack: what a stack computes for all its cells together.

        Returns:
            The state after the step: h where the output is the state, (h, c) where the stack's
            state is that pair, else (output, state). Where it is a pair, its first part is the
            output.

        Raises:
            ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
        """
        if context is not None:
            assert not isinstance(hx, tuple)
            return self.layer(input, hx, context, **of_stack)
        if of_stack:
            raise TypeError(f"a single step takes `input` and `hx`, not {', '.join(of_stack)}")
        check_step(input, self.input_size, self.sample)
        paired = not self.output_is_state and not self.remembers_output
        if paired and isinstance(hx, tuple | list):
            if len(hx) != 2:
                raise ValueError(f"`hx` must be the state, or (output, state), got {len(hx)} parts")
            hx = hx[1]
        _, carry = self.unpack(hx, tuple(input.shape[:-1]), input.device)
        batched = input.ndim == 2
        if not batched:
            input, carry = input[None], None if carry is None else carry[None]
        y, carry = self.layer(input[:, None], carry, StepContext())
        carry = self.pack(carry)
        y, carry = (y[:, 0], carry) if batched else (y[0, 0], carry[0])
        return carry if self.output_is_state else (y, carry)

    def __prepare_scriptable__(self) -> NoReturn:
        """See `refuse_script`."""
        refuse_script(type(self).__name__)

    def extra_repr(self) -> str:
        """Sizes of input and hidden state."""
        return f"{self.input_size}, {self.hidden_size}"


class GatedCell(Cell):
    """A cell with one state, whose pre-activations are projections of its last inputs.

    Attributes:
        gate: from the pre-activations to decay and impulse.
        readout: from the state and the pre-activations to the output; None for the state.
        sizes: number of projections, and how many of them, the first ones, have a bias. The very
            first is that of the forget gate.
        window: how many inputs, x_t included, the projections see.
        weight_ih: one matrix after the other, side by side for x_t, x_{t-1}, ...:
            (projections * hidden_size, window * input_size).
        bias: (biases * hidden_size), or None.
    """

    gate: Gate
    readout: Gate | None = None
    sizes: tuple[int, int]
    window: int = 1
    _complex: bool = False

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, **options: Any
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        own = type(self).pre_activations is not GatedCell.pre_activations
        check_gated(self, own=own)
        self._complex = isinstance(self.gate, Gate) and _makes_complex(self.gate.program)
        weights, biases = self.sizes
        self.weight_ih = self.parameter(weights * hidden_size, self.window * input_size)
        self.bias = self.parameter(biases * hidden_size) if bias and biases else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as `Cell` does, and the bias of the forget gate by expected memory."""
        super().reset_parameters()
        if self.bias is not None:
            memory_bias_(self.bias[: self.hidden_size], self.memory)

    @property
    def carry_dtype(self) -> torch.dtype:
        """As that of a `Cell`, and complex where the gate makes complex states of real inputs.

        To be overridden where something else does: pre-activations, or a function without `@gate`.
        """
        dtype = state_dtype(self.sample.dtype)
        return torch.promote_types(dtype, torch.complex64) if self._complex else dtype

    @property
    def state_size(self) -> int:
        """The state, and the overlap of the last inputs with later pre-activations."""
        return self.hidden_size * (1 + (self.window - 1) * self.sizes[0])

    @property
    def output_is_state(self) -> bool:
        """True without a readout and without inputs of earlier steps in the state."""
        return self.readout is None and self.window == 1

    def pre_activations(
        self, projection: Tensor, x: Tensor, context: ScanContext
    ) -> tuple[Tensor, ...]:
        """The projections, one by one."""
        return chunks(projection, self.sizes[0])

    def layer(self, x: Tensor, carry: Tensor | None, context: ScanContext) -> tuple[Tensor, Tensor]:
        """Projection, gate, recurrence, readout."""
        weights, biases = self.sizes
        bias: Tensor | None = self.bias
        if bias is not None and biases < weights:
            bias = F.pad(bias, (0, (weights - biases) * self.hidden_size))
        if self.window == 1:
            pre = self.pre_activations(linear(x, self.weight_ih, bias), x, context)
            return context.scan("state", self.gate, *pre, h0=carry, readout=self.readout)
        H = self.hidden_size
        h, overlap = (None, None) if carry is None else carry.split([H, self.state_size - H], -1)
        if overlap is not None and overlap.is_complex():
            overlap = overlap.real  # a sum of real projections beside a complex state
        projection, overlap = causal_conv(x, self.weight_ih, bias, self.window, overlap, context)
        pre = self.pre_activations(projection, x, context)
        y, h = context.scan("state", self.gate, *pre, h0=h, readout=self.readout)
        return y, torch.cat([h, overlap.to(h.dtype)], -1)


def _makes_complex(program: str) -> bool:
    return state_is_complex(program, (False,) * parse(program).inputs)


def chunks(projection: Tensor, n: int) -> tuple[Tensor, ...]:
    """The pre-activations in a projection (B, T, n * D), each (B, T, D), in place."""
    if plain_eager(projection):
        return projections.split(projection, n)
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
    # In place: no gradient needs the first product. Autocast casts nothing here.
    total.addmm_(s.flatten(0, 1).to(total.dtype), weight_s.to(total.dtype).t())
    return total.view(*x.shape[:2], total.shape[-1])
