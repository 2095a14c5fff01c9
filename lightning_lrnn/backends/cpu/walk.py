"""The walk over rows as LLVM IR: hands out work items, and passes states on between them.

A column is one feature of one row. The walk goes through rows whose columns stand side by side in
memory, and leaves the steps themselves to code that is compiled for a gate (`steps`). It is
called by each of some threads with the same task, and takes items until none is left. Rows are
divided over time as on a GPU (`recurrence.cu`): an item waits for the state that the one before it
ends in, which somebody has in hands who waits only for still earlier ones.

The thread in slot 0, the caller's, returns when all others that have entered have left, and nobody
enters after that: who comes later reads nothing but the task. So once it has returned, nothing
touches the tensors, whatever happens to the interpreter meanwhile. It waits without the
interpreter, which would call signal handlers.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import ir

from lightning_lrnn.backends.cpu import llvm, threads
from lightning_lrnn.backends.cpu.plan import COLUMNS_OF_VECTORS
from lightning_lrnn.backends.cpu.steps import (
    ARGUMENTS,
    FIRST,
    PAIR,
    PARTS,
    RESTART,
    SIZE,
    TYPES,
    WALK,
    WITHIN,
)
from lightning_lrnn.backends.cpu.vector_math import INT

__all__ = ["FIELDS", "task", "walker"]

NAME = "walk"
LOOKS = 64
"""At a flag, before the core is offered to another thread."""
LAST_LOOKS = 1 << 12
"""At the number of others at work, some microseconds, before the thread sleeps."""
CLOSED = 1 << 32
"""Added to that number when nobody may enter any more."""
YIELDS = "sched_yield", "SwitchToThread"
"""Functions of the C library, or of Windows, that offer it."""
FIELDS = (
    *threads.FIELDS,
    "taken",  # number of items
    "others",  # threads at work, but for that in slot 0
    "parts",  # of time,
    "chunk",  # of so many steps
    "blocks",  # of a row,
    "width",  # of so many columns
    # Addresses:
    "code",  # of the steps
    "scratch",  # room for three states of a block in every slot
    "states",  # (parts - 1, B, D), between parts
    "initial",  # (B, D), before the first part
    "h",  # (B, D), where that after the last goes; perhaps the same memory
    "pairs",  # (parts, 2, B, D), where those of all parts go; 0 if states are asked for
    "lengths",  # (B,), or 0
    "restarts",  # bytes (B, T), whether no state passes into a step; or 0
    "B",
    "T",
    "D",
    "direction",  # of time, 1 or -1
    "backward",
    "inside",  # whether backward all states before a step stand inside the hidden states
    "nontemporal",  # whether outputs are written by non-temporal stores
    "tensors",  # how many follow,
    "outputs",  # and how many of them are outputs
)
"""Of a task, 64-bit integers; the first are what `threads` writes.

There follow four integers of each tensor, see `steps.View`; the indices of those that are 0 at
padded steps; and a flag for each item, and for those of one more part, raised when the state
before it is there."""


CHANGING = "taken", "others"
"""Fields that change during a pass."""


def task(
    fields: Mapping[str, int],
    views: Sequence[tuple[int, int, int, int]],
    outputs: Sequence[int],
    flags: int,
) -> array[int]:
    """The task of a pass before it begins; each pass gets a copy.

    Args:
        fields: those that are known; 0 for the others.
        views: strides of all tensors, in the order that the steps know.
        outputs: indices of those that are 0 at padded steps.
        flags: how many.
    """
    words = array("q", [0] * len(FIELDS))
    for name, value in {**fields, "tensors": len(views), "outputs": len(outputs)}.items():
        words[FIELDS.index(name)] = value
    for view in views:
        words.extend(view)
    words.extend(outputs)
    words.frombytes(bytes(words.itemsize * flags))
    return words


@cache
def walker(storage: str) -> Callable[[int, int], None]:
    """The walk, for states of one storage; runs without the interpreter's lock.

    It takes the address of a task and a slot, which no other thread has for this task.
    """
    waits = next((name for name in YIELDS if not llvm.missing(name)), "")
    parts = [*_sources(), repr((storage, waits, COLUMNS_OF_VECTORS)).encode()]
    address = llvm.load(NAME, parts, lambda: _Walk(storage, waits).text())
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)


@cache
def _sources() -> tuple[bytes, ...]:
    """The source files that write the IR, for the key of the cache."""
    return (Path(__file__).read_bytes(),)


class _Word:
    """A 64-bit integer of the function, with Python's operators."""

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder = builder
        self.value = ir.Constant(INT, value) if isinstance(value, int) else value

    def _with(self, operation: Callable[[Any, Any], Any], other: _Word | int) -> _Word:
        return _Word(self.builder, operation(self.value, self._value(other)))

    def _value(self, other: _Word | int) -> Any:
        return ir.Constant(INT, other) if isinstance(other, int) else other.value

    def __add__(self, other: _Word | int) -> _Word:
        return self._with(self.builder.add, other)

    def __sub__(self, other: _Word | int) -> _Word:
        return self._with(self.builder.sub, other)

    def __mul__(self, other: _Word | int) -> _Word:
        return self._with(self.builder.mul, other)

    def __floordiv__(self, other: _Word | int) -> _Word:
        return self._with(self.builder.udiv, other)

    def __mod__(self, other: _Word | int) -> _Word:
        return self._with(self.builder.urem, other)

    def __and__(self, other: _Word | int) -> _Word:
        return self._with(self.builder.and_, other)

    # Conditions.

    def __lt__(self, other: _Word | int) -> Any:
        return self.builder.icmp_signed("<", self.value, self._value(other))

    def __ge__(self, other: _Word | int) -> Any:
        return self.builder.icmp_signed(">=", self.value, self._value(other))

    def equals(self, other: _Word | int) -> Any:
        return self.builder.icmp_signed("==", self.value, self._value(other))

    def holds(self) -> Any:
        """Returns the condition that it is not 0."""
        return self.builder.icmp_signed("!=", self.value, self._value(0))

    def smaller(self, other: _Word | int) -> _Word:
        """Returns the smaller one of two words."""
        return self.chosen(self < other, other)

    def chosen(self, condition: Any, other: _Word | int) -> _Word:
        """This if the condition holds, else the other."""
        value = self.builder.select(condition, self.value, self._value(other))
        return _Word(self.builder, value)


class _Loop:
    """`with` it, its block is repeated until `leave_if` leaves it."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder
        self.head, self.done = builder.append_basic_block(), builder.append_basic_block()

    def __enter__(self) -> _Loop:
        self.builder.branch(self.head)
        self.builder.position_at_end(self.head)
        return self

    def leave_if(self, condition: Any) -> None:
        further = self.builder.append_basic_block()
        self.builder.cbranch(condition, self.done, further)
        self.builder.position_at_end(further)

    def __exit__(self, *_: object) -> None:
        self.builder.branch(self.head)
        self.builder.position_at_end(self.done)


class _WorkItem(NamedTuple):
    """A work item: one part of time of one block of one row, as IR values."""

    row: _Word
    part: _Word
    low: _Word
    """Its first feature."""
    n: _Word
    """Number of its features."""
    begin: _Word
    end: _Word
    steps: _Word
    """Steps of the row that are not padding."""
    before: _Word
    """Address of the state before it."""
    after: _Word
    """Address for the state after it."""
    mine: _Word
    """Address of the flag that is raised when the state before it is there."""
    following: _Word
    """Address of that flag of the following part of time."""
    first: Any
    """Whether there is no part before it."""


class _Walk:
    """Writes the function that takes work items until none is left."""

    def __init__(self, storage: str, waits: str) -> None:
        self.real = TYPES[PARTS.get(storage, storage)]
        self.size, self.complex = SIZE[storage], storage in PARTS
        self.waits = waits
        self.module = ir.Module(name=NAME)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [INT, INT]), NAME)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.task, self.slot = (_Word(self.builder, x) for x in self.function.args)
        self.fields = {name: self.load(self.field(name)) for name in FIELDS if name not in CHANGING}

    def __getattr__(self, name: str) -> _Word:
        """Returns the value of a field of the task."""
        return self.fields[name]

    # Memory.

    def field(self, name: str) -> _Word:
        """Returns the address of a field of the task."""
        return self.task + 8 * FIELDS.index(name)

    def pointer(self, address: _Word, value_type: ir.Type = INT) -> Any:
        return self.builder.inttoptr(address.value, value_type.as_pointer())

    def load(self, address: _Word) -> _Word:
        return _Word(self.builder, self.builder.load(self.pointer(address), align=8))

    def observed(self, address: _Word) -> _Word:
        """What another thread has stored last; what it stored before that can then be read."""
        value = self.builder.load_atomic(self.pointer(address), "acquire", 8)
        return _Word(self.builder, value)

    def counted(self, name: str, more: int) -> _Word:
        """Adds to a counter of all threads; what it was before."""
        pointer, more = self.pointer(self.field(name)), ir.Constant(INT, more)
        return _Word(self.builder, self.builder.atomic_rmw("add", pointer, more, "seq_cst"))

    def raise_flag(self, flag: _Word) -> None:
        """After all that this thread has stored before."""
        self.builder.store_atomic(ir.Constant(INT, 1), self.pointer(flag), "release", 8)

    def called(self, name: str, result: ir.Type, arguments: Sequence[Any]) -> Any:
        """Calls a function of the C library."""
        if name not in self.module.globals:
            signature = ir.FunctionType(result, [x.type for x in arguments])
            ir.Function(self.module, signature, name)
        return self.builder.call(self.module.globals[name], arguments)

    def copy(self, target: _Word, source: _Word, size: _Word) -> None:
        byte = ir.IntType(8)
        pointers = [self.pointer(target, byte), self.pointer(source, byte)]
        self.called("memcpy", byte.as_pointer(), [*pointers, size.value])

    def clear(self, target: _Word, size: _Word) -> None:
        byte, zero = ir.IntType(8), ir.Constant(ir.IntType(32), 0)
        arguments = [self.pointer(target, byte), zero, size.value]
        self.called("memset", byte.as_pointer(), arguments)

    # Control.

    def word(self, value: int) -> _Word:
        return _Word(self.builder, value)

    def variable(self, value: _Word | int) -> _Variable:
        return _Variable(self.builder, value)

    def wait(self, flag: _Word) -> None:
        """Writes a loop that waits until a flag is raised."""
        looks = self.variable(0)
        with _Loop(self.builder) as loop:
            loop.leave_if(self.observed(flag).holds())
            looks.set(looks.get() + 1)
            if self.waits:
                with self.builder.if_then((looks.get() % LOOKS).equals(0)):
                    self.called(self.waits, ir.IntType(32), [])

    # The walk.

    def text(self) -> str:
        """Writes the function; returns the text of the IR module."""
        b = self.builder
        self.units = self.B * self.blocks
        self.room = (
            (self.width + (COLUMNS_OF_VECTORS - 1)) // COLUMNS_OF_VECTORS * COLUMNS_OF_VECTORS
        )
        self.state = self.scratch + self.slot * self.room * (3 * self.size)
        self.table = self.task + 8 * len(FIELDS)
        self.indices = self.table + self.tensors * 32
        self.flags = self.indices + self.outputs * 8
        helps = self.slot.holds()
        with b.if_then(helps):
            self.enter()
        with _Loop(b) as items:
            # Who finds none left has seen all enter who took one.
            item = self.counted("taken", 1)
            items.leave_if(item >= self.parts * self.units)
            self.write_item(item)
        with b.if_then(self.nontemporal.holds()):
            b.fence("seq_cst")  # non-temporal stores are there for other threads
        with b.if_else(helps) as (helper, caller):
            with helper:
                self.leave()
            with caller:
                self.wait_for_others()
        b.ret_void()
        return str(self.module)

    def enter(self) -> None:
        """Counts this thread; returns from the function if nobody may enter any more."""
        b, others = self.builder, self.field("others")
        with _Loop(b) as loop:
            seen = self.observed(others)
            with b.if_then(seen >= CLOSED):
                b.ret_void()
            more = (seen + 1).value
            result = b.cmpxchg(self.pointer(others), seen.value, more, "seq_cst", "seq_cst")
            loop.leave_if(b.extract_value(result, 1))

    def leave(self) -> None:
        """Counts this thread out; the last one wakes the caller."""
        b = self.builder
        left = self.counted("others", -1)
        with b.if_then(left.equals(CLOSED + 1)):
            signature = ir.FunctionType(ir.VoidType(), [INT])
            b.call(self.pointer_to(self.release, signature), [self.lock.value])

    def wait_for_others(self) -> None:
        """Nobody enters any more; returns when nobody is at work."""
        b, others, looks = self.builder, self.field("others"), self.variable(0)
        with _Loop(b) as loop:
            loop.leave_if(looks.get() >= LAST_LOOKS)
            loop.leave_if(self.observed(others).equals(0))
            looks.set(looks.get() + 1)
        with b.if_then((self.counted("others", CLOSED) % CLOSED).holds()):
            signature, wait = (
                ir.FunctionType(ir.IntType(32), [INT, ir.IntType(32)]),
                ir.IntType(32)(1),
            )
            b.call(self.pointer_to(self.acquire, signature), [self.lock.value, wait])

    def pointer_to(self, address: _Word, signature: ir.FunctionType) -> Any:
        return self.builder.inttoptr(address.value, signature.as_pointer())

    def write_item(self, item: _Word) -> None:
        """Writes one work item: a part of time of a block of a row; later parts are later items."""
        b = self.builder
        part, unit = item // self.units, item % self.units
        row, low = unit // self.blocks, unit % self.blocks * self.width
        n = self.width.smaller(self.D - low)
        length = self.variable(self.T)
        with b.if_then(self.lengths.holds()):
            length.set(self.load(self.lengths + row * 8))
        steps = length.get()
        begin, end = (part * self.chunk).smaller(steps), ((part + 1) * self.chunk).smaller(steps)
        first, last = part.equals(0), part.equals(self.parts - 1)
        column, layer = row * self.D + low, self.B * self.D

        def between(part: _Word) -> _Word:
            return self.states + (part * layer + column) * self.size

        before = (self.initial + column * self.size).chosen(first, between(part - 1))
        after = (self.h + column * self.size).chosen(last, between(part))
        mine, following = self.flags + item * 8, self.flags + (item + self.units) * 8
        work = _WorkItem(
            row, part, low, n, begin, end, steps, before, after, mine, following, first
        )
        with b.if_else(self.pairs.holds()) as (pair, states):
            with pair:
                self.write_pair(work, self.pairs + (part * 2 * layer + column) * self.size)
            with states:
                mode = self.begin(work, last)
                with _Loop(b) as walks:
                    walks.leave_if(mode.get().equals(0))
                    self.write_walk(work, mode.get())
                    self.pass_on(work, mode)
                with b.if_then(b.and_(last, steps < self.T)):
                    self.clear_padding(row, low, n, steps)

    def write_pair(self, item: _WorkItem, target: _Word) -> None:
        """What a part does to whatever state comes in; nothing else is written."""
        self.begin_pair(item.n)
        self.write_walk(item, self.word(PAIR))
        layer = self.B * self.D * self.size
        for index in (0, 1):
            source = self.state + self.room * ((1 + index) * self.size)
            self.copy(target + layer * index, source, item.n * self.size)

    def begin(self, item: _WorkItem, last: Any) -> _Variable:
        """Makes the state ready for a part of time; what to compute of it first.

        That is the pair, if the state before this part is not there yet, so that the next part need
        not wait for all of this one. The walk then reads the inputs again, from the caches.
        """
        b, mode, n, first, mine = (
            self.builder,
            self.variable(PAIR),
            item.n,
            item.first,
            item.mine,
        )
        with b.if_then(b.and_(last, b.not_(first))):
            self.wait(mine)
        with b.if_then(b.or_(first, self.observed(mine).holds())):
            self.copy(self.state, item.before, n * self.size)
            mode.set(self.word(WALK).chosen(last, WALK | PAIR))
        with b.if_then((mode.get() & PAIR).holds()):
            self.begin_pair(n)
        return mode

    def begin_pair(self, n: _Word) -> None:
        """Sets A = 1 and B = 0 in n columns of the state."""
        b, d = self.builder, self.variable(0)
        A, B = (self.state + self.room * (part * self.size) for part in (1, 2))
        self.clear(A, n * self.size)
        self.clear(B, n * self.size)
        with _Loop(b) as loop:
            loop.leave_if(d.get() >= n)
            b.store(ir.Constant(self.real, 1), self.pointer(A + d.get() * self.size, self.real))
            d.set(d.get() + 1)

    def write_walk(self, item: _WorkItem, mode: _Word) -> None:
        """All steps of a part, in runs that no restart is within.

        Backward, the first step of the forward walk finds the state before it in h0, unless all
        states stand inside the hidden states.
        """
        b = self.builder
        row, part, low, n, begin, end, steps, *_ = item
        rises = self.word(0) < self.direction
        k, t = self.variable(begin), self.variable(begin.chosen(rises, steps - 1 - begin))
        all_of_state = self.room * (3 * self.size)
        with _Loop(b) as loop:
            loop.leave_if(k.get() >= end)
            i, left = row * self.T + t.get(), end - k.get()
            restart = self.variable(0)
            with b.if_then(self.restarts.holds()):
                restart.set(self.byte(self.restarts + i))
            origin, run = self.variable(WITHIN), self.variable(1)
            with b.if_else(self.backward.holds()) as (backward, forward):
                with forward:
                    with b.if_then(restart.get().holds()):
                        self.clear(self.state, all_of_state)
                    run.set(self.until_restart(i + self.direction, left - 1) + 1)
                with backward, b.if_else(restart.get().holds()) as (new, same):
                    with new:
                        origin.set(RESTART)
                    with same:
                        inside = self.inside.holds()
                        within = left.chosen(inside, end.smaller(steps - 1) - k.get())
                        with b.if_else(self.word(0) < within) as (another, edge):
                            with another:
                                run.set(self.until_restart(i, within))
                            with edge:
                                origin.set(FIRST)
            arguments = {
                "table": self.table, "state": self.state, "row": row, "part": part, "t": t.get(),
                "low": low, "columns": n, "steps": run.get(), "mode": mode, "origin": origin.get(),
                "direction": self.direction, "nontemporal": self.nontemporal, "width": self.room,
            }  # fmt: skip
            signature = ir.FunctionType(ir.VoidType(), [INT] * len(ARGUMENTS))
            values = [arguments[name].value for name in ARGUMENTS]
            b.call(self.pointer_to(self.code, signature), values)
            with b.if_then(origin.get().equals(RESTART)):
                self.clear(self.state, all_of_state)
            k.set(k.get() + run.get())
            t.set(t.get() + self.direction * run.get())

    def byte(self, address: _Word) -> _Word:
        value = self.builder.load(self.pointer(address, ir.IntType(8)), align=1)
        return _Word(self.builder, self.builder.zext(value, INT))

    def until_restart(self, i: _Word, most: _Word) -> _Word:
        """Steps before the next one that no state passes into."""
        b, run = self.builder, self.variable(most)
        with b.if_then(self.restarts.holds()):
            run.set(0)
            with _Loop(b) as loop:
                loop.leave_if(run.get() >= most)
                at = self.restarts + i + run.get() * self.direction
                loop.leave_if(self.byte(at).holds())
                run.set(run.get() + 1)
        return run.get()

    def pass_on(self, item: _WorkItem, mode: _Variable) -> None:
        """Publishes the state after a part; leaves what is still to be computed of it: WALK or 0.

        That state is A * h + B whether this part was walked already or not: timing decides no bit.
        If that is not finite it may differ from the walk (inf * 0), and what the walk ends in is
        taken.
        """
        b, n = self.builder, item.n
        before, after, mine, following, first = item[7:]
        with b.if_then(b.not_(first)):
            self.wait(mine)
        walked = mode.get() & WALK
        with b.if_then(self.observed(following).equals(0)):
            finite = self.variable(mode.get() & PAIR)
            with b.if_then(finite.get().holds()):
                self.combine(finite, before, after, n)
            with b.if_then(b.and_(finite.get().equals(0), walked.holds())):
                self.copy(after, self.state, n * self.size)
            with b.if_then(b.or_(finite.get().holds(), walked.holds())):
                self.raise_flag(following)
        with b.if_else(walked.holds()) as (done, other):
            with done:
                mode.set(0)
            with other:
                self.copy(self.state, before, n * self.size)
                mode.set(WALK)

    def combine(self, finite: _Variable, before: _Word, after: _Word, n: _Word) -> None:
        """A * h + B of all columns; `finite` becomes 0 if one of them is not."""
        b, d = self.builder, self.variable(0)
        half = self.size // 2
        with _Loop(b) as loop:
            loop.leave_if(d.get() >= n)
            offset = d.get() * self.size

            def parts(address: _Word, offset: _Word = offset) -> list[Any]:
                offsets = [offset, offset + half] if self.complex else [offset]
                return [b.load(self.pointer(address + p, self.real)) for p in offsets]

            A = parts(self.state + self.room * self.size)
            B = parts(self.state + self.room * (2 * self.size))
            h = parts(before)
            if self.complex:
                products = [
                    b.fsub(b.fmul(A[0], h[0]), b.fmul(A[1], h[1])),
                    b.fadd(b.fmul(A[0], h[1]), b.fmul(A[1], h[0])),
                ]
            else:
                products = [b.fmul(A[0], h[0])]
            for index, (product, add) in enumerate(zip(products, B, strict=True)):
                x = b.fadd(product, add)
                b.store(x, self.pointer(after + offset + index * half, self.real))
                # inf - inf and NaN are not 0.
                is_finite = b.fcmp_ordered("==", b.fsub(x, x), ir.Constant(self.real, 0))
                finite.set(finite.get().chosen(is_finite, 0))
            d.set(d.get() + 1)

    def clear_padding(self, row: _Word, low: _Word, n: _Word, steps: _Word) -> None:
        b, output = self.builder, self.variable(0)
        with _Loop(b) as outputs:
            outputs.leave_if(output.get() >= self.outputs)
            view = self.table + self.load(self.indices + output.get() * 8) * 32
            start, by_row, by_step, size = (self.load(view + 8 * i) for i in range(4))
            t = self.variable(steps)
            with _Loop(b) as loop:
                loop.leave_if(t.get() >= self.T)
                target = start + row * by_row + t.get() * by_step + low * size
                self.clear(target, n * size)
                t.set(t.get() + 1)
            output.set(output.get() + 1)


class _Variable:
    """A variable of the function, a 64-bit integer on its stack."""

    def __init__(self, builder: ir.IRBuilder, value: _Word | int) -> None:
        self.builder = builder
        with builder.goto_entry_block():
            self.address = builder.alloca(INT)
        self.set(value)

    def set(self, value: _Word | int) -> None:
        word = _Word(self.builder, value) if isinstance(value, int) else value
        self.builder.store(word.value, self.address)

    def get(self) -> _Word:
        return _Word(self.builder, self.builder.load(self.address))
