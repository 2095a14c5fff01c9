"""The reverse-mode derivative of a program: a program again, by one rule per operation.

Whoever compiles programs thereby has the gradient of every gate and readout; nobody writes a
backward pass by hand. PyTorch's conventions hold: at ties (`maximum` halves, `clamp` passes at its
bounds, `relu` and `abs` give 0 at 0), in `where`, through `detach`, and for complex numbers, whose
gradient is conjugated so that a step along it descends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx

from lightning_lrnn.gates import (
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

__all__ = ["RULES", "needed", "pullback", "readout_or_state"]

# Each rule maps the gradient g of y = operation(x, ...), y itself and the arguments to the
# gradients of the arguments, None for none. Arguments may be numbers. `conj` does nothing to what
# is real, and is left out of the program there.


def _power(g: Any, y: Any, x: Any, c: Any) -> Sequence[Any]:
    if isinstance(x, int | float):
        return None, g * (y * math.log(x))
    if c == 0:
        return None, None
    return g * _conj(x if c == 2 else 1 if c == 1 else x ** (c - 1)) * c, None


def _clamp(g: Any, y: Any, x: Any, low: Any, high: Any) -> Sequence[Any]:
    if low is not None:
        g = torch.where(x >= low, g, 0)
    if high is not None:
        g = torch.where(x <= high, g, 0)
    return g, None, None


def _gelu(g: Any, y: Any, x: Any) -> Sequence[Any]:
    cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return (g * (cdf + x * density),)


def _silu(g: Any, y: Any, x: Any) -> Sequence[Any]:
    s = torch.sigmoid(x)
    return (g * (s * (1 + x * (1 - s))).conj(),)


def _polar(g: Any, y: Any, size: Any, angle: Any) -> Sequence[Any]:
    return (g.conj() * torch.sgn(y)).real, -(g.conj() * y).imag


def _greater(g: Any, x: Any, y: Any) -> Any:
    """The gradient of the greater one's share: ties halve it, NaN passes it to both."""
    return torch.where(x == y, g * 0.5, torch.where(x < y, 0, g))


RULES: dict[str, Callable[..., Sequence[Any]]] = {
    "add": lambda g, y, x, z: (g, g),
    "sub": lambda g, y, x, z: (g, -g),
    "mul": lambda g, y, x, z: (g * _conj(z), g * _conj(x)),
    "div": lambda g, y, x, z: (g / _conj(z), -g * _conj(y / z)),
    "neg": lambda g, y, x: (-g,),
    "pow": _power,
    "sigmoid": lambda g, y, x: (g * ((1 - y) * y).conj(),),
    "tanh": lambda g, y, x: (g * (1 - y * y).conj(),),
    "exp": lambda g, y, x: (g * y.conj(),),
    "log": lambda g, y, x: (g / x.conj(),),
    "sin": lambda g, y, x: (g * torch.cos(x).conj(),),
    "cos": lambda g, y, x: (-g * torch.sin(x).conj(),),
    "softplus": lambda g, y, x: (g * torch.sigmoid(x),),
    "relu": lambda g, y, x: (torch.where(y <= 0, 0, g),),
    "silu": _silu,
    "gelu": _gelu,
    "erf": lambda g, y, x: (g * (2 / math.sqrt(math.pi) * torch.exp(-x * x)),),
    "sqrt": lambda g, y, x: (g / (2 * y).conj(),),
    "rsqrt": lambda g, y, x: (-0.5 * g * (y * y * y).conj(),),
    "abs": lambda g, y, x: (g * torch.sgn(x),),
    "clamp": _clamp,
    "where": lambda g, y, c, x, z: (None, torch.where(c, g, 0), torch.where(c, 0, g)),
    "maximum": lambda g, y, x, z: (_greater(g, x, z), _greater(g, z, x)),
    "minimum": lambda g, y, x, z: (_greater(g, z, x), _greater(g, x, z)),
    "complex": lambda g, y, x, z: (g.real, g.imag),
    "polar": _polar,
    "real": lambda g, y, x: (g,),
    "imag": lambda g, y, x: (torch.complex(0 * g, g),),
    "conj": lambda g, y, x: (g.conj(),),
}
"""`detach`, `sgn` and comparisons have no derivative: nothing passes through them."""


def _conj(x: Any) -> Any:
    return x if isinstance(x, int | float) else x.conj()


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
        if name not in gradients or operation not in RULES:
            continue
        operands = [values[a] if isinstance(a, str) else a for a in arguments]
        shares = RULES[operation](gradients[name], values[name], *operands)
        for argument, share in zip(arguments, shares, strict=True):
            if isinstance(argument, str) and share is not None:
                accumulate(argument, share)
    graph.output(tuple(_node(gradients.get(f"x{i}", 0)) for i in range(forward.inputs)))
    written = program_of(graph, "the derivative of a gate")
    of_outputs = [isinstance(o, str) and is_complex[o] for o in forward.outputs]
    return str(_simplified(written, [*complex_inputs, *of_outputs]))


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
