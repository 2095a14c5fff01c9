"""The recurrence on a CPU: gate, recurrence and readout in one pass, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_lrnn.backends.cpu.huge_pages import LARGE_PAGE, in_large_pages, resolved
from lightning_lrnn.backends.cpu.launch import Launch, spread, zeros_of
from lightning_lrnn.backends.cpu.plan import (
    Code,
    Direction,
    Division,
    code,
    divided,
    operations,
    rounded,
)
from lightning_lrnn.backends.recipes import LastPass
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.masks import restarts
from lightning_lrnn.core.problem import Gradients, Problem, States
from lightning_lrnn.core.pytorch import empty_strided

__all__ = ["Gated", "empty", "gated"]


def gated(problem: Problem, *, parallel: bool) -> Gated | None:
    """What computes problems of this form, or None if there is no vector code for the gate."""
    programs = problem.gate, problem.readout
    division = divided(problem.x, operations(*programs, backward=False), parallel=parallel)
    exclusive = bool(problem.exclusive)
    compiled = code(programs, problem.pre, division, backward=False, exclusive=exclusive)
    return None if compiled is None else Gated(problem, compiled, division, parallel=parallel)


class Gated:
    """Computes problems of one form, with steps that are compiled for its gate and readout."""

    def __init__(
        self, problem: Problem, compiled: Code, division: Division, *, parallel: bool
    ) -> None:
        self._code, self._division, self._parallel = compiled, division, parallel
        self._programs = problem.gate, problem.readout
        self._inputs = len(problem.pre)
        self._first = next(i for i, p in enumerate(problem.pre) if p.ndim == 3)
        self._parameters = any([p.ndim < 3 for p in problem.pre])
        self._dtypes = [p.dtype for p in problem.pre]
        B, T, D = problem.x.shape
        self._shape, self._strides = (B, T, D), (T * D, D, 1)
        most = B * T * D * torch.complex128.itemsize
        self._empty = empty_strided["cpu"] if most < LARGE_PAGE else empty
        self._lazy = any([p.is_conj() or p.is_neg() for p in problem.pre])
        self._flags = bool(problem.reverse), bool(problem.exclusive)
        self._adjoint_division = divided(
            problem.x, operations(*self._programs, backward=True), parallel=parallel
        )
        self._state = zeros_of(problem.x, state_dtype(compiled.state))
        self._state_form = (B, D), (D, 1), self._state.dtype
        self._first_state = zeros_of(problem.x, compiled.state)
        self._forward: Launch | None = None
        self._backward: dict[tuple[object, ...], Launch] = {}
        self._last: LastPass[Launch] = LastPass()
        self._pairs: dict[tuple[object, ...], Launch] = {}

    def forward(self, problem: Problem) -> States:
        """Output, hidden states and final state."""
        _, readout, pre, h0, lengths, reset, _, _ = problem
        hidden = self._empty(self._shape, self._strides, self._code.state)
        y = self._empty(self._shape, self._strides, self._code.output) if readout else hidden
        final = empty_strided["cpu"](*self._state_form)
        if self._lazy:
            pre = list(map(resolved, pre))
        tensors = [*pre, y, hidden]
        if self._forward is None:
            self._forward = self._launch(tensors, backward=False)
        if lengths is not None or reset is not None:
            lengths, reset = _masks(problem)
        self._forward(tensors, final, h0, lengths, reset)
        return States(y, hidden, final)

    def bound(
        self, problem: Problem, y: Tensor, hidden: Tensor, final: Tensor
    ) -> Callable[[], None]:
        """A forward pass over the same memory, any number of times.

        Args:
            problem: without padding and resets; its h0 contiguous.
            y: where the output goes.
            hidden: where the hidden states go; `y` itself without a readout.
            final: where the state (B, D) after the last step goes.
        """
        tensors = [*map(resolved, problem.pre), y, hidden]
        return self._launch(tensors, backward=False).bound(tensors, final, problem.h0)

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of `problem.pre` and of h0."""
        _, _, pre, h0, lengths, reset, _, _ = problem
        dy, final, out = gradients
        steps = None if out else self._last.find(pre, h, dy)
        if steps is None:
            pre, h, dy = list(map(resolved, pre)), resolved(h), spread(resolved(dy))
        c = empty_strided["cpu"](*self._state_form)
        # Rounded as the states after it are.
        first = self._first_state if h0 is None else h0.to(h.dtype)
        dpre = self._room_for_gradients(pre, h, out)
        tensors = [*pre, dy, h, first, *dpre]
        if steps is None:
            form = tuple(map(Tensor.stride, tensors))
            steps = self._backward.get(form)
            if steps is None:
                steps = self._backward[form] = self._launch(tensors, backward=True)
            if not out:
                self._last.keep(pre, h, dy, steps)
        if lengths is not None or reset is not None:
            lengths, reset = _masks(problem)
        steps(tensors, c, final, lengths, reset)
        if self._parameters:
            dpre = [_reduced(g, p, h.shape[2]) for g, p in zip(dpre, pre, strict=True)]
        return dpre, c

    def pair(self, problem: Problem) -> tuple[Tensor, Tensor, None] | None:
        """What the problem's steps do to whatever state comes in, A h + B; None if not finite.

        The inputs are read once, and nothing is written but A and B (B, D).
        """
        pre = list(map(resolved, problem.pre))
        x = pre[self._first]
        pair = self._pair(problem, [*pre, x, x], backward=False)
        return None if pair is None else (*pair, None)

    def adjoint_impulse(
        self, problem: Problem, h: Tensor, dy: Tensor
    ) -> tuple[Tensor, None] | None:
        """C of the steps' adjoint, c -> conj(A) c + C; None if not finite. Likewise."""
        pre, h = list(map(resolved, problem.pre)), resolved(h)
        tensors = [*pre, spread(resolved(dy)), h, self._first_state, *[h] * len(pre)]
        pair = self._pair(problem, tensors, backward=True)
        return None if pair is None else (pair[1], None)

    def _pair(
        self, problem: Problem, tensors: Sequence[Tensor], *, backward: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Of tensors as for the pass; those that it writes have only the shape."""
        form = backward, *[t.stride() for t in tensors]
        launch = self._pairs.get(form)
        if launch is None:
            launch = self._pairs[form] = self._launch(tensors, backward=backward, pairs=True)
        lengths, reset = problem.lengths, problem.reset
        if lengths is not None or reset is not None:
            lengths, reset = _masks(problem)
        return _folded(launch.pairs(tensors, lengths, reset))

    def _launch(self, tensors: Sequence[Tensor], *, backward: bool, pairs: bool = False) -> Launch:
        """A pass over tensors in the order of `codegen`, the pre-activations first."""
        reverse, exclusive = self._flags
        division = self._adjoint_division if backward else self._division
        pre = tensors[: self._inputs]
        compiled = code(
            self._programs, pre, division, backward=backward, exclusive=exclusive, pairs=pairs
        )
        assert compiled is not None
        n = self._inputs
        if backward:
            written = [i for i, p in enumerate(pre, n + 3) if p.ndim == 3]
        else:
            written = [n, n + 1] if self._programs[1] else [n + 1]
        direction = Direction(backward, reverse, inside=exclusive if backward else True)
        return Launch(compiled, division, direction, tensors, written, self._state)

    def _room_for_gradients(
        self, pre: Sequence[Tensor], h: Tensor, out: Sequence[Tensor | None] | None
    ) -> list[Tensor]:
        """Where gradients go: of a parameter a sum for every part of time and row."""
        if out is None and not self._parameters:
            return [self._empty(self._shape, self._strides, t) for t in self._dtypes]
        division = self._adjoint_division
        room = []
        for i, p in enumerate(pre):
            if p.ndim < 3:
                dtype = torch.complex128 if p.is_complex() else torch.float64
                parts = -(-h.shape[1] // division.chunk)
                sums = p.new_zeros(
                    (parts, h.shape[0], division.blocks * rounded(division.width)), dtype=dtype
                )
                room.append(sums.transpose(0, 1))
            else:
                donated = out[i] if out is not None else None
                if donated is None:
                    donated = self._empty(self._shape, self._strides, p.dtype)
                room.append(donated)
        if out is not None and h.nbytes >= LARGE_PAGE:
            in_large_pages(next(g for g in out if g is not None))
        return room


def empty(size: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without values; a large one in large pages.

    What a training step allocates is freed all at once, which is enough for the allocator to return
    it to the system, so each step gets its pages anew. Large ones are 512 times fewer.
    """
    return in_large_pages(empty_strided["cpu"](size, strides, dtype))


def _folded(pairs: Tensor) -> tuple[Tensor, Tensor] | None:
    """The pair of parts (parts, 2, B, D) that follow on each other; None if it is not finite."""
    while len(pairs) > 1:
        last = pairs[len(pairs) // 2 * 2 :]
        (A1, B1), (A2, B2) = (pairs[i : len(pairs) - len(last) : 2].unbind(1) for i in (0, 1))
        pairs = torch.cat([torch.stack([A2 * A1, A2 * B1 + B2], 1), last])
    if not pairs.isfinite().all():
        return None
    A, B = pairs[0].unbind()
    return A, B.clone()  # what an operator returns shares no memory


def _masks(problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """Lengths, none beyond the sequence, and where no state passes into a step."""
    lengths, reset = problem.lengths, problem.reset
    if lengths is not None:
        lengths = lengths.clamp(0, problem.x.shape[1])
    if reset is not None:
        reset = restarts(reset, problem.lengths, reverse=problem.reverse).contiguous()
    return lengths, reset


def _reduced(gradient: Tensor, p: Tensor, D: int) -> Tensor:
    """The gradient of a parameter from the sums of parts of time and rows, in a fixed order."""
    if p.ndim == 3:
        return gradient
    # By NumPy: PyTorch's sum depends on the number of threads.
    sums = gradient.transpose(0, 1).numpy()[..., :D]
    return torch.from_numpy(sums.sum((0, 1) if p.ndim == 1 else 0)).to(p.dtype)
