"""A gate and a readout as CUDA C++: the `struct Gate` that `recurrence.cu` is compiled with.

Value and derivative come from the same programs (`gates`, `derivative`); `pointwise.cuh` has the
operations. The plain recurrence is the gate `lambda a, b: (a, b)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from functools import cache
from typing import NamedTuple

from lightning_lrnn.backends.operands import Operand
from lightning_lrnn.gates import (
    OPERATIONS,
    Constant,
    GateError,
    Program,
    complex_values,
    inputs_of,
    parse,
    pruned,
    state_is_complex,
)
from lightning_lrnn.gates.derivative import needed, pullback, readout_or_state

__all__ = ["Fused", "fused"]

DOUBLE = frozenset({"f64", "c128"})
HALF = frozenset({"f16", "bf16"})
QUICK_IMPULSE, QUICK_READOUT = frozenset({"tanh"}), frozenset({"tanh", "sigmoid"})
"""What may be quick (`LRNN_TANH` in `pointwise.cuh`). In an impulse tanh alone, whose relative
error is small: a sigmoid is often 1 - a there, and must be so however small that is."""
UNUSED = "[[maybe_unused]]"


class Fused(NamedTuple):
    """A gate and a readout, compiled to C++ for one pass."""

    source: str
    """The C++ of `struct Gate`."""
    needed: tuple[bool, ...]
    """Whether it reads each operand."""
    state: str
    """Storage of the hidden states."""
    output: str
    """Storage of what the readout puts out; `state` if there is none."""
    reads_out: bool
    """Whether there is a readout."""
    operations: int
    """Number of operations of gate and readout in a step."""
    real: bool
    """Whether no number in them is complex."""


@cache
def fused(gate: str, readout: str, operands: tuple[Operand, ...], step: str) -> Fused:
    """The gate's struct for one pass.

    Args:
        gate: a program, from the operands to (a, b).
        readout: a program, from h and the operands to y; "" for none.
        operands: of the gate.
        step: "forward" or "backward".

    Raises:
        GateError: naming what cannot be compiled.
    """
    n, complex_operands = len(operands), tuple(o.storage.startswith("c") for o in operands)
    sequences = [o.storage for o in operands if o.varies]
    double = not DOUBLE.isdisjoint(sequences)
    for operand in operands:
        if (operand.storage in DOUBLE) != double and (operand.varies or operand.storage[0] == "c"):
            raise GateError(f"one gate cannot take both single and double precision: {operands}")
    read_out = readout_or_state(readout, n)
    h_is_complex = state_is_complex(gate, complex_operands)
    y_is_complex = _result_is_complex(read_out, (h_is_complex, *complex_operands))

    if step == "forward":
        read = inputs_of(parse(gate)) | {i - 1 for i in inputs_of(parse(read_out))}
        used = tuple(i in read for i in range(n))
    else:
        used = needed(gate, readout, complex_operands)

    def storage(*, is_complex: bool) -> str:
        if is_complex:
            return "c128" if double else "c64"
        return next((s for s in sequences if s in HALF), "f64" if double else "f32")

    state, output = storage(is_complex=h_is_complex), storage(is_complex=y_is_complex)
    parts = [
        "struct Gate {",
        f"using State = storage::{state};",
        f"using Output = storage::{output};",
        "using Value = State::Value;",
        f"using Real = storage::{'f64' if double else 'f32'}::Value;",
        f"static constexpr int kInputs = {n};",
        f"static constexpr bool kHasReadout = {str(bool(readout)).lower()};",
        *_access(operands, used),
        *_mathematics(
            gate,
            read_out,
            complex_operands,
            (h_is_complex, y_is_complex),
            half={state, output} <= HALF,
        ),
        "};",
    ]
    # One line: it becomes the value of a macro.
    operations = len(parse(gate).steps) + len(parse(read_out).steps)
    of_values = (
        complex_values(parse(gate), complex_operands),
        complex_values(parse(read_out), (h_is_complex, *complex_operands)),
    )
    real = not any(is_complex for values in of_values for is_complex in values.values())
    return Fused(" ".join(parts), used, state, output, bool(readout), operations, real)


def _access(operands: Sequence[Operand], used: Sequence[bool]) -> Iterator[str]:
    """`Pre`, the values of one step, and what moves them between memory and registers."""
    types = [_type(is_complex=o.storage.startswith("c")) for o in operands]

    def each(statement: str, chosen: Sequence[bool], *, varies: bool) -> str:
        lines = (
            statement.format(i=i, storage=operand.storage, type=types[i])
            for i, operand in enumerate(operands)
            if operand.varies is varies and chosen[i]
        )
        return f"{{ {' '.join(lines)} }}"

    every = [True] * len(operands)
    run = "Run<storage::{storage}, kWhole>"
    load = f"{run}{{{{first[{{i}}], stride[{{i}}]}}}}.load(to, &Elements::x{{i}}, count);"
    decode = "pre.x{i} = {type}(storage::{storage}::decode(of.x{i}));"
    store = f"{run}::of(to[{{i}}], at, stride).store(dx, &Pre::x{{i}}, count);"
    zeros = "Run<storage::{storage}, false>::of(to[{i}], at, stride).store_zeros(count);"
    parameter = "pre.x{i} = {type}(load_as<storage::{storage}>(first[{i}]));"
    add = "sums.x{i} = sums.x{i} + dx.x{i};"
    steps = "template <bool kWhole, typename Count> static __device__ void"
    yield f"struct Pre {{ {' '.join(f'{cpp_type} x{i};' for i, cpp_type in enumerate(types))} }};"
    fields = each("storage::{storage}::Element x{i};", every, varies=True)
    yield f"struct Elements {fields};"
    named = ("Elements* to", "char* const* first", "const Index* stride", "Count count")
    arguments = f"({', '.join(f'{UNUSED} {name}' for name in named)})"
    yield f"{steps} load_steps{arguments} {each(load, used, varies=True)}"
    yield f"static __device__ Pre decoded({UNUSED} const Elements& of, Pre pre) {{"
    yield f"{each(decode, used, varies=True)} return pre; }}"
    arguments = f"({UNUSED} Pre& pre, {UNUSED} char* const* first)"
    yield f"static __device__ void load_parameters{arguments} {each(parameter, used, varies=False)}"
    arguments = "(const Pre* dx, char* const* to, Index at, Index stride, Count count)"
    yield f"{steps} store_steps{arguments} {each(store, every, varies=True)}"
    arguments = "(char* const* to, Index at, Index stride, Index count)"
    yield f"static __device__ void store_zeros{arguments} {each(zeros, every, varies=True)}"
    arguments = f"({UNUSED} Pre& sums, {UNUSED} const Pre& dx)"
    yield f"static __device__ void add_parameters{arguments} {each(add, every, varies=False)}"
    arguments = f"({UNUSED} const Pre& sums, {UNUSED} Each each)"
    yield (
        f"template <typename Each> static __device__ void each_parameter{arguments} "
        + each("each({i}, sums.x{i});", every, varies=False)
    )


def _mathematics(
    gate: str,
    readout: str,
    complex_operands: tuple[bool, ...],
    of_results: tuple[bool, bool],
    *,
    half: bool,
) -> Iterator[str]:
    """Gate, readout and their derivatives.

    Args:
        gate: its program.
        readout: its program.
        complex_operands: whether each operand is complex.
        of_results: whether h and y are complex.
        half: whether they have 16 bits, so that what no decay depends on may be quick.
    """
    h_is_complex, y_is_complex = of_results
    types = [_type(is_complex=is_complex) for is_complex in complex_operands]
    pre = [f"pre.x{i}" for i in range(len(complex_operands))]
    of_readout = (h_is_complex, *complex_operands)

    decay = parse(gate)._replace(outputs=parse(gate).outputs[:1])
    quick = _values_of(parse(gate), QUICK_IMPULSE) - _values_of(decay) if half else set()
    lines, (a, b) = _body(parse(gate), pre, complex_operands, quick)
    yield f"static __device__ void gate({UNUSED} const Pre& pre, Value& a, Value& b) {{"
    yield from [*lines, f"a = Value({a}); b = Value({b}); }}"]

    quick_read = _values_of(parse(readout), QUICK_READOUT) if half else set()
    lines, (y,) = _body(parse(readout), ["h", *pre], of_readout, quick_read)
    yield f"static __device__ Output::Value readout(Value h, {UNUSED} const Pre& pre) {{"
    yield from [*lines, f"return Output::Value({y}); }}"]

    # The readout's share of a gradient comes first, the gate's is added to it.
    back = parse(pullback(readout, of_readout))
    begun = {i for i, gradient in enumerate(back.outputs[1:]) if gradient != 0}
    lines, (dh, *dx) = _body(back, ["h", *pre, "dy"], (*of_readout, y_is_complex), quick_read)
    yield (
        f"static __device__ Value readout_pullback({UNUSED} Value h, {UNUSED} const Pre& pre, "
        f"Output::Value dy, {UNUSED} Pre& dx) {{"
    )
    yield from [*lines, *(f"dx.x{i} = {types[i]}({dx[i]});" for i in sorted(begun))]
    yield f"return Value({dh}); }}"

    back = parse(pullback(gate, complex_operands))
    lines, dx = _body(
        back, [*pre, "da", "db"], (*complex_operands, h_is_complex, h_is_complex), quick
    )
    yield (
        f"static __device__ void gate_pullback({UNUSED} const Pre& pre, {UNUSED} Value da, "
        f"{UNUSED} Value db, Pre& dx) {{"
    )
    yield from lines
    for i, gradient in enumerate(back.outputs):
        if gradient != 0:
            yield f"dx.x{i} = {f'dx.x{i} + ' if i in begun else ''}{types[i]}({dx[i]});"
    yield "}"


def _type(*, is_complex: bool) -> str:
    return "Complex<Real>" if is_complex else "Real"


def _result_is_complex(readout: str, complex_operands: Sequence[bool]) -> bool:
    program = parse(readout)
    (y,) = program.outputs
    return isinstance(y, str) and complex_values(program, complex_operands)[y]


def _values(program: Program) -> list[str]:
    """A digest for each step of all that it is computed from, the same in every program.

    So the values of a gate are recognised in its pullback.
    """
    digests: dict[object, str] = {}
    for index, (operation, arguments) in enumerate(program.steps):
        written_out = operation, *(digests.get(a, a) for a in arguments)
        digests[f"t{index}"] = hashlib.sha256(repr(written_out).encode()).hexdigest()
    return list(digests.values())


def _values_of(program: Program, operations: Set[str] = OPERATIONS.keys()) -> set[str]:
    """The values by these operations that an output depends on."""
    program = pruned(program)
    steps = zip(program.steps, _values(program), strict=True)
    return {value for step, value in steps if step.operation in operations}


def _body(
    program: Program, names: Sequence[str], complex_operands: Sequence[bool], quick: Set[str]
) -> tuple[list[str], list[str]]:
    """C++ that computes a program: statements, and an expression for each output.

    Args:
        program: what to compute.
        names: of its inputs in C++.
        complex_operands: whether each input is complex.
        quick: which of its `_values` may be so.
    """
    program = pruned(program)
    is_complex = complex_values(program, complex_operands)
    values = {f"x{i}": name for i, name in enumerate(names)}

    def expression(argument: str | Constant, as_type: str | None = None) -> str:
        if isinstance(argument, str):
            name = values.get(argument, argument)
            return f"{as_type}({name})" if as_type else name
        if argument is None or argument != argument or abs(argument) == float("inf"):
            raise GateError(f"{argument} is not a number that a kernel can hold: {program}")
        return f"{as_type or 'Real'}({argument!r})"

    statements, computed = [], _values(program)
    for index, (operation, arguments) in enumerate(program.steps):
        takes_complex = any(is_complex[a] for a in arguments if isinstance(a, str))
        if takes_complex and not OPERATIONS[operation].of_complex:
            raise GateError(f"{operation} is not defined for complex numbers: {program}")
        cpp_type = _type(is_complex=takes_complex)
        first, *others = arguments
        if infix := OPERATIONS[operation].infix:
            mixed = cpp_type if takes_complex else None
            left, right = expression(first, mixed), expression(others[0], mixed)
            written = f"{left} {infix} {right}"
        elif operation == "neg":
            written = f"-{expression(first)}"
        elif operation == "detach":
            written = expression(first)
        elif operation == "where":
            chosen = _type(is_complex=is_complex[f"t{index}"])
            written = ", ".join([expression(first), *(expression(a, chosen) for a in others)])
            written = f"pointwise::where({written})"
        elif operation == "clamp":
            low, high = others
            written = expression(first)
            # Comparisons as PyTorch has them: NaN stays.
            if low is not None:
                written = f"pointwise::at_least({written}, {expression(low)})"
            if high is not None:
                written = f"pointwise::at_most({written}, {expression(high)})"
        elif operation == "pow":
            written = _power(expression(first), first, others[0], expression(others[0]))
        elif operation in ("conj", "real") and not takes_complex:
            written = expression(first)
        elif operation == "conj":
            written = f"conj({expression(first)})"
        else:
            quickly = "quick_" * (computed[index] in quick and not takes_complex)
            arguments_written = ", ".join(map(expression, arguments))
            written = f"pointwise::{quickly}{operation}({arguments_written})"
        statements.append(f"const auto t{index} = {written};")
    return statements, [expression(output) for output in program.outputs]


def _power(base: str, x: str | Constant, exponent: str | Constant, written: str) -> str:
    exact = {
        0: f"{base} * 0 + 1", 1: base, 2: f"{base} * {base}", 3: f"{base} * {base} * {base}",
        0.5: f"pointwise::sqrt({base})", -0.5: f"pointwise::rsqrt({base})",
    }  # fmt: skip
    if not isinstance(exponent, str) and exponent in exact:
        return exact[exponent]
    return f"pointwise::pow({base}, {written})"
