"""Backend `cudnn`: the recurrence by the vendor's RNN, for the gates that it has.

A cuDNN GRU whose recurrent weights are 0 is h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(z); such
an LSTM is c = sigmoid(f) * c + sigmoid(i) * tanh(z), read out as sigmoid(o) * tanh(c). The
pre-activations go in through weights that select them, so that cuDNN computes our recurrence and,
by PyTorch, its gradients. docs/cudnn.md has what that costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.backends import BackendError, Request
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.evaluation import broadcastable, read_out
from lightning_lrnn.core.masks import padding_mask, restarts
from lightning_lrnn.core.problem import Gradients, Problem, States
from lightning_lrnn.core.pytorch import constant
from lightning_lrnn.gates import Gate, Program, Step, gate, parse

__all__ = ["CUDNN"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

BIG = 1e4
"""A pre-activation whose sigmoid is 1, and 0 with the other sign, in every dtype. It is multiplied
by weights of 0, and so may not be infinite."""

EPSILON = 2.0**-40
"""Scales the LSTM's cell where the output is the cell itself. tanh changes a number so small by a
relative (EPSILON * c)^2 / 3: of a float64 nothing up to |c| = 10,000, of a float32 up to 10^8.
Products with a power of 2 are exact, and float32 goes far enough: to 2^-126, gradients to 2^128."""


@gate
def tied(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay sigmoid(f) and impulse (1 - sigmoid(f)) * tanh(z), those of a GRU."""
    a = torch.sigmoid(f)
    return a, (1 - a) * torch.tanh(z)


@gate
def tied_by_sign(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """As `tied`, with 1 - sigmoid(f) written as sigmoid(-f)."""
    return torch.sigmoid(f), torch.sigmoid(-f) * torch.tanh(z)


@gate
def tied_by_input(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """As `tied`, with g = -f, the gate of the input."""
    b = torch.sigmoid(g)
    return 1 - b, b * torch.tanh(z)


@gate
def tied_by_input_sign(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """As `tied_by_input`, with 1 - sigmoid(g) written as sigmoid(-g)."""
    return torch.sigmoid(-g), torch.sigmoid(g) * torch.tanh(z)


@gate
def free(f: Tensor, i: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay sigmoid(f) and impulse sigmoid(i) * tanh(z), those of an LSTM."""
    return torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(z)


@gate
def output(o: Tensor, c: Tensor) -> Tensor:
    """sigmoid(o) * tanh(c), the readout of an LSTM."""
    return torch.sigmoid(o) * torch.tanh(c)


class Mode(NamedTuple):
    """The pre-activations of a gate in the order of a cuDNN layer.

    Attributes:
        inputs: which pre-activations are f and z (a GRU), or f, i and z (an LSTM).
        negated: whether the first of them is -f.
        output: which one is o, where the LSTM's readout is ours; else None.
    """

    inputs: tuple[int, ...]
    negated: bool = False
    output: int | None = None


def missing(device: torch.device) -> list[str]:
    """Why the vendor's RNN cannot be called here; [] = it can."""
    if device.type != "cuda":
        return [f"cuDNN runs on NVIDIA GPUs, not on {device.type}"]
    if not torch.backends.cudnn.is_available():
        return ["PyTorch finds no cuDNN and no GPU here"]
    return []


class Cudnn:
    """The vendor's RNN, made of operations that PyTorch differentiates."""

    uses_autograd = True

    def reasons(self, request: Request) -> list[str]:
        """Why it cannot run: no cuDNN, or no mode of it for the dtype or the gate."""
        reasons = missing(request.device)
        if request.dtype not in DTYPES:
            reasons.append(f"cuDNN's recurrent layers are real, not {request.dtype}")
        elif request.gate == gates.IDENTITY:
            reasons.append(
                "cuDNN computes decays and impulses itself and takes none: give it a gate"
            )
        elif request.gate and _mode(request.gate, request.readout) is None:
            reasons.append(
                "cuDNN has no mode for an untransformed candidate"
                if not {"tanh", "silu"} & {step.operation for step in parse(request.gate).steps}
                else "cuDNN has no mode for this gate"
            )
            reasons[-1] += ", only for (1 - sigmoid(f)) * tanh(z) and sigmoid(i) * tanh(z)"
        return reasons

    def prepared(self, problem: Problem) -> Cudnn:
        """This backend itself, for every form."""
        return self

    def forward(self, problem: Problem) -> States:
        """Output and final state.

        Between two steps cuDNN keeps the state as it likes; between two calls a 16-bit one is
        rounded.
        """
        gate, readout, pre, h0, lengths, reset, reverse, exclusive = problem
        mode = _mode(gate, readout)
        assert mode is not None
        x = problem.x
        B, _, D = x.shape
        state = state_dtype(x.dtype)
        if h0 is None:
            h0 = x.new_zeros(B, D, dtype=state)
        if x.numel() == 0:
            return _states(x.clone(), h0.clone())
        padding = None
        if lengths is not None:
            padding = padding_mask(lengths, x)
            pre = [p.masked_fill(padding, 0) if p.ndim == 3 else p for p in pre]
        starts = None if reset is None else restarts(reset, lengths, reverse=reverse)[..., None]

        direct = mode.output is not None and not exclusive
        small_numbers = not direct and len(mode.inputs) == 3
        finer = any(torch.promote_types(p.dtype, x.dtype) != x.dtype for p in pre)
        # 16 bits are too few for the small numbers, and for parameters of more bits.
        dtype = state if small_numbers or finer else x.dtype
        sequences = [broadcastable(p).to(dtype).expand(x.shape) for p in pre]
        f, *i, z = (sequences[k] for k in mode.inputs)
        f = -f if mode.negated else f
        if starts is not None:
            if not i:
                # The candidate for which the whole new state is the impulse.
                impulse = torch.sigmoid(-f.to(state)) * torch.tanh(z.to(state))
                limit = 1 - torch.finfo(state).eps
                candidate = torch.atanh(impulse.masked_fill(~starts, 0).clamp(-limit, limit))
                z = torch.where(starts, candidate.to(z.dtype), z)
            f = f.masked_fill(starts, -BIG)
        if padding is not None:
            # With a candidate of 0, as it is there, the state stays to the last bit.
            f = f.masked_fill(padding, BIG)
        if not i:
            h, h_final = _gru(f, z, h0, reverse=reverse)
        elif direct:
            o = sequences[mode.output or 0]
            y, h_final = _lstm(i[0], f, z, o, h0, reverse=reverse)
            return _states(_cleared(y.to(x.dtype), padding).contiguous(), h_final.to(state))
        else:
            small = EPSILON * torch.tanh(z)
            h, h_final = _lstm(
                i[0], f, small, torch.full_like(z, BIG), EPSILON * h0, reverse=reverse
            )
            h, h_final = h / EPSILON, h_final / EPSILON

        if exclusive:
            edge = h0.to(h.dtype)[:, None]
            h = torch.cat([h[:, 1:], edge] if reverse else [edge, h[:, :-1]], 1)
            h = h if starts is None else h.masked_fill(starts, 0)
        y = read_out(readout, h, pre, lengths) if readout else _cleared(h.to(x.dtype), padding)
        return _states(y.contiguous(), h_final.to(state))

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        """Raises a NotImplementedError, as PyTorch differentiates `forward`."""
        raise NotImplementedError("PyTorch differentiates what `forward` computes")


CUDNN = Cudnn()


def _states(y: Tensor, final: Tensor) -> States:
    return States(y, y, final)


def _cleared(y: Tensor, padding: Tensor | None) -> Tensor:
    return y if padding is None else y.masked_fill(padding, 0)


def _gru(f: Tensor, z: Tensor, h0: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states (B, T, D) of h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(z), and the last."""
    # The first of reset, update and new acts on the recurrent weights only.
    y, h_n = _vendor(torch.ops.aten.gru.input, 3, [f, z], [h0], reverse=reverse)
    return y, h_n


def _lstm(
    i: Tensor, f: Tensor, z: Tensor, o: Tensor, c0: Tensor, *, reverse: bool
) -> tuple[Tensor, Tensor]:
    """sigmoid(o) * tanh(c) of c = sigmoid(f) * c + sigmoid(i) * tanh(z), and the last c."""
    y, _, c_n = _vendor(
        torch.ops.aten.lstm.input, 4, [i, f, z, o], [torch.zeros_like(c0), c0], reverse=reverse
    )
    return y, c_n


def _vendor(
    rnn: Callable[..., tuple[Tensor, ...]],
    num_gates: int,
    pre: list[Tensor],
    state: list[Tensor],
    *,
    reverse: bool,
) -> list[Tensor]:
    """Output (B, T, D) and final states (B, D) of one layer whose last pre-activations are `pre`.

    The others of its `num_gates` are 0.
    """
    if why := _replaced(pre[0]):
        raise BackendError(f"backend 'cudnn' cannot run: {why}")
    # Time first, as cuDNN has it, saves it a copy.
    x = torch.cat([p.transpose(0, 1) for p in pre], -1)
    x = x.flip(0) if reverse else x
    state = [s[None].to(x.dtype).contiguous() for s in state]
    weights = _weights(x, pre[0].shape[-1], num_gates)
    # No biases, one layer, no dropout, whether for training, one direction, time first.
    options = (False, 1, 0.0, torch.is_grad_enabled(), False, False)
    with torch.autocast(x.device.type, enabled=False):
        y, *final = rnn(x, state if len(state) > 1 else state[0], weights, *options)
    return [(y.flip(0) if reverse else y).transpose(0, 1), *(s[0] for s in final)]


def _replaced(x: Tensor) -> str:
    """Why PyTorch would compute the layer on a GPU by kernels of its own; "" = it would not."""
    if not x.is_cuda:
        return ""
    if torch.compiler.is_compiling():
        return "torch.compile takes the layer apart; leave it out by torch.compiler.disable"
    if not torch.cudnn_is_acceptable(x):
        return f"torch.backends.cudnn is disabled, or PyTorch gives it no {x.dtype}"
    return ""


def _weights(x: Tensor, size: int, num_gates: int) -> list[Tensor]:
    """Input weights that select the last gates, and recurrent ones of 0.

    In one block of memory with room for biases at its end: otherwise PyTorch copies them, with a
    warning.
    """
    rows, columns = num_gates * size, x.shape[-1]
    whole = x.new_zeros(rows * (columns + size + 2))
    of_input, recurrent, _ = whole.split([rows * columns, rows * size, 2 * rows])
    of_input = of_input.view(rows, columns)
    of_input[-columns:].copy_(torch.eye(columns, dtype=x.dtype, device=x.device))
    return [of_input, recurrent.view(rows, size)]


def canonical(program: str) -> tuple[str, tuple[int, ...]]:
    """A program with its steps in the order of use by its outputs, and its inputs' numbers.

    Steps and inputs that no output uses are left out.
    """
    parsed = parse(program)
    names: dict[str, str] = {}
    inputs: list[int] = []
    steps: list[Step] = []

    def visit(value: Any) -> Any:
        if not isinstance(value, str) or value in names:
            return names.get(value, value)
        if value[0] == "x":
            names[value] = f"x{len(inputs)}"
            inputs.append(int(value[1:]))
        else:
            operation, arguments = parsed.steps[int(value[1:])]
            steps.append(Step(operation, tuple(map(visit, arguments))))
            names[value] = f"t{len(steps) - 1}"
        return names[value]

    outputs = tuple(map(visit, parsed.outputs))
    return str(Program(len(inputs), tuple(steps), outputs)), tuple(inputs)


@constant
def _mode(gate: str, readout: str) -> Mode | None:
    return _mode_of(gate, readout)


@cache
def _mode_of(gate: str, readout: str) -> Mode | None:
    program, inputs = canonical(gate)
    if program in _programs(tied, tied_by_sign):
        return Mode(inputs)
    if program in _programs(tied_by_input, tied_by_input_sign):
        return Mode(inputs, negated=True)
    if program not in _programs(free):
        return None
    program, of_readout = canonical(readout) if readout else ("", ())
    if program not in _programs(output) or of_readout[1] != 0:
        return Mode(inputs)
    # The first input of a readout is the state.
    return Mode(inputs, output=of_readout[0] - 1)


def _programs(*gates: Gate) -> set[str]:
    return {canonical(gate.program)[0] for gate in gates}
