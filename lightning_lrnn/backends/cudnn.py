"""Backend `cudnn`: the recurrence by the vendor's RNN, for the gates that it has.

A cuDNN GRU whose recurrent weights are 0 is h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(z); such
an LSTM is c = sigmoid(f) * c + sigmoid(i) * tanh(z), read out as sigmoid(o) * tanh(c). The
pre-activations go in through weights that select them, so that cuDNN computes our recurrence and,
by PyTorch, its gradients. docs/cudnn.md has what that costs.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn._dtypes import state_dtype
from lightning_lrnn.backends import Request
from lightning_lrnn.gates import Program, Step, gate, parse

__all__ = ["run_differentiable", "unsupported_reasons"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

BIG = 1e4
"""A pre-activation whose sigmoid is 1, and 0 with the other sign, in every dtype. It is multiplied
by weights of 0, and so may not be infinite."""

EPSILON = 2.0**-24
"""By which the cell is scaled where it is needed itself: tanh(EPSILON * c) / EPSILON is c but for a
relative (EPSILON * c)^2 / 3, below the rounding of a float32 up to |c| = 10,000."""


@gate
def tied(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The GRU's."""
    a = torch.sigmoid(f)
    return a, (1 - a) * torch.tanh(z)


@gate
def tied_by_sign(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The same."""
    return torch.sigmoid(f), torch.sigmoid(-f) * torch.tanh(z)


@gate
def free(f: Tensor, i: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM's."""
    return torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(z)


@gate
def output(o: Tensor, c: Tensor) -> Tensor:
    """The LSTM's readout."""
    return torch.sigmoid(o) * torch.tanh(c)


class Mode(NamedTuple):
    """How cuDNN expresses a gate.

    Attributes:
        inputs: which pre-activations are f and z (a GRU), or f, i and z (an LSTM).
        output: which one is o, where the LSTM's readout is ours; else None.
    """

    inputs: tuple[int, ...]
    output: int | None


def unsupported_reasons(request: Request) -> list[str]:
    """What the machine lacks, and what cuDNN has no mode for."""
    reasons = missing(request.device)
    if request.dtype not in DTYPES:
        reasons.append(f"cuDNN's recurrent layers are real, not {request.dtype}")
    elif request.gate == gates.IDENTITY:
        reasons.append("cuDNN computes decays and impulses itself and takes none: give it a gate")
    elif request.gate and _mode(request.gate, request.readout) is None:
        reasons.append(
            "cuDNN has no mode for an untransformed candidate"
            if not {"tanh", "silu"} & {step.operation for step in parse(request.gate).steps}
            else "cuDNN has no mode for this gate"
        )
        reasons[-1] += ", only for (1 - sigmoid(f)) * tanh(z) and sigmoid(i) * tanh(z)"
    return reasons


def missing(device: torch.device) -> list[str]:
    """Why the vendor's RNN cannot be called here; [] = it can."""
    if device.type != "cuda":
        return [f"cuDNN runs on NVIDIA GPUs, not on {device.type}"]
    if not torch.backends.cudnn.is_available():
        return ["PyTorch finds no cuDNN and no GPU here"]
    return []


def run_differentiable(
    gate: str,
    readout: str,
    pre: list[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
) -> tuple[Tensor, Tensor]:
    """y and the final state, see `lightning_lrnn.backends`.

    Between two steps cuDNN keeps the state as it likes; between two calls a 16-bit one is rounded.
    """
    mode = _mode(gate, readout)
    assert mode is not None
    x = next(p for p in pre if p.ndim == 3)
    B, T, D = x.shape
    state = state_dtype(x.dtype)
    if h0 is None:
        h0 = x.new_zeros(B, D, dtype=state)
    if x.numel() == 0:
        return torch.empty_like(x), h0.clone()
    if lengths is not None:
        padding = torch.arange(T, device=x.device)[:, None] >= lengths[:, None, None]
        pre = [p.masked_fill(padding, 0) if p.ndim == 3 else p for p in pre]
    operands = [p[:, None] if p.ndim == 2 else p for p in pre]
    sequences = [p.to(x.dtype).expand(x.shape) for p in operands]
    starts = None if reset is None else _starts(reset, lengths, reverse)

    direct = mode.output is not None and not exclusive
    if not direct and len(mode.inputs) == 3:
        # 16 bits would not hold the small numbers.
        sequences = [s.to(state) for s in sequences]
    f, *i, z = (sequences[k] for k in mode.inputs)
    if starts is not None:
        if not i:
            # The impulse as a candidate that all of the new state is made of.
            impulse = torch.sigmoid(-f) * torch.tanh(z)
            limit = 1 - torch.finfo(z.dtype).eps
            whole = torch.atanh(impulse.masked_fill(~starts, 0).clamp(-limit, limit))
            z = torch.where(starts, whole, z)
        f = f.masked_fill(starts, -BIG)
    if not direct:
        i = [_scaled(p) for p in i]
    if lengths is not None:
        # With a candidate of 0, as it is there, the state stays to the last bit.
        f = f.masked_fill(padding, BIG)
    if not i:
        h, h_final = _gru(f, z, h0, reverse)
    elif direct:
        o = sequences[mode.output or 0]
        y, h_final = _lstm(i[0], f, z, o, h0, reverse)
        return (y if lengths is None else y.masked_fill(padding, 0)), h_final.to(state)
    else:
        h, h_final = _lstm(i[0], f, z, torch.full_like(z, BIG), h0 * EPSILON, reverse)
        h, h_final = h / EPSILON, h_final / EPSILON

    if exclusive:
        edge = h0.to(h.dtype)[:, None]
        h = torch.cat([h[:, 1:], edge] if reverse else [edge, h[:, :-1]], 1)
        h = h if starts is None else h.masked_fill(starts, 0)
    y = h.to(x.dtype)
    if readout:
        (y,) = gates.evaluate(readout, [y, *operands])
        y = y.to(x.dtype).expand(x.shape)
    return (y if lengths is None else y.masked_fill(padding, 0)), h_final.to(state)


def _starts(reset: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Before which steps of the walk the state is 0, (B, T, 1)."""
    if reverse:
        reset = F.pad(reset[:, 1:], (0, 1))
        if lengths is not None:
            reset = reset & (
                torch.arange(1, 1 + reset.shape[1], device=reset.device) < lengths[:, None]
            )
    return reset[..., None]


def _scaled(i: Tensor) -> Tensor:
    """The pre-activation whose sigmoid is EPSILON * sigmoid(i)."""
    return math.log(EPSILON) + F.logsigmoid(i) - torch.log1p(-EPSILON * torch.sigmoid(i))


def _gru(f: Tensor, z: Tensor, h0: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states (B, T, D) of h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(z), and the last."""
    x = torch.cat([f, z], -1)
    x = x.flip(1) if reverse else x
    # The first of reset, update and new acts on the recurrent weights only.
    select = F.pad(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), (0, 0, z.shape[-1], 0))
    with torch.autocast(x.device.type, enabled=False):
        h, h_n = torch.ops.aten.gru.input(x, h0[None].to(x.dtype), _weights(select, 3), *_options())
    return (h.flip(1) if reverse else h), h_n[0]


def _lstm(
    i: Tensor, f: Tensor, z: Tensor, o: Tensor, c0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """sigmoid(o) * tanh(c) of c = sigmoid(f) * c + sigmoid(i) * tanh(z), and the last c."""
    x = torch.cat([i, f, z, o], -1)
    x = x.flip(1) if reverse else x
    select = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    c0 = c0[None].to(x.dtype)
    state = [torch.zeros_like(c0), c0]
    with torch.autocast(x.device.type, enabled=False):
        y, _, c_n = torch.ops.aten.lstm.input(x, state, _weights(select, 4), *_options())
    return (y.flip(1) if reverse else y), c_n[0]


def _weights(select: Tensor, parts: int) -> list[Tensor]:
    """Those of the input, and recurrent ones of 0, in one piece of memory, as cuDNN wants them."""
    rows, columns = select.shape
    whole = select.new_zeros(rows * (columns + rows // parts))
    of_input, recurrent = whole.split([rows * columns, rows * (rows // parts)])
    of_input = of_input.view(rows, columns)
    of_input.copy_(select)
    return [of_input, recurrent.view(rows, rows // parts)]


def _options() -> tuple[bool, int, float, bool, bool, bool]:
    """No biases, one layer, no dropout, whether for training, one direction, batch first."""
    return False, 1, 0.0, torch.is_grad_enabled(), False, True


def canonical(program: str) -> tuple[str, tuple[int, ...]]:
    """A program with its inputs in the order in which they are used, and which these are."""
    parsed = parse(program)
    used = [a for step in parsed.steps for a in step.arguments] + list(parsed.outputs)
    order = list(dict.fromkeys(a for a in used if isinstance(a, str) and a.startswith("x")))
    renamed = {name: f"x{index}" for index, name in enumerate(order)}

    def rename(argument: Any) -> Any:
        return renamed.get(argument, argument) if isinstance(argument, str) else argument

    steps = tuple(
        Step(step.operation, tuple(rename(a) for a in step.arguments)) for step in parsed.steps
    )
    program = str(Program(len(order), steps, tuple(rename(o) for o in parsed.outputs)))
    return program, tuple(int(name[1:]) for name in order)


def _mode(gate: str, readout: str) -> Mode | None:
    return _mode_of(gate, readout)


# For torch.compile: it depends on its arguments alone (backends/__init__.py has more on this).
_mode._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _mode_of(gate: str, readout: str) -> Mode | None:
    program, inputs = canonical(gate)
    if program not in {canonical(known.program)[0] for known in (tied, tied_by_sign, free)}:
        return None
    if not readout or len(inputs) < 3:
        return Mode(inputs, None)
    program, of_readout = canonical(readout)
    # The first input of a readout is the state.
    same = program == canonical(output.program)[0] and of_readout[1] == 0
    return Mode(inputs, of_readout[0] - 1 if same else None)
