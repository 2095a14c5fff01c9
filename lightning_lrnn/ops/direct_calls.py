"""Checks of the operators' arguments where other code than this package calls them.

In eager mode this package's functions have checked theirs, and `eager.py` skips this. `torch.ops`,
an exported program and a package made of one pass any tensors, and compiled code would read and
write beyond wrong ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lrnn import backends, gates
from lightning_lrnn.backends import BackendError, Request
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.problem import Problem, sequence_dtype

__all__ = ["check_backward", "check_forward", "check_gated_backward", "check_one_device"]


def check_forward(problem: Problem, backend: str) -> None:
    """Raises unless the forward operator can take these, as `check_gated_backward` does."""
    x = _check_gate(problem)
    _check_rest(problem, x, state_dtype(_hidden(problem, x)), {"h0": problem.h0})
    _check_backend(backend, x, problem.gate, problem.readout)


def check_backward(
    problem: Problem, h: Tensor, dy: Tensor | None, dh_final: Tensor | None, backend: str
) -> None:
    """Raises unless the adjoint of the plain recurrence can take these.

    Raises:
        ValueError: for shapes, TypeError: for dtypes, devices and layouts that do not fit.
        BackendError: if the backend cannot run.
    """
    if h.ndim != 3:
        raise ValueError(f"`y` must be (B, T, D), got shape {tuple(h.shape)}")
    for name, x in (("y", h), ("a", problem.pre[0]), ("dy", dy)):
        if x is not None:
            _check(name, x, (h.shape,), h.dtype, h)
    edges = {"h0": problem.h0, "dh_final": dh_final}
    _check_rest(problem, h, state_dtype(h.dtype), edges)
    _check_backend(backend, h, "", "")


def check_gated_backward(
    problem: Problem, h: Tensor, dy: Tensor | None, dh_final: Tensor | None, backend: str
) -> None:
    """Raises unless the adjoint of a gated recurrence can take these.

    Raises:
        GateError: if gate or readout is no program of this number of inputs.
        ValueError: for shapes, TypeError: for dtypes, devices and layouts that do not fit.
        BackendError: if the backend cannot run, or leaves gradients to PyTorch.
    """
    x = _check_gate(problem)
    hidden = _hidden(problem, x)
    _check("h", h, (x.shape,), hidden, x)
    if dy is not None:
        _check("dy", dy, (x.shape,), _output(problem, x, hidden), x)
    edges = {"h0": problem.h0, "dh_final": dh_final}
    _check_rest(problem, x, state_dtype(hidden), edges)
    _check_backend(backend, x, problem.gate, problem.readout)


def check_one_device(*tensors: Tensor | None) -> None:
    """Raises a TypeError unless all tensors are on one device; None is left out."""
    devices = {x.device for x in tensors if x is not None}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise TypeError(f"all tensors of a recurrence must be on one device, got {names}")


def _check_gate(problem: Problem) -> Tensor:
    """Checks gate, readout and pre-activations; returns the first sequence."""
    gate, readout, pre = problem[:3]
    for name, text, inputs, outputs in (
        ("gate", gate, len(pre), 2),
        ("readout", readout, len(pre) + 1, 1),
    ):
        if text or name == "gate":
            program = gates.parse(text)
            if (program.inputs, len(program.outputs)) != (inputs, outputs):
                raise gates.GateError(
                    f"the {name} takes {program.inputs} inputs and returns {len(program.outputs)} "
                    f"values; given {inputs} it must return {outputs}: {text}"
                )
    x = next((p for p in pre if p.ndim == 3), None)
    if x is None:
        raise ValueError("none of the inputs is a sequence (B, T, D)")
    B, _, D = x.shape
    for index, p in enumerate(pre):
        dtype = x.dtype if p.ndim == 3 else None
        _check(f"pre[{index}]", p, (x.shape, (D,), (B, D)), dtype, x)
    return x


def _check_rest(
    problem: Problem, x: Tensor, state: torch.dtype, edges: dict[str, Tensor | None]
) -> None:
    B, T, D = x.shape
    for name, edge in edges.items():
        if edge is not None:
            _check(name, edge, ((B, D),), state, x)
    if problem.lengths is not None:
        _check("lengths", problem.lengths, ((B,),), torch.int64, x)
    if problem.reset is not None:
        _check("reset", problem.reset, ((B, T),), torch.bool, x)


def _check_backend(backend: str, x: Tensor, gate: str, readout: str) -> None:
    if backend == "auto":
        raise BackendError("an operator takes the name of a backend, not 'auto'")
    backends.resolve(backend, Request(x.device, x.dtype, gate, readout))
    if backends.uses_autograd(backend):
        raise BackendError(f"backend {backend!r} is made of operators of PyTorch: call these")


def _check(
    name: str,
    x: Tensor,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype | None,
    like: Tensor,
) -> None:
    """Checks one tensor; with a `dtype` of None any floating or complex one will do."""
    if x.device != like.device:
        raise TypeError(f"`{name}` is on {x.device}, the sequences are on {like.device}")
    if x.layout != torch.strided:
        raise TypeError(f"`{name}` must be strided, got {x.layout}")
    if tuple(x.shape) not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"`{name}` must have shape {expected}, got {tuple(x.shape)}")
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"`{name}` must be {dtype}, got {x.dtype}")
    if dtype is None and not (x.dtype.is_floating_point or x.dtype.is_complex):
        raise TypeError(f"`{name}` must be floating or complex, got {x.dtype}")
    if x.numel() and x.device.type != "meta":
        strides = zip(x.shape, x.stride(), strict=True)
        last = x.storage_offset() + sum((size - 1) * stride for size, stride in strides)
        if x.itemsize * (last + 1) > x.untyped_storage().nbytes():
            raise ValueError(f"`{name}` reaches beyond its storage, which was resized")


def _hidden(problem: Problem, x: Tensor) -> torch.dtype:
    """Dtype of the hidden states."""
    complex_inputs = tuple(p.is_complex() for p in problem.pre)
    return sequence_dtype(x, is_complex=gates.state_is_complex(problem.gate, complex_inputs))


def _output(problem: Problem, x: Tensor, hidden: torch.dtype) -> torch.dtype:
    """Dtype of the output."""
    if not problem.readout:
        return hidden
    program = gates.parse(problem.readout)
    complex_inputs = [hidden.is_complex, *(p.is_complex() for p in problem.pre)]
    (y,) = program.outputs
    return sequence_dtype(
        x, is_complex=isinstance(y, str) and gates.complex_values(program, complex_inputs)[y]
    )
