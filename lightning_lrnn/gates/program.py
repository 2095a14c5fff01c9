"""Programs of gates: one line of text in static single assignment form, parsed and evaluated."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_lrnn.gates.operations import OPERATIONS

__all__ = [
    "IDENTITY",
    "SWAPPED",
    "WANTED",
    "Constant",
    "GateError",
    "Program",
    "Step",
    "check_outputs",
    "complex_values",
    "evaluate",
    "inputs_of",
    "parse",
    "pruned",
    "state_is_complex",
]

IDENTITY = "x0 x1 -> -> x0 x1"
"""The program of `lambda a, b: (a, b)`: the plain recurrence."""
SWAPPED = "x0 x1 -> -> x1 x0"
"""The program of `lambda b, a: (a, b)`: the same as a gate, which may have parameters."""
WANTED = {"gate": "decay and impulse, (a, b)", "readout": "one tensor, the output"}
"""What a gate and a readout return, for messages."""

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
            if len(arguments) != OPERATIONS[match[2]].arguments:
                raise ValueError(f"step {text!r} has {len(arguments)} arguments")
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
            values[f"t{index}"] = OPERATIONS[operation].meaning(*operands)
    return tuple(values[o] if isinstance(o, str) else o for o in parsed.outputs)


def complex_values(program: Program, complex_inputs: Sequence[bool]) -> dict[str, bool]:
    """Which values of a program are complex, given which of its inputs are."""
    is_complex = {f"x{i}": bool(c) for i, c in enumerate(complex_inputs)}
    for index, (operation, arguments) in enumerate(program.steps):
        if operation in ("complex", "polar"):
            result = True
        elif operation in ("real", "imag", "abs") or OPERATIONS[operation].compares:
            result = False
        else:
            result = any(is_complex[a] for a in arguments if isinstance(a, str))
        is_complex[f"t{index}"] = result
    return is_complex


def pruned(program: Program) -> Program:
    """The program without the steps that no output needs, numbered anew."""
    needed = {o for o in program.outputs if isinstance(o, str)}
    for index in reversed(range(len(program.steps))):
        if f"t{index}" in needed:
            needed.update(a for a in program.steps[index].arguments if isinstance(a, str))
    live = [index for index in range(len(program.steps)) if f"t{index}" in needed]
    renamed = {f"t{old}": f"t{new}" for new, old in enumerate(live)}

    def rename(argument: str | Constant) -> str | Constant:
        return renamed.get(argument, argument) if isinstance(argument, str) else argument

    steps = tuple(
        Step(program.steps[i].operation, tuple(map(rename, program.steps[i].arguments)))
        for i in live
    )
    return Program(program.inputs, steps, tuple(map(rename, program.outputs)))


@functools.cache
def state_is_complex(gate: str, complex_inputs: tuple[bool, ...]) -> bool:
    """Whether the recurrence of a gate's decays and impulses has complex states."""
    program = parse(gate)
    is_complex = complex_values(program, complex_inputs)
    return any(is_complex[o] for o in program.outputs if isinstance(o, str))


def inputs_of(program: Program) -> set[int]:
    """The inputs that some output depends on."""
    live = pruned(program)
    names = {a for step in live.steps for a in step.arguments} | set(live.outputs)
    return {int(name[1:]) for name in names if isinstance(name, str) and name[0] == "x"}


@functools.cache
def check_outputs(role: str, program: str, outputs: int) -> None:
    """Raises GateError for the program of a gate or readout with another number of outputs."""
    returned = len(parse(program).outputs)
    if returned != outputs:
        raise GateError(
            f"the {role} must return {WANTED[role]}, returns {returned} values: {program}"
        )
