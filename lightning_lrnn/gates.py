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

__all__ = [
    "IDENTITY",
    "SWAPPED",
    "WANTED",
    "Constant",
    "Gate",
    "GateError",
    "Program",
    "Step",
    "check_program",
    "complex_values",
    "evaluate",
    "gate",
    "inputs_of",
    "parse",
    "program_of",
    "pruned",
    "state_is_complex",
    "trace",
]

IDENTITY = "x0 x1 -> -> x0 x1"
"""The program of `lambda a, b: (a, b)`: the plain recurrence."""
SWAPPED = "x0 x1 -> -> x1 x0"
"""The program of `lambda b, a: (a, b)`: the same as a gate, which may have parameters."""


def _complex(real: Any, imag: Any) -> Any:
    """`torch.complex`, one part of which may be a number."""
    if isinstance(real, int | float):
        real = torch.full_like(imag, real)
    if isinstance(imag, int | float):
        imag = torch.full_like(real, imag)
    return torch.complex(real, imag)


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
    "erf": torch.erf,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "sgn": torch.sgn,
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
    "complex": _complex,
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
    torch.special.erf: "erf",
    torch.complex: "complex",
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
    """A parsed program: number of inputs, steps in order, outputs (names, or constants)."""

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[str | Constant, ...]

    def __str__(self) -> str:
        """The canonical text; `parse` is its inverse."""
        inputs = " ".join(f"x{i}" for i in range(self.inputs))
        steps = "; ".join(
            f"t{i}={step.operation}({','.join(map(_literal, step.arguments))})"
            for i, step in enumerate(self.steps)
        )
        outputs = " ".join(map(_literal, self.outputs))
        return f"{inputs} -> {steps} -> {outputs}".replace("->  ->", "-> ->")


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
        returned = tuple(_argument(word, known) for word in outputs.split())
        result = Program(len(inputs.split()), tuple(parsed), returned)
        if str(result) != program:
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


def evaluate(program: str, inputs: Sequence[Any]) -> tuple[Any, ...]:
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
    return tuple(values[o] if isinstance(o, str) else o for o in parsed.outputs)


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
    if isinstance(function, Gate):
        return function.program
    if not hasattr(inspect.unwrap(function), "__code__"):
        raise GateError(f"a gate is a Python function of tensors, got {function!r}")
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
            f"{function} uses {what}{detail}, which is not an operation of a gate"
            f"{node.meta.get('line', '')}. A gate may use: {', '.join(OPERATIONS)}"
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
    return Step(operation, tuple(names[a] if isinstance(a, fx.Node) else a for a in arguments))


def _is_power_of_none(number: Constant, arguments: Sequence[Any]) -> bool:
    return number is None or (arguments[0] is number and number <= 0)


WANTED = {"gate": "decay and impulse, (a, b)", "readout": "one tensor, the output"}
"""What each of them returns."""
CONDITIONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})


def complex_values(program: Program, complex_inputs: Sequence[bool]) -> dict[str, bool]:
    """Which values of a program are complex, given which of its inputs are."""
    found = {f"x{i}": bool(c) for i, c in enumerate(complex_inputs)}
    for index, (operation, arguments) in enumerate(program.steps):
        if operation in ("complex", "polar"):
            result = True
        elif operation in ("real", "imag", "abs") or operation in CONDITIONS:
            result = False
        else:
            result = any(found[a] for a in arguments if isinstance(a, str))
        found[f"t{index}"] = result
    return found


def pruned(program: Program) -> Program:
    """The program without the steps that no output needs, numbered anew."""
    needed = {o for o in program.outputs if isinstance(o, str)}
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
    return Program(program.inputs, steps, tuple(map(rename, program.outputs)))


@functools.cache
def _state_is_complex(gate: str, complex_inputs: tuple[bool, ...]) -> bool:
    program = parse(gate)
    found = complex_values(program, complex_inputs)
    return any(found[o] for o in program.outputs if isinstance(o, str))


def state_is_complex(gate: str, complex_inputs: tuple[bool, ...]) -> bool:
    """Whether the recurrence of a gate's decays and impulses has complex states."""
    return _state_is_complex(gate, complex_inputs)


# For torch.compile: it depends on its arguments alone (backends/__init__.py has more on this).
state_is_complex._dynamo_marked_constant = True  # type: ignore[attr-defined]


def inputs_of(program: Program) -> set[int]:
    """The inputs that some output depends on."""
    live = pruned(program)
    names = {a for step in live.steps for a in step.arguments} | set(live.outputs)
    return {int(name[1:]) for name in names if isinstance(name, str) and name[0] == "x"}


def check_program(kind: str, program: str, inputs: int, outputs: int) -> None:
    """Raises GateError for the program of a `kind` with another number of inputs or outputs."""
    _check_program(kind, program, inputs, outputs)


@functools.cache
def _check_program(kind: str, program: str, inputs: int, outputs: int) -> None:
    found = parse(program)
    if found.inputs != inputs:
        raise GateError(f"the {kind} takes {found.inputs} inputs, got {inputs}: {program}")
    if len(found.outputs) != outputs:
        raise GateError(
            f"the {kind} must return {WANTED[kind]}, returns {len(found.outputs)} values: {program}"
        )


# For torch.compile: it depends on its arguments alone (backends/__init__.py has more on this).
check_program._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
