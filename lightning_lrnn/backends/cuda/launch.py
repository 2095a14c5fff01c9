"""The recurrence on CUDA devices: allocates, fills `struct Problem`, launches the kernel.

PyTorch allocates every output and the workspace, in stream order, and the kernel only fills them:
no synchronisation, no host read, nothing shared between launches. After `warmup` a call can be
captured in a CUDA graph.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from lightning_lrnn.backends.cuda import nvrtc
from lightning_lrnn.backends.cuda.codegen import Fused, fused
from lightning_lrnn.backends.cuda.plan import STATE, Pass, Plan, layout_of, plan
from lightning_lrnn.backends.operands import DTYPE, OPERAND, Operand
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.problem import Gradients, Problem, States

__all__ = ["FIELDS", "Kernels", "backend", "fields"]

SOURCE = "recurrence.cu"

INPUT = "data", "row", "step", "feature"
"""The words of `struct Input`: an address, and strides in bytes."""
FIELDS = (
    *("pre[].data", "pre[].row", "pre[].step", "pre[].feature"),
    *(f"{name}.{word}" for name in ("dy", "e") for word in INPUT),
    *("initial", "final", "h0", "y", "emitted", "dpre[]", "lengths", "reset", "B", "T", "D"),
    *("row", "step", "reverse", "exclusive", "workspace"),
)
"""`struct Problem` of `recurrence.cu`, 64 bits each; [] as often as the gate has inputs."""


@cache
def fields(inputs: int) -> dict[str, int]:
    """The index of every word of `struct Problem` for a gate of so many inputs."""
    names = [f"pre[{i}].{word}" for i in range(inputs) for word in INPUT]
    for name in FIELDS[len(INPUT) :]:
        if name.endswith("[]"):
            names += [f"{name[:-1]}{i}]" for i in range(inputs)]
        else:
            names.append(name)
    return {name: index for index, name in enumerate(names)}


def backend(problem: Problem, *, parallel: bool) -> Kernels:
    """What computes problems of this form."""
    return Kernels(problem, parallel=parallel)


class Kernels:
    """Computes problems of one form: a kernel for each pass, compiled for gate and readout."""

    def __init__(self, problem: Problem, *, parallel: bool) -> None:
        self._programs, self._parallel = (problem.gate, problem.readout), parallel
        self._operands = tuple([OPERAND[p.dtype, p.ndim] for p in problem.pre])

    def forward(self, problem: Problem) -> States:
        """Output, hidden states and final state, in one kernel."""
        pre, x = _plain(problem.pre), problem.x
        B, T, D = x.shape
        layout = layout_of((B, T, D), problem.lengths, pre, reverse=problem.reverse)
        code, how = self._planned("forward", problem, layout)
        hidden = x.new_empty((B, T, D), dtype=DTYPE[code.state])
        y = x.new_empty((B, T, D), dtype=DTYPE[code.output]) if problem.readout else hidden
        final = x.new_empty((B, D), dtype=STATE[hidden.dtype])
        words = _Words(problem, pre)
        words.set(initial=problem.h0, final=final, emitted=hidden, row=T * D, step=D)
        if problem.readout:
            words.set(y=y)
        words.launch(how)
        return States(y, hidden, final)

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of `problem.pre` and of h0: the adjoint, in one kernel the other way."""
        pre, x = _plain(problem.pre), problem.x
        h, dy = _plain((h, gradients.y))
        out = gradients.out or [None] * len(pre)
        given = [g for g in out if g is not None]
        B, T, D = x.shape
        tensors = [*pre, h, dy, *given]
        layout = layout_of((B, T, D), problem.lengths, tensors, reverse=not problem.reverse)
        _, how = self._planned("backward", problem, layout)
        dh0 = h.new_empty((B, D), dtype=STATE[h.dtype])
        # A tile that is all padding leaves its sums as they are.
        dpre = [
            p.new_zeros((how.tiles, B, D), dtype=_sum_dtype(p, h))
            if p.ndim < 3
            else (p.new_empty((B, T, D)) if target is None else target)
            for p, target in zip(pre, out, strict=True)
        ]
        row, step = given[0].stride()[:2] if given else (T * D, D)
        words = _Words(problem, pre)
        words.set_input("dy", dy)
        words.set_input("e", h)
        words.set(initial=gradients.final, final=dh0, h0=problem.h0, row=row, step=step)
        words.set(**{f"dpre[{i}]": g for i, g in enumerate(dpre)})
        words.launch(how)
        return [_reduced(g, p) for g, p in zip(dpre, pre, strict=True)], dh0

    def _planned(self, step: str, problem: Problem, layout: str) -> tuple[Fused, Plan]:
        resets, lengths = problem.reset is not None, problem.lengths is not None
        kind = Pass(step, self._parallel, resets, layout, lengths)
        B, T, D = problem.x.shape
        return _planned(*self._programs, self._operands, kind, (B, T, D))


@lru_cache(maxsize=4096)  # shapes are many where lengths vary
def _planned(
    gate: str,
    readout: str,
    operands: tuple[Operand, ...],
    kind: Pass,
    shape: tuple[int, int, int],
) -> tuple[Fused, Plan]:
    code = fused(gate, readout, operands, kind.step)
    return code, plan(code, operands, kind, shape)


class _Words:
    """`struct Problem`, by the names of its fields; 0 where nothing is set."""

    def __init__(self, problem: Problem, pre: Sequence[Tensor]) -> None:
        self.device = problem.x.device
        self._at = fields(len(pre))
        self._words = array("q", bytes(8 * len(self._at)))
        B, T, D = problem.x.shape
        for i, p in enumerate(pre):
            self.set_input(f"pre[{i}]", p)
        self.set(lengths=problem.lengths, reset=problem.reset, B=B, T=T, D=D)
        self.set(reverse=int(problem.reverse), exclusive=int(problem.exclusive))

    def set(self, **values: Tensor | int | None) -> None:
        """Numbers, and addresses of tensors."""
        for name, value in values.items():
            word = value.data_ptr() if isinstance(value, Tensor) else value or 0
            self._words[self._at[name]] = word

    def set_input(self, name: str, x: Tensor) -> None:
        """An address, and strides in bytes; 0 along which x is the same."""
        size, strides = x.itemsize, x.stride()
        at = self._at[f"{name}.data"]
        self._words[at] = x.data_ptr()
        self._words[at + 1] = size * strides[0] if x.ndim > 1 else 0
        self._words[at + 2] = size * strides[1] if x.ndim > 2 else 0
        self._words[at + 3] = size * strides[-1]

    def launch(self, how: Plan) -> None:
        """Launches the kernel of a plan."""
        kernel = _kernel(how.macros, self.device)
        if how.words:
            # Zeroed in stream order, and the launch's own: one in flight may read an older one.
            workspace = torch.zeros(how.words, dtype=torch.int64, device=self.device)
            self.set(workspace=workspace)
        nvrtc.launch(kernel, how.grid, how.block, self._words, self.device)


def _kernel(variant: nvrtc.Macros, device: torch.device) -> object:
    capability = torch.cuda.get_device_capability(device)
    loaded = nvrtc.loaded(SOURCE, variant, capability)
    if loaded is not None:
        return loaded
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured and the kernel is not loaded yet: call "
            "lightning_lrnn.warmup(device, dtype, features), or the operation once, before capture"
        )
    return nvrtc.kernel(SOURCE, variant, capability)


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values without lazy conjugation or negation, which a pointer would drop."""
    return [x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x for x in tensors]


def _sum_dtype(p: Tensor, h: Tensor) -> torch.dtype:
    """In which gradients of a parameter are summed."""
    real = state_dtype(h.dtype)
    real = real.to_real() if real.is_complex else real
    return real.to_complex() if p.is_complex() else real


def _reduced(gradient: Tensor, p: Tensor) -> Tensor:
    """The gradient of a parameter from the sums of tiles and rows, in their fixed order."""
    if p.ndim == 3:
        return gradient
    return gradient.sum((0, 1) if p.ndim == 1 else 0).to(p.dtype)
