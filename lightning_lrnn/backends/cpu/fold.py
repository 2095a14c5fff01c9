"""The plain recurrence of one or two features: a vector holds several steps of time.

Rows of so few features would leave most of a vector empty, and each step would wait for the one
before. Here `W / D` steps of D features, which follow each other in memory, are one step of W
columns: their pairs are combined within the vector (Hillis & Steele: in every round with those 1,
2, 4 steps before), and the state enters all of them at once,

    (A_s, B_s) = (a_s, b_s) o ... o (a_0, b_0),        h_s = A_s h + B_s.

If an h_s is not finite the steps are taken one after the other: a product of decays may have
overflowed where the loop does not.

The table of its tensors, all contiguous over time:

    forward:   a, b, y
    backward:  a, dy, the state before each step, da, db
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import ir

from lightning_lrnn.backends.cpu import llvm, steps, vector_math
from lightning_lrnn.backends.cpu.steps import NAME, PAIR, PARTS, SIZE, WALK, Values, View, Writer
from lightning_lrnn.backends.cpu.vector_math import Complex

__all__ = ["Fold", "address"]


class Fold(NamedTuple):
    """All that the code of a function depends on."""

    storage: str
    """Storage of all tensors: f32, f64, c64 or c128."""
    columns: int
    """Columns W of a vector: features times steps."""
    features: int
    """Features D; W / D is a power of two."""
    backward: bool
    exclusive: bool
    rises: bool
    """Whether the walk goes forward in time."""
    divided: bool
    """Whether it computes pairs as well as states."""


def address(fold: Fold) -> int:
    """The address of the function, compiled or read from the disk."""
    return llvm.load(NAME, [*_sources(), repr(fold).encode()], lambda: _Folded(fold).text())


@cache
def _sources() -> tuple[bytes, ...]:
    """The source files that write the IR, for the key of the cache."""
    files = (__file__, steps.__file__, vector_math.__file__)
    return tuple(Path(file).read_bytes() for file in files)


class _Folded:
    """Writes the formulas of one vector of steps."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        inputs, outputs = ["a", "b"], ["y"]
        if fold.backward:
            inputs, outputs = ["a", "dy", "before each"], ["da", "db"]
        views: dict[int | str, View] = {
            name: View(fold.storage, i) for i, name in enumerate(inputs + outputs)
        }
        written: dict[int | str, View] = {name: views.pop(name) for name in outputs}
        self.width = fold.columns
        bits = 8 * SIZE[PARTS.get(fold.storage, fold.storage)]
        self.writer = Writer(bits, views, written, self.width, complex_state=fold.storage in PARTS)
        self.math = self.writer.math

    def text(self) -> str:
        """Returns the text of the IR module."""
        return self.writer.write(self.compute, divided=self.fold.divided, narrow=True)

    def compute(self, mode: int, values: Values, state: list[Any]) -> tuple[list[Any], Values]:
        """All steps of a vector; in each vector of the state every step has the same."""
        m, exclusive = self.math, self.fold.exclusive
        h, A, B = state
        a, b = values["a"], values.get("b")
        if self.fold.backward:
            a, b = m.conj(a), values["dy"]
            if not exclusive:
                b = m.mul(a, b)  # c = conj(a) (dy + c)
        of_one, of_all, distance = m.number(1), m.number(-0.0), self.fold.features
        product, total = a, b
        while distance < self.width:
            before = self.later(total, of_all, distance)
            total = m.multiply_add(product, before, total)
            product = m.mul(product, self.later(product, of_one, distance))
            distance *= 2
        results: Values = {}
        new_h = new_A = new_B = None
        if mode & WALK:
            after = self.checked(m.multiply_add(product, h, total), a, b, h)
            results = self.results(values, self.later(after, h, self.fold.features), after)
            new_h = self.last(after)
        if mode & PAIR:
            product, total = self.last(product), self.last(total)
            new_A, new_B = m.flush(m.mul(product, A)), m.multiply_add(product, B, total)
        return [new_h, new_A, new_B], results

    def results(self, values: Values, before: Any, after: Any) -> Values:
        """Returns the outputs, from the states before and after each step."""
        m, exclusive = self.math, self.fold.exclusive
        if not self.fold.backward:
            return {"y": before if exclusive else after}
        g = before if exclusive else m.add(values["dy"], before)
        return {"da": m.mul(g, m.conj(values["before each"])), "db": g}

    def checked(self, after: Any, a: Any, b: Any, h: Any) -> Any:
        """The states after each step; step by step if they are not all finite."""
        writer, m, b_ = self.writer, self.math, self.writer.builder
        parts = list(after) if isinstance(after, Complex) else [after]
        finite = None
        for part in parts:
            ordinary = m.compare("<", m.abs(part), m.number(float("inf")))
            finite = ordinary if finite is None else b_.and_(finite, ordinary)
        all_of_them = ir.IntType(self.width)
        holds = b_.icmp_unsigned(
            "==", b_.bitcast(finite, all_of_them), ir.Constant(all_of_them, -1)
        )
        fast, slow = b_.block, writer.function.append_basic_block()
        done = writer.function.append_basic_block()
        b_.cbranch(holds, done, slow)
        b_.position_at_end(slow)
        stepped = h
        for _ in range(self.width // self.fold.features):
            # After as many rounds as there are steps before it a step has what the loop gives.
            stepped = m.multiply_add(a, self.later(stepped, h, self.fold.features), b)
        b_.branch(done)
        b_.position_at_end(done)
        phis = []
        for quick, careful in zip(
            parts, list(stepped) if isinstance(stepped, Complex) else [stepped], strict=True
        ):
            phi = b_.phi(quick.type)
            phi.add_incoming(quick, fast)
            phi.add_incoming(careful, slow)
            phis.append(phi)
        return Complex(*phis) if isinstance(after, Complex) else phis[0]

    def later(self, x: Any, first: Any, distance: int) -> Any:
        """Every column gets that of earlier steps of the walk, the first ones that of `first`."""
        W = self.width
        if self.fold.rises:
            order = [W + i if i < distance else i - distance for i in range(W)]
        else:
            order = [i + distance if i + distance < W else W + i for i in range(W)]
        return self.math.shuffled(x, first, order)

    def last(self, x: Any) -> Any:
        """The columns of the last step of the walk, for every step."""
        W, D = self.width, self.fold.features
        begin = W - D if self.fold.rises else 0
        return self.math.shuffled(x, x, [begin + i % D for i in range(W)])
