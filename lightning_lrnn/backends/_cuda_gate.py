"""A gate and a readout as CUDA C++: the `struct Gate` that `recurrence.cu` is compiled with.

Value and derivative come from the same programs (`gates`, `derivative`); `pointwise.cuh` has the
operations. The plain recurrence is the gate `lambda a, b: (a, b)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from lightning_lrnn.derivative import needed, pullback, readout_or_state
from lightning_lrnn.gates import (
    Constant,
    GateError,
    Program,
    complex_values,
    inputs_of,
    parse,
    pruned,
    state_is_complex,
)

__all__ = ["Fused", "Operand", "fused"]

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip

REAL_ONLY = frozenset(
    "lt le gt ge ne softplus relu gelu erf clamp minimum maximum complex polar".split()
)

DOUBLE = frozenset({"f64", "c128"})


class Operand(NamedTuple):
    """How a pre-activation or a parameter lies in memory."""

    storage: str
    """f32, f64, f16, bf16, c64 or c128."""
    varies: bool
    """Over time: (B, T, D). Else it is a parameter, (D,) or (B, D)."""


class Fused(NamedTuple):
    """What a kernel with a gate in it is made of."""

    source: str
    """`struct Gate`, for one pass."""
    needed: tuple[bool, ...]
    """Which operands it reads."""
    state: str
    """Storage of the emitted states."""
    output: str
    """Storage of what the readout puts out; `state` if there is none."""


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
    n = len(operands)
    sequences = [o.storage for o in operands if o.varies]
    half = next((s for s in sequences if s in ("f16", "bf16")), None)
    double = not DOUBLE.isdisjoint(sequences)
    real = "double" if double else "float"
    kinds = tuple(o.storage.startswith("c") for o in operands)
    for operand in operands:
        if (operand.storage in DOUBLE) != double and (operand.varies or operand.storage[0] == "c"):
            raise GateError(f"one gate cannot take both single and double precision: {operands}")

    def storage(is_complex: bool) -> str:
        return ("c128" if double else "c64") if is_complex else half or ("f64" if double else "f32")

    of_gate = parse(gate)
    h_is_complex = state_is_complex(gate, kinds)
    readout_program = readout_or_state(readout, n)
    of_readout = parse(readout_program)
    (y_is_complex,) = _complex_outputs(of_readout, (h_is_complex, *kinds))
    gate_back = parse(pullback(gate, kinds))
    readout_back = parse(pullback(readout_program, (h_is_complex, *kinds)))

    if step == "forward":
        read = inputs_of(of_gate) | {i - 1 for i in inputs_of(of_readout)}
        used = tuple(i in read for i in range(n))
    else:
        used = needed(gate, readout, kinds)

    pre = [f"pre.x{i}" for i in range(n)]
    types = [_type(kind, real) for kind in kinds]
    of_h = ["h", *pre]
    unused = "[[maybe_unused]]"

    lines, (a, b) = _body(of_gate, pre, kinds, real)
    functions = [
        f"static __device__ void gate({unused} const Pre& pre, Value& a, Value& b)"
        + _block([*lines, f"a = Value({a});", f"b = Value({b});"])
    ]
    lines, (y,) = _body(of_readout, of_h, (h_is_complex, *kinds), real)
    functions.append(
        f"static __device__ Output::Value readout(Value h, {unused} const Pre& pre)"
        + _block([*lines, f"return Output::Value({y});"])
    )
    # The readout's share of a gradient comes first, the gate's is added to it.
    begun = {i for i, gradient in enumerate(readout_back.outputs[1:]) if gradient != 0}
    lines, (dh, *dx) = _body(
        readout_back, [*of_h, "dy"], (h_is_complex, *kinds, y_is_complex), real
    )
    functions.append(
        f"static __device__ Value readout_pullback({unused} Value h, {unused} const Pre& pre,"
        f" Output::Value dy, {unused} Pre& dx)"
        + _block(
            [
                *lines,
                *(f"dx.x{i} = {types[i]}({dx[i]});" for i in sorted(begun)),
                f"return Value({dh});",
            ]
        )
    )
    lines, dx = _body(gate_back, [*pre, "da", "db"], (*kinds, h_is_complex, h_is_complex), real)
    for i, gradient in enumerate(gate_back.outputs):
        if gradient != 0:
            before = f"dx.x{i} + " if i in begun else ""
            lines.append(f"dx.x{i} = {before}{types[i]}({dx[i]});")
    functions.append(
        f"static __device__ void gate_pullback({unused} const Pre& pre, {unused} Value da,"
        f" {unused} Value db, Pre& dx)" + _block(lines)
    )

    def each(chosen: Sequence[int], statement: str) -> str:
        return _block([statement.format(i=i, s=operands[i].storage, type=types[i]) for i in chosen])

    varying = [i for i in range(n) if operands[i].varies]
    fixed = [i for i in range(n) if not operands[i].varies]
    loaded = "pre.x{i} = {type}(load_as<storage::{s}>(at[{i}]));"
    memory = [
        "static __device__ void load_step([[maybe_unused]] Pre& pre,"
        " [[maybe_unused]] const char* const* at)" + each([i for i in varying if used[i]], loaded),
        "static __device__ void load_parameters([[maybe_unused]] Pre& pre,"
        " [[maybe_unused]] const char* const* at)" + each([i for i in fixed if used[i]], loaded),
        "static __device__ void store_step(const Pre& dx, char* const* to, Index at)"
        + each(varying, "store_as<storage::{s}>(to[{i}], at, dx.x{i});"),
        "static __device__ void add_parameters([[maybe_unused]] Pre& sums,"
        " [[maybe_unused]] const Pre& dx)" + each(fixed, "sums.x{i} = sums.x{i} + dx.x{i};"),
        "template <typename Each>\nstatic __device__ void each_parameter("
        "[[maybe_unused]] const Pre& sums, [[maybe_unused]] Each each)"
        + each(fixed, "each({i}, sums.x{i});"),
    ]
    fields = "".join(f"\n  {kind} x{i};" for i, kind in enumerate(types))
    state, output = storage(h_is_complex), storage(y_is_complex)
    lines = [
        "struct Gate {",
        f"using State = storage::{state};",
        f"using Output = storage::{output};",
        "using Value = State::Value;",
        f"static constexpr int kInputs = {n};",
        f"static constexpr bool kHasReadout = {str(bool(readout)).lower()};",
        f"struct Pre {{{fields}\n}};",
        *memory,
        *functions,
        "};",
    ]
    # One line: it becomes the value of a macro.
    source = " ".join("\n".join(lines).split())
    return Fused(source, used, state, output)


def _type(is_complex: bool, real: str) -> str:
    return f"Complex<{real}>" if is_complex else real


def _block(statements: Sequence[str]) -> str:
    return " {" + "".join(f"\n  {statement}" for statement in statements) + "\n}"


def _complex_outputs(program: Program, kinds: Sequence[bool]) -> list[bool]:
    found = complex_values(program, kinds)
    return [isinstance(o, str) and found[o] for o in program.outputs]


def _body(
    program: Program, names: Sequence[str], kinds: Sequence[bool], real: str
) -> tuple[list[str], list[str]]:
    """C++ that computes a program: statements, and an expression for each output.

    Args:
        program: what to compute.
        names: of its inputs in C++.
        kinds: whether each input is complex.
        real: "float" or "double".
    """
    program = pruned(program)
    is_complex = complex_values(program, kinds)
    values = {f"x{i}": name for i, name in enumerate(names)}

    def expression(argument: str | Constant, as_type: str | None = None) -> str:
        if isinstance(argument, str):
            name = values.get(argument, argument)
            return f"{as_type}({name})" if as_type else name
        if argument is None or argument != argument or abs(argument) == float("inf"):
            raise GateError(f"{argument} is not a number that a kernel can hold: {program}")
        return f"{as_type or real}({argument!r})"

    statements = []
    for index, (operation, arguments) in enumerate(program.steps):
        takes_complex = any(is_complex[a] for a in arguments if isinstance(a, str))
        if takes_complex and operation in REAL_ONLY:
            raise GateError(f"{operation} is not defined for complex numbers: {program}")
        kind = _type(takes_complex, real)
        first, *others = arguments
        if operation in INFIX:
            mixed = kind if takes_complex else None
            left, right = expression(first, mixed), expression(others[0], mixed)
            written = f"{left} {INFIX[operation]} {right}"
        elif operation == "neg":
            written = f"-{expression(first)}"
        elif operation == "detach":
            written = expression(first)
        elif operation == "where":
            chosen = _type(is_complex[f"t{index}"], real)
            written = f"{expression(first)} ? " + " : ".join(expression(a, chosen) for a in others)
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
            written = f"pointwise::{operation}({', '.join(map(expression, arguments))})"
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
