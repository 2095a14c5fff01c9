"""The recurrence as compiled loops over one stretch of steps and some columns side by side.

A column is one feature of one row. Every tensor is a flat array; element (step k, column j) of it
stands at `start + k * step + offset[j]`, where `offset[j] = j` if the columns are `dense`: then the
loop over columns is vectorised. Steps are in the order of the walk, so that `step` is negative
where time runs backwards. `state[j]` goes in as the state before the stretch and comes out as the
state after it. `restarts[k]` marks the steps before which no state passes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "backward",
    "backward_pairs",
    "backward_rows",
    "forward",
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
    except RuntimeError:  # no folder to keep compiled code in can be written
        return njit(**options)(function)


@_compiled
def forward(
    a, a_start, a_step, a_offset,
    b, b_start, b_step, b_offset,
    y, y_start, y_step, y_offset,
    dense, state, steps, exclusive, restarts, r_start, r_step,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """y_t = h_t, or h_{t-1} if exclusive; h_t = a_t * h_{t-1} + b_t."""
    columns = state.size
    for k in range(steps):
        if restarts.size and restarts[r_start + k * r_step]:
            state[:] = 0
        i, j, o = a_start + k * a_step, b_start + k * b_step, y_start + k * y_step
        if not dense:
            for d in range(columns):
                before = state[d]
                after = a[i + a_offset[d]] * before + b[j + b_offset[d]]
                y[o + y_offset[d]] = before if exclusive else after
                state[d] = after
        elif exclusive:
            for d in range(columns):
                before = state[d]
                y[o + d] = before
                state[d] = a[i + d] * before + b[j + d]
        else:
            for d in range(columns):
                after = a[i + d] * state[d] + b[j + d]
                y[o + d] = after
                state[d] = after


@_compiled
def backward(
    a, a_start, a_step, a_offset,
    dy, dy_start, dy_step, dy_offset,
    y, y_start, y_step, y_offset,
    da, d_start, d_step, d_offset, db, dense, state, first,
    steps, exclusive, restarts, r_start, r_step,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """The adjoint c: g = dy + c, db = g, da = g conj(h_prev), c = conj(a) g; see adjoint.py.

    `y_start` belongs to the state before each step; where that is not in memory, at the last of
    these steps (the first of the forward walk), `first` holds it, else it is empty.
    """
    columns = state.size
    inside = steps if exclusive or first.size == 0 else steps - 1
    for k in range(steps):
        i, j, p = a_start + k * a_step, dy_start + k * dy_step, y_start + k * y_step
        o = d_start + k * d_step
        if restarts.size and restarts[r_start + k * r_step]:
            for d in range(columns):
                g = state[d] if exclusive else dy[j + dy_offset[d]] + state[d]
                db[o + d_offset[d]] = g
                da[o + d_offset[d]] = 0
                state[d] = 0
        elif k >= inside or not dense:
            for d in range(columns):
                x = dy[j + dy_offset[d]]
                g = state[d] if exclusive else x + state[d]
                before = first[d] if k >= inside else y[p + y_offset[d]]
                db[o + d_offset[d]] = g
                da[o + d_offset[d]] = g * np.conj(before)
                c = np.conj(a[i + a_offset[d]]) * g
                state[d] = c + x if exclusive else c
        elif exclusive:
            for d in range(columns):
                g = state[d]
                db[o + d] = g
                da[o + d] = g * np.conj(y[p + d])
                state[d] = np.conj(a[i + d]) * g + dy[j + d]
        else:
            for d in range(columns):
                g = dy[j + d] + state[d]
                db[o + d] = g
                da[o + d] = g * np.conj(y[p + d])
                state[d] = np.conj(a[i + d]) * g


@_compiled
def forward_pairs(
    a, a_start, a_step, a_offset, b, b_start, b_step, b_offset, A, B, steps
):  # type: ignore[no-untyped-def]  # fmt: skip
    """(A, B) of a stretch: the state after it is A * state + B."""
    zero = np.zeros(1, A.dtype)[0]
    for k in range(steps):
        i, j = a_start + k * a_step, b_start + k * b_step
        for d in range(A.size):
            decay = a[i + a_offset[d]]
            # Nothing comes back from a product of 0, even if another factor is infinite.
            A[d] = decay * A[d] if decay != 0 and A[d] != 0 else zero
            B[d] = decay * B[d] + b[j + b_offset[d]]


@_compiled
def backward_pairs(
    a, a_start, a_step, a_offset, dy, dy_start, dy_step, dy_offset, A, B, steps, exclusive
):  # type: ignore[no-untyped-def]  # fmt: skip
    """The same for the adjoint c, in the order of its walk."""
    zero = np.zeros(1, A.dtype)[0]
    for k in range(steps):
        i, j = a_start + k * a_step, dy_start + k * dy_step
        for d in range(A.size):
            decay, x = np.conj(a[i + a_offset[d]]), dy[j + dy_offset[d]]
            # Nothing comes back from a product of 0, even if another factor is infinite.
            A[d] = decay * A[d] if decay != 0 and A[d] != 0 else zero
            B[d] = decay * B[d] + x if exclusive else decay * (x + B[d])


@_compiled
def forward_rows(
    begin, end, blocks, width, a, a_strides, b, b_strides, y, state, lengths, T, D,
    dense, reverse, exclusive, restarts,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Whole walks: of units begin ... end - 1, each `width` columns of a row."""
    for unit in range(begin, end):
        row, low = unit // blocks, unit % blocks * width
        high, n = min(low + width, D), lengths[row]
        offset = np.arange(high - low)
        t, sign = (n - 1, -1) if reverse else (0, 1)
        out = (row * T + t) * D + low
        forward(
            a, row * a_strides[0] + t * a_strides[1] + low * a_strides[2], sign * a_strides[1],
            offset * a_strides[2],
            b, row * b_strides[0] + t * b_strides[1] + low * b_strides[2], sign * b_strides[1],
            offset * b_strides[2],
            y, out, sign * D, offset,
            dense, state[row * D + low : row * D + high], n, exclusive,
            restarts, row * T + t, sign,
        )  # fmt: skip
        for t in range(n, T):
            y[(row * T + t) * D + low : (row * T + t) * D + high] = 0


@_compiled
def backward_rows(
    begin, end, blocks, width, a, a_strides, dy, dy_strides, y, y_strides, h0, da, db, state,
    lengths, T, D, dense, reverse, exclusive, restarts,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Whole walks of the adjoint, against those of `forward_rows`."""
    for unit in range(begin, end):
        row, low = unit // blocks, unit % blocks * width
        high, n = min(low + width, D), lengths[row]
        offset = np.arange(high - low)
        # The last step of the forward walk; `before` leads from a step to the one before it.
        t, sign = (0, 1) if reverse else (n - 1, -1)
        before = 0 if exclusive else sign
        backward(
            a, row * a_strides[0] + t * a_strides[1] + low * a_strides[2], sign * a_strides[1],
            offset * a_strides[2],
            dy, row * dy_strides[0] + t * dy_strides[1] + low * dy_strides[2],
            sign * dy_strides[1], offset * dy_strides[2],
            y, row * y_strides[0] + (t + before) * y_strides[1] + low * y_strides[2],
            sign * y_strides[1], offset * y_strides[2],
            da, (row * T + t) * D + low, sign * D, offset, db, dense,
            state[row * D + low : row * D + high], h0[row * D + low : row * D + high],
            n, exclusive, restarts, row * T + t, sign,
        )  # fmt: skip
        for t in range(n, T):
            da[(row * T + t) * D + low : (row * T + t) * D + high] = 0
            db[(row * T + t) * D + low : (row * T + t) * D + high] = 0
