"""Checks of a recurrence's arguments: shapes, dtypes and devices that fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.core.problem import Problem
from lightning_lrnn.core.pytorch import functorch_wrapped
from lightning_lrnn.gates import WANTED, GateError, signature_of

__all__ = [
    "check_decays_and_impulses",
    "check_length_values",
    "check_lengths",
    "check_optional",
    "check_pre",
    "description",
    "pointwise",
]


def check_decays_and_impulses(a: Tensor, b: Tensor) -> None:
    """Raises unless a is (B, T, D) or (D,) and b is (B, T, D), alike in dtype and device."""
    if not isinstance(b, Tensor) or b.ndim != 3:
        raise ValueError(f"`b` must be a tensor (B, T, D), got {description(b)}")
    _check_layout("b", b)
    if not isinstance(a, Tensor) or not (_has(a, b.shape) or _has(a, b.shape[-1:])):
        raise ValueError(f"`a` must be (B, T, D) = {tuple(b.shape)} or (D,), got {description(a)}")
    _check_layout("a", a)
    if a.dtype != b.dtype:
        raise TypeError(f"`a` and `b` must share one dtype, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise TypeError(f"`a` and `b` must be on one device, got {a.device} and {b.device}")


def check_pre(pre: Sequence[Tensor], gate: Any = None) -> None:
    """Raises unless pre-activations are sequences (B, T, D), and parameters (D,) or (B, D).

    `gate`: the function whose arguments they are, for messages.
    """
    sequences = [p for p in pre if isinstance(p, Tensor) and p.ndim == 3]
    if not sequences:
        raise ValueError("a gate needs at least one pre-activation of shape (B, T, D)")
    for index, p in enumerate(pre):
        _check_pre(index, p, sequences[0], gate)


def check_optional(problem: Problem, steps: int | None = None) -> None:
    """Raises unless h0, lengths and reset fit the sequences.

    `steps`: of the whole sequence, which lengths are of; None where it is all here.
    """
    x, h0, lengths, reset = problem.x, *problem.optional
    if h0 is not None:
        _check_tensor("h0", h0, (x.shape[0], x.shape[2]), x.device)
        if h0.dtype != problem.state_dtype:
            raise TypeError(
                f"`h0` must be {problem.state_dtype} (the dtype of the state), got {h0.dtype}"
            )
    if lengths is not None:
        check_lengths(lengths, x, steps)
    if reset is not None:
        _check_tensor("reset", reset, tuple(x.shape[:2]), x.device)
        if reset.dtype != torch.bool:
            raise TypeError(f"`reset` must be torch.bool, got {reset.dtype}")


def pointwise(role: str, value: Any, x: Tensor) -> Tensor:
    """Raises unless a gate or readout of sequences like x may return `value`; returns it."""
    if not isinstance(value, Tensor):
        raise GateError(f"the {role} must return {WANTED[role]}, returns {description(value)}")
    ahead = x.shape[x.ndim - value.ndim :] if value.ndim <= x.ndim else ()
    # A sum over all would have none.
    fits = len(ahead) == value.ndim and (value.ndim > 0 or role == "gate")
    if not fits or not all(
        n == size or (n == 1 and dim < value.ndim - 1)
        for dim, (n, size) in enumerate(zip(value.shape, ahead, strict=True))
    ):
        raise GateError(
            f"the {role} must be pointwise: of sequences {tuple(x.shape)} it returns "
            f"{tuple(value.shape)}"
        )
    return value


def description(value: Any) -> str:
    """Describes a value in a message: its shape, or its type."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"


def _has(x: Tensor, shape: Sequence[int]) -> bool:
    """Whether x has a shape. For torch.export, no size is compared unless the dims agree."""
    return x.ndim == len(shape) and x.shape == tuple(shape)


def _check_layout(name: str, x: Tensor) -> None:
    if x.layout != torch.strided:
        raise TypeError(f"`{name}` must be a dense tensor, got {x.layout}: call `to_dense()`")


def _check_tensor(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {description(x)}")
    if x.device != device:
        raise TypeError(f"`{name}` is on {x.device}, the sequences are on {device}")


def _check_pre(index: int, p: Tensor, x: Tensor, gate: Any) -> None:
    (B, _, D), name = x.shape, f"`pre[{index}]`"
    forms = x.shape, x.shape[2:], (B, D)
    if not isinstance(p, Tensor) or not any(_has(p, shape) for shape in forms):
        raise ValueError(
            f"{name} must be (B, T, D) = {tuple(x.shape)}, (D,) or (B, D), got {description(p)}"
            f"{_argument(index, gate)}"
        )
    _check_layout(f"pre[{index}]", p)
    if p.device != x.device:
        on = f"{name} is on {p.device}, the first sequence on {x.device}"
        raise TypeError(f"{on}{_argument(index, gate)}")
    if p.ndim == 3 and p.dtype != x.dtype:
        raise TypeError(
            f"{name} is {p.dtype}, the first sequence {x.dtype}: they must agree"
            f"{_argument(index, gate)}"
        )
    if not (p.dtype.is_floating_point or p.dtype.is_complex):
        raise TypeError(
            f"{name} must be floating or complex, got {p.dtype}{_argument(index, gate)}"
        )


def _argument(index: int, gate: Any) -> str:
    """Which argument of its gate a pre-activation is, for the end of a message."""
    name, arguments = signature_of(gate)
    return f"; it is `{arguments[index]}` of {name}" if index < len(arguments) else ""


def check_lengths(lengths: Tensor, x: Tensor, steps: int | None = None) -> None:
    """Raises for lengths that are not integers (B,), or not between 0 and `steps`, T if None."""
    _check_tensor("lengths", lengths, tuple(x.shape[:1]), x.device)
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype}")
    # Reading values back would stop a GPU and cannot be traced; there the kernels clamp.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and _concrete(lengths):
        check_length_values(lengths, x.shape[1] if steps is None else steps)


def check_length_values(lengths: Tensor, steps: int) -> None:
    """Raises for lengths on a CPU that are not between 0 and the number of steps."""
    low, high = (int(v) for v in torch.aminmax(lengths)) if lengths.numel() else (0, 0)
    if low < 0 or high > steps:
        raise ValueError(f"`lengths` must be between 0 and T = {steps}, got {low} to {high}")


def _concrete(x: Tensor) -> bool:
    """Whether a tensor has values to look at: not under vmap, export or fake tensors."""
    return type(x) is Tensor and not functorch_wrapped(x)
