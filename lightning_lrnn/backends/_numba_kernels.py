"""The recurrence as compiled loops, one step of some columns at a time.

A column is one feature of one row. Every tensor is a flat array; a step of it begins at an index
`i*`, the next one is `s*` further on, modulo 2^64 (time may run backwards). All indices are
unsigned: Numba then leaves out the test for indices that count from the end, which would keep the
loops over columns from being vectorised. `state` goes in as the state before a stretch of steps
and comes out as the state after it.

Two layouts: `walk_*` step through rows whose columns stand side by side in memory; `lanes_*` step
through four columns, or four stretches of time, that lie anywhere at equal distances `l*`: with
few columns that keeps as many independent sums in flight as a core can.

All compiled code is in this one file: Numba keeps what it has compiled in a cache on disk until the
file of a function changes, and does not see changes in others.
"""

# Numba infers the types of these functions, and has no stubs.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types, uint64
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
    # `contract`: a * h + b in one rounding, as on a GPU.
    options |= {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that compiled code could be kept in
        return njit(**options)(function)


def _inlined(function):
    return _compiled(function, forceinline=True)


BYTES = 32
"""Of a vector of columns."""
STEPS = 4
"""Taken at once, with the state in registers between them, if the columns of a row are few."""
NARROW = 64
"""Features up to which that is faster: with more, so many places in memory are in use that the
hardware stops fetching ahead. (Not columns of a block: c + x is rounded once, not twice, between
steps taken at once, and how a row is divided must not change a bit.)"""


class _Emitter:
    """One or more steps of some neighbouring columns, in vector instructions.

    LLVM vectorises a loop over columns by itself only if it can test at run time, before the loop,
    that no output overlaps an input; with the six arrays of the backward pass it gives up, and for
    a few columns the tests cost more than the loop. A value is a list of one vector of `BYTES`
    bytes, or of two: real and imaginary parts. The formulas, and so the roundings, are those of
    `_forward_step`, `_backward_step` and `_pair_step`.
    """

    def __init__(self, context, builder, dtype):
        self.context, self.builder = context, builder
        self.complex = isinstance(dtype, types.Complex)
        part = dtype.underlying_float if self.complex else dtype
        self.alignment = part.bitwidth // 8
        self.columns = BYTES * 8 // dtype.bitwidth
        self.type = ir.VectorType(context.get_value_type(part), BYTES // self.alignment)

    def load(self, array, *index):
        vector = self.builder.load(self._pointer(array, index), align=self.alignment)
        if not self.complex:
            return [vector]
        return [self._shuffle(vector, vector, range(p, 2 * self.columns, 2)) for p in (0, 1)]

    def store(self, value, array, *index, stream=False):
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
        times, plus, minus = self.builder.fmul, self.builder.fadd, self.builder.fsub
        if not self.complex:
            return [times(u[0], v[0])]
        (x, y), (p, q) = u, v
        return [minus(times(x, p), times(y, q)), plus(times(x, q), times(y, p))]

    def conjugate(self, u):
        return [u[0], self.builder.fneg(u[1])] if self.complex else u

    def choose(self, condition, u, v):
        return [self.builder.select(condition, x, y) for x, y in zip(u, v, strict=True)]

    def _pointer(self, array, index):
        kind, value = array
        data = make_array(kind)(self.context, self.builder, value).data
        for offset in index:
            data = self.builder.gep(data, [offset])
        return self.builder.bitcast(data, self.type.as_pointer())

    def _shuffle(self, u, v, order):
        order = list(order)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
        return self.builder.shuffle_vector(u, v, mask)


def _operands(context, builder, signature, arguments):
    """The emitter and the arguments, arrays together with their types."""
    values = [
        (kind, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]
    return _Emitter(context, builder, signature.args[0].dtype), values


@intrinsic
def _vector_columns(_, state):
    """Columns of one vector of the dtype of `state`."""
    columns = BYTES * 8 // state.dtype.bitwidth

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.uint64, columns)

    return types.uint64(state), generate


def _forward_vector(steps, stream):
    @intrinsic
    def forward_vector(
        _, a, ia, sa, b, ib, sb, y, iy, sy, state, d, exclusive
    ):  # fmt: skip
        def generate(context, builder, signature, arguments):
            emit, values = _operands(context, builder, signature, arguments)
            a, ia, sa, b, ib, sb, y, iy, sy, state, d, exclusive = values
            h = emit.load(state, d)
            for _ in range(steps):
                before = h
                h = emit.add(emit.multiply(emit.load(a, ia, d), before), emit.load(b, ib, d))
                emit.store(emit.choose(exclusive, before, h), y, iy, d, stream=stream)
                ia, ib, iy = (builder.add(*p) for p in ((ia, sa), (ib, sb), (iy, sy)))
            emit.store(h, state, d)
            return context.get_dummy_value()

        return types.none(a, ia, sa, b, ib, sb, y, iy, sy, state, d, exclusive), generate

    return forward_vector


def _backward_vector(steps, stream):
    @intrinsic
    def backward_vector(
        _, a, ia, sa, dy, idy, sdy, p, ip, sp, da, db, i, s, state, d, exclusive
    ):  # fmt: skip
        def generate(context, builder, signature, arguments):
            emit, values = _operands(context, builder, signature, arguments)
            a, ia, sa, dy, idy, sdy, p, ip, sp, da, db, i, s, state, d, exclusive = values
            c = emit.load(state, d)
            for _ in range(steps):
                x = emit.load(dy, idy, d)
                g = emit.choose(exclusive, c, emit.add(x, c))
                emit.store(g, db, i, d, stream=stream)
                of_a = emit.multiply(g, emit.conjugate(emit.load(p, ip, d)))
                emit.store(of_a, da, i, d, stream=stream)
                c = emit.multiply(emit.conjugate(emit.load(a, ia, d)), g)
                c = emit.choose(exclusive, emit.add(c, x), c)
                pairs = (ia, sa), (idy, sdy), (ip, sp), (i, s)
                ia, idy, ip, i = (builder.add(*pair) for pair in pairs)
            emit.store(c, state, d)
            return context.get_dummy_value()

        arguments = a, ia, sa, dy, idy, sdy, p, ip, sp, da, db, i, s, state, d, exclusive
        return types.none(*arguments), generate

    return backward_vector


_forward_one, _forward_more = _forward_vector(1, False), _forward_vector(STEPS, False)
_backward_one, _backward_more = _backward_vector(1, False), _backward_vector(STEPS, False)
_forward_one_past, _backward_one_past = _forward_vector(1, True), _backward_vector(1, True)


@intrinsic
def _fence(_):
    """What was stored past the caches is there for other threads."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


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
def _order(n, state, rising, at_once, past):
    """Vectors of a row in the order of memory in which its steps are walked, for prefetching.

    Returns:
        First column, distance to the next vector, number of vectors, number of their columns;
        whether STEPS steps are taken at once, and whether results are stored `past` the caches.
    """
    size = _vector_columns(state)
    vectors = n // size
    done = vectors * size
    if rising:
        return uint64(0), size, vectors, done, at_once, past
    return done - size, uint64(0) - size, vectors, done, at_once, past


@_inlined
def _forward(
    a, ia, sa, b, ib, sb, y, iy, sy, state, n, steps, exclusive, order
):  # fmt: skip
    start, step, vectors, done, at_once, past = order
    more = steps // STEPS if at_once else 0
    for _ in range(more):
        d = start
        for _ in range(vectors):
            _forward_more(a, ia, sa, b, ib, sb, y, iy, sy, state, d, exclusive)
            d += step
        for _ in range(STEPS):
            for j in range(done, n):
                state[j] = _forward_step(a, ia + j, b, ib + j, y, iy + j, state[j], exclusive)
            ia += sa
            ib += sb
            iy += sy
    for _ in range(steps - more * STEPS):
        d = start
        for _ in range(vectors):
            if past:
                _forward_one_past(a, ia, sa, b, ib, sb, y, iy, sy, state, d, exclusive)
            else:
                _forward_one(a, ia, sa, b, ib, sb, y, iy, sy, state, d, exclusive)
            d += step
        for j in range(done, n):
            state[j] = _forward_step(a, ia + j, b, ib + j, y, iy + j, state[j], exclusive)
        ia += sa
        ib += sb
        iy += sy


@_inlined
def _backward(
    a, ia, sa, dy, idy, sdy, p, ip, sp, da, db, i, s, state, n, steps, exclusive, order
):  # fmt: skip
    start, step, vectors, done, at_once, past = order
    more = steps // STEPS if at_once else 0
    for _ in range(more):
        d = start
        for _ in range(vectors):
            _backward_more(a, ia, sa, dy, idy, sdy, p, ip, sp, da, db, i, s, state, d, exclusive)
            d += step
        for _ in range(STEPS):
            for j in range(done, n):
                state[j] = _backward_step(
                    a, ia + j, dy, idy + j, p, ip + j, da, db, i + j, state[j], exclusive
                )
            ia += sa
            idy += sdy
            ip += sp
            i += s
    for _ in range(steps - more * STEPS):
        d = start
        for _ in range(vectors):
            if past:
                _backward_one_past(
                    a, ia, sa, dy, idy, sdy, p, ip, sp, da, db, i, s, state, d, exclusive
                )
            else:
                _backward_one(a, ia, sa, dy, idy, sdy, p, ip, sp, da, db, i, s, state, d, exclusive)
            d += step
        for j in range(done, n):
            state[j] = _backward_step(
                a, ia + j, dy, idy + j, p, ip + j, da, db, i + j, state[j], exclusive
            )
        ia += sa
        idy += sdy
        ip += sp
        i += s


@_compiled
def _gather(x, i, stride, out, n):
    for d in range(n):
        out[d] = x[i]
        i += stride


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
    begin, end, blocks, width, a, a_strides, b, b_strides, y, y_strides, state, lengths, T, D,
    dense, reverse, exclusive, restarts, past,
):  # fmt: skip
    """h_t = a_t * h_{t-1} + b_t; y_t = h_t, or h_{t-1} if exclusive; 0 at padded steps.

    Unit u, of begin ... end - 1, is block u % blocks, of `width` columns, of row u // blocks. If
    the columns of every tensor are `dense`, that is side by side, they are read in place, else
    gathered step by step. `restarts` says by row and step of time whether no state passes into it;
    empty: one always does. `state` is (B, D). `past`: y, whose rows are then aligned to BYTES, is
    stored past the caches.
    """
    buffer_a, buffer_b = np.empty(width, state.dtype), np.empty(width, state.dtype)
    fa, fb, fy = uint64(a_strides[2]), uint64(b_strides[2]), uint64(y_strides[2])
    zero = uint64(0)
    for unit in range(begin, end):
        row, low = unit // blocks, unit % blocks * width
        n, steps = uint64(min(width, D - low)), lengths[row]
        h = state[row * D + low : row * D + low + int(n)]
        t, sign = (steps - 1, -1) if reverse else (0, 1)
        ia = uint64(row * a_strides[0] + t * a_strides[1] + low * a_strides[2])
        ib = uint64(row * b_strides[0] + t * b_strides[1] + low * b_strides[2])
        iy = uint64(row * y_strides[0] + t * y_strides[1] + low * y_strides[2])
        ir, sr = uint64(row * T + t), uint64(sign)
        sa, sb = uint64(sign * a_strides[1]), uint64(sign * b_strides[1])
        sy, order = uint64(sign * y_strides[1]), _order(n, state, sign > 0, D <= NARROW, past)
        k = 0
        while k < steps:
            if restarts.size != 0 and restarts[ir]:
                h[:] = 0
            if dense:
                run = _until_restart(restarts, ir + sr, sr, steps - k - 1) + 1
                _forward(a, ia, sa, b, ib, sb, y, iy, sy, h, n, run, exclusive, order)
            else:
                run = 1
                _gather(a, ia, fa, buffer_a, n)
                _gather(b, ib, fb, buffer_b, n)
                _forward(
                    buffer_a, zero, zero, buffer_b, zero, zero, y, iy, sy, h, n, run, exclusive,
                    order,
                )  # fmt: skip
            k += run
            ia += sa * uint64(run)
            ib += sb * uint64(run)
            iy += sy * uint64(run)
            ir += sr * uint64(run)
        iy = uint64(row * y_strides[0] + lengths[row] * y_strides[1] + low * y_strides[2])
        for _ in range(lengths[row], T):
            for d in range(n):
                y[iy + d * fy] = 0
            iy += uint64(y_strides[1])
    if past:
        _fence()


@_compiled
def backward_rows(
    begin, end, blocks, width, a, a_strides, dy, dy_strides, y, y_strides, h0, begins, da,
    d_strides, db, state, lengths, T, D, dense, reverse, exclusive, restarts, past,
):  # fmt: skip
    """The adjoint c: g = dy + c, db = g, da = g conj(h_prev), c = conj(a) g; see adjoint.py.

    It walks against the walk of `forward_rows`; `state` is c. The state before a step stands in
    `y` (at the step, if exclusive), that before the first one in `h0` if the forward walk `begins`
    in these steps.
    """
    buffer_a, buffer_dy = np.empty(width, state.dtype), np.empty(width, state.dtype)
    buffer_p = np.empty(width, state.dtype)
    fa, fdy, fp = uint64(a_strides[2]), uint64(dy_strides[2]), uint64(y_strides[2])
    zero = uint64(0)
    for unit in range(begin, end):
        row, low = unit // blocks, unit % blocks * width
        n, steps = uint64(min(width, D - low)), lengths[row]
        c = state[row * D + low : row * D + low + int(n)]
        t, sign = (0, 1) if reverse else (steps - 1, -1)
        t_before = t if exclusive else t + sign
        ia = uint64(row * a_strides[0] + t * a_strides[1] + low * a_strides[2])
        idy = uint64(row * dy_strides[0] + t * dy_strides[1] + low * dy_strides[2])
        ip = uint64(row * y_strides[0] + t_before * y_strides[1] + low * y_strides[2])
        i = uint64(row * d_strides[0] + t * d_strides[1] + low * d_strides[2])
        ir, sr = uint64(row * T + t), uint64(sign)
        sa, sdy = uint64(sign * a_strides[1]), uint64(sign * dy_strides[1])
        sp, s = uint64(sign * y_strides[1]), uint64(sign * d_strides[1])
        order = _order(n, state, sign > 0, D <= NARROW, past)
        # The state before the last of these steps may stand elsewhere.
        inside = steps - 1 if begins and not exclusive else steps
        k = 0
        while k < steps:
            run = 1
            if restarts.size != 0 and restarts[ir]:
                _gather(dy, idy, fdy, buffer_dy, n)
                for d in range(n):
                    db[i + d] = c[d] if exclusive else buffer_dy[d] + c[d]
                    da[i + d] = 0
                    c[d] = 0
            elif dense and k < inside:
                run = _until_restart(restarts, ir, sr, inside - k)
                _backward(
                    a, ia, sa, dy, idy, sdy, y, ip, sp, da, db, i, s, c, n, run, exclusive, order
                )
            else:
                _gather(a, ia, fa, buffer_a, n)
                _gather(dy, idy, fdy, buffer_dy, n)
                if k < inside:
                    _gather(y, ip, fp, buffer_p, n)
                else:
                    _gather(h0, uint64(row * D + low), uint64(1), buffer_p, n)
                _backward(
                    buffer_a, zero, zero, buffer_dy, zero, zero, buffer_p, zero, zero, da, db, i, s,
                    c, n, run, exclusive, order,
                )  # fmt: skip
            k += run
            ia += sa * uint64(run)
            idy += sdy * uint64(run)
            ip += sp * uint64(run)
            i += s * uint64(run)
            ir += sr * uint64(run)
        i = uint64(row * d_strides[0] + steps * d_strides[1] + low * d_strides[2])
        for _ in range(steps, T):
            for d in range(n):
                da[i + d] = 0
                db[i + d] = 0
            i += uint64(d_strides[1])
    if past:
        _fence()


@_inlined
def _multiples(stride):
    stride = uint64(stride)
    return stride, stride * uint64(2), stride * uint64(3)


@_compiled
def forward_lanes(
    begin, end, steps, a, a_starts, la, sa, b, b_starts, lb, sb, y, y_starts, ly, sy, state,
    exclusive,
):  # fmt: skip
    """The same for units of four lanes each; `state` (units, 4)."""
    sa, sb, sy = uint64(sa), uint64(sb), uint64(sy)
    la, la2, la3 = _multiples(la)
    lb, lb2, lb3 = _multiples(lb)
    ly, ly2, ly3 = _multiples(ly)
    for unit in range(begin, end):
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


@_compiled
def backward_lanes(
    begin, end, steps, a, a_starts, la, sa, dy, dy_starts, ldy, sdy, p, p_starts, lp, sp, da, db,
    d_starts, ld, sd, state, exclusive,
):  # fmt: skip
    """The same for the adjoint; `p_starts` is where the state before the step stands."""
    sa, sdy, sp, sd = uint64(sa), uint64(sdy), uint64(sp), uint64(sd)
    la, la2, la3 = _multiples(la)
    ldy, ldy2, ldy3 = _multiples(ldy)
    lp, lp2, lp3 = _multiples(lp)
    ld, ld2, ld3 = _multiples(ld)
    for unit in range(begin, end):
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


@_compiled
def pair_lanes(
    begin, end, steps, a, a_starts, la, sa, x, x_starts, lx, sx, A, B, adjoint, exclusive
):  # fmt: skip
    """(A, B) of every lane: the state after its steps, or the adjoint, is A * state + B.

    `x` is b, or dy for the adjoint.
    """
    sa, sx = uint64(sa), uint64(sx)
    la, la2, la3 = _multiples(la)
    lx, lx2, lx3 = _multiples(lx)
    for unit in range(begin, end):
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
