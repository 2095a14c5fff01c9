"""The recurrence on CUDA devices: allocates, fills `struct Problem`, launches the kernel.

PyTorch allocates every output and the workspace, in stream order, and the kernel only fills them:
no synchronisation, no host read, nothing shared between launches in flight. After `warmup` a call
can be captured in a CUDA graph.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_lrnn.backends.cuda import nvrtc, workspace
from lightning_lrnn.backends.cuda.codegen import Fused, fused
from lightning_lrnn.backends.cuda.plan import (
    STATE,
    Pass,
    Plan,
    is_always_apart,
    kept,
    layout_of,
    plan,
    steps,
)
from lightning_lrnn.backends.operands import DTYPE, OPERAND, Operand
from lightning_lrnn.backends.recipes import LastPass
from lightning_lrnn.core import pytorch
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.problem import Gradients, Problem, States

__all__ = ["FIELDS", "Kernels", "backend", "fields", "kept_words"]

Results = TypeVar("Results")

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


def kept_words(problem: Problem, *, backward: bool) -> int:
    """The length of what a pair leaves for the pass of its steps, see `Kernels.after`."""
    operands = tuple([OPERAND[p.dtype, p.ndim] for p in problem.pre])
    pass_ = Pass("backward" if backward else "forward", True, problem.reset is not None)
    code = fused(problem.gate, problem.readout, operands, pass_.step)
    B, T, D = problem.x.shape
    return kept(code, operands, pass_, (B, T, int(D)))


class Kernels:
    """Computes problems of one form: a kernel for each pass, compiled for gate and readout."""

    _given: Tensor | None = None

    def __init__(self, problem: Problem, *, parallel: bool) -> None:
        self._programs, self._parallel = (problem.gate, problem.readout), parallel
        self._operands = tuple([OPERAND[p.dtype, p.ndim] for p in problem.pre])
        B, T, D = problem.x.shape
        self._shape, self._strides = (B, T, int(D)), (T * D, D, 1)
        self._dtypes = [p.dtype for p in problem.pre if p.ndim == 3]
        self._device = problem.x.device
        self._empty = pytorch.empty_strided[self._device.type]
        self._layout = "apart" if is_always_apart(self._shape) else None
        self._last: LastPass[_Launch] = LastPass()
        self._lazy = any([p.is_conj() or p.is_neg() for p in problem.pre])
        self._parameters = any([p.ndim < 3 for p in problem.pre])
        self._passes: dict[tuple[object, ...], _Launch] = {}
        self._given_passes: dict[tuple[object, ...], _Launch] = {}

    def after(self, given: Tensor) -> Kernels:
        """The same, with all states before tiles given by the state that comes in.

        Args:
            given: of the same steps, by `pair` for forward, by `adjoint_impulse` for backward.
        """
        other = copy(self)
        other._given, other._passes, other._last = given, self._given_passes, LastPass()
        return other

    def forward(self, problem: Problem) -> States:
        """Output, hidden states and final state, in one kernel."""
        if pytorch.current_device() != self._device.index:
            return self._on_own_device(self.forward, problem)
        _, readout, pre, h0, lengths, reset, reverse, _ = problem
        if self._lazy:
            pre = _plain(pre)
        layout = self._layout or layout_of(self._shape, lengths, pre, reverse=reverse)
        launch = self._passes.get((layout,))
        if launch is None:
            launch = self._passes[layout,] = self._new_launch("forward", problem, layout)
            row, step, _ = self._strides
            launch.tell_strides(pre, row=row, step=step)
        hidden = self._empty(self._shape, self._strides, launch.state)
        y = self._empty(self._shape, self._strides, launch.output) if readout else hidden
        final = self._new_state(launch)
        written = hidden, final, y if readout else None
        launch((*pre, h0, lengths, reset, *written), self._given)
        return States(y, hidden, final)

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of `problem.pre` and of h0: the adjoint, in one kernel the other way."""
        if pytorch.current_device() != self._device.index:
            return self._on_own_device(self.backward, problem, h, gradients)
        _, _, pre, h0, lengths, reset, _, _ = problem
        dy, dh_final, out = gradients
        donated = [] if out is None else [g for g in out if g is not None]
        launch = None if donated else self._last.find(pre, h, dy)
        if launch is None:
            *pre, h, dy = tensors = _plain((*pre, h, dy))
            launch = self._adjoint(problem, tensors, donated)
        dh0 = self._new_state(launch)
        dpre = donated or [self._empty(self._shape, self._strides, t) for t in self._dtypes]
        if self._parameters:
            B, _, D = self._shape
            of_sequences = iter(dpre)
            # A tile that is all padding leaves its sums as they are.
            dpre = [
                p.new_zeros((launch.tiles, B, D), dtype=_sum_dtype(p, h))
                if p.ndim < 3
                else next(of_sequences)
                for p in pre
            ]
        launch((*pre, h0, lengths, reset, h, dy, dh_final, dh0, *dpre), self._given)
        if self._parameters:
            dpre = [_reduced(g, p) for g, p in zip(dpre, pre, strict=True)]
        return dpre, dh0

    def _adjoint(
        self, problem: Problem, tensors: Sequence[Tensor], donated: Sequence[Tensor]
    ) -> _Launch:
        """The backward pass.

        Args:
            problem: of the forward pass.
            tensors: that are read: the pre-activations, the hidden states, the gradient of y.
            donated: where the gradients go, if not into new tensors.
        """
        layout = self._layout or layout_of(
            self._shape, problem.lengths, [*tensors, *donated], reverse=not problem.reverse
        )
        form = layout, *[x.stride() for x in (*tensors, *donated)]
        launch = self._passes.get(form)
        if launch is None:
            launch = self._passes[form] = self._new_launch("backward", problem, layout)
            row, step, _ = donated[0].stride() if donated else self._strides
            launch.tell_strides(tensors, row=row, step=step)
        if self._layout and not donated:
            *pre, h, dy = tensors
            self._last.keep(pre, h, dy, launch)
        return launch

    def pair(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """A and B of the steps, in one kernel that reads the inputs once; None of `serial`.

        With what `after` is given, if the pass of these steps has several tiles. Where a product of
        decays overflows, A is inf or NaN: to return None there would take waiting for the device.
        """
        if not self._parallel:
            return None
        if pytorch.current_device() != self._device.index:
            return self._on_own_device(self.pair, problem)
        pre = _plain(problem.pre)
        launch = self._planned_pair("forward", problem, pre)
        A, B = self._new_state(launch), self._new_state(launch)
        given = launch((*pre, None, *problem.optional[1:], A, B, None))
        return A, B, given

    def adjoint_impulse(
        self, problem: Problem, h: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """C of the steps' adjoint, in one kernel; None of `serial`, see `pair`."""
        if not self._parallel:
            return None
        if pytorch.current_device() != self._device.index:
            return self._on_own_device(self.adjoint_impulse, problem, h, dy)
        *pre, h, dy = tensors = _plain((*problem.pre, h, dy))
        launch = self._planned_pair("backward", problem, tensors)
        C = self._new_state(launch)
        given = launch((*pre, None, *problem.optional[1:], h, dy, None, C, *[None] * len(pre)))
        return C, given

    def _on_own_device(self, method: Callable[..., Results], *arguments: Any) -> Results:
        """Runs a method where the device of the problem is PyTorch's current one."""
        with torch.cuda.device(self._device):
            return method(*arguments)

    def _new_state(self, launch: _Launch) -> Tensor:
        """(B, D) without values."""
        B, _, D = self._shape
        return self._empty((B, D), (D, 1), STATE[launch.state])

    def _planned_pair(self, step: str, problem: Problem, tensors: Sequence[Tensor]) -> _Launch:
        """What computes the pair of a pass that reads these tensors."""
        B, T, D = problem.x.shape
        reverse = problem.reverse != (step == "backward")
        layout = layout_of((B, T, D), problem.lengths, tensors, reverse=reverse)
        form = "pair", step, layout, *[x.stride() for x in tensors]
        launch = self._passes.get(form)
        if launch is None:
            launch = self._passes[form] = self._new_launch(step, problem, layout, result="pair")
            launch.tell_strides(tensors, row=0, step=0)
        return launch

    def _new_launch(
        self, step: str, problem: Problem, layout: str, *, result: str = "outputs"
    ) -> _Launch:
        resets, lengths = problem.reset is not None, problem.lengths is not None
        pass_ = Pass(step, self._parallel, resets, layout, lengths, result)
        pass_ = pass_._replace(given=self._given is not None)
        gate, readout = self._programs
        B, T, D = problem.x.shape
        if result == "pair":
            # What a pair leaves for its pass is of one feature to a thread, as `kept` counts it.
            apart = pass_._replace(layout="apart") if layout == "packed" else pass_
            of_pass = apart._replace(result="outputs")
            code, how = _planned(gate, readout, self._operands, of_pass, (B, T, D))
            if how.tiles > 1:
                pass_ = apart._replace(segment=steps(code, self._operands, of_pass))
            readout = readout if step == "backward" else ""
        code, how = _planned(gate, readout, self._operands, pass_, (B, T, D))
        return _Launch(step, code, how, problem, keeps=pass_.segment > 0)


@lru_cache(maxsize=4096)  # shapes are many where lengths vary
def _planned(
    gate: str,
    readout: str,
    operands: tuple[Operand, ...],
    pass_: Pass,
    shape: tuple[int, int, int],
) -> tuple[Fused, Plan]:
    code = fused(gate, readout, operands, pass_.step)
    return code, plan(code, operands, pass_, shape)


ADDRESSES = {
    "forward": ("initial", "lengths", "reset", "emitted", "final", "y"),
    "backward": ("h0", "lengths", "reset", "e.data", "dy.data", "initial", "final"),
}
"""The fields of the addresses that follow on those of the pre-activations."""


class _Launch:
    """A kernel, and `struct Problem` but for its addresses, of problems of one form.

    Attributes:
        state: dtype of the hidden states.
        output: dtype of what a readout makes of them.
        tiles: of time.
    """

    def __init__(
        self, step: str, code: Fused, how: Plan, problem: Problem, *, keeps: bool = False
    ) -> None:
        self.state, self.output, self.tiles = DTYPE[code.state], DTYPE[code.output], how.tiles
        self._how, self._device, self._keeps = how, problem.x.device, keeps
        # What is kept for the pass must outlive other launches.
        reused = workspace.REUSED in how.macros and not keeps
        self._new_workspace = workspace.reused if reused else workspace.zeroed
        self._kernel = _kernel(how.macros, self._device)
        self._inputs = len(problem.pre)
        self._at = at = fields(self._inputs)
        names = [f"pre[{i}].data" for i in range(self._inputs)] + [*ADDRESSES[step]]
        if step == "backward":
            names += [f"dpre[{i}]" for i in range(self._inputs)]
        self._addresses = [at[name] for name in names]
        self._words = array("q", bytes(8 * len(at)))
        B, T, D = problem.x.shape
        flags = {"reverse": int(problem.reverse), "exclusive": int(problem.exclusive)}
        self._tell(B=B, T=T, D=D // how.features, **flags)

    def _tell(self, **numbers: int) -> None:
        for name, number in numbers.items():
            self._words[self._at[name]] = number

    def tell_strides(self, tensors: Sequence[Tensor], *, row: int, step: int) -> None:
        """Of tensors: in bytes, 0 along which one is the same.

        Args:
            tensors: the pre-activations; backward also the hidden states and the gradient of y.
            row: elements between the rows of what is written.
            step: and between its steps.
        """
        names = [f"pre[{i}]" for i in range(self._inputs)] + ["e", "dy"]
        features = self._how.features
        for name, x in zip(names, tensors, strict=False):
            at, size, strides = self._at[f"{name}.data"], x.itemsize, x.stride()
            self._words[at + 1] = size * strides[0] if x.ndim > 1 else 0
            self._words[at + 2] = size * strides[1] if x.ndim > 2 else 0
            self._words[at + 3] = size * strides[-1] * features
        self._tell(row=row // features, step=step // features)

    def __call__(
        self, tensors: Sequence[Tensor | None], given: Tensor | None = None
    ) -> Tensor | None:
        """Launches the kernel; of a pair for `Kernels.after`, returns what that is given.

        Args:
            tensors: the pre-activations, then those that `ADDRESSES` names, backward the gradients
                of the pre-activations too; None for none.
            given: what a pair has left, if the kernel reads that.
        """
        words = self._words[:]
        for address, x in zip(self._addresses, tensors):  # noqa: B905 - a keyword takes 0.2 us
            if x is not None:
                words[address] = x.data_ptr()
        shared = given
        if given is None and self._how.words:
            shared = self._new_workspace(self._how.words, self._device)
        if shared is not None:
            words[self._at["workspace"]] = shared.data_ptr()
        nvrtc.launch(self._kernel, self._how.grid, self._how.block, words, self._device)
        return shared if self._keeps else None


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
