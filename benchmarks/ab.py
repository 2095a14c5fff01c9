"""Variants of the CUDA kernel side by side on one GPU: `make gpu STAGE=ab`.

A variant is macros in place of those that the plan chose; grid and workspace follow from them. All
kernels are compiled first, by several processes. Then, for one case after the other, every variant
is compared on the timed shape with the walked kernel in float64, run three times for the same bits,
and all that are right are timed in turn beside a copy of equal bytes. Variants that change no sum
must have the bits of the plan's own kernel, where they have as many steps to a segment. `given` is
the second phase of ranks, after a pair that is timed by itself.

    python benchmarks/ab.py [--json PATH] [--resume PATH] [--budget SECONDS] [--rounds N]

Every sample goes to --json after each case. Exit status: 0 all variants are right, 1 one is not,
2 there is no CUDA device.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from goals import Case, medians
from implementations import WORKLOADS
from timing import Clock, Run, about, environment, in_turn
from torch import Tensor

from lightning_lrnn.backends.cuda import launch, nvrtc
from lightning_lrnn.backends.cuda import plan as cuda_plan
from lightning_lrnn.backends.cuda.codegen import fused
from lightning_lrnn.backends.cuda.plan import SERIAL_THREADS, Plan, plan, slots
from lightning_lrnn.backends.operands import STORAGE, Operand
from lightning_lrnn.core import pytorch
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY

STEPS = "forward", "backward"
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}
PLANNED = "as planned"
AS_MEASURED = {"LRNN_BLOCKS": "2", "LRNN_GLANCE": "none", "LRNN_TILES": "any"}
OTHER = {"chained": "folded", "folded": "chained"}


class Variant(NamedTuple):
    """What it changes; whether its bits must be the plan's, by equal segments; for what it is."""

    macros: dict[str, str]
    same_bits: bool = False
    passes: tuple[str, ...] = STEPS
    dtypes: tuple[str, ...] = tuple(TOLERANCE)
    gates: tuple[str, ...] = tuple(WORKLOADS)

    def is_for(self, case: Case, step: str) -> bool:
        return step in self.passes and case.dtype in self.dtypes and case.gate in self.gates


QUICK = Variant({"LRNN_TANH": "approx"}, dtypes=("bfloat16",), gates=("gilr", "lstm"))
VARIANTS = {
    PLANNED: Variant({}, True),
    "as before": Variant(AS_MEASURED, True),
    "as before, early glance": Variant({**AS_MEASURED, "LRNN_GLANCE": "early"}, True),
    "3 blocks": Variant({"LRNN_BLOCKS": "3"}, True),
    "4 blocks": Variant({"LRNN_BLOCKS": "4"}, True),
    "4 blocks, no glance": Variant({"LRNN_BLOCKS": "4", "LRNN_GLANCE": "none"}, True, ("forward",)),
    "3 blocks, no glance": Variant(
        {"LRNN_BLOCKS": "3", "LRNN_GLANCE": "none"}, True, ("backward",)
    ),
    "3 blocks, any tiles": Variant({"LRNN_BLOCKS": "3", "LRNN_TILES": "any"}, True, ("backward",)),
    "emission known": Variant({"LRNN_EMIT": "state_after"}, True),
    "reused workspace": Variant({"LRNN_WORKSPACE": "reused"}, True),
    "one barrier": Variant({"LRNN_COMBINE": "row"}),
    "one barrier, emission known": Variant({"LRNN_COMBINE": "row", "LRNN_EMIT": "state_after"}),
    "one fold": Variant({"LRNN_FOLD": "together"}),
    "packed": Variant({"LRNN_PACKED": "1"}, True, dtypes=("bfloat16",)),
    "packed, emission known": Variant(
        {"LRNN_PACKED": "1", "LRNN_EMIT": "state_after"}, True, dtypes=("bfloat16",)
    ),
    "quick tanh": QUICK,
    "packed, quick tanh": QUICK._replace(macros={**QUICK.macros, "LRNN_PACKED": "1"}),
    "8 steps, 4 blocks": Variant({"LRNN_STEPS": "8", "LRNN_BLOCKS": "4"}),
    "512 threads": Variant(
        {"LRNN_THREADS": "512", "LRNN_BLOCKS": "2", "LRNN_TILES": "any"}, passes=("forward",)
    ),
    "other carry": Variant({"LRNN_CARRY": "other"}),
    "no carry": Variant({"LRNN_CARRY": "none"}),
    "given": Variant({"LRNN_CARRY": "given"}),
    "walked": Variant({"LRNN_SCHEDULE": "serial", "LRNN_COLUMNS": "1", "LRNN_CARRY": "chained"}),
}
CASES = [
    *(Case((8, 4096, 2048), dtype) for dtype in ("float32", "bfloat16")),
    *(Case((1, 65536, 256), dtype) for dtype in ("float32", "bfloat16")),
    *(Case((16, 16384, 128), dtype) for dtype in ("float32", "bfloat16")),
    *(
        Case((8, 4096, 2048), dtype, gate)
        for gate in ("gilr", "lstm", "mingru")
        for dtype in ("float32", "bfloat16")
    ),
    Case((1, 1048576, 32)),
    *(Case(shape, dtype) for shape in ((64, 1024, 256), (256, 256, 256))
      for dtype in ("float32", "bfloat16")),
]  # fmt: skip
"""The most telling first: a budget may end the list early."""


def replanned(how: Plan, shape: tuple[int, ...], macros: dict[str, str]) -> Plan:
    """A plan with other macros; of states of 32 bits."""
    changed = {**dict(how.macros), **macros}
    if changed["LRNN_CARRY"] == "other":
        changed["LRNN_CARRY"] = OTHER[dict(how.macros)["LRNN_CARRY"]]
    variant, (B, T, D), features = tuple(changed.items()), shape, how.features
    D //= features
    if changed["LRNN_SCHEDULE"] == "serial":
        return Plan(variant, -(-B * D // SERIAL_THREADS), SERIAL_THREADS, 0, 1, features)
    width, threads, steps = (
        int(changed[f"LRNN_{name}"]) for name in ("COLUMNS", "THREADS", "STEPS")
    )
    segments, chains = threads // width, B * -(-D // width)
    tiles, carry = -(-T // (steps * segments)), changed["LRNN_CARRY"]
    per_chain = slots("chained" if carry == "none" else carry, tiles, segments)
    words = 1 + chains * per_chain * width * features if tiles > 1 else 0
    return Plan(variant, chains * tiles, threads, words, tiles, features)


def is_packed(macros: dict[str, str]) -> bool:
    return bool(int(macros.get("LRNN_PACKED", cuda_plan.PACKED)))


@contextlib.contextmanager
def planned_with(macros: dict[str, str], seen: list[Plan]) -> Iterator[None]:
    """Launches use these macros; the plans are noted."""
    planned = launch._planned

    def plan(*arguments: Any) -> Any:
        code, how = planned(*arguments)
        how = replanned(how, arguments[-1], macros) if macros else how
        seen.append(how)
        return code, how

    with (
        mock.patch.object(launch, "_planned", plan),
        mock.patch.object(cuda_plan, "PACKED", is_packed(macros)),
    ):
        yield


def programs_of(case: Case) -> tuple[str, str]:
    """The programs of gate and readout; "" without a readout."""
    workload = WORKLOADS[case.gate]
    gate = workload.gate.program if workload.gate else IDENTITY
    return gate, workload.readout.program if workload.readout else ""


class Pass:
    """One pass of a case, with its inputs: `run` returns what it computes."""

    def __init__(self, case: Case, step: str, device: str) -> None:
        torch.manual_seed(0)
        workload, dtype = WORKLOADS[case.gate], getattr(torch, case.dtype)
        self.case, self.step = case, step
        pre = tuple(workload.pre(case.shape, dtype, device))
        self.problem = Problem(*programs_of(case), pre, None, None, None, False, False)
        self.h, self.dy = (torch.randn(case.shape, device=device).to(dtype) for _ in range(2))

    def run(self, macros: dict[str, str], seen: list[Plan] | None = None) -> list[Tensor]:
        seen = [] if seen is None else seen
        if macros.get("LRNN_CARRY") == "given":
            kernels = launch.backend(self.problem, parallel=True)
            kernels = kernels if self.given is None else kernels.after(self.given)
            with planned_with({}, seen):  # of the plan
                return self._of(kernels, self.problem, self.h, self.dy)
        with planned_with(macros, seen):
            return self._run(self.problem, self.h, self.dy, parallel=True)

    def pair(self) -> Tensor | None:
        """What a pair leaves for `given`, None if the plan has one tile or walks."""
        kernels = launch.backend(self.problem, parallel=True)
        if self.step == "forward":
            result = kernels.pair(self.problem)
        else:
            result = kernels.adjoint_impulse(self.problem, self.h, self.dy)
        return result[-1]

    @cached_property
    def given(self) -> Tensor | None:
        return self.pair()

    def exact(self) -> list[Tensor]:
        """By the walked kernel in float64."""
        wide = self.problem._replace(pre=tuple(p.double() for p in self.problem.pre))
        return self._run(wide, self.h.double(), self.dy.double(), parallel=False)

    def _run(self, problem: Problem, h: Tensor, dy: Tensor, *, parallel: bool) -> list[Tensor]:
        return self._of(launch.backend(problem, parallel=parallel), problem, h, dy)

    def _of(self, kernels: launch.Kernels, problem: Problem, h: Tensor, dy: Tensor) -> list[Tensor]:
        if self.step == "forward":
            return list(kernels.forward(problem))
        gradients, dh0 = kernels.backward(problem, h, Gradients(dy, None))
        return [*gradients, dh0]


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New memory is NaN, so that what a kernel does not write is seen."""

    def filled(device: str) -> Callable[..., Tensor]:
        allocate = pytorch.empty_strided[device]
        return lambda *form: allocate(*form).fill_(math.nan)

    with mock.patch.dict(pytorch.empty_strided, {d: filled(d) for d in pytorch.empty_strided}):
        yield


def error(values: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest, relative to 1 + |x|; NaN is infinite."""
    worst = 0.0
    for x, exact in zip(values, wanted, strict=True):
        off = ((x.double() - exact).abs() / (1 + exact.abs())).max().item()
        worst = max(worst, math.inf if math.isnan(off) else off)
    return worst


def examine(case: Case, step: str, device: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """What is right, by variant: its error, and whether it has the bits that it must have."""
    one, rows, planned, segment = Pass(case, step, device), {}, None, None
    wanted = one.exact()
    for name in names:
        variant = VARIANTS[name]
        if not variant.is_for(case, step):
            continue
        seen: list[Plan] = []
        with poisoned():
            first, *others = (one.run(variant.macros, seen) for _ in range(3))
        steps = dict(seen[0].macros)["LRNN_STEPS"] if seen else None  # `given` plans for itself
        if name == PLANNED:
            planned, segment = first, steps
        again = all(all(map(torch.equal, first, other)) for other in others)
        bits = planned is not None and all(map(torch.equal, first, planned))
        far = error(first, wanted)
        right = again and (bits or not variant.same_bits or steps != segment)
        right = right and (far < TOLERANCE[case.dtype] or name == "no carry")
        rows[name] = {"error": far, "same_bits_again": again, "bits_of_plan": bits, "right": right}
    return rows


def measure(case: Case, step: str, rows: dict[str, dict[str, Any]], rounds: int) -> None:
    """Adds the samples in seconds of all that is right, and of a copy of equal bytes."""
    one = Pass(case, step, "cuda")
    half = WORKLOADS[case.gate].bytes(case.shape, getattr(torch, case.dtype), step) // 2
    source, target = (torch.empty(half, dtype=torch.uint8, device="cuda") for _ in range(2))
    runs = {"copy": Run(lambda _: target.copy_(source)), "pair": Run(lambda _: one.pair())}
    for name, row in rows.items():
        if row["right"]:
            runs[name] = Run(lambda _, macros=VARIANTS[name].macros: one.run(macros))
    title = f"{case} {step}"
    for name, times in in_turn(Clock("cuda", ahead=True), runs, rounds, title).items():
        rows.setdefault(name, {})["samples_in_seconds"] = times


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    samples = {
        n: row["samples_in_seconds"] for n, row in rows.items() if "samples_in_seconds" in row
    }
    median = medians(samples)
    print(f"\n{title}")
    for name in sorted(rows, key=lambda name: median.get(name, math.inf)):
        row, shown = rows[name], ""
        if name in median:
            percent = 100 * median["copy"] / median[name]
            shown = f"{1e6 * median[name]:9.1f} us {percent:5.0f} % of a copy"
        if "error" in row:
            bits = "" if row["bits_of_plan"] else "  other bits"
            shown += f"  error {row['error']:.1e}{bits}{'' if row['right'] else '  WRONG'}"
        print(f"  {name:26}{shown}", flush=True)


def kernels_of(case: Case, step: str) -> set[nvrtc.Macros]:
    """Every variant that a case launches, but for the float64 one."""
    programs, dtype = programs_of(case), getattr(torch, case.dtype)
    operands = (Operand(STORAGE[dtype], True),) * WORKLOADS[case.gate].inputs
    code = fused(*programs, operands, step)
    asked, kernels = cuda_plan.Pass(step, True), set()
    for name, variant in VARIANTS.items():
        if name != "given" and variant.is_for(case, step):
            layout = "packed" if is_packed(variant.macros) else "apart"
            how = plan(code, operands, asked._replace(layout=layout), case.shape)
            kernels.add(replanned(how, case.shape, variant.macros).macros)
    # Both phases.
    with_pair = plan(code, operands, asked._replace(given=True), case.shape)
    segment = cuda_plan.steps(code, operands, asked) if with_pair.tiles > 1 else 0
    code = fused(programs[0], programs[1] if step == "backward" else "", operands, step)
    pair = asked._replace(result="pair", segment=segment)
    return kernels | {with_pair.macros, plan(code, operands, pair, case.shape).macros}


def compile_one(macros: nvrtc.Macros, capability: tuple[int, int]) -> None:
    nvrtc.cubin(launch.SOURCE, macros, nvrtc.architecture(capability))


def compile_all(cases: list[Case]) -> int:
    """To the disk, by as many processes as there are cores; how many there are."""
    kernels = set().union(*(kernels_of(case, step) for case in cases for step in STEPS))
    capability = torch.cuda.get_device_capability()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, sorted(kernels), itertools.repeat(capability)))
    return len(kernels)


def main(argv: list[str] | None = None) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda"], help="there is no other")
    parser.add_argument("--json", type=Path, help="write every sample here")
    parser.add_argument("--resume", type=Path, help="keep the samples of this file")
    parser.add_argument("--budget", type=float, help="seconds after which no case is begun")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (%(default)s)")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        return 2
    report: dict[str, Any] = {**environment("cuda"), "passes": {}}
    if options.resume:
        report["passes"] = json.loads(options.resume.read_text())["passes"]
    report["left_out"] = []
    print(about(report))
    print(f"{compile_all(CASES)} kernels after {time.monotonic() - start:.0f} s", flush=True)
    for case, step in itertools.product(CASES, STEPS):
        title = f"{case} {step}"
        if title in report["passes"]:
            continue
        if options.budget and time.monotonic() - start > options.budget:
            report["left_out"].append(title)
            continue
        rows = examine(case, step, "cuda", list(VARIANTS))
        measure(case, step, rows, options.rounds)
        show(title, rows)
        report["passes"][title] = rows
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    if report["left_out"]:
        print(f"\nleft out for lack of time: {'; '.join(report['left_out'])}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    examined = [row for rows in report["passes"].values() for row in rows.values()]
    return int(not all(row.get("right", True) for row in examined))


if __name__ == "__main__":
    sys.exit(main())
