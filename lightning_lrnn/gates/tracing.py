"""From a pointwise PyTorch function to its program."""

from __future__ import annotations

import functools
import inspect
import operator
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lightning_lrnn.gates.advice import ANOTHER_NAME, advice, why_untraceable
from lightning_lrnn.gates.operations import OPERATIONS
from lightning_lrnn.gates.program import Constant, GateError, Program, Step, pruned

__all__ = ["Gate", "gate", "program_of", "signature_of", "trace"]

_NAMES: dict[Any, str] = {
    **{operation.meaning: name for name, operation in OPERATIONS.items()},
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.neg: "neg",
    operator.pow: "pow",
    operator.lt: "lt",
    operator.le: "le",
    operator.gt: "gt",
    operator.ge: "ge",
    operator.eq: "eq",
    operator.ne: "ne",
    operator.abs: "abs",
    F.relu: "relu",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    torch.special.expit: "sigmoid",
    torch.special.erf: "erf",
    torch.complex: "complex",
}

# Options that PyTorch's own wrappers pass on, at values that change nothing.
_DEFAULTS = {"inplace": False, "approximate": "none", "beta": 1, "threshold": 20, "alpha": 1}


class _Tracer(fx.Tracer):
    """Keeps the line of every operation, for error messages; takes no tensor but the arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = _line(self._function, traceback.extract_stack())
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, np.generic):
            a = a.item()
        if isinstance(a, Tensor | np.ndarray):
            x, line = torch.as_tensor(a).detach(), _line(self._function, traceback.extract_stack())
            alike = x.numel() > 0 and bool((x == x.flatten()[0]).all())
            number = f"write {x.flatten()[0].item()!r}, or " if alike else ""
            raise GateError(
                f"{_name(self._function)} has a tensor of shape {tuple(x.shape)} that is none of "
                f"its arguments{line}, and numbers alone are compiled in: {number}make it "
                f"one more argument, (D,) if it has a value for each feature"
            )
        return super().create_arg(a)


def trace(function: Callable[..., Any]) -> str:
    """The canonical program of a pointwise PyTorch function.

    Common subexpressions are merged and what no output needs is dropped.

    Args:
        function: takes tensors by position, returns a tensor or a tuple of tensors, and uses only
            `OPERATIONS` between them (Python's operators and the tensors' methods included).

    Raises:
        GateError: naming the operation, and the line where it stands, that is not in the set.
    """
    if isinstance(function, Gate):
        return function.program
    if not hasattr(inspect.unwrap(function), "__code__"):
        raise GateError(f"a gate is a Python function of tensors, got {function!r}")
    parameters = inspect.signature(function).parameters.values()
    kinds = {p.kind for p in parameters}
    if not kinds <= {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}:
        raise GateError(f"{_name(function)}: a gate takes its tensors by position")
    if optional := [p for p in parameters if p.default is not p.empty]:
        raise GateError(
            f"{_name(function)}: every argument of a gate is a tensor, and {optional[0]} would be "
            "one too: write the number inside the function, or take it from around it"
        )
    try:
        graph = _Tracer(function).trace(function)
    except GateError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # those of FX among them
        line = _line(function, traceback.extract_tb(error.__traceback__))
        raise GateError(f"{_name(function)}{line} {why_untraceable(error)}") from error

    for node in graph.nodes:
        if node.op == "output":
            result = node.args[0] if isinstance(node.args[0], tuple) else node.args
            if not all(isinstance(value, fx.Node) for value in result):
                raise GateError(f"{_name(function)} must return tensors, returns {result}")
    return str(program_of(graph, _name(function)))


def program_of(graph: fx.Graph, name: str) -> Program:
    """The program of a graph of pointwise operations; `name` says whose it is, for errors."""
    names: dict[fx.Node, str] = {}
    steps: dict[Step, str] = {}
    outputs: tuple[str | Constant, ...] = ()
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = f"x{inputs}"
            inputs += 1
        elif node.op == "output":
            result = node.args[0] if isinstance(node.args[0], tuple) else node.args
            outputs = tuple(names.get(value, value) for value in result)
        else:
            step = _step(name, node, names)
            names[node] = steps.setdefault(step, f"t{len(steps)}")
    return pruned(Program(inputs, tuple(steps), outputs))


def _step(function: str, node: fx.Node, names: dict[fx.Node, str]) -> Step:
    """The program's form of one traced operation."""
    arguments: Sequence[Any] = node.args
    if node.op == "call_method":
        if str(node.target).endswith("_") and not str(node.target).endswith("__"):
            raise GateError(
                f"{function} changes a tensor in place by {node.target}"
                f"{node.meta.get('line', '')}, and others may read it: write "
                f"{str(node.target).rstrip('_')}, which returns a new one"
            )
        operation = str(node.target).strip("_")
        operation = {"true_divide": "div", "divide": "div", "multiply": "mul"}.get(
            operation, operation
        )
    elif node.target is getattr:  # z.real, z.imag
        operation, arguments = str(arguments[1]), arguments[:1]
    else:
        operation = _NAMES.get(node.target, "")
    if operation == "clamp":
        options = dict(zip(("min", "max"), arguments[1:], strict=False)) | node.kwargs
        arguments = (arguments[0], options.pop("min", None), options.pop("max", None))
    else:
        options = {k: v for k, v in node.kwargs.items() if _DEFAULTS.get(k) != v}
    line = node.meta.get("line", "")
    if operation not in OPERATIONS:
        module = getattr(node.target, "__module__", "")
        name = operation or getattr(node.target, "__name__", str(node.target))
        name = ANOTHER_NAME.get(name, name)
        shown = {"math": f"math.{name}"}.get(module, name)
        shown = f".{name}" if node.target is getattr else shown
        raise GateError(
            f"{function} uses {shown}, which is not an operation of a gate{line}"
            f"{advice(name, module)}. A gate may use: {', '.join(OPERATIONS)}"
        )
    count = OPERATIONS[operation].arguments
    if options or len(arguments) != count:
        extra = [*(repr(a) for a in arguments[count:]), *(f"{k}={v!r}" for k, v in options.items())]
        text = ", ".join(extra) or f"{len(arguments)} arguments"
        raise GateError(
            f"{function} calls {operation} with {text}{line}; in a gate it takes {count} argument"
            f"{'s' * (count > 1)} and no options{advice(operation)}"
        )
    for argument in arguments:
        if not isinstance(argument, fx.Node | int | float | None):
            raise GateError(
                f"{function}: {operation} takes tensors and numbers, got {argument!r}"
                f"{node.meta.get('line', '')}"
            )
    numbers = [argument for argument in arguments if not isinstance(argument, fx.Node)]
    if operation == "pow" and (len(numbers) != 1 or _is_power_of_none(numbers[0], arguments)):
        raise GateError(
            f"{function}: a power has a constant exponent, or a constant base above 0"
            f"{node.meta.get('line', '')}"
        )
    if operation == "clamp" and len(numbers) != 2:
        raise GateError(
            f"{function}: clamp takes numbers as its bounds; there are torch.minimum and "
            f"torch.maximum{node.meta.get('line', '')}"
        )
    # A truth value is written in another way.
    plain = (int(a) if isinstance(a, bool) else a for a in arguments)
    return Step(operation, tuple(names[a] if isinstance(a, fx.Node) else a for a in plain))


def _is_power_of_none(number: Constant, arguments: Sequence[Any]) -> bool:
    return number is None or (arguments[0] is number and number <= 0)


def _line(function: Callable[..., Any], frames: traceback.StackSummary) -> str:
    """The line of a function's file that was last called, for messages."""
    file = inspect.unwrap(function).__code__.co_filename
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def signature_of(function: Any) -> tuple[str, list[str]]:
    """The name of a gate or readout and those of its arguments, as far as they are known."""
    try:
        arguments = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        arguments = []
    return _name(function), arguments


class Gate:
    """A pointwise function together with its program.

    Calling it calls the function. Backends that fuse compile `program`; the others call.

    Attributes:
        program: the canonical text, see `trace`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.program = trace(function)

    def __call__(self, *inputs: Tensor) -> Any:
        """Calls the function that was traced."""
        return self._function(*inputs)

    def __repr__(self) -> str:
        return f"gate {_name(self._function)}: {self.program}"

    def __reduce__(self) -> str:
        """Pickles the gate by its name, as functions are."""
        return _name(self._function)


def gate(function: Callable[..., Any]) -> Gate:
    """Makes a pointwise PyTorch function a gate (or a readout) that backends can compile.

        @gate
        def gilr(f, z):
            a = torch.sigmoid(f)
            return a, (1 - a) * torch.tanh(z)

    Args:
        function: from pre-activations to `(a, b)`, or from `h` and pre-activations to an output;
            what it may use is a table of docs/extending.md.

    Raises:
        GateError: naming the operation outside the set, and its line.
    """
    return Gate(function)
