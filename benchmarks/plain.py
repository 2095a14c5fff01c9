"""Backend `plain`: the paper's serial loop, one walker per column that loads nothing ahead.

What the parallel scan of the paper was measured against: on CUDA a thread for each column, on a
CPU one thread that takes column after column. It is here for benchmarks/paper.py, which registers
it as a third party would; the package's own `serial` backend loads ahead, and on a CPU walks
neighbouring columns side by side. In float32, forward in time, no `lengths`, no `reset`.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lightning_lrnn.backends import Request
from lightning_lrnn.backends.cuda import nvrtc

THREADS = 128

# No pointer is __restrict__, so no load may pass the store before it.
SOURCE = """
struct Problem {
  const float *a, *x, *y, *first;
  float *u, *v, *last;
  long long rows, steps, features, exclusive;
  long long a_row, a_step, x_row, x_step, y_row, y_step;
};

extern "C" __global__ void forward(Problem p) {
  const long long column = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (column >= p.rows * p.features) return;
  const long long row = column / p.features, d = column % p.features;
  const float* a = p.a + row * p.a_row + d;
  const float* b = p.x + row * p.x_row + d;
  float* y = p.u + row * p.steps * p.features + d;
  float h = p.first ? p.first[column] : 0;
#pragma unroll 1
  for (long long t = 0; t < p.steps; ++t) {
    const float before = h;
    h = a[t * p.a_step] * h + b[t * p.x_step];
    y[t * p.features] = p.exclusive ? before : h;
  }
  p.last[column] = h;
}

extern "C" __global__ void backward(Problem p) {
  const long long column = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (column >= p.rows * p.features) return;
  const long long row = column / p.features, d = column % p.features;
  const float* a = p.a + row * p.a_row + d;
  const float* dy = p.x + row * p.x_row + d;
  const float* y = p.y + row * p.y_row + d;
  float* da = p.u + row * p.steps * p.features + d;
  float* db = p.v + row * p.steps * p.features + d;
  const float h0 = p.first ? p.first[column] : 0;
  float c = p.last[column];
#pragma unroll 1
  for (long long t = p.steps - 1; t >= 0; --t) {
    const float g = p.exclusive ? c : c + dy[t * p.x_step];
    const float h = p.exclusive ? y[t * p.y_step] : t ? y[(t - 1) * p.y_step] : h0;
    da[t * p.features] = g * h;
    db[t * p.features] = g;
    c = a[t * p.a_step] * g + (p.exclusive ? dy[t * p.x_step] : 0);
  }
  p.last[column] = c;
}
"""


def unsupported_reasons(request: Request) -> list[str]:
    return [] if request.dtype == torch.float32 else ["float32 alone"]


def run(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lengths: None,
    reset: None,
    *,
    reverse: bool,
    exclusive: bool,
) -> tuple[Tensor, Tensor]:
    _refuse(lengths, reset, reverse)
    y, h = b.new_empty(b.shape), b.new_empty(b.shape[0], b.shape[2])
    if b.is_cuda:
        _launch("forward", (a, b, b, h0), (y, None, h), exclusive)
    else:
        h.zero_() if h0 is None else h.copy_(h0)
        _forward(*_arrays(a, b, y, h), exclusive)
    return y, h


def run_backward(
    a: Tensor,
    y: Tensor,
    h0: Tensor | None,
    dy: Tensor,
    dh_final: Tensor | None,
    lengths: None,
    reset: None,
    *,
    reverse: bool,
    exclusive: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _refuse(lengths, reset, reverse)
    da, db = (y.new_empty(y.shape) for _ in range(2))
    c = y.new_zeros(y.shape[0], y.shape[2]) if dh_final is None else dh_final.clone()
    if y.is_cuda:
        _launch("backward", (a, dy, y, h0), (da, db, c), exclusive)
    else:
        first = torch.zeros_like(c) if h0 is None else h0
        _backward(*_arrays(a, dy, y, first, da, db, c), exclusive)
    return da, db, c


def _refuse(lengths: Any, reset: Any, reverse: bool) -> None:
    if lengths is not None or reset is not None or reverse:
        raise NotImplementedError("the plain loop has no `lengths`, `reset` or `reverse`")


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().numpy() for x in tensors]


@njit
def _forward(a, b, y, state, exclusive):
    rows, steps, features = b.shape
    for row in range(rows):
        for d in range(features):
            h = state[row, d]
            for t in range(steps):
                before = h
                h = a[row, t, d] * h + b[row, t, d]
                y[row, t, d] = before if exclusive else h
            state[row, d] = h


@njit
def _backward(a, dy, y, h0, da, db, state, exclusive):
    rows, steps, features = y.shape
    for row in range(rows):
        for d in range(features):
            c = state[row, d]
            for t in range(steps - 1, -1, -1):
                x = dy[row, t, d]
                if exclusive:
                    g, h = c, y[row, t, d]
                else:
                    g, h = c + x, y[row, t - 1, d] if t > 0 else h0[row, d]
                da[row, t, d] = g * h
                db[row, t, d] = g
                c = a[row, t, d] * g
                if exclusive:
                    c += x
            state[row, d] = c


@cache
def cubin(arch: str) -> bytes:
    """Both kernels, compiled by NVRTC; needs no device."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(name="plain.cu", arch=arch, std=nvrtc.STANDARD)
    return bytes(Program(SOURCE, "c++", options).compile("cubin").code)


@cache
def _kernel(name: str, capability: tuple[int, int]) -> Any:
    return nvrtc.load(cubin(nvrtc.architecture(capability)), name)


def problem(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    outputs: tuple[Tensor, Tensor | None, Tensor],
    exclusive: bool,
) -> array[int]:
    """The fields of `struct Problem`; features stand side by side in all tensors."""
    pointers = [0 if x is None else x.data_ptr() for x in (*inputs, *outputs)]
    strides = [stride for x in inputs[:3] for stride in x.stride()[:2]]
    return array("q", [*pointers, *inputs[1].shape, int(exclusive), *strides])


def _launch(name: str, inputs: Any, outputs: Any, exclusive: bool) -> None:
    # A gradient may have been expanded from one number.
    inputs = [x if x is None or x.stride(-1) == 1 else x.contiguous() for x in inputs]
    state, device = outputs[-1], outputs[-1].device
    kernel = _kernel(name, torch.cuda.get_device_capability(device))
    blocks = -(-state.numel() // THREADS)
    nvrtc.launch(kernel, blocks, THREADS, problem(inputs, outputs, exclusive), device)
