"""A gate and a readout as LLVM IR: the steps of a recurrence on neighbouring columns of a row.

Value and derivative come from the same programs (`gates`, `derivative`) as on a GPU. What is
compiled is a function of some steps of some columns; `_numba_kernels.rows` calls it for one part of
a row after the other. It finds its tensors in a table of places, (address, stride of rows, of
steps, of columns) in bytes for each:

    forward:   operands..., y, h
    backward:  operands..., dy, h, h0, dy/d operands..., where parameters have sums in float64

Values are vectors of columns. Where fewer are left, or lie apart in memory, they are gathered into
a vector first: so all columns get the same instructions, and the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import ir

from lightning_lrnn.backends import _cpu_math, _llvm
from lightning_lrnn.backends._cpu_math import INT, Lanes
from lightning_lrnn.backends._cuda_gate import Operand
from lightning_lrnn.derivative import needed, pullback, readout_or_state
from lightning_lrnn.gates import CONDITIONS, Program, inputs_of, parse

__all__ = ["ARGUMENTS", "Steps", "address", "lanes"]

_Memo = dict[Any, Any]
"""What was computed of which arguments."""

NAME = "steps"
ARGUMENTS = (
    "table", "state", "row", "part", "t", "low", "columns", "steps", "what", "place", "direction",
    "past", "width",
)  # fmt: skip
"""Of the function, all 64-bit integers: addresses of the places and of the state (h, A, B), each of
`width` columns; where the steps begin; how many there are; what to compute (WALK, PAIR); the place
of the state before them; 1 or -1: the walk's direction; whether outputs are stored past the caches.
"""
WALK, PAIR = 1, 2
WITHIN, FIRST, RESTART = 0, 1, 2
"""Places, for the backward pass: the state before a step is that of another step; is h0; is 0."""
SIZE = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
BYTE = ir.IntType(8)


class Steps(NamedTuple):
    """What a function is made of."""

    gate: str
    readout: str
    operands: tuple[Operand, ...]
    backward: bool
    exclusive: bool
    divided: bool
    """Whether pairs are asked for, too."""

    @property
    def bits(self) -> int:
        """Of a value in registers."""
        return 64 if any(o.storage == "f64" and o.varies for o in self.operands) else 32

    @property
    def storage(self) -> str:
        """Of the states and outputs."""
        return next(o.storage for o in self.operands if o.varies)


def lanes(bits: int) -> int:
    """Columns of a vector."""
    return _llvm.vector_bytes() * 8 // bits


@cache
def address(steps: Steps) -> int:
    """Of the function, compiled at the first call."""
    return _llvm.load(NAME, [*_sources(), repr(steps).encode()], lambda: str(_Writer(steps).module))


@cache
def _sources() -> tuple[bytes, ...]:
    """The text of what writes the IR."""
    return tuple(Path(file).read_bytes() for file in (__file__, _cpu_math.__file__))


class _Place:
    """A tensor in the function: where its step begins, and what moves a vector of its columns."""

    def __init__(self, storage: str, index: int, sums: bool = False) -> None:
        self.storage, self.index = storage, index
        self.sums = sums
        """Whether it is added to: one row for each part of time, with room for whole vectors."""
        self.row: Any = None
        """Address of the first column of the present step."""
        self.step: Any = None
        """To the next one, in bytes."""
        self.column: Any = None
        """Bytes from column to column."""
        self.buffer: Any = None
        """A vector in memory, for columns that lie apart."""


class _Writer:
    """Writes the function."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.module = ir.Module(name=NAME)
        kind = ir.FunctionType(ir.VoidType(), [INT] * len(ARGUMENTS))
        self.function = ir.Function(self.module, kind, NAME)
        for argument, name in zip(self.function.args, ARGUMENTS, strict=True):
            argument.name = name
        self.arguments = dict(zip(ARGUMENTS, self.function.args, strict=True))
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.lanes = lanes(steps.bits)
        self.math = Lanes(self.builder, self.lanes, steps.bits)
        self.parsed()
        self.write()

    # What is read and written.

    def parsed(self) -> None:
        steps = self.steps
        n = len(steps.operands)
        kinds = (False,) * n
        self.gate = parse(steps.gate)
        self.readout = parse(readout_or_state(steps.readout, n))
        self.gate_back = parse(pullback(steps.gate, kinds))
        self.readout_back = parse(pullback(str(self.readout), (False, *kinds)))
        self.inputs: dict[int | str, _Place] = {}
        self.outputs: dict[int | str, _Place] = {}
        state = steps.storage
        if steps.backward:
            used = needed(steps.gate, steps.readout, kinds)
        else:
            read = inputs_of(self.gate) | {i - 1 for i in inputs_of(self.readout)}
            used = tuple(i in read for i in range(n))
        for i, operand in enumerate(steps.operands):
            if used[i]:
                self.inputs[i] = _Place(operand.storage, i)
        if not steps.backward:
            if steps.readout:
                self.outputs["y"] = _Place(state, n)
            self.outputs["h"] = _Place(state, n + 1)
            return
        self.inputs["dy"] = _Place(state, n)
        self.of_a = n in inputs_of(self.gate_back)
        emitted_is_read = 0 in inputs_of(self.readout_back)
        if emitted_is_read or (self.of_a and steps.exclusive):
            self.inputs["h"] = _Place(state, n + 1)
        if self.of_a and not steps.exclusive:
            self.inputs["before"] = _Place(state, n + 1)
        for i, operand in enumerate(steps.operands):
            if operand.varies:
                self.outputs[i] = _Place(state, n + 3 + i)
            elif self.gate_back.outputs[i] != 0 or self.readout_back.outputs[1 + i] != 0:
                self.outputs[i] = _Place("f64", n + 3 + i, sums=True)

    @property
    def places(self) -> list[_Place]:
        return [*self.inputs.values(), *self.outputs.values()]

    # Small parts.

    def integer(self, value: int) -> Any:
        return ir.Constant(INT, value)

    def field(self, index: int, column: int) -> Any:
        """Of the table of places."""
        b = self.builder
        table = b.inttoptr(self.arguments["table"], INT.as_pointer())
        return b.load(b.gep(table, [self.integer(4 * index + column)]), align=8)

    def pointer(self, place: int | Any, kind: ir.Type) -> Any:
        return self.builder.inttoptr(place, kind.as_pointer())

    def vector(self, storage: str) -> ir.VectorType:
        """As it is in memory."""
        return ir.VectorType(self.element(storage), self.lanes)

    def element(self, storage: str) -> ir.Type:
        kinds = {"f32": ir.FloatType(), "f64": ir.DoubleType(), "f16": ir.HalfType()}
        return kinds.get(storage, ir.IntType(16))

    def widened(self, x: Any, storage: str) -> Any:
        """A vector from memory as one of the registers' type."""
        b, kind = self.builder, self.math.type
        if storage == "bf16":
            wide = ir.VectorType(ir.IntType(32), self.lanes)
            x = b.shl(b.zext(x, wide), ir.Constant(wide, [16] * self.lanes))
            x, storage = b.bitcast(x, ir.VectorType(ir.FloatType(), self.lanes)), "f32"
        bits = 8 * SIZE[storage]
        if bits == self.steps.bits:
            return x
        return b.fpext(x, kind) if bits < self.steps.bits else b.fptrunc(x, kind)

    def narrowed(self, x: Any, storage: str) -> Any:
        """The inverse, rounded to nearest, ties to even."""
        b = self.builder
        if storage == "bf16":
            kind = ir.VectorType(ir.IntType(32), self.lanes)

            def number(value: int) -> Any:
                return ir.Constant(kind, [value] * self.lanes)

            bits = b.bitcast(x, kind)
            odd = b.and_(b.lshr(bits, number(16)), number(1))
            rounded = b.add(bits, b.add(odd, number(0x7FFF)))
            bits = b.select(b.fcmp_unordered("uno", x, x), number(0x7FC00000), rounded)
            return b.trunc(b.lshr(bits, number(16)), self.vector(storage))
        if storage == "f16":
            return b.fptrunc(x, self.vector(storage))
        if storage == "f64" and self.steps.bits == 32:
            return b.fpext(x, self.vector(storage))
        return x

    # The loops.

    def write(self) -> None:
        b, arguments = self.builder, self.arguments
        for place in self.places:
            self.begin(place)
        if "before" in self.inputs:
            self.begin_before()
        whole = ir.Constant(ir.IntType(1), 1)
        for place in self.inputs.values():
            dense = b.icmp_unsigned("==", place.column, self.integer(SIZE[place.storage]))
            whole = b.and_(whole, dense)
        self.dense = whole
        self.restarts = b.icmp_unsigned("==", arguments["place"], self.integer(RESTART))
        self.streams = b.icmp_unsigned("!=", arguments["past"], self.integer(0))
        kinds = [(WALK, "walk"), (PAIR, "pair"), (WALK | PAIR, "both")]
        end = self.function.append_basic_block("end")
        if self.steps.divided:
            otherwise = self.function.append_basic_block("never")
            choice = b.switch(arguments["what"], otherwise)
            for what, name in kinds:
                block = self.function.append_basic_block(name)
                choice.add_case(self.integer(what), block)
                b.position_at_end(block)
                self.write_steps(what, end)
            b.position_at_end(otherwise)
            b.unreachable()
        else:
            self.write_steps(WALK, end)
        b.position_at_end(end)
        b.ret_void()

    def begin(self, place: _Place) -> None:
        """Reads a place from the table; it begins at the first of the steps."""
        b = self.builder
        start, by_row, by_step, column = (self.field(place.index, i) for i in range(4))
        step = self.arguments["part" if place.sums else "t"]
        for size, count in (
            (by_row, self.arguments["row"]),
            (by_step, step),
            (column, self.arguments["low"]),
        ):
            start = b.add(start, b.mul(size, count))
        place.row, place.column = start, column
        place.step = self.integer(0) if place.sums else b.mul(by_step, self.arguments["direction"])
        if not place.sums:
            kind = self.vector(place.storage)
            place.buffer = b.alloca(kind)
            place.buffer.align = _llvm.vector_bytes()
            b.store(ir.Constant(kind, None), place.buffer, align=_llvm.vector_bytes())

    def begin_before(self) -> None:
        """The state before a step stands at the step that the walk comes to next, or in h0."""
        b, place = self.builder, self.inputs["before"]
        within = b.icmp_unsigned("==", self.arguments["place"], self.integer(WITHIN))
        first = b.icmp_unsigned("==", self.arguments["place"], self.integer(FIRST))
        of_h0 = _Place(place.storage, place.index + 1)
        self.begin(of_h0)
        place.row = b.add(place.row, b.select(within, place.step, self.integer(0)))
        place.row = b.select(first, of_h0.row, place.row)
        place.column = b.select(first, of_h0.column, place.column)

    def write_steps(self, what: int, end: Any) -> None:
        """Loops over steps and vectors."""
        b, function = self.builder, self.function
        before = b.block
        head, vectors, last = (function.append_basic_block() for _ in range(3))
        places = self.places if what & WALK else list(self.inputs.values())
        b.branch(head)
        b.position_at_end(head)
        step, starts = b.phi(INT), [b.phi(INT) for _ in places]
        step.add_incoming(self.integer(0), before)
        for start, place in zip(starts, places, strict=True):
            start.add_incoming(place.row, before)
        went = self.integer(self.lanes)
        columns = self.arguments["columns"]
        highest = b.mul(b.udiv(b.sub(columns, self.integer(1)), went), went)
        rises = b.icmp_signed(">", self.arguments["direction"], self.integer(0))
        # In the order of memory, which the hardware expects: backwards in time from the last one.
        low = b.select(rises, self.integer(0), highest)
        by = b.select(rises, went, self.integer(-self.lanes))
        more = b.icmp_unsigned("<", step, self.arguments["steps"])
        b.cbranch(more, vectors, end)

        b.position_at_end(vectors)
        d = b.phi(INT)
        d.add_incoming(low, head)
        rows = [place.row for place in places]
        for place, start in zip(places, starts, strict=True):
            place.row = start
        self.write_vector(what, d)
        for place, row in zip(places, rows, strict=True):
            place.row = row
        after = b.add(d, by)
        d.add_incoming(after, b.block)
        # Unsigned: also what is below 0 is beyond.
        b.cbranch(b.icmp_unsigned("<", after, columns), vectors, last)

        b.position_at_end(last)
        step.add_incoming(b.add(step, self.integer(1)), last)
        for start, place in zip(starts, places, strict=True):
            start.add_incoming(b.add(start, place.step), last)
        b.branch(head)

    def write_vector(self, what: int, d: Any) -> None:
        """One step of the columns from d on."""
        b = self.builder
        left = b.sub(self.arguments["columns"], d)
        whole = b.and_(b.icmp_unsigned(">=", left, self.integer(self.lanes)), self.dense)
        count = b.select(
            b.icmp_unsigned("<", left, self.integer(self.lanes)), left, self.integer(self.lanes)
        )
        values = self.load(whole, d, count)
        state = [self.state(part, d) for part in range(3)]
        vectors = [b.load(p, align=SIZE[f"f{self.steps.bits}"]) for p in state]
        compute = self.backward if self.steps.backward else self.forward
        vectors, results = compute(what, values, vectors)
        for pointer, vector in zip(state, vectors, strict=True):
            if vector is not None:
                b.store(vector, pointer, align=SIZE[f"f{self.steps.bits}"])
        if what & WALK:
            self.add_to_sums(results, d)
            self.store(results, whole, d, count)

    def state(self, part: int, d: Any) -> Any:
        b = self.builder
        index = b.add(d, b.mul(self.arguments["width"], self.integer(part)))
        size = self.integer(self.steps.bits // 8)
        return self.pointer(b.add(self.arguments["state"], b.mul(index, size)), self.math.type)

    def at(self, place: _Place, d: Any) -> Any:
        """The vector from column d on, if columns lie side by side."""
        b = self.builder
        offset = b.mul(d, self.integer(SIZE[place.storage]))
        return self.pointer(b.add(place.row, offset), self.vector(place.storage))

    def load(self, whole: Any, d: Any, count: Any) -> dict[int | str, Any]:
        b = self.builder
        places = list(self.inputs.values())
        together, apart, done = (self.function.append_basic_block() for _ in range(3))
        b.cbranch(whole, together, apart)
        b.position_at_end(together)
        vectors = [b.load(self.at(p, d), align=SIZE[p.storage]) for p in places]
        b.branch(done)
        b.position_at_end(apart)
        with self.each(count) as lane:
            for p in places:
                source, buffer = self.elements(p, d, lane)
                b.store(b.load(source), buffer)
        gathered = [b.load(p.buffer, align=_llvm.vector_bytes()) for p in places]
        apart = b.block
        b.branch(done)
        b.position_at_end(done)
        values = {}
        phis = [b.phi(self.vector(p.storage)) for p in places]
        for key, place, phi, vector, other in zip(
            self.inputs, places, phis, vectors, gathered, strict=True
        ):
            phi.add_incoming(vector, together)
            phi.add_incoming(other, apart)
            values[key] = self.widened(phi, place.storage)
        return values

    def store(self, results: dict[int | str, Any], whole: Any, d: Any, count: Any) -> None:
        b = self.builder
        places = {key: p for key, p in self.outputs.items() if not p.sums}
        vectors = [self.narrowed(results[key], p.storage) for key, p in places.items()]
        together, past, apart, done = (self.function.append_basic_block() for _ in range(4))
        usual = self.function.append_basic_block()
        b.cbranch(whole, together, apart)
        b.position_at_end(together)
        b.cbranch(self.streams, past, usual)
        b.position_at_end(past)
        for place, vector in zip(places.values(), vectors, strict=True):
            alignment = self.lanes * SIZE[place.storage]
            store = b.store(vector, self.at(place, d), align=alignment)
            one = ir.Constant(ir.IntType(32), 1)
            store.set_metadata("nontemporal", self.module.add_metadata([one]))
        b.branch(done)
        b.position_at_end(usual)
        for place, vector in zip(places.values(), vectors, strict=True):
            b.store(vector, self.at(place, d), align=SIZE[place.storage])
        b.branch(done)
        b.position_at_end(apart)
        for place, vector in zip(places.values(), vectors, strict=True):
            b.store(vector, place.buffer, align=_llvm.vector_bytes())
        with self.each(count) as lane:
            for place in places.values():
                target, buffer = self.elements(place, d, lane)
                b.store(b.load(buffer), target)
        b.branch(done)
        b.position_at_end(done)

    def add_to_sums(self, results: dict[int | str, Any], d: Any) -> None:
        """In double precision; they have room for whole vectors."""
        b = self.builder
        for key, place in self.outputs.items():
            if place.sums:
                pointer = self.at(place, d)
                vector = self.narrowed(results[key], "f64")
                b.store(b.fadd(b.load(pointer, align=8), vector), pointer, align=8)

    def elements(self, place: _Place, d: Any, lane: Any) -> tuple[Any, Any]:
        """A column in the tensor, and its lane in the buffer."""
        b, kind = self.builder, self.element(place.storage)
        offset = b.mul(b.add(d, lane), place.column)
        first = b.bitcast(place.buffer, kind.as_pointer())
        return self.pointer(b.add(place.row, offset), kind), b.gep(first, [lane])

    def each(self, count: Any) -> _Loop:
        return _Loop(self.builder, count)

    # The formulas.

    def forward(
        self, what: int, values: dict[int | str, Any], state: list[Any]
    ) -> tuple[list[Any], dict[int | str, Any]]:
        """h = a h + b, y = readout(h)."""
        h, A, B = state
        m, memo = self.math, _Memo()
        pre = self.operands(values)
        a, b = self.evaluate(self.gate, pre, memo)
        results: dict[int | str, Any] = {}
        new_h = None
        if what & WALK:
            new_h = m.multiply_add(a, h, b)
            emitted = h if self.steps.exclusive else new_h
            results["h"] = emitted
            if self.steps.readout:
                (results["y"],) = self.evaluate(self.readout, [emitted, *pre], memo)
        if what & PAIR:
            return [new_h, m.flush(m.mul(a, A)), m.multiply_add(a, B, b)], results
        return [new_h, None, None], results

    def backward(
        self, what: int, values: dict[int | str, Any], state: list[Any]
    ) -> tuple[list[Any], dict[int | str, Any]]:
        """The adjoint c of the state: g = dh + c, db = g, da = g h_prev, c = a g; adjoint.py."""
        c, A, B = state
        m, memo, exclusive = self.math, _Memo(), self.steps.exclusive
        pre = self.operands(values)
        (a,) = self.evaluate(self.gate, pre, memo, [0])
        of_readout = [values.get("h"), *pre, values["dy"]]
        (dh,) = self.evaluate(self.readout_back, of_readout, memo, [0])

        def before(c: Any) -> tuple[Any, Any]:
            """The adjoint before a step from that after it, and g."""
            g = c if exclusive else m.add(dh, c)
            c = m.mul(a, g)
            return m.add(c, dh) if exclusive else c, g

        results: dict[int | str, Any] = {}
        new_c = new_A = new_B = None
        if what & PAIR:
            new_A, (new_B, _) = m.flush(m.mul(a, A)), before(B)
        if what & WALK:
            new_c, db = before(c)
            da = None
            if self.of_a:
                h = values["h" if exclusive else "before"]
                da = m.choose(self.all_lanes(self.restarts), m.number(0), m.mul(db, h))
            for key in self.outputs:
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

    def all_lanes(self, condition: Any) -> Any:
        b = self.builder
        kind = ir.VectorType(condition.type, self.lanes)
        one = b.insert_element(ir.Constant(kind, ir.Undefined), condition, ir.Constant(INT, 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return b.shuffle_vector(one, one, mask)

    def operands(self, values: dict[int | str, Any]) -> list[Any]:
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
            key = (operation, *(id(a) if isinstance(a, ir.Value) else repr(a) for a in arguments))
            if key not in memo:
                # With its arguments, which thereby keep their identities.
                memo[key] = _computed(self.math, operation, arguments), arguments
            values[f"t{index}"] = memo[key][0]
        return [_number(self.math, values.get(output, output)) for output in chosen]


def _computed(m: Lanes, operation: str, arguments: tuple[Any, ...]) -> Any:
    """The IR value of one operation; conditions are vectors of bits, numbers stay numbers."""
    number = partial(_number, m)
    if operation in CONDITIONS:
        return m.compare(COMPARISONS[operation], *map(number, arguments))
    if operation == "where":
        condition, x, y = arguments
        return m.choose(_condition(m, condition), number(x), number(y))
    if operation == "clamp":
        x, low, high = number(arguments[0]), *arguments[1:]
        x = x if low is None else m.at_least(x, number(low))
        return x if high is None else m.at_most(x, number(high))
    if operation == "pow":
        return _power(m, *arguments)
    if operation in ("detach", "real", "conj"):
        return number(arguments[0])
    compute: Callable[..., Any] = getattr(m, operation)
    return compute(*map(number, arguments))


def _number(m: Lanes, value: Any) -> Any:
    """A vector of numbers, also of a constant and of a condition."""
    if isinstance(value, int | float):
        return m.number(value)
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


class _Loop:
    """`with _Loop(builder, count) as i:` a loop over 0 <= i < count, count at least 1."""

    def __init__(self, builder: ir.IRBuilder, count: Any) -> None:
        self.builder, self.count = builder, count

    def __enter__(self) -> Any:
        b = self.builder
        before, self.block = b.block, b.append_basic_block()
        b.branch(self.block)
        b.position_at_end(self.block)
        self.index = b.phi(INT)
        self.index.add_incoming(ir.Constant(INT, 0), before)
        return self.index

    def __exit__(self, *_: object) -> None:
        b = self.builder
        after = b.add(self.index, ir.Constant(INT, 1))
        self.index.add_incoming(after, b.block)
        done = b.append_basic_block()
        b.cbranch(b.icmp_unsigned("<", after, self.count), self.block, done)
        b.position_at_end(done)
