"""The recurrence as compiled loops, one step of some columns at a time.

A column is one feature of one row. Every tensor comes as the address of its first element (which
costs less than a NumPy array at every call) and is a flat array here; a step of it begins at an
index `i*`, the next one is `s*` further on, modulo 2^64 (time may run backwards). All indices are
unsigned: Numba then leaves out the test for indices that count from the end.

Two layouts: `*_rows` step through rows whose columns stand side by side in memory; `*_lanes` step
through four columns, or four stretches of time, that lie anywhere at equal distances `l*`: with
few columns that keeps as many independent sums in flight as a core can.

Every kernel is called by each of some threads with the same arguments, and takes pieces of the work
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
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = [
    "backward_lanes",
    "backward_rows",
    "carry",
    "forward_lanes",
    "forward_rows",
    "pair_lanes",
]


def _compiled(function, **options):
    options = {"nogil": True, "error_model": "numpy"} | options
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that compiled code could be kept in
        return njit(**options)(function)


def _contracted(function, **options):
    """a * h + b in one rounding, as on a GPU."""
    return _compiled(function, fastmath={"contract"}, **options)


def _inlined(function):
    return _contracted(function, forceinline=True)


BYTES = 32
"""Of a vector of columns."""
STEPS = 4
"""Taken at once, with the state in registers between them, if the columns of a row are few."""
NARROW = 64
"""Features up to which that is faster: with more, so many places in memory are in use that the
hardware stops fetching ahead."""

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


class _Emitter:
    """Arithmetic on neighbouring columns, in vector instructions.

    LLVM vectorises a loop over columns by itself only if it can test at run time, before the loop,
    that no output overlaps an input; with the six arrays of the backward pass it gives up, and for
    a few columns the tests cost more than the loop. A value is a list of one vector, or of two:
    real and imaginary parts. Roundings are written out (`multiply_add` is one, as on a GPU): the
    bits of a column depend neither on its neighbours nor on what else is computed beside it.
    """

    def __init__(self, context, builder, dtype, columns):
        self.context, self.builder, self.columns = context, builder, columns
        self.complex = isinstance(dtype, types.Complex)
        part = dtype.underlying_float if self.complex else dtype
        self.alignment = part.bitwidth // 8
        self.tiny = float(np.finfo(f"f{self.alignment}").tiny)
        parts = columns * (2 if self.complex else 1)
        self.type = ir.VectorType(context.get_value_type(part), parts)

    def load(self, array, index):
        vector = self.builder.load(self._pointer(array, index), align=self.alignment)
        if not self.complex:
            return [vector]
        return [self._shuffle(vector, vector, range(p, 2 * self.columns, 2)) for p in (0, 1)]

    def store(self, value, array, index, stream=False):
        vector = value[0]
        if self.complex:
            order = (i // 2 + i % 2 * self.columns for i in range(2 * self.columns))
            vector = self._shuffle(*value, order)
        alignment = BYTES if stream else self.alignment
        store = self.builder.store(vector, self._pointer(array, index), align=alignment)
        if stream:
            one = ir.Constant(ir.IntType(32), 1)
            store.set_metadata("nontemporal", self.builder.module.add_metadata([one]))

    def add(self, u, v):
        return [self.builder.fadd(x, y) for x, y in zip(u, v, strict=True)]

    def multiply(self, u, v):
        times = self.builder.fmul
        if not self.complex:
            return [times(u[0], v[0])]
        (x, y), (p, q) = u, v
        return [
            self._fused(self.builder.fneg(y), q, times(x, p)),
            self._fused(y, p, times(x, q)),
        ]

    def multiply_add(self, u, v, w):
        if not self.complex:
            return [self._fused(u[0], v[0], w[0])]
        (x, y), (p, q), (r, s) = u, v, w
        return [
            self._fused(self.builder.fneg(y), q, self._fused(x, p, r)),
            self._fused(y, p, self._fused(x, q, s)),
        ]

    def conjugate(self, u):
        return [u[0], self.builder.fneg(u[1])] if self.complex else u

    def choose(self, condition, u, v):
        return [self.builder.select(condition, x, y) for x, y in zip(u, v, strict=True)]

    def flush(self, u):
        """0 for what is too small for full precision, with which some processors are slow."""
        return [self._flush(x) for x in u]

    def _flush(self, x):
        size = self._call("llvm.fabs", x)
        tiny, zero = (ir.Constant(x.type, [v] * self.columns) for v in (self.tiny, 0.0))
        return self.builder.select(self.builder.fcmp_unordered(">=", size, tiny), x, zero)

    def _fused(self, x, y, z):
        return self._call("llvm.fmuladd", x, y, z)

    def _call(self, name, *operands):
        kind = operands[0].type
        name += f".v{self.columns}f{8 * self.alignment}"
        function = ir.FunctionType(kind, [kind] * len(operands))
        function = cgutils.get_or_insert_function(self.builder.module, function, name)
        return self.builder.call(function, operands)

    def _pointer(self, array, index):
        kind, value = array
        data = make_array(kind)(self.context, self.builder, value).data
        return self.builder.bitcast(self.builder.gep(data, [index]), self.type.as_pointer())

    def _shuffle(self, u, v, order):
        order = list(order)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
        return self.builder.shuffle_vector(u, v, mask)


def _emit_run(
    context, builder, dtype, places, what, n, steps, rising, at_once, past, emit_steps
):  # fmt: skip
    """Loops over `steps` steps of `n` columns; the formula of some steps is `emit_steps`.

    `places` are, of each sequence, the index of its first step, the distance of steps and that of
    columns. `what` (WALK, PAIR or both) and the rest are known when it runs: whether the vectors of
    a step are taken in `rising` order (that of memory, for prefetching), whether STEPS are taken
    `at_once`, and whether outputs are stored `past` the caches. `emit_steps` is called with the
    emitter, `what`, number of steps, whether to store past the caches, (index, distance of steps)
    of each sequence, and index of the states.
    """
    size, zero, one = (ir.Constant(n.type, v) for v in (BYTES * 8 // dtype.bitwidth, 0, 1))
    dense = ir.Constant(ir.IntType(1), 1)
    for *_, column in places:
        dense = builder.and_(dense, builder.icmp_unsigned("==", column, one))
    vectors = builder.select(dense, builder.udiv(n, size), zero)
    done = builder.mul(vectors, size)
    first = builder.select(rising, zero, builder.sub(done, size))
    stride = builder.select(rising, size, builder.neg(size))
    starts = [cgutils.alloca_once_value(builder, index) for index, *_ in places]

    def loop(what, count, times, stream):
        with cgutils.for_range(builder, times, intp=n.type):
            at = [builder.load(start) for start in starts]

            def emit(columns, d, offsets):
                here = [
                    (builder.add(i, offset), step)
                    for i, offset, (_, step, _) in zip(at, offsets, places, strict=True)
                ]
                emitter = _Emitter(context, builder, dtype, columns)
                emit_steps(emitter, what, count, stream, here, d)

            with cgutils.for_range(builder, vectors, intp=n.type) as vector:
                d = builder.add(first, builder.mul(vector.index, stride))
                emit(BYTES * 8 // dtype.bitwidth, d, [d] * len(places))
            with cgutils.for_range(builder, builder.sub(n, done), intp=n.type) as column:
                d = builder.add(done, column.index)
                emit(1, d, [builder.mul(d, stride) for *_, stride in places])
            for start, i, (_, step, _) in zip(starts, at, places, strict=True):
                builder.store(builder.add(i, builder.mul(step, ir.Constant(n.type, count))), start)

    several = ir.Constant(n.type, STEPS)
    more = builder.select(at_once, builder.udiv(steps, several), zero)
    rest = builder.sub(steps, builder.mul(more, several))
    for which in (WALK, PAIR, WALK | PAIR):
        with builder.if_then(builder.icmp_unsigned("==", what, ir.Constant(what.type, which))):
            loop(which, STEPS, more, False)
            with builder.if_else(past) as (then, otherwise):
                with then:
                    loop(which, 1, rest, True)
                with otherwise:
                    loop(which, 1, rest, False)


def _operands(signature, arguments):
    """The arguments, arrays together with their types."""
    return [
        (kind, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


@intrinsic
def _forward_run(
    _, what, a, ia, sa, fa, b, ib, sb, fb, y, iy, sy, fy, state, width, n, steps, exclusive,
    rising, at_once, past,
):  # fmt: skip
    """Steps of `forward_rows`; `state` is (h, A, B), each of `width` columns."""

    def generate(context, builder, signature, arguments):
        operands = _operands(signature, arguments)
        what, a, ia, sa, fa, b, ib, sb, fb, y, iy, sy, fy, state, width, *operands = operands
        n, steps, exclusive, *way = operands

        def emit_steps(emit, what, count, stream, at, d):
            (ia, sa), (ib, sb), (iy, sy) = at
            places = d, builder.add(d, width), builder.add(d, builder.add(width, width))
            h, A, B = (emit.load(state, place) for place in places)
            for _ in range(count):
                x, u = emit.load(a, ia), emit.load(b, ib)
                before = h
                if what & WALK:
                    h = emit.multiply_add(x, before, u)
                    emit.store(emit.choose(exclusive, before, h), y, iy, stream)
                if what & PAIR:
                    A, B = emit.flush(emit.multiply(x, A)), emit.multiply_add(x, B, u)
                ia, ib, iy = (builder.add(*p) for p in ((ia, sa), (ib, sb), (iy, sy)))
            for value, place in zip((h, A, B), places, strict=True):
                emit.store(value, state, place)

        places = (ia, sa, fa), (ib, sb, fb), (iy, sy, fy)
        dtype = signature.args[1].dtype
        _emit_run(context, builder, dtype, places, what, n, steps, *way, emit_steps)
        return context.get_dummy_value()

    arguments = what, a, ia, sa, fa, b, ib, sb, fb, y, iy, sy, fy, state, width, n, steps
    return types.none(*arguments, exclusive, rising, at_once, past), generate


@intrinsic
def _backward_run(
    _, what, a, ia, sa, fa, dy, idy, sdy, fdy, p, ip, sp, fp, da, db, i, s, f, state, width, n,
    steps, exclusive, rising, at_once, past,
):  # fmt: skip
    """Steps of `backward_rows`; `state` is (c, A, B), each of `width` columns."""

    def generate(context, builder, signature, arguments):
        operands = _operands(signature, arguments)
        what, a, ia, sa, fa, dy, idy, sdy, fdy, p, ip, sp, fp, *operands = operands
        da, db, i, s, f, state, width, n, steps, exclusive, *way = operands

        def emit_steps(emit, what, count, stream, at, d):
            (ia, sa), (idy, sdy), (ip, sp), (i, s) = at
            places = d, builder.add(d, width), builder.add(d, builder.add(width, width))
            c, A, B = (emit.load(state, place) for place in places)

            def before(c):
                """The adjoint of the state before a step, from that after it; see adjoint.py."""
                g = emit.choose(exclusive, c, emit.add(x, c))
                c = emit.multiply(a_, g)
                return emit.choose(exclusive, emit.add(c, x), c), g

            for _ in range(count):
                a_, x = emit.conjugate(emit.load(a, ia)), emit.load(dy, idy)
                if what & WALK:
                    c, g = before(c)
                    emit.store(g, db, i, stream)
                    of_a = emit.multiply(g, emit.conjugate(emit.load(p, ip)))
                    emit.store(of_a, da, i, stream)
                if what & PAIR:
                    A, (B, _) = emit.flush(emit.multiply(a_, A)), before(B)
                ia, idy, ip, i = (builder.add(*p) for p in ((ia, sa), (idy, sdy), (ip, sp), (i, s)))
            for value, place in zip((c, A, B), places, strict=True):
                emit.store(value, state, place)

        places = (ia, sa, fa), (idy, sdy, fdy), (ip, sp, fp), (i, s, f)
        dtype = signature.args[1].dtype
        _emit_run(context, builder, dtype, places, what, n, steps, *way, emit_steps)
        return context.get_dummy_value()

    arguments = what, a, ia, sa, fa, dy, idy, sdy, fdy, p, ip, sp, fp, da, db, i, s, f, state
    arguments = *arguments, width, n, steps, exclusive, rising, at_once, past
    return types.none(*arguments), generate


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


@_compiled
def forward_rows(
    flags, states, h, parts, chunk, blocks, width, a, a_strides, b, b_strides, y,
    y_strides, lengths, B, T, D, reverse, exclusive, restarts, past,
):  # fmt: skip
    """h_t = a_t * h_{t-1} + b_t; y_t = h_t, or h_{t-1} if exclusive; 0 at padded steps.

    A piece is one part of time, of `chunk` steps, of one block, of `width` columns, of one row;
    later parts are later pieces. `h` (B, D) is the state before the first of the `parts` and in the
    end that after the last; `states` (parts - 1, B, D) are those between, the one before piece u
    there when flags[1 + u] is raised; flags[0] counts the pieces that are taken. `lengths` and
    `restarts`, which says by row and step of time whether no state passes into it, are empty if
    there are none. `past`: y, whose rows are then aligned to BYTES, is stored past the caches.
    """
    a, b, y = _array(a, states), _array(b, states), _array(y, states)
    final = _array(h, states)
    units = B * blocks
    fa, fb, fy = uint64(a_strides[2]), uint64(b_strides[2]), uint64(y_strides[2])
    sign = -1 if reverse else 1
    sa, sb = uint64(sign * a_strides[1]), uint64(sign * b_strides[1])
    sy, sr = uint64(sign * y_strides[1]), uint64(sign)
    state = np.empty(3 * width, states.dtype)
    while True:
        piece = _next(flags)
        if piece >= parts * units:
            break
        part, row, low = piece // units, piece % units // blocks, piece % units % blocks * width
        n, steps = min(width, D - low), lengths[row] if lengths.size else T
        column = row * D + low
        begin, end = min(part * chunk, steps), min((part + 1) * chunk, steps)
        t = steps - 1 - begin if reverse else begin
        first, last = part == 0, part == parts - 1
        h = final if first else states
        before = column if first else (part - 1) * B * D + column
        next_h = final if last else states
        after = column if last else part * B * D + column
        what = _begin(state, width, h, before, flags, piece, first, last, n)
        while what:
            ia = uint64(row * a_strides[0] + t * a_strides[1] + low * a_strides[2])
            ib = uint64(row * b_strides[0] + t * b_strides[1] + low * b_strides[2])
            iy = uint64(row * y_strides[0] + t * y_strides[1] + low * y_strides[2])
            ir = uint64(row * T + t)
            k = begin
            while k < end:
                if restarts.size != 0 and restarts[ir]:
                    state[:] = 0
                run = 1 + _until_restart(restarts, ir + sr, sr, end - k - 1)
                _forward_run(
                    what, a, ia, sa, fa, b, ib, sb, fb, y, iy, sy, fy, state, uint64(width),
                    uint64(n), uint64(run), exclusive, not reverse, D <= NARROW, past,
                )  # fmt: skip
                k += run
                ia += sa * uint64(run)
                ib += sb * uint64(run)
                iy += sy * uint64(run)
                ir += sr * uint64(run)
            what = _pass_on(
                what, state, width, h, before, next_h, after, flags, piece, piece + units, first, n
            )
        if last:
            for t in range(steps, T):
                iy = row * y_strides[0] + t * y_strides[1] + low * y_strides[2]
                y[iy : iy + n] = 0
    if past:
        _fence()


@_compiled
def backward_rows(
    flags, states, c, parts, chunk, blocks, width, a, a_strides, dy, dy_strides, y,
    y_strides, h0, begins, da, d_strides, db, lengths, B, T, D, reverse, exclusive, restarts, past,
):  # fmt: skip
    """The adjoint c: g = dy + c, db = g, da = g conj(h_prev), c = conj(a) g; see adjoint.py.

    It walks against the walk of `forward_rows`, and is divided like it; `states` are those of c.
    The state before a step stands in `y` (at the step, if exclusive), that before the first one in
    `h0` if the forward walk `begins` in these steps.
    """
    a, dy, y, h0 = _array(a, states), _array(dy, states), _array(y, states), _array(h0, states)
    da, db, final = _array(da, states), _array(db, states), _array(c, states)
    units = B * blocks
    fa, fdy, fp = uint64(a_strides[2]), uint64(dy_strides[2]), uint64(y_strides[2])
    f, sign = uint64(d_strides[2]), 1 if reverse else -1
    sa, sdy = uint64(sign * a_strides[1]), uint64(sign * dy_strides[1])
    sp, s, sr = uint64(sign * y_strides[1]), uint64(sign * d_strides[1]), uint64(sign)
    state = np.empty(3 * width, states.dtype)
    while True:
        piece = _next(flags)
        if piece >= parts * units:
            break
        part, row, low = piece // units, piece % units // blocks, piece % units % blocks * width
        n, steps = min(width, D - low), lengths[row] if lengths.size else T
        column = row * D + low
        begin, end = min(part * chunk, steps), min((part + 1) * chunk, steps)
        # The state before the last of these steps may stand elsewhere.
        inside = steps - 1 if begins and not exclusive else steps
        t = begin if reverse else steps - 1 - begin
        t_before = t if exclusive else t + sign
        first, last = part == 0, part == parts - 1
        h = final if first else states
        before = column if first else (part - 1) * B * D + column
        next_h = final if last else states
        after = column if last else part * B * D + column
        what = _begin(state, width, h, before, flags, piece, first, last, n)
        while what:
            ia = uint64(row * a_strides[0] + t * a_strides[1] + low * a_strides[2])
            idy = uint64(row * dy_strides[0] + t * dy_strides[1] + low * dy_strides[2])
            ip = uint64(row * y_strides[0] + t_before * y_strides[1] + low * y_strides[2])
            i = uint64(row * d_strides[0] + t * d_strides[1] + low * d_strides[2])
            ir = uint64(row * T + t)
            k = begin
            while k < end:
                run = 1
                if restarts.size != 0 and restarts[ir]:
                    if what & WALK:
                        for d in range(n):
                            x = dy[idy + uint64(d) * fdy]
                            db[i + uint64(d)] = state[d] if exclusive else x + state[d]
                            da[i + uint64(d)] = 0
                    state[:] = 0
                else:
                    p, ip_, sp_, fp_ = y, ip, sp, fp
                    if k < inside:
                        run = _until_restart(restarts, ir, sr, min(end, inside) - k)
                    else:
                        p, ip_, sp_, fp_ = h0, uint64(column), uint64(0), uint64(1)
                    _backward_run(
                        what, a, ia, sa, fa, dy, idy, sdy, fdy, p, ip_, sp_, fp_, da, db, i, s, f,
                        state, uint64(width), uint64(n), uint64(run), exclusive, reverse,
                        D <= NARROW, past,
                    )  # fmt: skip
                k += run
                ia += sa * uint64(run)
                idy += sdy * uint64(run)
                ip += sp * uint64(run)
                i += s * uint64(run)
                ir += sr * uint64(run)
            what = _pass_on(
                what, state, width, h, before, next_h, after, flags, piece, piece + units, first, n
            )
        if last:
            for t in range(steps, T):
                i = row * d_strides[0] + t * d_strides[1] + low * d_strides[2]
                da[i : i + n] = 0
                db[i : i + n] = 0
    if past:
        _fence()


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

    Pieces, `flags` and `states` are as in `forward_rows`. `table` (places, 4) has the places of
    all tensors, of which `outputs` are 0 at padded steps; a walk goes in `direction` (1 or -1) of
    time. Backward, the first step of the forward walk finds the state before it in h0,
    unless all states stand `inside` the emitted ones.
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


@_inlined
def _forward_step(a, ia, b, ib, y, iy, h, exclusive):
    after = a[ia] * h + b[ib]
    y[iy] = h if exclusive else after
    return after


@_inlined
def _backward_step(
    a, ia, dy, idy, p, ip, da, db, i, c, exclusive
):  # fmt: skip
    x = dy[idy]
    g = c if exclusive else x + c
    db[i] = g
    da[i] = g * np.conj(p[ip])
    c = np.conj(a[ia]) * g
    return c + x if exclusive else c


@_inlined
def _pair_step(a, x, A, B, adjoint, exclusive):
    if adjoint:
        a = np.conj(a)
        return a * A, a * B + x if exclusive else a * (B + x)
    return a * A, a * B + x


@_inlined
def _multiples(stride):
    stride = uint64(stride)
    return stride, stride * uint64(2), stride * uint64(3)


@_contracted
def forward_lanes(
    counter, steps, a, a_starts, la, sa, b, b_starts, lb, sb, y, y_starts, ly, sy, state,
    exclusive,
):  # fmt: skip
    """The same for units of four lanes each; `state` (units, 4)."""
    a, b, y = _array(a, state), _array(b, state), _array(y, state)
    sa, sb, sy = uint64(sa), uint64(sb), uint64(sy)
    la, la2, la3 = _multiples(la)
    lb, lb2, lb3 = _multiples(lb)
    ly, ly2, ly3 = _multiples(ly)
    while True:
        unit = _next(counter)
        if unit >= y_starts.size:
            break
        ia, ib, iy = uint64(a_starts[unit]), uint64(b_starts[unit]), uint64(y_starts[unit])
        h0, h1, h2, h3 = state[unit, 0], state[unit, 1], state[unit, 2], state[unit, 3]
        for _ in range(steps):
            h0 = _forward_step(a, ia, b, ib, y, iy, h0, exclusive)
            h1 = _forward_step(a, ia + la, b, ib + lb, y, iy + ly, h1, exclusive)
            h2 = _forward_step(a, ia + la2, b, ib + lb2, y, iy + ly2, h2, exclusive)
            h3 = _forward_step(a, ia + la3, b, ib + lb3, y, iy + ly3, h3, exclusive)
            ia += sa
            ib += sb
            iy += sy
        state[unit, 0], state[unit, 1], state[unit, 2], state[unit, 3] = h0, h1, h2, h3


@_contracted
def backward_lanes(
    counter, steps, a, a_starts, la, sa, dy, dy_starts, ldy, sdy, p, p_starts, lp, sp, da, db,
    d_starts, ld, sd, state, exclusive,
):  # fmt: skip
    """The same for the adjoint; `p_starts` is where the state before the step stands."""
    a, dy, p = _array(a, state), _array(dy, state), _array(p, state)
    da, db = _array(da, state), _array(db, state)
    sa, sdy, sp, sd = uint64(sa), uint64(sdy), uint64(sp), uint64(sd)
    la, la2, la3 = _multiples(la)
    ldy, ldy2, ldy3 = _multiples(ldy)
    lp, lp2, lp3 = _multiples(lp)
    ld, ld2, ld3 = _multiples(ld)
    while True:
        unit = _next(counter)
        if unit >= d_starts.size:
            break
        ia, idy = uint64(a_starts[unit]), uint64(dy_starts[unit])
        ip, i = uint64(p_starts[unit]), uint64(d_starts[unit])
        c0, c1, c2, c3 = state[unit, 0], state[unit, 1], state[unit, 2], state[unit, 3]
        for _ in range(steps):
            c0 = _backward_step(a, ia, dy, idy, p, ip, da, db, i, c0, exclusive)
            c1 = _backward_step(
                a, ia + la, dy, idy + ldy, p, ip + lp, da, db, i + ld, c1, exclusive
            )
            c2 = _backward_step(
                a, ia + la2, dy, idy + ldy2, p, ip + lp2, da, db, i + ld2, c2, exclusive
            )
            c3 = _backward_step(
                a, ia + la3, dy, idy + ldy3, p, ip + lp3, da, db, i + ld3, c3, exclusive
            )
            ia += sa
            idy += sdy
            ip += sp
            i += sd
        state[unit, 0], state[unit, 1], state[unit, 2], state[unit, 3] = c0, c1, c2, c3


@_contracted
def pair_lanes(
    counter, steps, a, a_starts, la, sa, x, x_starts, lx, sx, A, B, adjoint, exclusive
):  # fmt: skip
    """(A, B) of every lane: the state after its steps, or the adjoint, is A * state + B.

    `x` is b, or dy for the adjoint.
    """
    a, x = _array(a, A), _array(x, A)
    sa, sx = uint64(sa), uint64(sx)
    la, la2, la3 = _multiples(la)
    lx, lx2, lx3 = _multiples(lx)
    while True:
        unit = _next(counter)
        if unit >= a_starts.size:
            break
        ia, ix = uint64(a_starts[unit]), uint64(x_starts[unit])
        one, zero = A.dtype.type(1), A.dtype.type(0)
        A0, A1, A2, A3, B0, B1, B2, B3 = one, one, one, one, zero, zero, zero, zero
        for _ in range(steps):
            A0, B0 = _pair_step(a[ia], x[ix], A0, B0, adjoint, exclusive)
            A1, B1 = _pair_step(a[ia + la], x[ix + lx], A1, B1, adjoint, exclusive)
            A2, B2 = _pair_step(a[ia + la2], x[ix + lx2], A2, B2, adjoint, exclusive)
            A3, B3 = _pair_step(a[ia + la3], x[ix + lx3], A3, B3, adjoint, exclusive)
            ia += sa
            ix += sx
        A[unit, 0], A[unit, 1], A[unit, 2], A[unit, 3] = A0, A1, A2, A3
        B[unit, 0], B[unit, 1], B[unit, 2], B[unit, 3] = B0, B1, B2, B3


@_compiled
def carry(A, B, h0, state):
    """The state before every stretch of time, from the pairs of all (columns, stretches).

    Returns:
        False if a pair is not finite: then A * h + B may differ from the walk (inf * 0).
    """
    for column in range(A.shape[0]):
        h = h0[column]
        for stretch in range(A.shape[1]):
            state[column, stretch] = h
            h = A[column, stretch] * h + B[column, stretch]
            if not (np.isfinite(A[column, stretch]) and np.isfinite(B[column, stretch])):
                return False
    return True
