"""Checks of arguments of stacks and cells; errors name the argument and its value."""

from __future__ import annotations

from collections.abc import Collection
from inspect import Parameter, getattr_static, signature
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_lrnn.backends import check_name as check_backend
from lightning_lrnn.core.checks import check_counts, check_flags, check_numbers
from lightning_lrnn.gates import WANTED, Gate, parse
from lightning_lrnn.nn.memory import Memory, check_memory

__all__ = [
    "check_backend",
    "check_cell",
    "check_gated",
    "check_input",
    "check_layers",
    "check_module",
    "check_options",
    "check_packed",
    "check_state",
    "check_step",
    "check_steps",
    "form",
    "options_of",
    "refuse_options",
    "refuse_script",
]


def check_module(module: Any) -> None:
    """Raises a TypeError unless it is a `torch.nn.Module`."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")


def check_options(layer_class: Any, options: Collection[str], given: Collection[str]) -> None:
    """Raises a TypeError unless the class of a layer's cells takes the options.

    Args:
        layer_class: with a `cell_type`.
        options: of the cell alone, by name.
        given: names of the options that every layer gives its cells.
    """
    cell_type = layer_class.cell_type
    taken = options_of(cell_type)
    if missing := [name for name in given if name not in taken]:
        raise TypeError(
            f"{cell_type.__name__}.__init__ must take `**options` and hand them to "
            f"super().__init__: a layer gives its cells {', '.join(missing)}"
        )
    if unknown := [name for name in options if name not in taken]:
        refuse_options(layer_class, unknown, [*options_of(layer_class), *taken])


def refuse_options(owner: type, unknown: Collection[str], known: Collection[str]) -> NoReturn:
    """Raises a TypeError that names the options of a class; those of `unknown` are none."""
    raise TypeError(
        f"{owner.__name__} got an unexpected keyword argument {', '.join(map(repr, unknown))}; its "
        f"options are {', '.join(dict.fromkeys(known))}"
    )


def options_of(owner: type) -> list[str]:
    """Names of the options of a class, those included that its base classes take from it."""
    names = []
    for base in owner.__mro__:
        if "__init__" in vars(base):
            parameters = signature(vars(base)["__init__"]).parameters.values()
            by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
            names += [p.name for p in parameters if p.kind in by_name]
            if all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
                break
    return [name for name in names if name not in ("self", "input_size", "hidden_size")]


def check_gated(cell: Any, *, own: bool) -> None:
    """Raises for a gate, or a number of projections, that a class of cells cannot have.

    Args:
        cell: with a `gate` and `sizes`.
        own: whether its class overrides `pre_activations`: the gate may then take more inputs.
    """
    cell_name = type(cell).__name__
    for name in ("gate", "sizes"):
        if getattr(cell, name, None) is None:
            raise TypeError(f"{cell_name} must have a `{name}`, as docs/extending.md shows it")
    projections, biases = cell.sizes
    if not 0 <= biases <= projections or projections < 1:
        raise ValueError(
            f"{cell_name}.sizes must be a number of projections, and how many of them have a bias, "
            f"got {cell.sizes}"
        )
    _check_function(cell, "gate", None if own else projections, 2)
    _check_function(cell, "readout", None if own else 1 + projections, 1)


def _check_function(cell: Any, name: str, gets: int | None, returns: int) -> None:
    """Raises for a gate or readout of another number of arguments or of what it returns."""
    attribute, function = f"{type(cell).__name__}.{name}", getattr(cell, name)
    if isinstance(getattr_static(type(cell), name, None), FunctionType):
        raise TypeError(
            f"{attribute} is a function of the class, which would get the cell as its first "
            f"argument: decorate it with `@lightning_lrnn.gate`, or with `@staticmethod` to have "
            f"PyTorch evaluate it"
        )
    if not isinstance(function, Gate):
        return
    takes, _, returned = parse(function.program)
    if gets is not None and takes != gets:
        state = "the state and " if name == "readout" else ""
        hint = ""
        if name == "gate" and takes > gets:
            hint = (
                ". A gate sees no state, which makes the recurrence linear; gates that look at one "
                "are those of lightning_lrnn.nn.SurrogateRNN"
            )
        raise ValueError(
            f"{attribute} takes {takes} arguments, and gets {gets}, {state}the projections of "
            f"`sizes` {cell.sizes}{hint}"
        )
    if len(returned) != returns:
        raise ValueError(
            f"{attribute} must return {WANTED[name]}, returns {len(returned)} "
            f"value{'s' * (len(returned) > 1)}: {function!r}"
        )


def check_layers(
    hidden_size: int, num_layers: int, dropout: float, bidirectional: bool, batch_first: bool
) -> None:
    """Raises for invalid arguments of a stack's constructor that a cell does not have."""
    check_counts(hidden_size=hidden_size, num_layers=num_layers)
    check_numbers(0, 1, dropout=dropout)
    check_flags(bidirectional=bidirectional, batch_first=batch_first)


def check_cell(
    cell_name: str,
    projects: bool,
    memory_in_bias: bool,
    input_size: int,
    hidden_size: int,
    bias: bool,
    proj_size: int,
    memory: Memory,
    dtype: torch.dtype | None,
) -> None:
    """Raises for invalid arguments of a cell's constructor."""
    check_counts(input_size=input_size, hidden_size=hidden_size)
    check_flags(bias=bias)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"`dtype` must be a torch.dtype of real numbers, got {dtype!r}")
    check_counts(0, proj_size=proj_size)
    if proj_size and not projects:
        raise ValueError(f"{cell_name} has no projection: `proj_size` must be 0, got {proj_size}")
    if proj_size >= hidden_size:
        raise ValueError(
            f"`proj_size` must be smaller than hidden_size={hidden_size}, got {proj_size}"
        )
    check_memory(memory)
    if memory is not None and memory_in_bias and not bias:
        raise ValueError(f"`memory`={memory} sets biases, and there are none with bias=False")


def check_input(input: Any, size: int, batch_first: bool, weight: Tensor) -> None:
    """Raises unless `input` is a sequence of `size` features for parameters like `weight`."""
    layout = f"(B, T, {size})" if batch_first else f"(T, B, {size})"
    if not isinstance(input, Tensor) or input.ndim not in (2, 3) or input.shape[-1] != size:
        raise ValueError(f"`input` must be {layout} or (T, {size}), got {form(input)}")
    _check_device_and_dtype(input, weight)


def check_step(input: Any, size: int, weight: Tensor) -> None:
    """Raises unless `input` is one step of `size` features for parameters like `weight`."""
    if not isinstance(input, Tensor) or input.ndim not in (1, 2) or input.shape[-1] != size:
        raise ValueError(f"`input` must be (B, {size}) or ({size},), got {form(input)}")
    _check_device_and_dtype(input, weight)


def _check_device_and_dtype(input: Tensor, weight: Tensor) -> None:
    if input.device != weight.device:
        raise TypeError(f"`input` is on {input.device}, the parameters on {weight.device}")
    if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"`input` is {input.dtype}, the parameters are {weight.dtype}")


def check_packed(
    packed: PackedSequence, size: int, lengths: Tensor | None, reset: Tensor | None
) -> None:
    """Raises unless a PackedSequence has `size` features, and `lengths` and `reset` are None."""
    if packed.data.ndim != 2 or packed.data.shape[1] != size:
        raise ValueError(f"`input` must be packed rows (T, {size}), got {form(packed.data)}")
    for name, value in {"lengths": lengths, "reset": reset}.items():
        if value is not None:
            raise ValueError(
                f"`{name}` and a PackedSequence, which has lengths of its own, do not go "
                f"together: pass the padded tensor with `lengths` (and `reset`)"
            )


def check_steps(
    input: Tensor, batch_first: bool, lengths: Tensor | None, reset: Tensor | None
) -> None:
    """Raises unless `lengths` and `reset` have the shapes that fit `input`.

    The dtype and the values of `lengths` are checked by the recurrence.
    """
    if lengths is not None:
        batch = input.shape[:-1][0 if batch_first else 1 :][:1] if input.ndim == 3 else ()
        _check("lengths", lengths, tuple(batch), input.device)
    if reset is not None:
        _check("reset", reset, tuple(input.shape[:-1]), input.device)
        if reset.dtype != torch.bool:
            raise TypeError(f"`reset` must be torch.bool, got {reset.dtype}")


def check_state(
    name: str,
    x: Any,
    rows: tuple[int, ...],
    sizes: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Checks one tensor of the state, and returns it in `dtype`, in which it is carried."""
    size = x.shape[-1] if isinstance(x, Tensor) and x.ndim and x.shape[-1] in sizes else sizes[0]
    also = f" or {(*rows, sizes[-1])}" if size == sizes[0] != sizes[-1] else ""
    _check(name, x, (*rows, size), device, also)
    fits = torch.promote_types(x.dtype, dtype) == dtype
    if not fits or not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"`{name}` is {x.dtype}, which the state, {dtype}, cannot hold")
    carried: Tensor = x.to(dtype)
    return carried


def _check(name: str, x: Any, shape: tuple[int, ...], device: torch.device, also: str = "") -> None:
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}{also}, got {form(x)}")
    if x.device != device:
        raise TypeError(f"`{name}` is on {x.device}, `input` on {device}")


def refuse_script(class_name: str) -> NoReturn:
    """Raises a RuntimeError, since TorchScript cannot compile the kernels."""
    raise RuntimeError(
        f"{class_name} is not for TorchScript, which PyTorch has given up and which cannot hold "
        f"its kernels; use torch.export, torch.compile or torch.onnx.export(..., dynamo=True), and "
        f"loggers without `log_graph`"
    )


def form(value: Any) -> str:
    """Describes a wrong argument in a message: its shape, or its type."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
