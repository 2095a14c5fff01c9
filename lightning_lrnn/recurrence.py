"""The operation: h_t = a_t * h_{t-1} + b_t. What users call, its checks, the choice of backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn import backends, gates
from lightning_lrnn.backends import Request
from lightning_lrnn.core.checks import check_flags
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.unfused import broadcastable, like_sequence, operands, padding_mask
from lightning_lrnn.gates import WANTED, Gate, GateError
from lightning_lrnn.ops.operator import call, computed_by, last_backend

__all__ = ["gated_recurrence", "last_backend", "linear_recurrence"]


def linear_recurrence(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Linear recurrence h_t = a_t * h_{t-1} + b_t over time, elementwise in B and D.

    Equivalent to, in float64 and for one row,

        h = h0
        for t in range(T):
            h = a[t] * h + b[t]
            y[t] = h
        h_final = h

    Source: Martin & Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length",
    ICLR 2018. NaN and infinities propagate as in the loop.

    Args:
        a: decays, (B, T, D) or (D,), float16, bfloat16, float32, float64, complex64 or complex128;
            of any sign and size. Read in place whatever its strides are.
        b: impulses, (B, T, D), of the same dtype.
        h0: initial state, (B, D); zeros if None. Its dtype is that of the state: float32 for
            16-bit inputs, else the dtype of `b`.
        reverse: walk from the last step to the first.
        exclusive: return the state before each step, h_{t-1}, in place of h_t.
        lengths: integers (B,), 0 <= lengths <= T. Steps t >= lengths[b] are padding: they leave the
            state as it is, their output is 0, and their values (NaN too) reach nothing.
        reset: bool (B, T), True where a new document starts. The state starts anew from 0 there,
            and in reverse no state passes from a document to the one before it.
        backend: "auto" or a name from `lightning_lrnn.backends.names()`. A named one runs or
            raises; see `lightning_lrnn.backends.resolve`.

    Returns:
        y (B, T, D), contiguous, in the dtype of `b`, and the final state (B, D) in the dtype of
        the state. For T = 0: an empty y and h0. Both are differentiable in a, b and h0, twice in
        eager mode.

    Raises:
        ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
        lightning_lrnn.backends.BackendError: if the named backend cannot run.
    """
    _check_flags(reverse, exclusive)
    _check_sequence("b", b)
    if not isinstance(a, Tensor) or not (_has(a, b.shape) or _has(a, b.shape[-1:])):
        raise ValueError(f"`a` must be (B, T, D) = {tuple(b.shape)} or (D,), got {_form(a)}")
    _check_layout("a", a)
    if a.dtype != b.dtype:
        raise TypeError(f"`a` and `b` must share one dtype, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise TypeError(f"`a` and `b` must be on one device, got {a.device} and {b.device}")
    h, h_final = _apply(gates.IDENTITY, "", [a, b], h0, lengths, reset, reverse, exclusive, backend)
    return h, h_final


def gated_recurrence(
    gate: Callable[..., tuple[Tensor, Tensor]],
    *pre: Tensor,
    h0: Tensor | None = None,
    readout: Callable[..., Tensor] | None = None,
    reverse: bool = False,
    exclusive: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Recurrence whose decay and impulse are a pointwise function of pre-activations.

    (a, b) = gate(*pre);  h_t = a_t * h_{t-1} + b_t;  y_t = readout(h_t, *pre_t), or h_t.

    With `exclusive=True` the readout gets h_{t-1}. Everything else is as in `linear_recurrence`,
    which is this with the gate `lambda a, b: (a, b)`.

    Args:
        gate: from pre-activations to `(a, b)`: a function decorated with `lightning_lrnn.gate`, or
            any pointwise function (which no backend can fuse).
        pre: pre-activations (B, T, D) of one dtype and device, and parameters (D,) or (B, D).
        h0: initial state, (B, D).
        readout: from `h` and the pre-activations to the output, pointwise; the state if None.
        reverse: walk from the last step to the first.
        exclusive: hand out the state before each step.
        lengths: integers (B,); padding (also NaN in it) reaches nothing and its output is 0.
        reset: bool (B, T), True where a new document starts.
        backend: "auto" or a name.

    Returns:
        y (B, T, D) and the final state (B, D).

    Raises:
        ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
        lightning_lrnn.backends.BackendError: if the named backend cannot run.
    """
    for name, function in (("gate", gate), ("readout", readout)):
        if not (callable(function) or (name == "readout" and function is None)):
            raise TypeError(f"`{name}` must be a function of tensors, got {function!r}")
    _check_flags(reverse, exclusive)
    sequences = [p for p in pre if isinstance(p, Tensor) and p.ndim == 3]
    if not sequences:
        raise ValueError("a gate needs at least one pre-activation of shape (B, T, D)")
    for index, p in enumerate(pre):
        _check_pre(f"pre[{index}]", p, sequences[0])
    x = sequences[0]
    if isinstance(gate, Gate) and (readout is None or isinstance(readout, Gate)):
        programs = gate.program, "" if readout is None else readout.program
        gates.check_program("gate", gate.program, len(pre), 2)
        if readout is not None:
            gates.check_program("readout", readout.program, len(pre) + 1, 1)
        request = Request(x.device, x.dtype, *programs)
        name = backends.resolve(backend, request)
        # torch.func differentiates what it can look into: there PyTorch evaluates the gate.
        transformed = torch._C._are_functorch_transforms_active()
        fused = backends.fuses(name, request) and not transformed
        if fused or backends.differentiable(name):
            return _apply(*programs, list(pre), h0, lengths, reset, reverse, exclusive, name)
    padding = None
    if lengths is not None:
        _check_lengths(lengths, x)
        padding = padding_mask(lengths, x)
        # The gate's derivative at a NaN is NaN even where the gradient that reaches it is 0.
        pre = tuple(p.masked_fill(padding, 0) if p.ndim == 3 else p for p in pre)
    inputs = operands(pre)
    found = gate(*inputs)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise GateError(f"the gate must return {WANTED['gate']}, returns {_form(found)}")
    a, b = (_pointwise("gate", value, x) for value in found)
    # Whatever autocast made of it.
    dtype = state_dtype(like_sequence(x, a.is_complex() or b.is_complex()))
    shape = torch.broadcast_shapes(a.shape, b.shape, x.shape)
    h, h_final = linear_recurrence(
        a.to(dtype).expand(shape),
        b.to(dtype).expand(shape),
        h0,
        reverse=reverse,
        exclusive=exclusive,
        lengths=lengths,
        reset=reset,
        backend=backend,
    )
    if readout is None:
        return h.to(like_sequence(x, h.is_complex())), h_final
    y = _pointwise("readout", readout(h, *inputs), x).expand(x.shape)
    y = y.to(like_sequence(x, y.is_complex()))
    return (y if padding is None else y.masked_fill(padding, 0)), h_final


def _apply(
    gate: str,
    readout: str,
    pre: list[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The operator behind its checks."""
    x = next(p for p in pre if p.ndim == 3)
    if gate == gates.IDENTITY and not readout and any(p.ndim < 3 for p in pre):
        if torch._C._are_functorch_transforms_active():
            pre = [broadcastable(p).to(x.dtype).expand(x.shape) for p in pre]
        else:  # sums the gradient of a parameter in double precision, in a fixed order
            gate, pre = gates.SWAPPED, pre[::-1]
    complex_inputs = tuple(p.is_complex() for p in pre)
    state = state_dtype(like_sequence(x, gates.state_is_complex(gate, complex_inputs)))
    if h0 is not None:
        _check_tensor("h0", h0, (x.shape[0], x.shape[2]), x.device)
        if h0.dtype != state:
            raise TypeError(f"`h0` must be {state} (the dtype of the state), got {h0.dtype}")
    if lengths is not None:
        _check_lengths(lengths, x)
        lengths = lengths.to(torch.int64)
    if reset is not None:
        _check_tensor("reset", reset, tuple(x.shape[:2]), x.device)
        if reset.dtype != torch.bool:
            raise TypeError(f"`reset` must be torch.bool, got {reset.dtype}")
    name = backends.resolve(backend, Request(x.device, x.dtype, gate, readout))
    if backends.differentiable(name):
        computed_by(name)
        y, h_final = backends.loaded[name].run_differentiable(
            gate, readout, pre, h0, lengths, reset, reverse=reverse, exclusive=exclusive
        )
        return y, h_final
    return call(gate, readout, pre, h0, lengths, reset, reverse, exclusive, name)


def _pointwise(kind: str, value: Any, x: Tensor) -> Tensor:
    """What a pointwise function of sequences like x may return, a parameter or a number too."""
    if not isinstance(value, Tensor):
        raise GateError(f"the {kind} must return {WANTED[kind]}, returns {_form(value)}")
    ahead = x.shape[x.ndim - value.ndim :] if value.ndim <= x.ndim else ()
    # A sum over all would have none.
    ranks = len(ahead) == value.ndim and (value.ndim > 0 or kind == "gate")
    if not ranks or not all(
        n == of_x or (n == 1 and place < value.ndim - 1)
        for place, (n, of_x) in enumerate(zip(value.shape, ahead, strict=True))
    ):
        raise GateError(
            f"the {kind} must be pointwise: of sequences {tuple(x.shape)} it returns "
            f"{tuple(value.shape)}"
        )
    return value


def _check_flags(reverse: Any, exclusive: Any) -> None:
    # In every call, of every step perhaps.
    if type(reverse) is not bool or type(exclusive) is not bool:
        check_flags(TypeError, reverse=reverse, exclusive=exclusive)


def _form(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"


def _has(x: Tensor, shape: Sequence[int]) -> bool:
    """Whether it has a shape; sizes of other dimensions are not compared, for torch.export."""
    return x.ndim == len(shape) and x.shape == tuple(shape)


def _check_sequence(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim != 3:
        raise ValueError(f"`{name}` must be a tensor (B, T, D), got {_form(x)}")
    _check_layout(name, x)


def _check_layout(name: str, x: Tensor) -> None:
    if x.layout != torch.strided:
        raise TypeError(f"`{name}` must be a dense tensor, got {x.layout}: call `to_dense()`")


def _check_tensor(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {_form(x)}")
    if x.device != device:
        raise TypeError(f"`{name}` is on {x.device}, the sequences are on {device}")


def _check_pre(name: str, p: Tensor, x: Tensor) -> None:
    B, _, D = x.shape
    forms = x.shape, x.shape[2:], (B, D)
    if not isinstance(p, Tensor) or not any(_has(p, shape) for shape in forms):
        raise ValueError(
            f"`{name}` must be (B, T, D) = {tuple(x.shape)}, (D,) or (B, D), got {_form(p)}"
        )
    _check_layout(name, p)
    if p.device != x.device:
        raise TypeError(f"`{name}` is on {p.device}, the first sequence on {x.device}")
    if p.ndim == 3 and p.dtype != x.dtype:
        raise TypeError(f"`{name}` is {p.dtype}, the first sequence {x.dtype}: they must agree")
    if not (p.dtype.is_floating_point or p.dtype.is_complex):
        raise TypeError(f"`{name}` must be floating or complex, got {p.dtype}")


def _check_lengths(lengths: Tensor, x: Tensor) -> None:
    _check_tensor("lengths", lengths, tuple(x.shape[:1]), x.device)
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype}")
    # Reading values back would stop a GPU and cannot be traced; there the kernels clamp.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and _concrete(lengths):
        low, high = (int(v) for v in torch.aminmax(lengths)) if lengths.numel() else (0, 0)
        if low < 0 or high > x.shape[1]:
            raise ValueError(
                f"`lengths` must be between 0 and T = {x.shape[1]}, got {low} to {high}"
            )


def _concrete(x: Tensor) -> bool:
    """Whether a tensor has values to look at: not under vmap, export or fake tensors."""
    return type(x) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x)
