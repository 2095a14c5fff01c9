"""Linear surrogate RNNs: gates see a linear recurrence in the place of the state (ICLR 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lrnn.gates import Gate, gate, parse
from lightning_lrnn.nn.cell import Cell, chunks, linear, linear_sum
from lightning_lrnn.nn.cells.gilr import GILRCell
from lightning_lrnn.nn.cells.hgrn import HGRNCell
from lightning_lrnn.nn.cells.lru import LRUStateCell
from lightning_lrnn.nn.cells.min_gru import MinGRUCell
from lightning_lrnn.nn.cells.min_lstm import MinLSTMCell
from lightning_lrnn.nn.cells.qrnn import QRNNCell
from lightning_lrnn.nn.cells.rg_lru import RGLRUCell
from lightning_lrnn.nn.cells.s5 import S5Cell
from lightning_lrnn.nn.cells.sru import SRUCell
from lightning_lrnn.nn.cells.t_gru import TGRUCell
from lightning_lrnn.nn.cells.t_lstm import TLSTMCell
from lightning_lrnn.nn.cells.t_rnn import TRNNCell
from lightning_lrnn.nn.complex_columns import to_columns, to_complex
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.scan_context import ScanContext
from lightning_lrnn.nn.stack import Stack

__all__ = ["FUNCTIONS", "SURROGATES", "Function", "SurrogateRNN", "SurrogateRNNCell"]


@gate
def lstm(i: Tensor, f: Tensor, g: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Decay f and impulse i * g of the cell, from pre-activations; o is for the readout."""
    return torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(g)


@gate
def output_tanh(c: Tensor, i: Tensor, f: Tensor, g: Tensor, o: Tensor) -> Tensor:
    """The readout of `torch.nn.LSTM`."""
    return torch.sigmoid(o) * torch.tanh(c)


@gate
def output_identity(c: Tensor, i: Tensor, f: Tensor, g: Tensor, o: Tensor) -> Tensor:
    """The readout of the paper."""
    return torch.sigmoid(o) * c


@gate
def gru(r: Tensor, z: Tensor, n: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Decay z and impulse (1 - z) * tanh(n + r * u), u the surrogate's part of n."""
    return torch.sigmoid(z), torch.sigmoid(-z) * torch.tanh(n + torch.sigmoid(r) * u)


@gate
def gru_without_reset(z: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Decay z and impulse (1 - z) * tanh(n)."""
    return torch.sigmoid(z), torch.sigmoid(-z) * torch.tanh(n)


@gate
def gru_with_input_gate(z: Tensor, i: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Decay z and impulse i * (1 - z) * tanh(n)."""
    return torch.sigmoid(z), torch.sigmoid(i) * torch.sigmoid(-z) * torch.tanh(n)


@gate
def rnn_tanh(n: Tensor) -> tuple[Tensor, Tensor]:
    """Impulse tanh(n), and nothing of the state before."""
    h = torch.tanh(n)
    return 0 * h.detach(), h


@gate
def rnn_relu(n: Tensor) -> tuple[Tensor, Tensor]:
    """Impulse relu(n), and nothing of the state before."""
    return 0 * torch.sigmoid(n).detach(), torch.relu(n)


class Function(NamedTuple):
    """f of s_t = f(s~_{t-1}, x_t): a gate and a readout of pre-activations W x + b + U s~ + b'.

    Attributes:
        gate: from the pre-activations to decay and impulse.
        readout: from the state and the pre-activations to the output; None for the state.
        matrices: number of matrices in W, and in U.
        apart: number of matrices, the last ones, whose W x + b and U s~ + b' the gate takes apart.
        forget: index of the forget gate's matrix, whose bias is by expected memory, or None.
        input: index of the matrix of a separate input gate, or None.
        closed: index of a gate that starts a third open, its bias lowered by log 2, or None.
        pair: whether the state is (h, c), as that of `torch.nn.LSTM`.
    """

    gate: Gate
    readout: Gate | None = None
    matrices: int = 1
    apart: int = 0
    forget: int | None = None
    input: int | None = None
    closed: int | None = None
    pair: bool = False


FUNCTIONS = {
    "LSTM": Function(lstm, output_tanh, 4, forget=1, input=0, pair=True),
    "LSTM_IDENTITY": Function(lstm, output_identity, 4, forget=1, input=0, pair=True),
    "GRU": Function(gru, None, 3, apart=1, forget=1),
    "GRU_WITHOUT_RESET": Function(gru_without_reset, None, 2, forget=0),
    "GRU_WITH_INPUT_GATE": Function(gru_with_input_gate, None, 3, forget=0, closed=1),
    "RNN_TANH": Function(rnn_tanh),
    "RNN_RELU": Function(rnn_relu),
}
"""The recurrent layers of PyTorch, with their matrices in its order, and three variants."""

SURROGATES: dict[str, type[Cell]] = {
    cell.__name__.removesuffix("Cell"): cell
    for cell in (
        *(GILRCell, HGRNCell, MinGRUCell, MinLSTMCell, QRNNCell, RGLRUCell, S5Cell, SRUCell),
        *(TGRUCell, TLSTMCell, TRNNCell),
    )
} | {"LRU": LRUStateCell}
"""Cells of the surrogates, by name of the layer; that of "LRU" returns its state, for U to read."""

HALF_OPEN = (1.0, 1.0)
"""Default memory of a surrogate's gates: biases of 0, nearly as in `torch.nn`."""


class SurrogateRNNCell(Cell):
    """One layer of `SurrogateRNN` in one direction.

    C units are cells, S are the surrogate's. With a surrogate beside the cells C = H = hidden_size;
    where it has a share of the H columns of the state, C + S = H.

    Attributes:
        weight_ih: W (matrices * C, input_size), as in `torch.nn.LSTMCell` and its like.
        weight_hh: U (matrices * C, S).
        bias_ih: b (matrices * C), or None.
        bias_hh: b' (matrices * C), or None.
        weight_hr: the projection (proj_size, H), or None.
        surrogate: the surrogate's layers, one after the other.
        function: f.
        shares: whether the surrogate's units are among the H columns of the state.
        passes: how often f is applied.
    """

    projects = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        cell: str | Gate = "LSTM",
        surrogate: str | type[Cell] = "GILR",
        surrogate_size: float | None = None,
        surrogate_layers: int = 1,
        surrogate_options: Mapping[str, Any] | None = None,
        passes: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        self.function = _function(cell)
        self.passes = _passes(passes, surrogate_size)
        self.remembers_output = self.function.pair
        self.shares = surrogate_size is not None
        S = _units(surrogate_size, hidden_size, self.output_size, surrogate_layers)
        surrogate_layers = int(surrogate_layers)
        self.cells = hidden_size - S * surrogate_layers if self.shares else hidden_size
        rows = self.function.matrices * self.cells
        self.weight_ih = self.parameter(rows, input_size)
        self.weight_hh = self.parameter(rows, S)
        self.bias_ih = self.parameter(rows) if bias else None
        self.bias_hh = self.parameter(rows) if bias else None
        projected = self.output_size != hidden_size
        self.weight_hr = self.parameter(self.output_size, hidden_size) if projected else None
        self.reset_parameters()
        surrogate_class, self.surrogate = _surrogate(surrogate), nn.ModuleList()
        memory = self.memory or (HALF_OPEN if bias and surrogate_class.memory_in_bias else None)
        settings = {**self._factory, "memory": memory, **(surrogate_options or {})}
        for layer in range(surrogate_layers):
            self.surrogate.append(surrogate_class(S if layer else input_size, S, bias, **settings))
        if self.shares and not self._surrogates()[0].output_is_state:
            name = surrogate_class.__name__.removesuffix("Cell")
            raise ValueError(
                f"the state of {name} is not its output, and cannot be among the "
                f"hidden_size={hidden_size} columns of the layer's: leave `surrogate_size` out"
            )

    @property
    def parts(self) -> list[int]:
        """Columns of the carried state.

        Of the cells in the last pass, of each layer of the surrogate, and of each earlier pass its
        cells and, where that is not their state, its last output.
        """
        of_surrogate = [_columns(layer) for layer in self._surrogates()]
        of_pass = [self.cells] if self.reads_state else [self.cells, self.output_size]
        return [self.cells, *of_surrogate, *of_pass * (self.passes - 1)]

    @property
    def state_size(self) -> int:
        """Columns of the carried state: the sum of `parts`."""
        return sum(self.parts)

    @property
    def reads_state(self) -> bool:
        """Whether the output of the cells is their state."""
        return self.function.readout is None and self.weight_hr is None

    def is_surrogate_of(self, old: nn.RNNBase) -> bool:
        """Whether f is the function of `old`, a layer of `torch.nn`."""
        return FUNCTIONS.get(old.mode) is self.function

    @property
    def splits(self) -> bool:
        """Whether h of the user's pair (h, c) is the state of the cells, and c all the rest."""
        return self.reads_state and self.remembers_output and not self.shares

    @property
    def packed_size(self) -> int:
        """`state_size`, less the cells if the last output is their state."""
        return self.state_size - (self.cells if self.splits else 0)

    @property
    def output_is_state(self) -> bool:
        """True if the output has the surrogate's units, and there is no readout."""
        return self.shares and self.reads_state

    def carry(self, h: Tensor | None, c: Tensor) -> Tensor:
        """The cells of every pass start at c, the rest at the last output where that is as wide.

        Of a pair whose h is the state of the cells these start at h, and c is the surrogate, or all
        that there is beside them.
        """
        of_surrogate = self.parts[1 : 1 + len(self.surrogate)]
        if self.splits:
            assert h is not None
            if c.shape[-1] == self.packed_size:
                return torch.cat([h, c], -1)
            surrogate = F.pad(c, (0, sum(of_surrogate) - c.shape[-1]))
            return torch.cat([h, surrogate, *[h] * (self.passes - 1)], -1)
        rows = c.shape[:-1]
        if h is None:
            known = self.reads_state and self.passes > 1
            h = c if known else c.new_zeros(*rows, self.output_size)
        as_wide = of_surrogate == [h.shape[-1]]
        surrogate = h if as_wide else c.new_zeros(*rows, sum(of_surrogate))
        earlier = [c] if self.reads_state else [c, h]
        return torch.cat([c, surrogate, *earlier * (self.passes - 1)], -1)

    def pack(self, carry: Tensor) -> Tensor:
        """The carried state, without the cells if the last output is their state."""
        return carry[..., self.cells :] if self.splits else carry

    def reset_parameters(self) -> None:
        """Uniform in ±1/sqrt(hidden_size), as in `torch.nn`; a surrogate initialises its own.

        With a `memory` of m steps the biases of the forget gates are by it, and b_i = -b_f / 2: an
        input gate near 1 / sqrt(m), with which the variance of a sum of independent impulses does
        not depend on m. Chrono initialisation has b_i = -b_f, for impulses that add up.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)
        if self.bias_ih is None or self.bias_hh is None:
            return
        of_x, of_s = (
            b.detach().chunk(self.function.matrices) for b in (self.bias_ih, self.bias_hh)
        )
        if self.memory is not None and self.function.forget is not None:
            for bias in (*of_x, *of_s):
                bias.zero_()
            memory_bias_(of_x[self.function.forget], self.memory)
            if self.function.input is not None:
                of_x[self.function.input].copy_(-of_x[self.function.forget] / 2)
        if self.function.closed is not None:
            of_x[self.function.closed].sub_(math.log(2))

    def layer(self, x: Tensor, carry: Tensor | None, context: ScanContext) -> tuple[Tensor, Tensor]:
        """The layer's equations."""
        n = len(self.surrogate)
        c_0, *states = self._split(carry)
        before, outputs, after = self.surrogate_before(x, states[:n], context)
        earlier = iter(states[n:])
        for k in range(1, self.passes):
            c = next(earlier)
            y, c_n = self.once(f"pass{k}", x, before, c, outputs, context)
            last = c if self.reads_state else next(earlier)
            after += [c_n] if self.reads_state else [c_n, context.last(y, last).to(c_n.dtype)]
            before = context.previous(y, last)
        y, c_n = self.once("cell", x, before, c_0, outputs, context)
        return y, torch.cat([c_n, *after], -1)

    def _split(self, carry: Tensor | None) -> Sequence[Any]:
        """The parts of the carried state; None for each of them if there is none."""
        if carry is not None:
            parts: Sequence[Tensor] = carry.split(self.parts, -1)
            return parts
        of_pass = 1 if self.passes == 1 or self.reads_state else 2
        return [None] * (1 + len(self.surrogate) + of_pass * (self.passes - 1))

    def once(
        self, name: str, x: Tensor, s: Tensor, c: Any, outputs: list[Tensor], context: ScanContext
    ) -> tuple[Tensor, Tensor]:
        """One pass of f over time, with gates that see s: its output and the cells' state."""
        pre, readout = self.pre_activations(x, s), self.function.readout
        y, c_n = context.scan(name, self.function.gate, *pre, h0=c, readout=readout)
        if self.shares:
            y = torch.cat([y, *outputs], -1)
        return y if self.weight_hr is None else F.linear(y, self.weight_hr), c_n

    def surrogate_before(
        self, x: Tensor, states: list[Any], context: ScanContext
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """s~_{t-1} for every t, the outputs of the surrogate's layers and their states."""
        outputs, after = [], []
        s = x
        for k, (layer, state) in enumerate(zip(self._surrogates(), states, strict=True)):
            scan_name = f"surrogate{k}" if len(states) > 1 else "surrogate"
            last = k == len(states) - 1
            inner = replace(context, scan_name=scan_name, exclusive=last and not self.shares)
            s, s_n = layer.layer(s, _of_columns(layer, state), inner)
            outputs.append(s)
            after.append(_to_columns(s_n))
        if self.shares:
            s = context.previous(s, states[-1])
        return s, outputs, after

    def pre_activations(self, x: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        """W x + b + U s + b'; of the last `apart` matrices both terms separately."""
        n, apart = self.function.matrices, self.function.apart
        W, U, b_x, b_s = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        if not apart:
            bias = None if b_x is None or b_s is None else b_x + b_s
            return chunks(linear_sum(x, W, s, U, bias), n)
        parts = [(n - apart) * self.cells, apart * self.cells]
        (W, W_n), (U, U_n) = W.split(parts), U.split(parts)
        bias = bias_x = bias_s = None
        if b_x is not None and b_s is not None:
            (b_x, bias_x), (b_s, bias_s) = b_x.split(parts), b_s.split(parts)
            bias = b_x + b_s
        return (
            *chunks(linear_sum(x, W, s, U, bias), n - apart),
            *chunks(linear(x, W_n, bias_x), apart),
            *chunks(linear(s, U_n, bias_s), apart),
        )

    def _surrogates(self) -> list[Cell]:
        return list(self.surrogate)  # type: ignore[arg-type]


class SurrogateRNN(Stack):
    """Layers of a linear surrogate RNN, called as the layer of `torch.nn` whose function they have.

    An RNN s_t = f(s_{t-1}, x_t) uses its state twice: f remembers by it, and its gates look at it.
    With a *linear surrogate* s~ of the state for the gates to look at,

        s~_t = A_t s~_{t-1} + B_t                  any linear recurrence of this package
        s_t  = f(s~_{t-1}, x_t)                    pre-activations W x_t + b + U s~_{t-1} + b'

    both are parallel over time. Source: Martin & Cundy, "Parallelizing Linear Recurrent Neural Nets
    Over Sequence Length", ICLR 2018 (arXiv 1709.04057), section 3.2. f is, by its name in `cell`,

        "LSTM":     i, f, o = sigmoid(...), g = tanh(...)
                    c_t = f * c_{t-1} + i * g,  y_t = o * tanh(c_t)
        "GRU":      r, z = sigmoid(...), n = tanh(W_n x_t + b_n + r * (U_n s~_{t-1} + b'_n))
                    h_t = z * h_{t-1} + (1 - z) * n
        "GRU_WITHOUT_RESET": the same with r = 1 and one bias in n
        "GRU_WITH_INPUT_GATE": h_t = z * h_{t-1} + i * (1 - z) * n with i = sigmoid(...) and no r;
                    i starts near a third, so that outputs start smaller, as in an LSTM
        "RNN_TANH": h_t = tanh(...)
        "RNN_RELU": h_t = relu(...)

    or a gate of your own, `f(*pre_activations) -> (decay, impulse)`.

    With K `passes` the outputs are computed K times, each time with gates that see those of the
    time before, one step earlier, and with the same W, U, b and b':

        s^0_t = s~_t
        s^k_t = f(s^{k-1}_{t-1}, x_t), its cells c^k by a recurrence of their own        k = 1 ... K

    That is a fixed-point iteration of s_t = f(s_{t-1}, x_t), every pass of which is parallel over
    time, and the layer of `torch.nn` is its fixed point: after k passes the first k steps are
    exactly those of the RNN that sees itself, and the later ones close to them where it forgets.
    Sources for evaluating nonlinear recurrences by such iterations: Lim et al., "Parallelizing
    non-linear sequential models over the sequence length", ICLR 2024 (arXiv 2309.12252); Gonzalez
    et al., "Towards Scalable and Stable Parallelization of Nonlinear RNNs", NeurIPS 2024 (arXiv
    2407.19115), which both take Newton's steps.

    Parameters: W, U, b and b' of each layer are those of the layer of `torch.nn`, by name and
    shape, where the surrogate is beside the cells; the surrogate's come in addition.

    State, see `Stack.forward`: as (h, c) for an LSTM, else one tensor. Its columns are

    - with `surrogate_size=None`: the cells, H wide, and beside them the surrogate, and of each
      earlier pass its cells and, where that is not their state, its last output. A state that is H
      wide is taken too, such as that of the layer of `torch.nn`: all cells start at it, and the
      rest at the h of (h, c). Of a single tensor, h = c with several passes and 0 with one.
    - with a `surrogate_size`: exactly H. The units of the layer are cells and surrogate units, and
      so are the columns of its output: y_t = [y of the cells, s~_t]. In the place of a GRU or RNN
      the state is the last output.

    Args:
        cell: f, by its name, or a gate.
        surrogate: the layer that is the surrogate, by its name: "GILR", "TRNN", "QRNN", ...; or a
            class of cells.
        surrogate_size: None: beside the cells, as wide as the output. Or how many of the
            hidden_size units are the surrogate's in each of its layers: a number, or a share of
            hidden_size below 1. Only for a surrogate whose output is its state.
        surrogate_layers: layers of the surrogate on top of each other.
        surrogate_options: options of the surrogate, such as {"window": 3} of a QRNN.
        passes: how often f is applied; from the second time on its gates see the output of the time
            before, one step earlier. More than one only with `surrogate_size=None`.

    `proj_size` projects the output, as in `torch.nn.LSTM`.
    """

    cell_type = SurrogateRNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        cell: str | Gate = "LSTM",
        surrogate: str | type[Cell] = "GILR",
        surrogate_size: float | None = None,
        surrogate_layers: int = 1,
        surrogate_options: dict[str, Any] | None = None,
        passes: int = 1,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"cell": cell, "surrogate": surrogate, "surrogate_size": surrogate_size}
        kwargs |= {"surrogate_layers": surrogate_layers, "surrogate_options": surrogate_options}
        kwargs |= {"passes": passes}
        super().__init__(input_size, hidden_size, *args, **kwargs)


def _function(cell: Any) -> Function:
    if isinstance(cell, Gate):
        program = parse(cell.program)
        if len(program.outputs) != 2 or not program.inputs:
            raise ValueError(f"`cell` must map pre-activations to decay and impulse, got {cell!r}")
        return Function(cell, matrices=program.inputs)
    if not isinstance(cell, str) or cell not in FUNCTIONS:
        raise ValueError(f"`cell` must be one of {', '.join(FUNCTIONS)}, or a gate, got {cell!r}")
    return FUNCTIONS[cell]


def _surrogate(surrogate: Any) -> type[Cell]:
    if isinstance(surrogate, type) and issubclass(surrogate, Cell):
        return surrogate
    if not isinstance(surrogate, str) or surrogate not in SURROGATES:
        raise ValueError(
            f"`surrogate` must be one of {', '.join(SURROGATES)}, or a class of cells, got "
            f"{surrogate!r}"
        )
    return SURROGATES[surrogate]


def _units(size: Any, hidden_size: int, output_size: int, layers: Any) -> int:
    """The number of units of each layer of the surrogate."""
    if not _is_count(layers):
        raise ValueError(f"`surrogate_layers` must be a whole number of at least 1, got {layers!r}")
    if size is None:
        return output_size
    units = size
    if isinstance(size, float) and 0 < size < 1:
        units = max(1, round(size * hidden_size))
    if not _is_count(units) or units * layers >= hidden_size:
        raise ValueError(
            f"`surrogate_size` must be a whole number, or a share below 1, that leaves at least "
            f"one of hidden_size={hidden_size} units to the cells, with surrogate_layers={layers}, "
            f"got {size!r}"
        )
    return int(units)


def _passes(passes: Any, surrogate_size: Any) -> int:
    if not _is_count(passes):
        raise ValueError(f"`passes` must be a whole number of at least 1, got {passes!r}")
    if passes > 1 and surrogate_size is not None:
        raise ValueError(
            f"passes={passes} needs a surrogate beside the cells, as wide as the output that takes "
            f"its place: leave `surrogate_size` out, got {surrogate_size!r}"
        )
    return int(passes)


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1; a config may have it as a float."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value >= 1 and value % 1 == 0


def _columns(layer: Cell) -> int:
    """Columns of a surrogate's state, two for a complex number."""
    return layer.state_size * (2 if layer.carry_dtype.is_complex else 1)


def _to_columns(state: Tensor) -> Tensor:
    return to_columns(state, 2 * state.shape[-1]) if state.is_complex() else state


def _of_columns(layer: Cell, columns: Tensor | None) -> Tensor | None:
    if columns is None or not layer.carry_dtype.is_complex:
        return columns
    return to_complex(columns)
