"""A kernel that reads its arguments as the CUDA kernel does, and computes by the loop."""

from __future__ import annotations

import ctypes
import itertools
import re

import numpy as np
import pytest
import torch
from plain_calls import adjoint_of

from lightning_lrnn.backends.cuda import nvrtc, plan
from lightning_lrnn.backends.operands import DTYPE
from lightning_lrnn.core import pytorch, reference


def view(pointer: int, dtype: torch.dtype, shape: tuple, strides: tuple | None = None):
    """The memory that a kernel would see behind a pointer; None behind 0."""
    if not pointer:
        return None
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (extent * dtype.itemsize)).from_address(pointer)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


class Kernel:
    """Stands for the compiled kernel of the plain recurrence: reads the same struct."""

    def __init__(self, macros: nvrtc.Macros):
        variant = dict(macros)
        self.backward = variant["LRNN_PASS"] == "backward"
        self.scan = variant["LRNN_SCHEDULE"] == "scan"
        storage = re.search(r"using State = storage::(\w+);", variant["LRNN_GATE"])[1]
        self.dtype = DTYPE[storage]
        steps, threads, width = (
            int(variant[name]) for name in ("LRNN_STEPS", "LRNN_THREADS", "LRNN_COLUMNS")
        )
        self.width, self.segments, self.tile = width, threads // width, steps * threads // width
        self.carry = variant["LRNN_CARRY"]
        self.resets = variant["LRNN_RESETS"] == "1"

    def __call__(self, grid: int, problem: list[int]) -> None:
        assert all(type(field) is int for field in problem)
        left = iter(problem)

        def take(n: int) -> list[int]:
            return list(itertools.islice(left, n))

        a, b, dy, e = (take(4) for _ in range(4))
        initial, final, h0, y, emitted, da, db, lengths, reset = take(9)
        B, T, D, row, step, reverse, exclusive, workspace = take(8)
        assert (row, step) == (T * D, D)
        assert next(left, None) is None

        assert self.resets == bool(reset)
        state = torch.float32 if self.dtype.itemsize == 2 else self.dtype

        def strided(field: list[int]):
            pointer, *strides = field
            assert not any(stride % self.dtype.itemsize for stride in strides)
            return view(
                pointer, self.dtype, (B, T, D), tuple(s // self.dtype.itemsize for s in strides)
            )

        kept = {
            "lengths": view(lengths, torch.int64, (B,)),
            "reset": view(reset, torch.bool, (B, T)),
            "reverse": bool(reverse),
            "exclusive": bool(exclusive),
        }
        initial, h0 = view(initial, state, (B, D)), view(h0, state, (B, D))
        if self.backward:
            assert y == emitted == 0
            outputs = [da, db, final]
            results = adjoint_of(
                lambda a, b, h0, lengths, reset, **flags: reference.linear_recurrence(
                    a, b, h0, lengths=lengths, reset=reset, **flags
                ),
                *(strided(a), strided(e), h0, strided(dy), initial),
                **kept,
            )
        else:
            assert dy == e == [0] * 4
            assert y == da == db == 0 and h0 is None
            outputs = [emitted, final]
            results = reference.linear_recurrence(strided(a), strided(b), initial, **kept)
        for pointer, result in zip(outputs, results, strict=True):
            dtype = self.dtype if result.ndim == 3 else state
            view(pointer, dtype, tuple(result.shape)).copy_(result)
        self.check_grid(grid, workspace, B, T, D)

    def check_grid(self, grid, workspace, B, T, D):
        if not self.scan:
            assert grid * 128 >= B * D > (grid - 1) * 128
            assert workspace == 0
            return
        tiles, groups = (T - 1) // self.tile + 1, (D - 1) // self.width + 1
        assert grid == B * groups * tiles
        if tiles == 1:
            assert workspace == 0
            return
        pieces = torch.empty(0, dtype=self.dtype).element_size() // 4 or 1
        slots = plan.slots(self.carry, tiles, self.segments)
        words = view(workspace, torch.int64, (1 + B * groups * slots * self.width * pieces,))
        assert not words.any()


@pytest.fixture
def launches(monkeypatch):
    """Everything that touches a device, replaced; the launches, as (variant, grid, block)."""
    seen = []

    def on_host(kernel, grid, block, arguments, device):
        seen.append((dict(kernel), grid, block))
        Kernel(kernel)(grid, arguments)

    monkeypatch.setattr(pytorch, "current_device", lambda: None)  # as `index` of a CPU is
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(nvrtc, "kernel", lambda source, macros, capability: macros)
    monkeypatch.setattr(nvrtc, "launch", on_host)
    return seen
