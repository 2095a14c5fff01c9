"""The timed implementations: our backends, their unfused forms, and installed baselines.

An implementation maps the pre-activations of a gate, (B, T, D) each, to the output (B, T, D). The
plain recurrence is the gate that returns its two inputs, a and b.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import lightning_lrnn as lrnn
from lightning_lrnn import backends
from lightning_lrnn.core.adjoint import adjoint
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY, Gate
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.nn.cells.min_gru import min_gru
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh

Implementation = Callable[..., Tensor]
ASSOCIATIVE = "associative_scan, compiled"
NO_CARRY = "scan without its carry"
STEPS = "serial, a step at a time"


class Workload(NamedTuple):
    """A gate with its readout; None for the plain recurrence."""

    inputs: int
    gate: Gate | None = None
    readout: Gate | None = None

    def bytes(self, shape: tuple[int, ...], dtype: torch.dtype, step: str) -> int:
        """Least traffic: every tensor moved once. The plain backward pass does not read b."""
        states = 1 if self.readout is None else 2  # h beside y
        forward = self.inputs + states
        backward = 2 * self.inputs + 2 - (self.gate is None)
        return (
            (forward if step == "forward" else backward)
            * torch.Size(shape).numel()
            * dtype.itemsize
        )

    def pre(self, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
        """Decays in (0, 1) and normal impulses; or normal pre-activations, chunks of one tensor."""
        if self.gate is None:
            a, b = torch.rand(shape, device=device), torch.randn(shape, device=device)
            return [a.to(dtype), b.to(dtype)]
        projection = torch.randn(*shape[:-1], self.inputs * shape[-1], device=device).to(dtype)
        return list(projection.chunk(self.inputs, -1))

    def exact(self, *pre: Tensor) -> Tensor:
        """Gates by PyTorch, one step after the other: in float64, what others are compared with."""
        a, b = pre if self.gate is None else self.gate(*pre)
        h = lrnn.linear_recurrence(a, b, backend="serial")[0]
        return h if self.readout is None else self.readout(h, *pre)


WORKLOADS = {
    "plain": Workload(2),
    "gilr": Workload(2, gilr),
    "mingru": Workload(2, min_gru),
    "lstm": Workload(4, lstm, output_tanh),
}


def ours(workload: Workload, device: str) -> dict[str, Implementation]:
    """Our implementations by backend, and those with gates by PyTorch beside a fused one."""
    runs: dict[str, Implementation] = {}
    names = [name for name, reasons in backends.explain(device).items() if not reasons]
    for name, reasons in backends.explain(device).items():
        if reasons:
            left_out(name, "; ".join(reasons))
    for name in names:
        runs[name] = lambda *pre, name=name: recurrence(workload, name, *pre)
    if workload.gate is not None:
        runs["eager gates + scan"] = lambda *pre: unfused(workload, *pre)
        runs["compiled gates + scan"] = torch.compile(runs["eager gates + scan"], dynamic=False)
    if device == "cuda" and "scan" in names:
        runs[NO_CARRY] = changed(runs["scan"], LRNN_CARRY="none")
    if device == "cuda" and workload.gate is None and "serial" in names:
        runs[STEPS] = changed(runs["serial"], LRNN_STEPS="1")
    return runs


def recurrence(workload: Workload, backend: str, *pre: Tensor) -> Tensor:
    if workload.gate is None:
        return lrnn.linear_recurrence(*pre, backend=backend)[0]
    options = {"readout": workload.readout, "backend": backend}
    return lrnn.gated_recurrence(workload.gate, *pre, **options)[0]


def unfused(workload: Workload, *pre: Tensor) -> Tensor:
    h = lrnn.linear_recurrence(*workload.gate(*pre), backend="scan")[0]
    return h if workload.readout is None else workload.readout(h, *pre)


def changed(implementation: Implementation, **macros: str) -> Implementation:
    """With other macros of the CUDA kernel, also while its gradient is computed."""

    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *pre):
            with torch.enable_grad():
                leaves = [p.detach().requires_grad_() for p in pre]
                with other_kernel(macros):
                    y = implementation(*leaves)
            ctx.leaves, ctx.y = leaves, y
            return y.detach()

        @staticmethod
        def backward(ctx, dy):
            with other_kernel(macros):
                return torch.autograd.grad(ctx.y, ctx.leaves, dy)

    return Changed.apply


@contextlib.contextmanager
def other_kernel(macros: dict[str, str]) -> Iterator[None]:
    from lightning_lrnn.backends.cuda import launch

    planned = launch._planned

    def plan(*arguments):
        code, how = planned(*arguments)
        return code, how._replace(macros=tuple({**dict(how.macros), **macros}.items()))

    with mock.patch.object(launch, "_planned", plan):
        yield


def combine(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def associative_scan(a: Tensor, b: Tensor, mode: str = "generic") -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    return scan(combine, (a, b), dim=1, combine_mode=mode)[1]


def with_adjoint(forward: Implementation) -> Implementation:
    """A recurrence without a (right) gradient of its own, with the adjoint walked the other way."""

    def run(problem):
        (a, b), reverse = problem.pre, problem.reverse
        y = forward(a.flip(1), b.flip(1)).flip(1) if reverse else forward(a, b)
        return y, y[:, 0 if reverse else -1]

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            y = forward(a, b)
            ctx.save_for_backward(a, y)
            return y

        @staticmethod
        def backward(ctx, dy):
            a, y = ctx.saved_tensors
            problem = Problem(IDENTITY, "", (a, a), None, None, None, False, False)
            return adjoint(run, problem, y, Gradients(dy, None))[:2]

    return Differentiable.apply


def baselines(device: str) -> dict[str, Implementation]:
    """Baselines of the plain recurrence; a name in brackets: they take that form for free."""
    implementations: dict[str, Implementation] = {
        ASSOCIATIVE: torch.compile(associative_scan, dynamic=False),
    }
    if device == "cuda":
        compiled = torch.compile(associative_scan, dynamic=False)
        implementations["associative_scan, pointwise, with an adjoint"] = with_adjoint(
            lambda a, b: compiled(a, b, "pointwise")
        )
    for name, make in OTHERS.items():
        try:
            implementations |= make(device)
        except Exception as error:
            left_out(name, f"{type(error).__name__}: {error}")
    return implementations


def mambapy(device: str) -> dict[str, Implementation]:
    pscan = importlib.import_module("mambapy.pscan").pscan
    return {"mambapy.pscan": lambda a, b: pscan(a[..., None], b[..., None])[..., 0]}


def assoc_scan(device: str) -> dict[str, Implementation]:
    module = importlib.import_module("assoc_scan").AssocScan()
    return {"assoc_scan": lambda a, b: module(a, b)}


def accelerated_scan(device: str) -> dict[str, Implementation]:
    if device == "cpu":
        scan = importlib.import_module("accelerated_scan.ref").scan
        return {"accelerated_scan.ref": lambda a, b: scan(a.mT, b.mT).mT}
    warp = importlib.import_module("accelerated_scan.warp").scan
    scalar = importlib.import_module("accelerated_scan.scalar").scan

    def transposed(scan: Implementation) -> Implementation:
        return lambda a, b: scan(a.mT.contiguous(), b.mT.contiguous()).mT

    return {
        "accelerated_scan.warp, transposing": transposed(warp),
        "accelerated_scan.scalar, transposing": transposed(scalar),
        # Its own layout: the same bytes read as (B, D, T), so the numbers are of other sequences.
        "accelerated_scan.warp [its layout]": lambda a, b: warp(as_columns(a), as_columns(b)),
    }


def as_columns(x: Tensor) -> Tensor:
    B, T, D = x.shape
    return x.reshape(B, D, T)


def fla(device: str) -> dict[str, Implementation]:
    if device == "cpu":
        raise RuntimeError("needs a GPU")
    ops = importlib.import_module("fla.ops.hgrn")
    return {
        "fla.fused_recurrent_hgrn, from a": lambda a, b: ops.fused_recurrent_hgrn(b, a.log())[0],
        "fla.chunk_hgrn, from a": lambda a, b: ops.chunk_hgrn(b, a.log())[0],
        # Given log a, as its own layers have it: other numbers, the same work.
        "fla.fused_recurrent_hgrn [log a]": lambda a, b: ops.fused_recurrent_hgrn(b, -a)[0],
        "fla.chunk_hgrn [log a]": lambda a, b: ops.chunk_hgrn(b, -a)[0],
    }


def torchlpc(device: str) -> dict[str, Implementation]:
    lpc = importlib.import_module("torchlpc").sample_wise_lpc

    def run(a: Tensor, b: Tensor) -> Tensor:  # (sequences, T), y_t = b_t - A_t y_{t-1}
        rows = b.mT.flatten(0, 1)
        y = lpc(rows, -a.mT.flatten(0, 1)[..., None])
        return y.view(b.shape[0], b.shape[2], b.shape[1]).mT

    return {"torchlpc": run}


def pararnn(device: str) -> dict[str, Implementation]:
    if device == "cpu":
        raise RuntimeError("needs a GPU")
    scan = importlib.import_module("pararnn.solvers.scan").scan_diag
    return {"pararnn": lambda a, b: scan(a, b)}


def jax(device: str) -> dict[str, Implementation]:
    jax = importlib.import_module("jax")
    scan = jax.jit(lambda a, b: jax.lax.associative_scan(combine, (a, b), axis=1)[1])

    def run(a: Tensor, b: Tensor) -> Tensor:
        y = scan(jax.dlpack.from_dlpack(a.detach()), jax.dlpack.from_dlpack(b.detach()))
        return torch.from_dlpack(y.block_until_ready())

    return {"jax.lax.associative_scan, with an adjoint": with_adjoint(run)}


def cuda_compute(device: str) -> dict[str, Implementation]:
    raise RuntimeError("scans one dimension, of pairs: it has no (B, T, D) form to compare")


OTHERS: dict[str, Callable[[str], dict[str, Implementation]]] = {
    "mambapy": mambapy,
    "assoc_scan": assoc_scan,
    "accelerated_scan": accelerated_scan,
    "fla": fla,
    "torchlpc": torchlpc,
    "pararnn": pararnn,
    "jax": jax,
    "cuda.compute": cuda_compute,
}


@cache  # said once, not for every case
def left_out(name: str, reason: str) -> None:
    print(f"{name}: left out, {reason}", file=sys.stderr)


TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-2}
OTHER_FORMS: dict[str, Callable[[Implementation], Implementation]] = {
    "[its layout]": lambda exact: lambda a, b: exact(as_columns(a).mT, as_columns(b).mT).mT,
    "[log a]": lambda exact: lambda a, b: exact(torch.exp(-a), b),
}
"""What a baseline computes of the same bytes, by the form in brackets after its name."""


class Judge:
    """Compares implementations with float64, on inputs of the shape that is timed."""

    def __init__(
        self, workload: Workload, shape: tuple[int, ...], dtype: torch.dtype, device: str
    ) -> None:
        torch.manual_seed(0)
        self.workload, self.dtype = workload, dtype
        self.pre = [p.detach() for p in workload.pre(shape, dtype, device)]
        self.dy = torch.randn(shape, device=device).to(dtype)
        self.ours = self._results(workload.exact)

    def check(self, name: str, implementation: Implementation) -> None:
        """Raises unless outputs and gradients are those of the loop, within rounding."""
        form = next((f for f in OTHER_FORMS if name.endswith(f)), None)
        wanted = self._results(OTHER_FORMS[form](self.workload.exact)) if form else self.ours
        rtol = TOLERANCE[self.dtype]
        for got, want in zip(self._results(implementation, self.dtype), wanted, strict=True):
            limit = rtol * (1 + want.abs().max().item())
            torch.testing.assert_close(got.double(), want, rtol=rtol, atol=limit)

    def _results(self, run: Implementation, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Output and gradients; in their own dtype inputs lie as they do when they are timed."""
        leaves = [p.detach().to(dtype).requires_grad_() for p in self.pre]
        y = run(*leaves)
        dy = self.dy.reshape(y.shape).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]
