"""The recurrence as compiled loops, one step of some columns at a time.

A column is one feature of one row. Every tensor is a flat array; a step of it begins at an index
`i*`, the next one is `s*` further on, modulo 2^64 (time may run backwards). All indices are
unsigned: Numba then leaves out the test for indices that count from the end, which would keep the
loops over columns from being vectorised. `state` goes in as the state before a stretch of steps
and comes out as the state after it.

Two layouts: `walk_*` step through rows whose columns stand side by side in memory; `lanes_*` step
through LANES columns, or LANES stretches of time, that lie anywhere at equal distances `l*`: with
few columns that keeps as many independent sums in flight as a core can.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from lightning_lrnn.backends._numba import LANES

__all__ = [
    "backward_lanes",
    "backward_pairs",
    "backward_rows",
    "carry",
    "forward_lanes",
    "forward_pairs",
    "forward_rows",
]

def _compiled(function):  # type: ignore[no-untyped-def]
    options = {
        "nogil": True,
        "error_model": "numpy",
        # a * h + b in one rounding, as on a GPU.
        "fastmath": {"contract"},
    }
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that compiled code could be kept in
        return njit(**options)(function)


@_compiled
def _forward(a, ia, b, ib, y, iy, state, n, exclusive):  # type: ignore[no-untyped-def]
    for d in range(n):
        before = state[d]
        after = a[ia + d] * before + b[ib + d]
        y[iy + d] = before if exclusive else after
        state[d] = after


@_compiled
def _backward(
    a, ia, dy, idy, p, ip, da, db, i, state, n, exclusive
):  # type: ignore[no-untyped-def]  # fmt: skip
    for d in range(n):
        x, c = dy[idy + d], state[d]
        g = c if exclusive else x + c
        db[i + d] = g
        da[i + d] = g * np.conj(p[ip + d])
        c = np.conj(a[ia + d]) * g
        state[d] = c + x if exclusive else c


@_compiled
def _gather(x, i, stride, out, n):  # type: ignore[no-untyped-def]
    for d in range(n):
        out[d] = x[i]
        i += stride


@_compiled
def forward_rows(
    begin, end, blocks, width, a, a_strides, b, b_strides, y, y_strides, state, lengths, T, D,
    dense, reverse, exclusive, restarts,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """h_t = a_t * h_{t-1} + b_t; y_t = h_t, or h_{t-1} if exclusive; 0 at padded steps.

    Args:
        begin: first unit; unit u is block u % blocks of row u // blocks, `width` columns of it.
        end: one after the last unit.
        dense: the columns of every tensor stand side by side; if not, they are gathered.
        restarts: by row and step of time, whether no state passes into it; empty = it always does.
        state: (B, D): before the walk, then after it.
    """
    buffer_a, buffer_b = np.empty(width, state.dtype), np.empty(width, state.dtype)
    fa, fb, fy = uint64(a_strides[2]), uint64(b_strides[2]), uint64(y_strides[2])
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
        sy = uint64(sign * y_strides[1])
        for _ in range(steps):
            if restarts.size != 0 and restarts[ir]:
                h[:] = 0
            if dense:
                _forward(a, ia, b, ib, y, iy, h, n, exclusive)
            else:
                _gather(a, ia, fa, buffer_a, n)
                _gather(b, ib, fb, buffer_b, n)
                zero = uint64(0)
                _forward(buffer_a, zero, buffer_b, zero, y, iy, h, n, exclusive)
            ia += sa
            ib += sb
            iy += sy
            ir += sr
        iy = uint64(row * y_strides[0] + steps * y_strides[1] + low * y_strides[2])
        for _ in range(steps, T):
            for d in range(n):
                y[iy + d * fy] = 0
            iy += uint64(y_strides[1])


@_compiled
def backward_rows(
    begin, end, blocks, width, a, a_strides, dy, dy_strides, y, y_strides, h0, begins, da,
    d_strides, db, state, lengths, T, D, dense, reverse, exclusive, restarts,
):  # type: ignore[no-untyped-def]  # fmt: skip
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
        for k in range(steps):
            first = begins and not exclusive and k == steps - 1
            if restarts.size != 0 and restarts[ir]:
                _gather(dy, idy, fdy, buffer_dy, n)
                for d in range(n):
                    db[i + d] = c[d] if exclusive else buffer_dy[d] + c[d]
                    da[i + d] = 0
                    c[d] = 0
            elif dense and not first:
                _backward(a, ia, dy, idy, y, ip, da, db, i, c, n, exclusive)
            else:
                _gather(a, ia, fa, buffer_a, n)
                _gather(dy, idy, fdy, buffer_dy, n)
                if first:
                    _gather(h0, uint64(row * D + low), uint64(1), buffer_p, n)
                else:
                    _gather(y, ip, fp, buffer_p, n)
                _backward(
                    buffer_a, zero, buffer_dy, zero, buffer_p, zero, da, db, i, c, n, exclusive
                )
            ia += sa
            idy += sdy
            ip += sp
            i += s
            ir += sr
        i = uint64(row * d_strides[0] + steps * d_strides[1] + low * d_strides[2])
        for _ in range(steps, T):
            for d in range(n):
                da[i + d] = 0
                db[i + d] = 0
            i += uint64(d_strides[1])


@_compiled
def forward_lanes(
    begin, end, steps, a, a_starts, la, sa, b, b_starts, lb, sb, y, y_starts, ly, sy, state,
    exclusive,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """The same for units of LANES lanes each; `state` (units, LANES)."""
    la, sa, lb, sb, ly, sy = uint64(la), uint64(sa), uint64(lb), uint64(sb), uint64(ly), uint64(sy)
    for unit in range(begin, end):
        ia, ib, iy = uint64(a_starts[unit]), uint64(b_starts[unit]), uint64(y_starts[unit])
        h = state[unit]
        for _ in range(steps):
            for lane in range(uint64(LANES)):
                before = h[lane]
                after = a[ia + lane * la] * before + b[ib + lane * lb]
                y[iy + lane * ly] = before if exclusive else after
                h[lane] = after
            ia += sa
            ib += sb
            iy += sy


@_compiled
def backward_lanes(
    begin, end, steps, a, a_starts, la, sa, dy, dy_starts, ldy, sdy, p, p_starts, lp, sp, da, db,
    d_starts, ld, sd, state, exclusive,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """The same for the adjoint; `p_starts` is where the state before the step stands."""
    la, sa, ldy, sdy = uint64(la), uint64(sa), uint64(ldy), uint64(sdy)
    lp, sp, ld, sd = uint64(lp), uint64(sp), uint64(ld), uint64(sd)
    for unit in range(begin, end):
        ia, idy = uint64(a_starts[unit]), uint64(dy_starts[unit])
        ip, i = uint64(p_starts[unit]), uint64(d_starts[unit])
        state_c = state[unit]
        for _ in range(steps):
            for lane in range(uint64(LANES)):
                x, c = dy[idy + lane * ldy], state_c[lane]
                g = c if exclusive else x + c
                db[i + lane * ld] = g
                da[i + lane * ld] = g * np.conj(p[ip + lane * lp])
                c = np.conj(a[ia + lane * la]) * g
                state_c[lane] = c + x if exclusive else c
            ia += sa
            idy += sdy
            ip += sp
            i += sd


@_compiled
def forward_pairs(
    begin, end, steps, a, a_starts, la, sa, b, b_starts, lb, sb, A, B
):  # type: ignore[no-untyped-def]  # fmt: skip
    """(A, B) of every lane: the state after its steps is A * state + B."""
    la, sa, lb, sb = uint64(la), uint64(sa), uint64(lb), uint64(sb)
    for unit in range(begin, end):
        ia, ib = uint64(a_starts[unit]), uint64(b_starts[unit])
        pair_A, pair_B = A[unit], B[unit]
        pair_A[:] = 1
        pair_B[:] = 0
        for _ in range(steps):
            for lane in range(uint64(LANES)):
                decay = a[ia + lane * la]
                pair_A[lane] *= decay
                pair_B[lane] = decay * pair_B[lane] + b[ib + lane * lb]
            ia += sa
            ib += sb


@_compiled
def backward_pairs(
    begin, end, steps, a, a_starts, la, sa, dy, dy_starts, ldy, sdy, A, B, exclusive
):  # type: ignore[no-untyped-def]  # fmt: skip
    """The same for the adjoint."""
    la, sa, ldy, sdy = uint64(la), uint64(sa), uint64(ldy), uint64(sdy)
    for unit in range(begin, end):
        ia, idy = uint64(a_starts[unit]), uint64(dy_starts[unit])
        pair_A, pair_B = A[unit], B[unit]
        pair_A[:] = 1
        pair_B[:] = 0
        for _ in range(steps):
            for lane in range(uint64(LANES)):
                decay, x = np.conj(a[ia + lane * la]), dy[idy + lane * ldy]
                pair_A[lane] *= decay
                c = pair_B[lane]
                pair_B[lane] = decay * c + x if exclusive else decay * (x + c)
            ia += sa
            idy += sdy


@_compiled
def carry(A, B, h0, state):  # type: ignore[no-untyped-def]
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
