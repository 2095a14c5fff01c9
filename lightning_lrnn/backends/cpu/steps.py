"""Some steps of neighbouring columns of a row, as LLVM IR: loops, and what moves values.

Values are vectors of columns. Where fewer are left, or lie apart in memory, they are gathered into
a vector first: so all columns get the same instructions, and the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from lightning_lrnn.backends.cpu import llvm
from lightning_lrnn.backends.cpu.vector_math import INT, Complex, Lanes

__all__ = ["ARGUMENTS", "NAME", "PAIR", "SIZE", "WALK", "View", "Writer"]

NAME = "steps"
ARGUMENTS = (
    "table", "state", "row", "part", "t", "low", "columns", "steps", "mode", "origin", "direction",
    "nontemporal", "width",
)  # fmt: skip
"""Of the function, all 64-bit integers: addresses of the table of views and of the state (h, A, B),
each of `width` columns; where the steps begin; how many there are; what to compute (WALK, PAIR);
the origin of the state before them; the direction of the walk, 1 or -1; whether stores are
non-temporal.
"""
WALK, PAIR = 1, 2
WITHIN, FIRST, RESTART = 0, 1, 2
"""Origins of the state before a step, for the backward pass: another step; h0; 0."""
SIZE = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
"""Bytes of one value."""
PARTS = {"c64": "f32", "c128": "f64"}
TYPES = {
    "f16": ir.HalfType(),
    "bf16": ir.IntType(16),
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
}


STEPS = 4
"""Taken at once in rows of few vectors. With more, so many streams of memory would be in use that
the hardware stops fetching ahead."""

Values = dict[int | str, Any]
Compute = Callable[[int, Values, list[Any]], tuple[list[Any], Values]]
"""From what to compute, inputs and state to the new state (None where it stays) and outputs."""


def lanes(bits: int) -> int:
    """Columns of a vector, of real parts of so many bits."""
    return llvm.vector_bytes() * 8 // bits


class View:
    """A tensor in the function: where its present step begins, and its strides."""

    def __init__(self, storage: str, index: int, *, sums: bool = False) -> None:
        self.storage, self.index = storage, index
        self.sums = sums
        """Whether it is added to: one row for each part of time, with room for whole vectors."""
        self.row: Any = None
        """Address of the first column of the present step."""
        self.step: Any = None
        """Bytes from a step to the next one."""
        self.column: Any = None
        """Bytes from column to column."""
        self.buffer: Any = None
        """A buffer of one vector, for columns that are not contiguous."""


class Writer:
    """Writes the function.

    Attributes:
        module: the IR module with the function.
        math: writes the arithmetic of the formulas.
        restarts: whether no state passes into the step.

    Args:
        columns: of a vector, if not as many as the widest registers hold.
    """

    def __init__(
        self,
        bits: int,
        inputs: dict[int | str, View],
        outputs: dict[int | str, View],
        columns: int | None = None,
        *,
        complex_state: bool,
    ) -> None:
        self.bits, self.inputs, self.outputs = bits, inputs, outputs
        self.of_state = ("c" if complex_state else "f") + str(2 * bits if complex_state else bits)
        self.module = ir.Module(name=NAME)
        signature = ir.FunctionType(ir.VoidType(), [INT] * len(ARGUMENTS))
        self.function = ir.Function(self.module, signature, NAME)
        for argument, name in zip(self.function.args, ARGUMENTS, strict=True):
            argument.name = name
        self.arguments = dict(zip(ARGUMENTS, self.function.args, strict=True))
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.lanes = columns or lanes(bits)
        self.math = Lanes(self.builder, self.lanes, bits)

    @property
    def views(self) -> list[View]:
        return [*self.inputs.values(), *self.outputs.values()]

    # Small parts.

    def integer(self, value: int) -> Any:
        return ir.Constant(INT, value)

    def field(self, index: int, column: int) -> Any:
        """Loads an entry of the table of views."""
        b = self.builder
        table = b.inttoptr(self.arguments["table"], INT.as_pointer())
        return b.load(b.gep(table, [self.integer(4 * index + column)]), align=8)

    def pointer(self, address: int | Any, value_type: ir.Type) -> Any:
        return self.builder.inttoptr(address, value_type.as_pointer())

    def vector(self, storage: str) -> ir.VectorType:
        """The type of a vector in memory, where real and imaginary parts alternate."""
        parts = self.lanes * (2 if storage in PARTS else 1)
        return ir.VectorType(TYPES[PARTS.get(storage, storage)], parts)

    def element(self, storage: str) -> ir.Type:
        """The type of one column in memory."""
        part = TYPES[PARTS.get(storage, storage)]
        return ir.VectorType(part, 2) if storage in PARTS else part

    def widened(self, x: Any, storage: str) -> Any:
        """A vector from memory as one of the registers' type."""
        b, register_type = self.builder, self.math.type
        if storage in PARTS:
            both = ([*range(part, 2 * self.lanes, 2)] for part in (0, 1))
            return Complex(*(self.math.shuffled(x, x, order) for order in both))
        if storage == "bf16":
            wide = ir.VectorType(ir.IntType(32), self.lanes)
            x = b.shl(b.zext(x, wide), ir.Constant(wide, [16] * self.lanes))
            x, storage = b.bitcast(x, ir.VectorType(ir.FloatType(), self.lanes)), "f32"
        bits = 8 * SIZE[storage]
        if bits == self.bits:
            return x
        return b.fpext(x, register_type) if bits < self.bits else b.fptrunc(x, register_type)

    def narrowed(self, x: Any, storage: str) -> Any:
        """The inverse, rounded to nearest, ties to even."""
        b = self.builder
        if storage in PARTS:
            re, im = (self.narrowed(part, PARTS[storage]) for part in self.math.as_complex(x))
            order = [i // 2 + i % 2 * self.lanes for i in range(2 * self.lanes)]
            return self.math.shuffled(re, im, order)
        if storage == "bf16":
            bits_type = ir.VectorType(ir.IntType(32), self.lanes)

            def number(value: int) -> Any:
                return ir.Constant(bits_type, [value] * self.lanes)

            bits = b.bitcast(x, bits_type)
            odd = b.and_(b.lshr(bits, number(16)), number(1))
            rounded = b.add(bits, b.add(odd, number(0x7FFF)))
            bits = b.select(b.fcmp_unordered("uno", x, x), number(0x7FC00000), rounded)
            return b.trunc(b.lshr(bits, number(16)), self.vector(storage))
        if storage == "f16":
            return b.fptrunc(x, self.vector(storage))
        if storage == "f64" and self.bits == 32:
            return b.fpext(x, self.vector(storage))
        return x

    # The loops.

    def write(self, compute: Compute, *, divided: bool, narrow: bool) -> str:
        """The module's text.

        Args:
            compute: writes the formulas of one step.
            divided: whether pairs are asked for, too.
            narrow: whether rows are of few vectors.
        """
        b, arguments = self.builder, self.arguments
        self.compute = compute
        for view in self.views:
            self.begin(view)
        if "before" in self.inputs:
            self.begin_before()
        whole = ir.Constant(ir.IntType(1), 1)
        for view in self.inputs.values():
            dense = b.icmp_unsigned("==", view.column, self.integer(SIZE[view.storage]))
            whole = b.and_(whole, dense)
        self.dense = whole
        self.restarts = b.icmp_unsigned("==", arguments["origin"], self.integer(RESTART))
        self.streams = b.icmp_unsigned("!=", arguments["nontemporal"], self.integer(0))
        modes = [(WALK, "walk"), (PAIR, "pair"), (WALK | PAIR, "both")]
        end = self.function.append_basic_block("end")
        if divided:
            otherwise = self.function.append_basic_block("never")
            choice = b.switch(arguments["mode"], otherwise)
            for mode, name in modes:
                block = self.function.append_basic_block(name)
                choice.add_case(self.integer(mode), block)
                b.position_at_end(block)
                self.write_steps(mode, narrow=narrow)
                b.branch(end)
            b.position_at_end(otherwise)
            b.unreachable()
        else:
            self.write_steps(WALK, narrow=narrow)
            b.branch(end)
        b.position_at_end(end)
        b.ret_void()
        return str(self.module)

    def begin(self, view: View) -> None:
        """Loads a view from the table, and moves it to the first of the steps."""
        b = self.builder
        start, by_row, by_step, column = (self.field(view.index, i) for i in range(4))
        step = self.arguments["part" if view.sums else "t"]
        for size, count in (
            (by_row, self.arguments["row"]),
            (by_step, step),
            (column, self.arguments["low"]),
        ):
            start = b.add(start, b.mul(size, count))
        view.row, view.column = start, column
        view.step = self.integer(0) if view.sums else b.mul(by_step, self.arguments["direction"])
        if not view.sums:
            vector_type = self.vector(view.storage)
            view.buffer = b.alloca(vector_type)
            view.buffer.align = llvm.vector_bytes()
            b.store(ir.Constant(vector_type, None), view.buffer, align=llvm.vector_bytes())

    def begin_before(self) -> None:
        """The state before a step stands at the step that the walk comes to next, or in h0."""
        b, view = self.builder, self.inputs["before"]
        within = b.icmp_unsigned("==", self.arguments["origin"], self.integer(WITHIN))
        first = b.icmp_unsigned("==", self.arguments["origin"], self.integer(FIRST))
        of_h0 = View(view.storage, view.index + 1)
        self.begin(of_h0)
        view.row = b.add(view.row, b.select(within, view.step, self.integer(0)))
        view.row = b.select(first, of_h0.row, view.row)
        view.column = b.select(first, of_h0.column, view.column)

    def write_steps(self, mode: int, *, narrow: bool) -> None:
        """Loops over steps and vectors.

        In rows of few vectors some steps are taken at once, of one vector all of them, with the
        state in registers between them.
        """
        b, columns = self.builder, self.arguments["columns"]
        views = self.views if mode & WALK else list(self.inputs.values())
        vector, one = self.integer(self.lanes), self.integer(1)
        vectors = b.udiv(b.add(columns, self.integer(self.lanes - 1)), vector)
        # In the order of memory, which the hardware expects: backwards in time from the last one.
        rises = b.icmp_signed(">", self.arguments["direction"], self.integer(0))
        low = b.select(rises, self.integer(0), b.mul(b.sub(vectors, one), vector))
        by = b.select(rises, vector, self.integer(-self.lanes))
        steps, at_once, times = self.arguments["steps"], one, self.arguments["steps"]
        if narrow:
            several = self.integer(STEPS)
            at_once = b.select(b.icmp_unsigned("==", vectors, one), steps, several)
            times = b.udiv(b.add(steps, b.sub(at_once, one)), at_once)
        begun = [place.row for place in views]
        with Loop(b, times, [steps, *begun]) as walk:
            left, *rows = walk.values
            with Loop(b, vectors, [low]) as across:
                (d,) = across.values
                state = self.load_state(d)
                if narrow:
                    fewer = b.icmp_unsigned("<", left, at_once)
                    with Loop(b, b.select(fewer, left, at_once), [*rows, *state]) as run:
                        self.set_rows(views, run.values)
                        state = self.write_vector(mode, d, run.values[len(rows) :])
                        run.values = [*self.following(views, run.values), *state]
                    state = run.values[len(rows) :]
                else:
                    self.set_rows(views, rows)
                    state = self.write_vector(mode, d, state)
                self.store_state(d, state, mode)
                across.values = [b.add(d, by)]
            further = self.following(views, rows, at_once if narrow else None)
            walk.values = [b.sub(left, at_once), *further]
        self.set_rows(views, begun)

    def set_rows(self, views: list[View], rows: list[Any]) -> None:
        for view, row in zip(views, rows, strict=False):
            view.row = row

    def following(self, views: list[View], rows: list[Any], steps: Any = None) -> list[Any]:
        """The addresses of the views one step later, or `steps` later."""
        b = self.builder
        return [
            b.add(row, view.step if steps is None else b.mul(view.step, steps))
            for view, row in zip(views, rows, strict=False)
        ]

    def write_vector(self, mode: int, d: Any, state: list[Any]) -> list[Any]:
        """One step of the columns from d on; the state after it."""
        b = self.builder
        left = b.sub(self.arguments["columns"], d)
        whole = b.and_(b.icmp_unsigned(">=", left, self.integer(self.lanes)), self.dense)
        count = b.select(
            b.icmp_unsigned("<", left, self.integer(self.lanes)), left, self.integer(self.lanes)
        )
        values = self.load(whole, d, count)
        before = [self.widened(vector, self.of_state) for vector in state]
        after, results = self.compute(mode, values, before)
        if mode & WALK:
            self.add_to_sums(results, d)
            self.store(results, whole, d, count)
        return [
            vector if new is None else self.narrowed(new, self.of_state)
            for vector, new in zip(state, after, strict=True)
        ]

    def load_state(self, d: Any) -> list[Any]:
        return [self.builder.load(self.state(i, d), align=self.bits // 8) for i in range(3)]

    def store_state(self, d: Any, state: list[Any], mode: int) -> None:
        parts = [0] * bool(mode & WALK) + [1, 2] * bool(mode & PAIR)
        for part in parts:
            self.builder.store(state[part], self.state(part, d), align=self.bits // 8)

    def state(self, part: int, d: Any) -> Any:
        b = self.builder
        index = b.add(d, b.mul(self.arguments["width"], self.integer(part)))
        address = b.add(self.arguments["state"], b.mul(index, self.integer(SIZE[self.of_state])))
        return self.pointer(address, self.vector(self.of_state))

    def at(self, view: View, d: Any) -> Any:
        """The vector from column d on, if columns lie side by side."""
        b = self.builder
        offset = b.mul(d, self.integer(SIZE[view.storage]))
        return self.pointer(b.add(view.row, offset), self.vector(view.storage))

    def alignment(self, view: View) -> int:
        """The alignment of a column in memory, in bytes."""
        return SIZE[PARTS.get(view.storage, view.storage)]

    def load(self, whole: Any, d: Any, count: Any) -> Values:
        """The inputs of columns from d on: a vector, the beginning of one, or column by column."""
        b, views = self.builder, list(self.inputs.values())
        together, beginning, apart, done = (self.function.append_basic_block() for _ in range(4))
        vectors: list[list[Any]] = []
        self.branch(whole, together, beginning, apart)
        b.position_at_end(together)
        vectors.append([b.load(self.at(p, d), align=self.alignment(p)) for p in views])
        b.branch(done)
        b.position_at_end(beginning)
        vectors.append([self.masked(p, d, count) for p in views])
        b.branch(done)
        b.position_at_end(apart)
        with Loop(b, count) as column:
            for p in views:
                source, buffer = self.elements(p, d, column.index)
                b.store(b.load(source, align=self.alignment(p)), buffer, align=self.alignment(p))
        vectors.append([b.load(p.buffer, align=llvm.vector_bytes()) for p in views])
        ends = together, beginning, b.block
        b.branch(done)
        b.position_at_end(done)
        phis = [b.phi(self.vector(p.storage)) for p in views]
        for end, loaded in zip(ends, vectors, strict=True):
            for phi, vector in zip(phis, loaded, strict=True):
                phi.add_incoming(vector, end)
        return {
            key: self.widened(phi, view.storage)
            for phi, (key, view) in zip(phis, self.inputs.items(), strict=True)
        }

    def store(self, results: Values, whole: Any, d: Any, count: Any) -> None:
        """Stores the outputs of columns from d on, in the same three ways."""
        b = self.builder
        stored = [
            (view, self.narrowed(results[key], view.storage))
            for key, view in self.outputs.items()
            if not view.sums
        ]
        together, beginning, apart, done = (self.function.append_basic_block() for _ in range(4))
        streaming, usual = (self.function.append_basic_block() for _ in range(2))
        self.branch(whole, together, beginning, apart)
        b.position_at_end(together)
        b.cbranch(self.streams, streaming, usual)
        b.position_at_end(streaming)
        for view, vector in stored:
            align = min(self.lanes * SIZE[view.storage], llvm.vector_bytes())
            store = b.store(vector, self.at(view, d), align=align)
            one = ir.Constant(ir.IntType(32), 1)
            store.set_metadata("nontemporal", self.module.add_metadata([one]))
        b.branch(done)
        b.position_at_end(usual)
        for view, vector in stored:
            b.store(vector, self.at(view, d), align=self.alignment(view))
        b.branch(done)
        b.position_at_end(beginning)
        for view, vector in stored:
            self.masked(view, d, count, vector)
        b.branch(done)
        b.position_at_end(apart)
        for view, vector in stored:
            b.store(vector, view.buffer, align=llvm.vector_bytes())
        with Loop(b, count) as column:
            for view, _ in stored:
                target, buffer = self.elements(view, d, column.index)
                align = self.alignment(view)
                b.store(b.load(buffer, align=align), target, align=align)
        b.branch(done)
        b.position_at_end(done)

    def branch(self, whole: Any, together: Any, beginning: Any, apart: Any) -> None:
        """Branches to one of three blocks, by where the columns lie in memory."""
        part = self.function.append_basic_block()
        self.builder.cbranch(whole, together, part)
        self.builder.position_at_end(part)
        self.builder.cbranch(self.dense, beginning, apart)

    def masked(self, view: View, d: Any, count: Any, vector: Any = None) -> Any:
        """The first columns of a vector, loaded or stored, and nothing else touched."""
        b, vector_type = self.builder, self.vector(view.storage)
        parts = vector_type.count // self.lanes
        numbers = ir.VectorType(ir.IntType(32), vector_type.count)
        limit = b.trunc(b.mul(count, self.integer(parts)), ir.IntType(32))
        limit = b.insert_element(ir.Constant(numbers, ir.Undefined), limit, self.integer(0))
        limit = self.math.shuffled(limit, limit, [0] * vector_type.count)
        mask = b.icmp_unsigned("<", ir.Constant(numbers, list(range(vector_type.count))), limit)
        align = ir.Constant(ir.IntType(32), self.alignment(view))
        pointer = self.at(view, d)
        of_part = PARTS.get(view.storage, view.storage).replace("bf16", "i16")
        name = f"v{vector_type.count}{of_part}.p0v{vector_type.count}{of_part}"
        if vector is None:
            inputs = [pointer, align, mask, ir.Constant(vector_type, None)]
            return b.call(self.declared(f"llvm.masked.load.{name}", vector_type, inputs), inputs)
        inputs = [vector, pointer, align, mask]
        return b.call(self.declared(f"llvm.masked.store.{name}", ir.VoidType(), inputs), inputs)

    def declared(self, name: str, result: ir.Type, inputs: list[Any]) -> Any:
        if name not in self.module.globals:
            ir.Function(self.module, ir.FunctionType(result, [x.type for x in inputs]), name)
        return self.module.globals[name]

    def elements(self, view: View, d: Any, lane: Any) -> tuple[Any, Any]:
        """Pointers to a column in the tensor and to its lane in the buffer."""
        b, element_type = self.builder, self.element(view.storage)
        offset = b.mul(b.add(d, lane), view.column)
        first = b.bitcast(view.buffer, element_type.as_pointer())
        return self.pointer(b.add(view.row, offset), element_type), b.gep(first, [lane])

    def add_to_sums(self, results: dict[int | str, Any], d: Any) -> None:
        """In double precision; they have room for whole vectors."""
        b = self.builder
        for key, view in self.outputs.items():
            if view.sums:
                pointer = self.at(view, d)
                vector = self.narrowed(results[key], view.storage)
                b.store(b.fadd(b.load(pointer, align=8), vector), pointer, align=8)


class Loop:
    """`with Loop(builder, count, values) as loop:` runs `count` times, at least once.

    Attributes:
        index: from 0 on.
        values: those given, in the first round; what is put here, in the next, and after the last.
    """

    def __init__(self, builder: ir.IRBuilder, count: Any, values: Sequence[Any] = ()) -> None:
        self.builder, self.count, self.values = builder, count, list(values)

    def __enter__(self) -> Loop:
        b, before = self.builder, self.builder.block
        self.block = b.append_basic_block()
        b.branch(self.block)
        b.position_at_end(self.block)
        self.index, *self.phis = (b.phi(v.type) for v in (ir.Constant(INT, 0), *self.values))
        self.index.add_incoming(ir.Constant(INT, 0), before)
        for phi, value in zip(self.phis, self.values, strict=True):
            phi.add_incoming(value, before)
        self.values = list(self.phis)
        return self

    def __exit__(self, *_: object) -> None:
        b = self.builder
        after = b.add(self.index, ir.Constant(INT, 1))
        self.index.add_incoming(after, b.block)
        for phi, value in zip(self.phis, self.values, strict=True):
            phi.add_incoming(value, b.block)
        done = b.append_basic_block()
        b.cbranch(b.icmp_unsigned("<", after, self.count), self.block, done)
        b.position_at_end(done)
