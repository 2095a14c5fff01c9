"""Layers against torch.nn.LSTM and GRU on a CPU: time, peak memory, error; part of `make bench`.

    python benchmarks/layer_times.py [--shapes 0 1 2 3] [--rounds 5] [--json PATH] [--draw]
        [--quick]

Timed are forward and backward passes, the gradients of all parameters, in turn, round after round.
`matmuls` is what the GILR-LSTM multiplies, into tensors that exist: a bound of what it can reach,
and the reference; a shape whose reference's median exceeds 1.5 times its minimum is void. Before it
is timed, a layer is checked against itself in float64. torch.nn.LSTM and GRU are timed with one
thread too, which on few rows is faster than to divide each step: ratios are to the faster.
Subnormal numbers are flushed to zero for all: they would slow torch.nn.LSTM down on long rows.
Peaks are of a fresh process. Errors are those of output and gradients of float32 against float64,
by norm, ours over those of the same layer with gates evaluated by PyTorch. Writes
benchmarks/results/layer_times.json; --draw prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from goals import Goal, Samples, at_least, at_most, medians, void
from paper import registered
from timing import Clock, Run, about, environment, in_turn
from torch import Tensor

from lightning_lrnn import nn
from lightning_lrnn.core.process_memory import process_memory, process_peak

RESULTS = Path(__file__).parent / "results" / "layer_times.json"
LSTM, GRU, REFERENCE = "torch.nn.LSTM", "torch.nn.GRU", "matmuls"
ALONE = ", 1 thread"
OURS: dict[str, Callable[..., torch.nn.Module]] = {
    "GILRLSTM": nn.GILRLSTM,
    "GILR": nn.GILR,
    "MinGRU": nn.MinGRU,
    "QRNN": nn.QRNN,
    "SRU": nn.SRU,
}
LAYERS = {**OURS, LSTM: torch.nn.LSTM, GRU: torch.nn.GRU}
TOLERANCE = 1e-3
"""Between float32 and float64, of the norm."""


LINE = "  {:24}{:>9}{:>9}{:>9}{:>9}{:>10}{:>10}"


class Shape(NamedTuple):
    """Of what a layer gets, and its units."""

    batch: int
    steps: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return str(tuple(self))


SHAPES = [
    Shape(64, 1024, 128, 256),
    Shape(4, 16384, 128, 256),
    Shape(1, 65536, 64, 64),
    Shape(1, 65536, 128, 256),
]
QUICK = [Shape(2, 16, 4, 8)]
CHECKED = (2, 512)
"""Batch and steps that a layer is compared with itself at."""
LEAST = {
    ("GILRLSTM", (64, 1024, 128, 256)): 1.15,
    ("GILRLSTM", (1, 65536, 64, 64)): 4.0,
    "GILRLSTM": 1.5,
    "GILR": 4.0,
    "MinGRU": 4.0,
    "QRNN": 2.0,
    "SRU": 2.0,
}
"""Goals: how many times as fast as torch.nn.LSTM a layer is at least, on all shapes or on one."""


def made(name: str, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return LAYERS[name](shape.input_size, shape.hidden_size, batch_first=True).to(dtype)


def data(shape: Shape) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    rows = shape.batch, shape.steps
    return torch.randn(*rows, shape.input_size), torch.randn(*rows, shape.hidden_size)


def step(layer: torch.nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Output, and the gradients of all parameters."""
    y = layer(x)[0]
    return [y.detach(), *torch.autograd.grad(y, list(layer.parameters()), dy)]


def alone(layer: torch.nn.Module, x: Tensor, dy: Tensor) -> None:
    """A training step on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step(layer, x, dy)
    finally:
        torch.set_num_threads(threads)


def distances(values: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Relative errors: the norm of each difference over the norm of the exact value."""
    pairs = zip(values, exact, strict=True)
    return [(torch.dist(x.double(), e) / e.norm()).item() for x, e in pairs]


def errors(name: str, shape: Shape) -> dict[str, list[float]]:
    """Of output and gradients in float32: by the scan, and with gates by PyTorch."""
    x, dy = data(Shape(*CHECKED, *shape[2:]))
    exact = step(made(name, shape, torch.float64), x.double(), dy.double())
    by_backend = {}
    for backend in ("scan", "unfused") if name in OURS else ("",):
        layer = made(name, shape)
        if backend:
            layer.backend = backend
        by_backend[backend] = distances(step(layer, x, dy), exact)
        assert max(by_backend[backend]) <= TOLERANCE, f"{name} {backend}: {by_backend[backend]}"
    return by_backend


def matmuls(shape: Shape) -> Run:
    """The products of a GILR-LSTM's step, into tensors that exist."""
    H, n = shape.hidden_size, shape.batch * shape.steps
    x, s, pre = (torch.randn(n, width) for width in (shape.input_size, H, 6 * H))
    w, u = torch.randn(6 * H, shape.input_size), torch.randn(4 * H, H)
    for_s, for_gates = torch.empty(n, 2 * H), torch.empty(n, 4 * H)
    dw, du, ds = torch.empty_like(w), torch.empty_like(u), torch.empty_like(s)

    def timed(_: object) -> None:
        torch.mm(x, w[: 2 * H].t(), out=for_s)
        torch.mm(x, w[2 * H :].t(), out=for_gates)
        torch.addmm(for_gates, s, u.t(), out=for_gates)
        torch.mm(pre.t(), x, out=dw)
        torch.mm(pre[:, 2 * H :].t(), s, out=du)
        torch.mm(pre[:, 2 * H :], u, out=ds)

    return Run(timed)


def times(shape: Shape, rounds: int) -> Samples:
    """Seconds of a training step, by layer."""
    x, dy = data(shape)
    runs = {REFERENCE: matmuls(shape)}
    for name in LAYERS:
        layer = made(name, shape)
        runs[name] = Run(lambda _, layer=layer: step(layer, x, dy))
        if name not in OURS:
            runs[f"{name}{ALONE}"] = Run(lambda _, layer=layer: alone(layer, x, dy))
    clock = Clock("cpu")
    in_turn(clock, runs, 1, f"{shape}, warm-up")
    return in_turn(clock, runs, rounds, str(shape))


def growth(name: str, shape: Shape) -> int:
    """Bytes that this process, which should be fresh, grows by in a step."""
    layer = made(name, shape)
    step(layer, *data(shape._replace(batch=1, steps=64)))  # compiles
    x, dy = data(shape)
    before = process_memory()
    step(layer, x, dy)
    peak = process_peak()
    if before is None or peak is None:
        raise SystemExit("this system does not say how much memory a process has")
    return peak - before


def peaks(shape: Shape) -> dict[str, int]:
    by_layer = {}
    for name in ("GILRLSTM", LSTM):
        command = [sys.executable, __file__, "--peak", name, *map(str, shape)]
        by_layer[name] = int(subprocess.run(command, check=True, capture_output=True).stdout)
    return by_layer


def measure(shapes: list[Shape], rounds: int) -> dict[str, Any]:
    report: dict[str, Any] = {**environment("cpu"), "shapes": []}
    with registered():
        for shape in shapes:
            print(f"{shape}", file=sys.stderr, flush=True)
            result: dict[str, Any] = {"shape": shape, "peak_bytes": peaks(shape)}
            result["errors"] = {name: errors(name, shape) for name in LAYERS}
            result["samples_in_seconds"] = times(shape, rounds)
            report["shapes"].append(result)
    return report


def worst(by_backend: dict[str, list[float]]) -> float:
    """The largest error of the scan over that of the formula by PyTorch."""
    return max(ours / theirs for ours, theirs in zip(*by_backend.values(), strict=True))


def with_fastest(samples: Samples) -> dict[str, float]:
    """Medians; of the baselines those with the fastest number of threads."""
    median = medians(samples)
    return median | {rnn: min(median[rnn], median[rnn + ALONE]) for rnn in (LSTM, GRU)}


def goals_of(shape: Shape, result: dict[str, Any]) -> list[Goal]:
    reached = []
    median = with_fastest(result["samples_in_seconds"])
    if not void(result["samples_in_seconds"], REFERENCE):
        for name in OURS:
            limit = LEAST.get((name, tuple(shape)), LEAST[name])
            text = f"{shape} {name}, times as fast as {LSTM}"
            reached.append(at_least(text, median[LSTM] / median[name], limit))
        text = f"{shape} GILRLSTM, times as fast as {GRU}"
        reached.append(at_least(text, median[GRU] / median["GILRLSTM"], 1.0))
    of_peak = result["peak_bytes"]
    text = f"{shape} GILRLSTM, peak memory over that of {LSTM}"
    reached.append(at_most(text, of_peak["GILRLSTM"] / of_peak[LSTM], 1.0))
    error = max(worst(result["errors"][name]) for name in OURS)
    reached.append(at_most(f"{shape} error over that of gates by PyTorch, worst", error, 2.0))
    return reached


def show(report: dict[str, Any]) -> None:
    print(about(report))
    reached: list[Goal] = []
    for result in report["shapes"]:
        shape = Shape(*result["shape"])
        samples, of_peak = result["samples_in_seconds"], result["peak_bytes"]
        noisy = "   VOID: the machine was too noisy" if void(samples, REFERENCE) else ""
        print(f"\n(B, T, input, hidden) = {shape}{noisy}")
        heads = ("", "min s", "median", "LSTM /", "GRU /", "peak MiB", "error")
        print(LINE.format(*heads).rstrip())
        median = with_fastest(samples)
        for name, seconds in samples.items():
            peak = f"{of_peak[name] / 2**20:,.0f}" if name in of_peak else ""
            errors = result["errors"].get(name)
            error = f"{max(next(iter(errors.values()))):.1e}" if errors else ""
            middle = statistics.median(seconds)
            figures = min(seconds), middle, *(median[rnn] / middle for rnn in (LSTM, GRU))
            print(LINE.format(name, *(f"{f:.3f}" for f in figures), peak, error).rstrip())
        reached += goals_of(shape, result)
    print("\nGoals")
    for text, figure, holds in reached:
        print(f"  {'reached' if holds else 'MISSED ':8} {figure:7.2f}   {text}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", type=int, nargs="+", choices=range(len(SHAPES)), help="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="every sample; --quick writes none without it")
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_flush_denormal(True)  # before PyTorch starts its threads, which inherit it
    if options.peak:
        print(growth(options.peak[0], Shape(*map(int, options.peak[1:]))))
        return
    path = options.json or (None if options.quick else RESULTS)
    if options.draw and path:
        report = json.loads(path.read_text())
    else:
        chosen = QUICK if options.quick else [SHAPES[i] for i in options.shapes or range(4)]
        report = measure(chosen, 2 if options.quick else options.rounds)
        if path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
