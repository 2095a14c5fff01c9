"""Pointwise functions written once in PyTorch, and the canonical program each one stands for.

A gate maps pre-activations to the decay and impulse of a recurrence, a readout maps a state and the
same pre-activations to an output. `gate` traces such a function once into a *program*: one line of
text in static single assignment form,

    x0 x1 -> t0=sigmoid(x0); t1=sub(1,t0); t2=tanh(x1); t3=mul(t1,t2) -> t0 t3

Text passes through an operator's schema, `torch.compile` and `torch.export`; it is parsed, never
executed as Python. Two functions that compute the same in the same order have the same program.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

__all__ = ["IDENTITY", "Gate", "GateError", "Program", "evaluate", "gate", "parse", "trace"]

IDENTITY = "x0 x1 -> -> x0 x1"
"""The program of `lambda a, b: (a, b)`: the plain recurrence."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "pow": torch.pow,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "softplus": F.softplus,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "clamp": torch.clamp,
    "where": torch.where,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "complex": torch.complex,
    "polar": torch.polar,
    "real": torch.real,
    "imag": torch.imag,
    "conj": torch.conj,
    "detach": torch.detach,
}
"""Everything a gate may use: the program's name of an operation and its meaning."""

_NAMES: dict[Any, str] = {
    **{function: name for name, function in OPERATIONS.items()},
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
}

# Options that PyTorch's own wrappers pass on, at values that change nothing.
_DEFAULTS = {"inplace": False, "approximate": "none", "beta": 1, "threshold": 20, "alpha": 1}

Constant = int | float | None


class GateError(TypeError):
    """A function that cannot be a gate: it leaves the documented set of pointwise operations."""


class Step(NamedTuple):
    """One operation of a program: its name and its arguments (names of values, or constants)."""

    operation: str
    arguments: tuple[str | Constant, ...]


class Program(NamedTuple):
    """A parsed program: number of inputs, steps in order, names of the outputs."""

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        """The canonical text; `parse` is its inverse."""
        inputs = " ".join(f"x{i}" for i in range(self.inputs))
        steps = "; ".join(
            f"t{i}={step.operation}({','.join(map(_literal, step.arguments))})"
            for i, step in enumerate(self.steps)
        )
        return f"{inputs} -> {steps} -> {' '.join(self.outputs)}".replace("->  ->", "-> ->")


def _literal(argument: str | Constant) -> str:
    return argument if isinstance(argument, str) else repr(argument)


_STEP = re.compile(r"t(\d+)=([a-z]+)\(([^()]*)\)")
_VALUE = re.compile(r"[xt]\d+")


@functools.cache
def parse(program: str) -> Program:
    """The program that a text denotes.

    Raises:
        GateError: if the text is not a program (it is data, possibly from a file: nothing in it
            is executed).
    """
    try:
        inputs, steps, outputs = (part.strip() for part in program.split("->"))
        parsed = []
        known = set(inputs.split())
        for index, text in enumerate(filter(None, steps.split("; "))):
            match = _STEP.fullmatch(text)
            if match is None or int(match[1]) != index or match[2] not in OPERATIONS:
                raise ValueError(f"step {text!r}")
            arguments = tuple(_argument(word, known) for word in match[3].split(","))
            parsed.append(Step(match[2], arguments))
            known.add(f"t{index}")
        result = Program(len(inputs.split()), tuple(parsed), tuple(outputs.split()))
        if not known.issuperset(result.outputs) or str(result) != program:
            raise ValueError("not in canonical form")
    except ValueError as error:
        raise GateError(f"not a gate program: {program!r} ({error})") from None
    return result


def _argument(word: str, known: set[str]) -> str | Constant:
    if _VALUE.fullmatch(word):
        if word not in known:
            raise ValueError(f"{word} is used before it is defined")
        return word
    if word == "None":
        return None
    return int(word) if re.fullmatch(r"-?\d+", word) else float(word)


def evaluate(program: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Runs a program with PyTorch's own operations: what every compiled form must agree with."""
    parsed = parse(program)
    if len(inputs) != parsed.inputs:
        raise GateError(f"the gate takes {parsed.inputs} inputs, got {len(inputs)}: {program}")
    values: dict[str, Any] = {f"x{i}": tensor for i, tensor in enumerate(inputs)}
    for index, (operation, arguments) in enumerate(parsed.steps):
        operands = [values[a] if isinstance(a, str) else a for a in arguments]
        if operation in ("add", "sub", "mul", "div", "pow") and not isinstance(operands[0], Tensor):
            # torch.sub(1, x) refuses a number in front; the operator does not.
            values[f"t{index}"] = getattr(operator, operation.replace("div", "truediv"))(*operands)
        else:
            values[f"t{index}"] = OPERATIONS[operation](*operands)
    return tuple(values[name] for name in parsed.outputs)


class _Tracer(fx.Tracer):
    """Keeps the line of every operation, for error messages."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._file = inspect.unwrap(function).__code__.co_filename

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        lines = [f.lineno for f in traceback.extract_stack() if f.filename == self._file]
        node.meta["line"] = f" ({self._file}, line {lines[-1]})" if lines else ""
        return node


def trace(function: Callable[..., Any]) -> str:
    """The canonical program of a pointwise PyTorch function.

    Common subexpressions are merged and what no output needs is dropped.

    Args:
        function: takes tensors by position, returns a tensor or a tuple of tensors, and uses only
            `OPERATIONS` between them (Python's operators and the tensors' methods included).

    Raises:
        GateError: naming the operation, and the line where it stands, that is not in the set.
    """
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    if not kinds <= {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}:
        raise GateError(f"{_name(function)}: a gate takes its tensors by position")
    try:
        graph = _Tracer(function).trace(function)
    except (fx.proxy.TraceError, TypeError) as error:
        raise GateError(
            f"{_name(function)} cannot be traced: {error}. A gate may not branch on values; "
            "use torch.where"
        ) from error

    names: dict[fx.Node, str] = {}
    steps: dict[Step, str] = {}
    outputs: tuple[str, ...] = ()
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = f"x{inputs}"
            inputs += 1
        elif node.op == "output":
            result = node.args[0]
            result = result if isinstance(result, tuple) else (result,)
            if not all(isinstance(value, fx.Node) for value in result):
                raise GateError(f"{_name(function)} must return tensors, returns {result}")
            outputs = tuple(names[value] for value in result)
        else:
            step = _step(function, node, names)
            names[node] = steps.setdefault(step, f"t{len(steps)}")
    return str(_pruned(Program(inputs, tuple(steps), outputs)))


def _step(function: Callable[..., Any], node: fx.Node, names: dict[fx.Node, str]) -> Step:
    """The program's form of one traced operation."""
    arguments: Sequence[Any] = node.args
    if node.op == "call_method":
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
    if operation not in OPERATIONS or options:
        what = getattr(node.target, "__name__", node.target)
        detail = f" with {options}" if operation in OPERATIONS else ""
        raise GateError(
            f"{_name(function)} uses {what}{detail}, which is not an operation of a gate"
            f"{node.meta['line']}. A gate may use: {', '.join(OPERATIONS)}"
        )
    for argument in arguments:
        if not isinstance(argument, fx.Node | int | float | None):
            raise GateError(
                f"{_name(function)}: {operation} takes tensors and numbers, got {argument!r}"
                f"{node.meta['line']}"
            )
    return Step(operation, tuple(names[a] if isinstance(a, fx.Node) else a for a in arguments))


def _pruned(program: Program) -> Program:
    """The program without the steps that no output needs, numbered anew."""
    needed = set(program.outputs)
    for index in reversed(range(len(program.steps))):
        if f"t{index}" in needed:
            needed.update(a for a in program.steps[index].arguments if isinstance(a, str))
    kept = [index for index in range(len(program.steps)) if f"t{index}" in needed]
    renamed = {f"t{old}": f"t{new}" for new, old in enumerate(kept)}

    def rename(argument: str | Constant) -> str | Constant:
        return renamed.get(argument, argument) if isinstance(argument, str) else argument

    steps = tuple(
        Step(program.steps[i].operation, tuple(map(rename, program.steps[i].arguments)))
        for i in kept
    )
    return Program(program.inputs, steps, tuple(renamed.get(o, o) for o in program.outputs))


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


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
        """The function itself."""
        return self._function(*inputs)

    def __repr__(self) -> str:
        return f"gate {_name(self._function)}: {self.program}"

    def __reduce__(self) -> str:
        """Pickled by name, as functions are."""
        return _name(self._function)


def gate(function: Callable[..., Any]) -> Gate:
    """Makes a pointwise PyTorch function a gate (or a readout) that backends can compile.

        @gate
        def gilr(f, z):
            a = torch.sigmoid(f)
            return a, (1 - a) * torch.tanh(z)

    Args:
        function: from pre-activations to `(a, b)`, or from `h` and pre-activations to an output;
            see `OPERATIONS` for what it may use.

    Raises:
        GateError: naming the operation outside the set, and its line.
    """
    return Gate(function)
