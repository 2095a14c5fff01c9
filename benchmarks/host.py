"""What a call costs the host: microseconds of small recurrences, whose computation takes none.

    python benchmarks/host.py [--rounds N] [--json FILE] [--show]

Of `linear_recurrence` and of a fused gate at (1, 4, 8) in float32, by the CPU's backend, and by
CUDA's on tensors of the CPU with a driver that does nothing: so its part of a call is measured
without a device, but for what PyTorch's allocator and the driver take there. Beside them what
PyTorch takes for an operator of its own, and for `nothing`: an autograd function that allocates the
same outputs and gradients and does nothing else; beside CUDA's once more, as a machine's speed
drifts. "backward" is all of a backward pass, and "ours" what of it is beyond that of `nothing`. In
turn; medians of rounds, and all rounds in benchmarks/results/host.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Clock, Run, about, environment, in_turn, repeated

import lightning_lrnn as lrnn
from lightning_lrnn import backends
from lightning_lrnn.backends import compiled
from lightning_lrnn.backends.cuda import launch, nvrtc
from lightning_lrnn.core import pytorch
from lightning_lrnn.nn.cells.gilr import gilr

RESULTS = Path(__file__).parent / "results" / "host.json"
SHAPE = (1, 4, 8)
BASELINES = "addcmul", "nothing"
CALLS = 500
"""Calls in a sample."""


class Nothing(torch.autograd.Function):
    """Allocates what a recurrence does, and computes nothing."""

    state = torch.zeros(SHAPE[0], SHAPE[2])

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, final = torch.empty_like(a), torch.empty_like(Nothing.state)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, y)
        return y, final

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        a, y = ctx.saved_tensors
        return torch.empty_like(a), torch.empty_like(y)


class Driver:
    """A driver for CUDA that does nothing; the rest of it is the real one's."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.CUstream, self.CUresult = driver.CUstream, driver.CUresult
        self.done = (driver.CUresult.CUDA_SUCCESS,)

    def cuLaunchKernel(self, *_: Any) -> tuple[Any]:
        return self.done


def pretend_cuda() -> None:
    """From now on tensors of the CPU are computed as those of CUDA are."""
    driver = Driver()
    nvrtc._driver = lambda: driver
    launch._kernel = lambda *_: 0
    pytorch.current_device, pytorch.current_stream = lambda: None, lambda _: 0
    compiled._maker = lambda _: launch.backend
    backends.forget()


def calls() -> dict[str, Callable[..., Any]]:
    return {
        "linear": lambda a, b: lrnn.linear_recurrence(a, b, backend="scan"),
        "gated": lambda a, b: lrnn.gated_recurrence(gilr, a, b, backend="scan"),
    }


def measured(functions: dict[str, Callable[..., Any]], rounds: int) -> dict[str, list[float]]:
    """Samples in seconds of one call: without a gradient, with one, and of its backward pass."""
    pre = [torch.rand(SHAPE) for _ in range(2)]
    leaves = [p.clone().requires_grad_() for p in pre]
    ones = torch.ones(SHAPE)

    def call(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Run:
        return repeated(lambda: function(*inputs), CALLS, "cpu")

    def outputs(function: Callable[..., Any]) -> list[torch.Tensor]:
        results = [function(*leaves) for _ in range(CALLS)]
        return [y[0] if isinstance(y, tuple) else y for y in results]

    def backward(outputs: list[torch.Tensor]) -> None:
        for y in outputs:
            torch.autograd.grad(y, leaves, ones)

    runs = {}
    for name, function in functions.items():
        runs[f"{name}, without"] = call(function, pre)
        runs[f"{name}, differentiable"] = call(function, leaves)
        runs[f"{name}, backward"] = Run(backward, before=partial(outputs, function))
    in_turn(Clock("cpu"), runs, 1, "host")  # what is compiled and kept at a first call
    samples = in_turn(Clock("cpu"), runs, rounds, "host")
    return {name: [s / CALLS for s in times] for name, times in samples.items()}


def rows(samples: dict[str, list[float]]) -> dict[str, tuple[float, ...]]:
    """Microseconds of a call without a gradient, with one, and of its backward pass alone."""
    us = {name: 1e6 * statistics.median(times) for name, times in samples.items()}
    names = dict.fromkeys(name.rsplit(",", 1)[0] for name in us)
    by_name = {}
    for name in names:
        arms = "without", "differentiable", "backward"
        by_name[name] = tuple(us[f"{name}, {arm}"] for arm in arms)
    return by_name


def show(report: dict[str, Any]) -> None:
    print(about(report))
    heads = f"{'without':>12}{'differentiable':>17}{'backward':>11}{'ours':>8}"
    print(f"{'microseconds of a call':30}{heads}")
    by_name = rows(report["samples_in_seconds"])
    for name, (one, two, three) in by_name.items():
        function, *device = name.split(", ")
        floor = by_name[", ".join(["nothing", *device])][2]
        ours = "" if function in BASELINES else f"{three - floor:8.1f}"
        print(f"{name:30}{one:12.1f}{two:17.1f}{three:11.1f}{ours}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="what is there, without measuring")
    options = parser.parse_args()
    if options.show:
        return show(json.loads(options.json.read_text()))
    torch.set_num_threads(1)
    c = torch.rand(SHAPE)
    nothing = pytorch.applied(Nothing)
    baselines = {"addcmul": lambda a, b: torch.addcmul(b, a, c), "nothing": nothing}
    ours = calls()
    samples = measured({**baselines, **ours}, options.rounds)
    pretend_cuda()
    again = {"nothing": nothing, **ours}
    samples |= measured({f"{name}, CUDA": call for name, call in again.items()}, options.rounds)
    report = {**environment("cpu"), "calls": CALLS, "samples_in_seconds": samples}
    options.json.write_text(json.dumps(report) + "\n")
    show(report)


if __name__ == "__main__":
    main()
