"""The reverse-mode derivative of a program: a program again, by the rules of `OPERATIONS`.

Whoever compiles programs thereby has the gradient of every gate and readout; nobody writes a
backward pass by hand. PyTorch's conventions hold: at ties (`maximum` halves, `clamp` passes at its
bounds, `relu` and `abs` give 0 at 0), in `where`, through `detach`, and for complex numbers, whose
gradient is conjugated so that a step along it descends.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import fx

from lightning_lrnn.gates import (
    OPERATIONS,
    Constant,
    Program,
    Step,
    complex_values,
    evaluate,
    inputs_of,
    parse,
    program_of,
    pruned,
    state_is_complex,
)

__all__ = ["needed", "pullback", "readout_or_state"]


@cache
def pullback(program: str, complex_inputs: tuple[bool, ...]) -> str:
    """The program of the gradients of a program's inputs.

    Its inputs are those of the program and then the gradients of its outputs. It computes the
    program's own values anew: who calls it need not keep them.

    Args:
        program: canonical text.
        complex_inputs: which inputs are complex. The gradient of a real one is real.

    Returns:
        A program with one output for each input; the constant 0 where nothing depends on it.
    """
    forward = parse(program)
    is_complex = complex_values(forward, complex_inputs)
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)

    def placeholder(index: int) -> fx.Proxy:
        return fx.Proxy(graph.placeholder(f"x{index}"), tracer)

    inputs = [placeholder(i) for i in range(forward.inputs)]
    names = tuple(f"t{i}" for i in range(len(forward.steps)))
    values: dict[str, Any] = {f"x{i}": x for i, x in enumerate(inputs)}
    values |= zip(names, evaluate(str(forward._replace(outputs=names)), inputs), strict=True)

    gradients: dict[str, Any] = {}

    def accumulate(name: str, g: Any) -> None:
        g = g if is_complex[name] else g.real
        gradients[name] = gradients[name] + g if name in gradients else g

    for index, output in enumerate(forward.outputs):
        g = placeholder(forward.inputs + index)
        if isinstance(output, str):
            accumulate(output, g)
    # After each round, the gradients of the values before this step lack nothing from after it.
    for index in reversed(range(len(forward.steps))):
        operation, arguments = forward.steps[index]
        name = f"t{index}"
        rule = OPERATIONS[operation].rule
        if name not in gradients or rule is None:
            continue
        operands = [values[a] if isinstance(a, str) else a for a in arguments]
        shares = rule(gradients[name], values[name], *operands)
        for argument, share in zip(arguments, shares, strict=True):
            if isinstance(argument, str) and share is not None:
                accumulate(argument, share)
    graph.output(tuple(_node(gradients.get(f"x{i}", 0)) for i in range(forward.inputs)))
    written = program_of(graph, "the derivative of a gate")
    # Decay and impulse are multiplied and added: with one of them complex, so are both gradients.
    of_outputs = any(isinstance(o, str) and is_complex[o] for o in forward.outputs)
    complex_gradients = [of_outputs] * len(forward.outputs)
    return str(_simplified(written, [*complex_inputs, *complex_gradients]))


def readout_or_state(readout: str, inputs: int) -> str:
    """The program of a readout; of none, that which hands out h."""
    return readout or str(Program(1 + inputs, (), ("x0",)))


@cache
def needed(gate: str, readout: str, complex_inputs: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which inputs of a gate its recurrence's gradient depends on: the others need not be kept."""
    of_gate = parse(gate)
    h_is_complex = state_is_complex(gate, complex_inputs)
    of_readout = readout_or_state(readout, len(complex_inputs))
    read = inputs_of(of_gate._replace(outputs=of_gate.outputs[:1]))
    read |= inputs_of(parse(pullback(gate, complex_inputs)))
    read |= {i - 1 for i in inputs_of(parse(pullback(of_readout, (h_is_complex, *complex_inputs))))}
    return tuple(i in read for i in range(len(complex_inputs)))


def _node(value: Any) -> Any:
    return value.node if isinstance(value, fx.Proxy) else value


def _simplified(program: Program, complex_inputs: Sequence[bool]) -> Program:
    """The program without conjugates and real parts of real values, and factors of 1."""
    is_complex = complex_values(program, complex_inputs)
    now: dict[str | Constant, str | Constant] = {}
    steps: dict[Step, str] = {}

    for index, (operation, old) in enumerate(program.steps):
        arguments = tuple(now.get(a, a) if isinstance(a, str) else a for a in old)
        first = arguments[0]
        if operation in ("conj", "real") and not is_complex[str(old[0])]:
            result: str | Constant = first
        elif operation == "mul" and 1 in arguments:
            result = arguments[1] if first == 1 else first
        else:
            result = steps.setdefault(Step(operation, arguments), f"t{len(steps)}")
        now[f"t{index}"] = result
    outputs = tuple(now.get(o, o) if isinstance(o, str) else o for o in program.outputs)
    return pruned(Program(program.inputs, tuple(steps), outputs))
