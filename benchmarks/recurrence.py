"""Times the recurrence against torch.addcmul, a copy and its rivals: `make bench`.

Every contender is checked against float64 before it is timed. All contenders of a shape are timed
in turn, round after round, so that a slow spell of the machine meets them all; shown are minima and
medians. A shape is measured again, at most three times, while addcmul's own median exceeds 1.5
times its minimum; after that its row is marked void.

    python benchmarks/recurrence.py [--device cpu|cuda] [--quick] [--rivals] [--json PATH]
"""

from __future__ import annotations

import os

# Before PyTorch starts its threads, for every contender alike: a thread that spins while it waits
# takes the core from the next contender.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

import lightning_lrnn as lrnn
from lightning_lrnn import backends, reference

SHAPES = {
    "cpu": [(8, 1024, 256), (32, 256, 512), (1, 65536, 32), (1, 1048576, 1)],
    # Beyond what the second-level cache holds, but for the last two.
    "cuda": [(8, 4096, 2048), (16, 16384, 128), (1, 1048576, 32), (1, 65536, 32), (1, 1048576, 1)],
}
QUICK = [(2, 64, 16)]
NOISY = 1.5
RIVAL = "associative_scan, compiled"
GOAL_FORWARD, GOAL_BOTH = 1.3, 6.0

Contender = Callable[[Tensor, Tensor], Tensor]


def combine(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def associative_scan(a: Tensor, b: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    return scan(combine, (a, b), dim=1, combine_mode="generic")[1]


def contenders(device: str, rivals: bool, quick: bool) -> dict[str, Contender]:
    """Ours by backend, then every rival that is installed."""
    found: dict[str, Contender] = {}
    for name, reasons in backends.explain(device).items():
        if reasons:
            print(f"{name}: left out, {'; '.join(reasons)}", file=sys.stderr)
        else:
            found[name] = lambda a, b, name=name: lrnn.linear_recurrence(a, b, backend=name)[0]
    if not quick:
        found[RIVAL] = torch.compile(associative_scan, dynamic=False)
    if rivals:
        if find_spec("mambapy"):
            from mambapy.pscan import pscan

            found["mambapy.pscan"] = lambda a, b: pscan(a[..., None], b[..., None])[..., 0]
        if find_spec("assoc_scan"):
            from assoc_scan import AssocScan

            module = AssocScan()
            found["assoc_scan"] = lambda a, b: module(a, b)
        if find_spec("accelerated_scan"):
            from accelerated_scan.ref import scan

            found["accelerated_scan.ref"] = lambda a, b: scan(a.mT, b.mT).mT
        for name in ("mambapy", "assoc_scan", "accelerated_scan"):
            if not find_spec(name):
                print(f"{name}: left out, not installed", file=sys.stderr)
    return found


def check(name: str, contender: Contender, device: str) -> None:
    """Raises unless outputs and gradients agree with the loop in float64."""
    torch.manual_seed(0)
    a = torch.rand(2, 128, 16, device=device).requires_grad_()
    b = torch.randn(2, 128, 16, device=device).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in (a, b)]
    y, expected = contender(a, b), reference.linear_recurrence(*wide)[0]
    dy = torch.randn_like(y)
    results = [y, *torch.autograd.grad(y, (a, b), dy)]
    expectations = [expected, *torch.autograd.grad(expected, wide, dy.double())]
    for result, expectation in zip(results, expectations, strict=True):
        torch.testing.assert_close(
            result.double(), expectation, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}"
        )


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one call; on CUDA after everything before it, by events."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def measure(
    shape: tuple[int, ...], found: dict[str, Contender], device: str, rounds: int
) -> dict[str, list[float]]:
    """Samples in seconds: the yardsticks, "NAME forward" and "NAME forward + backward"."""
    torch.compiler.reset()  # else, after eight variants, what is compiled would run uncompiled
    torch.manual_seed(0)
    a, b = torch.rand(shape, device=device), torch.randn(shape, device=device)
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    dy, out = torch.randn(shape, device=device), torch.empty(shape, device=device)
    runs: dict[str, Callable[[], object]] = {
        "addcmul": lambda: torch.addcmul(b, a, dy),
        "copy": lambda: out.copy_(a),
    }
    for name, contender in found.items():
        runs[f"{name} forward"] = lambda f=contender: f(a, b)
        runs[f"{name} forward + backward"] = lambda f=contender: torch.autograd.grad(
            f(*leaves), leaves, dy
        )
    for name, run in runs.items():
        print(f"  {shape}: {name}: compile and warm up", file=sys.stderr)
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(seconds(run, device))
    return samples


def void(samples: dict[str, list[float]]) -> bool:
    return statistics.median(samples["addcmul"]) > NOISY * min(samples["addcmul"])


def show(shape: tuple[int, ...], samples: dict[str, list[float]]) -> None:
    size = 4 * torch.Size(shape).numel()
    yardstick = statistics.median(samples["addcmul"])
    print(f"\n{shape}, float32{'   VOID: the machine was too noisy' if void(samples) else ''}")
    print(f"  {'':40}{'min ms':>9}{'median':>9}{'GB/s':>8}{'addcmuls':>10}")
    tensors = {"addcmul": 4, "copy": 2}
    for name, times in samples.items():
        median = statistics.median(times)
        moved = tensors.get(name, 8 if name.endswith("backward") else 3) * size
        print(
            f"  {name:40}{1e3 * min(times):9.2f}{1e3 * median:9.2f}"
            f"{moved / median / 1e9:8.1f}{median / yardstick:10.2f}"
        )


def goals(shape: tuple[int, ...], samples: dict[str, list[float]]) -> list[tuple[str, float, bool]]:
    """What the project promises for a CPU: the figure and whether it is reached."""
    if RIVAL + " forward" not in samples or shape not in SHAPES["cpu"][:3]:
        return []
    median = {name: statistics.median(times) for name, times in samples.items()}
    forward = median["scan forward"] / median["addcmul"]
    both = median[f"{RIVAL} forward + backward"] / median["scan forward + backward"]
    return [
        (
            f"{shape} scan forward / addcmul, at most {GOAL_FORWARD}",
            forward,
            forward <= GOAL_FORWARD,
        ),
        (f"{shape} {RIVAL} / scan, both passes, at least {GOAL_BOTH}", both, both >= GOAL_BOTH),
    ]


def commit() -> str:
    root = Path(__file__).parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(SHAPES), default="cpu")
    parser.add_argument("--rounds", type=int, default=25, help="samples of each (%(default)s)")
    parser.add_argument("--rivals", action="store_true", help="also those of other packages")
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--json", type=Path, help="write every sample here")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        return 2

    device, rounds = options.device, 3 if options.quick else options.rounds
    found = contenders(device, options.rivals, options.quick)
    for name, contender in found.items():
        print(f"{name}: check against float64", file=sys.stderr)
        check(name, contender, device)
    report = {
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "samples_in_seconds": {},
    }
    print(f"{report['device']}, {report['threads']} threads, PyTorch {torch.__version__}")
    reached = []
    for shape in QUICK if options.quick else SHAPES[device]:
        for _ in range(3):
            samples = measure(shape, found, device, rounds)
            if not void(samples):
                break
            print(f"  {shape}: noisy, once more", file=sys.stderr)
        show(shape, samples)
        reached += [] if void(samples) else goals(shape, samples)
        report["samples_in_seconds"][str(shape)] = samples
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    if reached:
        print("\nGoals")
    for text, figure, holds in reached:
        print(f"  {'reached' if holds else 'MISSED ':8} {figure:5.2f}   {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
