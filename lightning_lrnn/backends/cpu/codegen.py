"""A gate and a readout as LLVM IR: the steps of a recurrence on neighbouring columns of a row.

Value and derivative come from the same programs (`gates`, `derivative`) as on a GPU. What is
compiled is a function of some steps of some columns (`steps`); `walk` calls it
for one part of a row after the other. It finds its tensors in a table of views, (address, stride of
rows, of steps, of columns) in bytes for each:

    forward:   operands..., y, h
    backward:  operands..., dy, h, h0, gradients of operands...: of a parameter sums in float64
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import ir

from lightning_lrnn.backends.cpu import llvm, vector_math
from lightning_lrnn.backends.cpu import steps as _cpu_steps
from lightning_lrnn.backends.cpu.steps import NAME, PAIR, WALK, Values, View, Writer
from lightning_lrnn.backends.cpu.vector_math import Complex, Lanes
from lightning_lrnn.backends.operands import Operand
from lightning_lrnn.gates import (
    OPERATIONS,
    Program,
    complex_values,
    inputs_of,
    parse,
    state_is_complex,
)
from lightning_lrnn.gates.derivative import needed, pullback, readout_or_state

__all__ = ["Steps", "address", "alignment", "uncompiled"]

_Memo = dict[Any, Any]
"""Values by operation and arguments, so that nothing is computed twice."""

COMPLEX = frozenset("add sub mul neg conj real imag complex where detach".split())
"""Operations of complex numbers that have vector code."""
LIBRARY = frozenset({"sin", "cos", "erf", "pow"})
"""Operations that the C library computes, lane by lane."""


class Steps(NamedTuple):
    """All that the code of a function depends on."""

    gate: str
    readout: str
    operands: tuple[Operand, ...]
    backward: bool
    exclusive: bool
    divided: bool
    """Whether it computes pairs as well as states."""
    narrow: bool
    """Whether rows have few columns, so that several steps are taken at once."""

    @property
    def complex_operands(self) -> tuple[bool, ...]:
        """Whether each operand is complex."""
        return tuple(o.storage[0] == "c" for o in self.operands)

    @property
    def bits(self) -> int:
        """Bits of a real value in registers."""
        return 64 if any(o.storage in ("f64", "c128") and o.varies for o in self.operands) else 32

    @property
    def state(self) -> str:
        """Storage of the hidden states."""
        return self._storage(is_complex=state_is_complex(self.gate, self.complex_operands))

    @property
    def output(self) -> str:
        """Storage of the output y."""
        readout = parse(readout_or_state(self.readout, len(self.operands)))
        complex_operands = (
            state_is_complex(self.gate, self.complex_operands),
            *self.complex_operands,
        )
        (y,) = readout.outputs
        is_complex = isinstance(y, str) and complex_values(readout, complex_operands)[y]
        return self._storage(is_complex=is_complex)

    def _storage(self, *, is_complex: bool) -> str:
        if is_complex:
            return f"c{2 * self.bits}"
        sequences = (o.storage for o in self.operands if o.varies)
        return next((s for s in sequences if s in ("f16", "bf16")), f"f{self.bits}")


def uncompiled(gate: str, readout: str, operands: tuple[Operand, ...]) -> list[str]:
    """Why PyTorch evaluates a gate, not compiled code; [] = it is compiled."""
    steps = Steps(gate, readout, operands, True, False, True, False)
    double = steps.bits == 64
    if any((o.storage in ("f64", "c128")) != double for o in operands if o.storage[0] == "c"):
        return ["complex numbers of single and of double precision"]
    if any(o.storage == "f16" for o in operands) and llvm.lacks("f16c"):
        return ["this processor does not convert float16"]
    complex_operands, h_is_complex = steps.complex_operands, steps.state[0] == "c"
    of_readout, read_out = (
        (h_is_complex, *complex_operands),
        readout_or_state(readout, len(operands)),
    )
    programs = (
        (gate, complex_operands),
        (pullback(gate, complex_operands), (*complex_operands, h_is_complex, h_is_complex)),
        (read_out, of_readout),
        (pullback(read_out, of_readout), (*of_readout, steps.output[0] == "c")),
    )
    reasons = set()
    for text, inputs in programs:
        program = parse(text)
        is_complex = complex_values(program, inputs)
        for index, (operation, names) in enumerate(program.steps):
            values = [a for a in (*names, f"t{index}") if isinstance(a, str)]
            if operation not in COMPLEX and any(is_complex[a] for a in values):
                reasons.add(f"there is no vector code for {operation} of complex numbers")
            if operation in LIBRARY and llvm.missing(f"{operation}{'' if double else 'f'}"):
                reasons.add(f"the C library has no {operation}")
    return sorted(reasons)


def address(steps: Steps) -> int:
    """The address of the function, compiled or read from the disk."""
    return llvm.load(NAME, [*_sources(), repr(steps).encode()], lambda: _Gate(steps).text())


def alignment() -> int:
    """Bytes that outputs must be aligned to if they are written by non-temporal stores."""
    return llvm.vector_bytes()


@cache
def _sources() -> tuple[bytes, ...]:
    """The source files that write the IR, for the key of the cache."""
    files = (__file__, _cpu_steps.__file__, vector_math.__file__)
    return tuple(Path(file).read_bytes() for file in files)


class _Gate:
    """Writes the formulas of one step, forward or backward."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        n, complex_operands = len(steps.operands), steps.complex_operands
        self.complex_state = steps.state[0] == "c"
        of_readout = (self.complex_state, *complex_operands)
        self.gate = parse(steps.gate)
        self.readout = parse(readout_or_state(steps.readout, n))
        self.gate_back = parse(pullback(steps.gate, complex_operands))
        self.readout_back = parse(pullback(str(self.readout), of_readout))
        self.of_a = n in inputs_of(self.gate_back)
        views = self._backward_views if steps.backward else self._forward_views
        self.writer = Writer(steps.bits, *views(), complex_state=self.complex_state)
        self.math = self.writer.math

    def text(self) -> str:
        """Returns the text of the IR module."""
        compute = self.backward if self.steps.backward else self.forward
        return self.writer.write(compute, divided=self.steps.divided, narrow=self.steps.narrow)

    def _forward_views(self) -> tuple[dict[int | str, View], dict[int | str, View]]:
        steps, n = self.steps, len(self.steps.operands)
        read = inputs_of(self.gate) | {i - 1 for i in inputs_of(self.readout)}
        outputs: dict[int | str, View] = {"h": View(steps.state, n + 1)}
        if steps.readout:
            outputs["y"] = View(steps.output, n)
        return self._operands([i in read for i in range(n)]), outputs

    def _backward_views(self) -> tuple[dict[int | str, View], dict[int | str, View]]:
        steps, n = self.steps, len(self.steps.operands)
        inputs = self._operands(needed(steps.gate, steps.readout, steps.complex_operands))
        inputs["dy"] = View(steps.output, n)
        if 0 in inputs_of(self.readout_back) or (self.of_a and steps.exclusive):
            inputs["h"] = View(steps.state, n + 1)
        if self.of_a and not steps.exclusive:
            inputs["before"] = View(steps.state, n + 1)
        outputs: dict[int | str, View] = {}
        for i, operand in enumerate(steps.operands):
            if operand.varies:
                outputs[i] = View(operand.storage, n + 3 + i)
            elif self.gate_back.outputs[i] != 0 or self.readout_back.outputs[1 + i] != 0:
                sums = "c128" if operand.storage[0] == "c" else "f64"
                outputs[i] = View(sums, n + 3 + i, sums=True)
        return inputs, outputs

    def _operands(self, used: Sequence[bool]) -> dict[int | str, View]:
        return {
            i: View(operand.storage, i) for i, operand in enumerate(self.steps.operands) if used[i]
        }

    def forward(self, mode: int, values: Values, state: list[Any]) -> tuple[list[Any], Values]:
        """Writes h = a h + b and y = readout(h)."""
        h, A, B = state
        m, memo = self.math, _Memo()
        pre = self.operands(values)
        a, b = map(self.like_state, self.evaluate(self.gate, pre, memo))
        results: Values = {}
        new_h = None
        if mode & WALK:
            new_h = m.multiply_add(a, h, b)
            hidden = h if self.steps.exclusive else new_h
            results["h"] = hidden
            if self.steps.readout:
                (results["y"],) = self.evaluate(self.readout, [hidden, *pre], memo)
        if mode & PAIR:
            return [new_h, m.flush(m.mul(a, A)), m.multiply_add(a, B, b)], results
        return [new_h, None, None], results

    def backward(self, mode: int, values: Values, state: list[Any]) -> tuple[list[Any], Values]:
        """The adjoint c: g = dh + c, db = g, da = g conj(h_prev), c = conj(a) g; see adjoint.py."""
        c, A, B = state
        m, memo, exclusive = self.math, _Memo(), self.steps.exclusive
        pre = self.operands(values)
        a = m.conj(self.like_state(*self.evaluate(self.gate, pre, memo, [0])))
        of_readout = [values.get("h"), *pre, values["dy"]]
        dh = self.like_state(*self.evaluate(self.readout_back, of_readout, memo, [0]))

        def before(c: Any) -> tuple[Any, Any]:
            """The adjoint before a step from that after it, and g."""
            g = c if exclusive else m.add(dh, c)
            c = m.mul(a, g)
            return m.add(c, dh) if exclusive else c, g

        results: Values = {}
        new_c = new_A = new_B = None
        if mode & PAIR:
            new_A, (new_B, _) = m.flush(m.mul(a, A)), before(B)
        if mode & WALK:
            new_c, db = before(c)
            da = None
            if self.of_a:
                h = values["h" if exclusive else "before"]
                restarts = m.all_lanes(self.writer.restarts)
                da = m.choose(restarts, m.number(0), m.mul(db, m.conj(h)))
            for key in self.writer.outputs:
                assert isinstance(key, int)
                shares = [
                    self.evaluate(program, inputs, memo, [output])[0]
                    for program, inputs, output in (
                        (self.readout_back, of_readout, 1 + key),
                        (self.gate_back, [*pre, da, db], key),
                    )
                    if program.outputs[output] != 0
                ]
                first, *more = shares or [m.number(0)]
                results[key] = m.add(first, *more) if more else first
        return [new_c, new_A, new_B], results

    def like_state(self, x: Any) -> Any:
        return self.math.as_complex(x) if self.complex_state else x

    def operands(self, values: Values) -> list[Any]:
        return [values.get(i) for i in range(len(self.steps.operands))]

    def evaluate(
        self,
        program: Program,
        inputs: Sequence[Any],
        memo: _Memo,
        outputs: Sequence[int] | None = None,
    ) -> list[Any]:
        """Some outputs of a program; nothing is computed twice, whichever program asks for it."""
        chosen = program.outputs if outputs is None else [program.outputs[i] for i in outputs]
        live = {output for output in chosen if isinstance(output, str)}
        for index in reversed(range(len(program.steps))):
            if f"t{index}" in live:
                live.update(a for a in program.steps[index].arguments if isinstance(a, str))
        values: dict[Any, Any] = {f"x{i}": x for i, x in enumerate(inputs)}
        for index, (operation, names) in enumerate(program.steps):
            if f"t{index}" not in live:
                continue
            arguments = tuple(values.get(name, name) for name in names)
            known = (repr(a) if isinstance(a, int | float | None) else id(a) for a in arguments)
            key = operation, *known
            if key not in memo:
                # With its arguments, which thereby keep their identities.
                memo[key] = _computed(self.math, operation, arguments), arguments
            values[f"t{index}"] = memo[key][0]
        return [_number(self.math, values.get(output, output)) for output in chosen]


def _computed(m: Lanes, operation: str, arguments: tuple[Any, ...]) -> Any:
    """The IR value of one operation; conditions are vectors of bits, numbers stay numbers."""
    number = partial(_number, m)
    if OPERATIONS[operation].compares:
        return m.compare(OPERATIONS[operation].infix, *map(number, arguments))
    if operation == "where":
        condition, x, y = arguments
        return m.choose(_condition(m, condition), number(x), number(y))
    if operation == "clamp":
        x, low, high = number(arguments[0]), *arguments[1:]
        x = x if low is None else m.at_least(x, number(low))
        return x if high is None else m.at_most(x, number(high))
    if operation == "pow":
        return _power(m, *arguments)
    if operation == "detach":
        return number(arguments[0])
    compute: Callable[..., Any] = getattr(m, operation)
    return compute(*map(number, arguments))


def _number(m: Lanes, value: Any) -> Any:
    """A vector of numbers, also of a constant and of a condition."""
    if isinstance(value, int | float):
        return m.number(value)
    if isinstance(value, Complex):
        return value
    if value.type.element == ir.IntType(1):
        return m.choose(value, m.number(1), m.number(0))
    return value


def _condition(m: Lanes, value: Any) -> Any:
    value = value if not isinstance(value, int | float) else m.number(value)
    if value.type.element == ir.IntType(1):
        return value
    return m.compare("!=", value, m.number(0))


def _power(m: Lanes, base: Any, exponent: Any) -> Any:
    """Roots and small powers as PyTorch computes them, others by the C library."""
    if not isinstance(exponent, int | float):
        return m.pow(_number(m, base), _number(m, exponent))
    x = _number(m, base)
    exact: dict[float, Callable[[], Any]] = {
        0: lambda: m.number(1),
        1: lambda: x,
        2: lambda: m.mul(x, x),
        3: lambda: m.mul(m.mul(x, x), x),
        -1: lambda: m.div(m.number(1), x),
        0.5: lambda: m.sqrt(x),
        -0.5: lambda: m.rsqrt(x),
    }
    return exact[exponent]() if exponent in exact else m.pow(x, m.number(exponent))
