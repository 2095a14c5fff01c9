"""The recurrence as compiled loops, one step of some columns at a time.

A column is one feature of one row. `rows` steps through rows whose columns stand side by side in
memory, and leaves the steps themselves to code that is compiled for a gate. Its tensors come as the
address of their first element (which costs less than a NumPy array at every call) and are flat
arrays here; all indices are unsigned: Numba then leaves out the test for those that count from the
end.

The kernel is called by each of some threads with the same arguments, and takes pieces of the work
by `_next` until none is left. Rows are divided over time as on a GPU (`recurrence.cu`): a piece
waits for the state that the one before it ends in, which somebody has in hands who waits only for
still earlier ones.

All compiled code is in this one file: Numba keeps what it has compiled in a cache on disk until the
file of a function changes, and does not see changes in others.
"""

# Numba infers the types of these functions, and has no stubs.
# mypy: ignore-errors

from __future__ import annotations

import os

import numpy as np
from llvmlite import ir
from numba import carray, njit, types, uint64
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["rows"]


def _compiled(function, **options):
    options = {"nogil": True, "error_model": "numpy"} | options
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that compiled code could be kept in
        return njit(**options)(function)


def _inlined(function):
    return _compiled(function, forceinline=True)


LOOKS = 64
"""At a flag, before the core is offered to another thread."""

MEMORY = 1 << 48
"""Elements of an array whose size nobody asks for."""

ROOM = 32
"""Columns that the states of a gate's steps are rounded up to: whole vectors of any dtype."""

WITHIN, FIRST, RESTART = 0, 1, 2
"""Where the adjoint of a gate finds the state before a step, see `_cpu_gate`."""

WALK, PAIR = 1, 2
"""What a run of steps computes: the outputs, from the state before it; the pair of the run, from
which the state after it follows for any state before it; WALK | PAIR: both."""


def _operands(signature, arguments):
    """The arguments, arrays together with their types."""
    return [
        (kind, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _word(context, builder, array, *index):
    """A pointer to an element of an array of words, of `index` or the first."""
    kind, value = array
    data = make_array(kind)(context, builder, value).data
    return builder.gep(data, index) if index else data


@intrinsic
def _next(_, counter):
    """The number of the next piece of work that nobody has taken yet."""

    def generate(context, builder, signature, arguments):
        (counter,) = _operands(signature, arguments)
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", _word(context, builder, counter), one, "monotonic")

    return types.int64(counter), generate


@intrinsic
def _set(_, flags, i):
    """Raises a flag, after all that this thread has stored before."""

    def generate(context, builder, signature, arguments):
        flags, i = _operands(signature, arguments)
        one = ir.Constant(ir.IntType(64), 1)
        builder.store_atomic(one, _word(context, builder, flags, i), "release", 8)
        return context.get_dummy_value()

    return types.none(flags, i), generate


@intrinsic
def _is_set(_, flags, i):
    """Whether a flag is raised; what was stored before that can then be read."""

    def generate(context, builder, signature, arguments):
        flags, i = _operands(signature, arguments)
        flag = builder.load_atomic(_word(context, builder, flags, i), "acquire", 8)
        return builder.icmp_signed("!=", flag, ir.Constant(flag.type, 0))

    return types.boolean(flags, i), generate


@intrinsic
def _pointer(_, address, like):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


@_inlined
def _array(address, like):
    """The memory from an address on as a flat array of the dtype of `like`."""
    return carray(_pointer(address, like), MEMORY)


@intrinsic
def _fence(_):
    """What was stored past the caches is there for other threads."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


if os.name == "posix":
    _yield = types.ExternalFunction("sched_yield", types.int32())
else:

    @_compiled
    def _yield():
        """There is no such call; the system takes the core away after a while."""
        return 0


@_compiled
def _wait(flags, i):
    looks = 0
    while not _is_set(flags, i):
        looks += 1
        if looks % LOOKS == 0:
            _yield()


@_compiled
def _begin(state, width, h, before, flags, piece, first, last, n):
    """Makes `state` ready for a part of time; returns what to compute of it first.

    That is the pair, if the state before this part, h[before:], is not there yet, so that the next
    part need not wait for all of this one. The walk then reads the inputs again, from the caches.
    """
    state[width : 2 * width] = 1
    state[2 * width :] = 0
    if last and not first:
        _wait(flags, 1 + piece)
    if not (first or _is_set(flags, 1 + piece)):
        return PAIR
    state[:n] = h[before : before + n]
    return WALK if last else WALK | PAIR


@_compiled
def _pass_on(what, state, width, h, before, next_h, after, flags, piece, next_piece, first, n):
    """Publishes the state after a part; returns what is still to be computed of it: WALK or 0.

    That state is A * h + B whether this part was walked already or not: timing decides no bit. If
    that is not finite it may differ from the walk (inf * 0), and what the walk ends in is taken.
    """
    if not first:
        _wait(flags, 1 + piece)
    if not _is_set(flags, 1 + next_piece):
        finite = what & PAIR != 0
        for d in range(n if finite else 0):
            x = state[width + d] * h[before + d] + state[2 * width + d]
            finite &= np.isfinite(x)
            next_h[after + d] = x
        if not finite and what & WALK:
            next_h[after : after + n] = state[:n]
        if finite or what & WALK:
            _set(flags, 1 + next_piece)
    if what & WALK:
        return 0
    state[:n] = h[before : before + n]
    return WALK


@_compiled
def _until_restart(restarts, i, stride, steps):
    """Steps before the next one that no state passes into, at most `steps`."""
    if restarts.size == 0:
        return steps
    for k in range(steps):
        if restarts[i]:
            return k
        i += stride
    return steps


@intrinsic
def _call_steps(
    _, function, table, state, row, part, t, low, columns, steps, what, place, direction, past,
    width,
):  # fmt: skip
    """Calls the compiled steps of a gate; `_cpu_gate.ARGUMENTS`."""

    def generate(context, builder, signature, arguments):
        function, *arguments = arguments
        kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        builder.call(builder.inttoptr(function, kind.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 14), generate


@_compiled
def rows(
    flags, states, h, parts, chunk, blocks, width, function, table, outputs, lengths, B, T, D,
    direction, backward, inside, restarts, past,
):  # fmt: skip
    """The recurrence of a gate, forward or `backward`, by its compiled steps (`_cpu_gate`).

    A piece is one part of time, of `chunk` steps, of one block, of `width` columns, of one row;
    later parts are later pieces. `h` (B, D) is the state before the first of the `parts` and in the
    end that after the last; `states` (parts - 1, B, D) are those between, the one before piece u
    there when flags[1 + u] is raised; flags[0] counts the pieces that are taken. `lengths` and
    `restarts`, which says by row and step of time whether no state passes into it, are empty if
    there are none. `table` (places, 4) has the places of all tensors, of which `outputs` are 0 at
    padded steps; a walk goes in `direction` (1 or -1) of time. Backward, the first step of the
    forward walk finds the state before it in h0, unless all states stand `inside` the emitted ones.
    `past`: outputs are stored past the caches.
    """
    final = _array(h, states)
    units = B * blocks
    room = -(-width // ROOM) * ROOM
    state = np.empty(3 * room, states.dtype)
    while True:
        piece = _next(flags)
        if piece >= parts * units:
            break
        part, row, low = piece // units, piece % units // blocks, piece % units % blocks * width
        n, steps = min(width, D - low), lengths[row] if lengths.size else T
        column = row * D + low
        begin, end = min(part * chunk, steps), min((part + 1) * chunk, steps)
        first, last = part == 0, part == parts - 1
        h = final if first else states
        before = column if first else (part - 1) * B * D + column
        next_h = final if last else states
        after = column if last else part * B * D + column
        what = _begin(state, room, h, before, flags, piece, first, last, n)
        while what:
            k = begin
            t = begin if direction > 0 else steps - 1 - begin
            while k < end:
                i, s = uint64(row * T + t), uint64(direction)
                place, run = WITHIN, 1
                restart = restarts.size != 0 and restarts[i]
                if not backward:
                    if restart:
                        state[:] = 0
                    run = 1 + _until_restart(restarts, i + s, s, end - k - 1)
                elif restart:
                    place = RESTART
                elif inside or k < steps - 1:
                    run = _until_restart(
                        restarts, i, s, (end if inside else min(end, steps - 1)) - k
                    )
                else:
                    place = FIRST
                _call_steps(
                    function, table.ctypes.data, state.ctypes.data, row, part, t, low, n, run,
                    what, place, direction, past, room,
                )  # fmt: skip
                if place == RESTART:
                    state[:] = 0
                k += run
                t += direction * run
            what = _pass_on(
                what, state, room, h, before, next_h, after, flags, piece, piece + units, first, n
            )
        if last and steps < T:
            for output in outputs:
                start, by_row, by_step, size = table[output]
                for t in range(steps, T):
                    padding = start + row * by_row + t * by_step + low * size
                    _array(padding, restarts)[: n * size] = 0
    if past:
        _fence()
