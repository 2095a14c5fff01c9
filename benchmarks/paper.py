"""The paper's Tables 1 to 3 and its poster's heat map, ours beside the published: `make paper`.

    python benchmarks/paper.py [--tables 1 2 3 heat] [--device cpu|cuda] [--dtypes float32 bfloat16]
        [--budget SECONDS] [--longest-round SECONDS] [--json PATH] [--draw] [--quick]

1     the plain recurrence, forward, minibatch 1, as kernels: no operator, no autograd
2     two stacked layers of 256 units, input size 4, forward and backward, B * T = 65,536
3     the long-memory task, from what benchmarks/long_memory.py has left
heat  two layers of GILR-LSTM against torch.nn.LSTM over batch and length, forward and backward

The parallel recurrence is timed against two serial ones: `plain`, the paper's (plain.py), and the
package's `serial`, which loads ahead. All implementations of a cell are checked against each
other, and timed in turn, round after round; shown are medians. Calls too short for the clock are
timed several at once, on CUDA as a graph. Seeds and shapes are fixed. Every sample is kept in
benchmarks/results/cpu-paper.json or <GPU>-paper.json, with figures beside it; a table that is not
asked for is kept as it is there. --draw prints and draws what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import implementations
import paper_tables
import torch
from implementations import WORKLOADS
from timing import Clock, Run, as_many, environment, repeated
from torch import Tensor

from lightning_lrnn import backends, nn
from lightning_lrnn.backends.unfused import Unfused
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.core.process_memory import process_memory, process_peak
from lightning_lrnn.gates import IDENTITY

RESULTS = Path(__file__).parent / "results"
LSTM = "torch.nn.LSTM"
LAYERS: dict[str, tuple[Callable[..., torch.nn.Module], dict[str, Any]]] = {
    "SRU": (nn.SRU, {}),
    "QRNN(2)": (nn.QRNN, {"window": 2}),
    "QRNN(10)": (nn.QRNN, {"window": 10}),
    "GILR-LSTM": (nn.GILRLSTM, {}),
    LSTM: (torch.nn.LSTM, {}),
}
CHECKED = (1, 2048)
"""Batch and length that layers are compared at: time is divided there."""
LONGEST_ROUND = 70.0
"""Seconds; a cell whose round is expected to take longer is left out."""
SHORT_S, CALLS = 1e-3, 20
"""Calls shorter than this are timed so many at once."""
GRADIENTS = {"float32": 1e-3, "bfloat16": implementations.TOLERANCE[torch.bfloat16]}
"""Of the norm, between implementations: sums over all steps of a cell. With gates by PyTorch in
bfloat16 decays are rounded to it, and single elements differ by more than their size."""


class Sizes(NamedTuple):
    """Sizes of the cells of all tables."""

    features: tuple[int, ...] = paper_tables.FEATURES
    steps: tuple[int, ...] = (*paper_tables.TABLE_1, 262144, 1048576)
    hidden_size: int = 256
    tokens: int = 65536
    batches: tuple[int, ...] = tuple(paper_tables.POSTER_LSTM)
    heat_steps: tuple[int, ...] = (256, 1024, 4096, 16384, 65536, 131072)
    most_tokens: int = 131072
    """Of a cell of the heat map on a CPU; on CUDA its memory decides."""


QUICK = Sizes((4,), (16, 256), 8, 256, (1, 2), (16, 32), 32)


class Limits(NamedTuple):
    """Of a cell: seconds that decide its rounds, rounds at most, and when it is left out."""

    seconds: float
    most: int
    round_seconds: float = LONGEST_ROUND
    bytes: float = 16 * 2**30


LIMITS = {"1": Limits(8, 11), "2": Limits(24, 3), "heat": Limits(2, 5)}
"""On two cores of a CPU some 12 minutes in all."""

Cell = dict[str, Any]


class Known(NamedTuple):
    """What a layer takes, by its largest cell: a round of all implementations, and the peak."""

    tokens: int = 0
    seconds: float = 0.0
    bytes: float = 0.0


class UnfusedScan:
    """The scan with its gates by PyTorch, as the plain loop has them."""

    uses_autograd = False

    def reasons(self, request: backends.Request) -> list[str]:
        return backends.reasons("scan", request)

    def prepared(self, problem: Problem) -> Unfused:
        return Unfused(backends.load("scan").prepared)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Backends that are none of the package's, as entry points would add them."""
    known, ours = backends._modules(), {"plain": "plain", "unfused": "unfused:BACKEND"}
    sys.modules["unfused"] = module = ModuleType("unfused")
    module.BACKEND = UnfusedScan()
    known |= ours
    try:
        yield
    finally:
        for name in ours:
            del known[name]
            backends.loaded.pop(name, None)
        backends.forget()


def names_of(device: str, dtype: str, gated: bool) -> list[str]:
    """The backends to compare; "auto" where it is another one than the scan."""
    request = backends.Request(torch.device(device), getattr(torch, dtype))
    names = ["scan", "serial", "plain"]
    if gated and backends.load("scan").fuses(request):
        names.append("unfused")
    if backends.resolve("auto", request) != "scan":
        names.append("auto")
    return [name for name in names if name == "auto" or not backends.reasons(name, request)]


def cells_of(table: str, sizes: Sizes, device: str, dtypes: list[str]) -> list[Cell]:
    if table == "1":
        sizes_and_steps = product(sizes.features, sizes.steps)
        return [{"features": m, "batch": 1, "steps": T} for m, T in sizes_and_steps]
    if table == "heat":
        return [{"batch": B, "steps": T} for T in sizes.heat_steps for B in sizes.batches]
    return [
        {"layer": layer, "dtype": dtype, "batch": max(1, sizes.tokens // T), "steps": T}
        for dtype, T, layer in product(dtypes, sizes.steps, paper_tables.LAYERS)
        if dtype == "float32" or device == "cuda" or layer == "GILR-LSTM"
    ]


@torch.no_grad()
def kernels(cell: Cell, device: str, clock: Clock, limits: Limits, sizes: Sizes) -> Cell:
    """A cell of Table 1; outputs are compared before anything is timed."""
    torch.manual_seed(0)
    shape = cell["batch"], cell["steps"], cell["features"]
    a, b = WORKLOADS["plain"].pre(shape, torch.float32, device)
    problem = Problem(IDENTITY, "", (a, b), None, None, None, False, False)
    functions, calls, runs = {}, {}, {}
    for name in names_of(device, "float32", gated=False):
        known = backends.resolve(name, backends.Request(a.device, a.dtype))
        functions[name] = partial(backends.prepared(known, problem).forward, problem)
    expected = functions["plain"]()[0]
    for name, function in functions.items():
        torch.testing.assert_close(function()[0], expected, rtol=1e-4, atol=1e-4)
        seconds = clock.seconds(Run(lambda _, function=function: function()))
        calls[name] = CALLS if seconds < SHORT_S else 1
        runs[name] = repeated(function, calls[name], device)
    del expected
    samples = as_many(clock, runs, *limits[:2], f"table 1, {shape}")
    return {
        "calls_in_a_sample": calls,
        "samples_in_seconds": {n: [t / calls[n] for t in times] for n, times in samples.items()},
    }


def network(name: str, dtype: str, device: str, sizes: Sizes) -> torch.nn.Module:
    torch.manual_seed(0)
    make, options = LAYERS[name]
    sizes_of_layers = {"input_size": 4, "hidden_size": sizes.hidden_size, "num_layers": 2}
    options = {"batch_first": True, "dtype": getattr(torch, dtype), **options}
    return make(**sizes_of_layers, **options, device=device)


def gradients(layer: torch.nn.Module, x: Tensor, dy: Tensor, backend: str) -> tuple[Tensor, ...]:
    """What is timed: output and gradients of all parameters."""
    if backend != LSTM:
        layer.backend = backend
    return torch.autograd.grad(layer(x)[0], list(layer.parameters()), dy)


def compare(results: dict[str, tuple[Tensor, ...]], tolerance: float) -> None:
    """Raises unless all backends agree with the first."""
    expected = next(iter(results.values()))
    for name, tensors in results.items():
        for number, (x, wanted) in enumerate(zip(tensors, expected, strict=True)):
            error = (torch.dist(x.double(), wanted.double()) / wanted.double().norm()).item()
            assert error <= tolerance, f"{name}: result {number} differs by {error:.2g} of its norm"


def data(shape: tuple[int, int], dtype: str, device: str, sizes: Sizes) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x, dy = (torch.randn(*shape, n, device=device) for n in (4, sizes.hidden_size))
    return x.to(getattr(torch, dtype)), dy.to(getattr(torch, dtype))


@cache
def check(name: str, dtype: str, device: str, sizes: Sizes) -> None:
    """Raises unless a layer's backends agree; and nothing is met for the first time after it."""
    layer = network(name, dtype, device, sizes)
    x, dy = data(CHECKED, dtype, device, sizes)
    names = [LSTM] if name == LSTM else names_of(device, dtype, gated=True)
    compare({backend: gradients(layer, x, dy, backend) for backend in names}, GRADIENTS[dtype])


def peak(device: str, before: float | None = None) -> float:
    """Bytes in use, from where the peak counts anew; or the peak since then, less those."""
    if device == "cuda":
        if before is None:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated() - before
    return (process_memory() if before is None else (process_peak() or 0) - before) or 0


def warm(runs: dict[str, Run]) -> None:
    """Untimed calls: on CUDA libraries choose their algorithms by shape."""
    for run in runs.values():
        run.timed(run.before())


def layers(cell: Cell, device: str, clock: Clock, limits: Limits, sizes: Sizes) -> Cell:
    """Measures a cell of Table 2; layers are compared before anything is timed."""
    name, dtype = cell["layer"], cell["dtype"]
    check(name, dtype, device, sizes)
    layer = network(name, dtype, device, sizes)
    shape = cell["batch"], cell["steps"]
    x, dy = data(shape, dtype, device, sizes)
    last: dict[str, tuple[Tensor, ...]] = {}

    def timed(_: object, backend: str) -> None:
        last[backend] = gradients(layer, x, dy, backend)

    names = names_of(device, dtype, gated=True)
    runs = {backend: Run(partial(timed, backend=backend)) for backend in names}
    before = peak(device)
    if device == "cuda":
        warm(runs)
    samples = as_many(clock, runs, *limits[:2], f"table 2, {name}, {dtype}, {shape}")
    compare(last, GRADIENTS[dtype])
    return {"samples_in_seconds": samples, "peak_bytes": peak(device, before)}


def heat(cell: Cell, device: str, clock: Clock, limits: Limits, sizes: Sizes) -> Cell:
    """Measures a cell of the heat map; layers are compared before anything is timed."""
    for name in ("GILR-LSTM", LSTM):
        check(name, "float32", device, sizes)
    ours, theirs = (network(name, "float32", device, sizes) for name in ("GILR-LSTM", LSTM))
    shape = cell["batch"], cell["steps"]
    x, dy = data(shape, "float32", device, sizes)
    runs = {
        "scan": Run(lambda _: gradients(ours, x, dy, "scan")),
        LSTM: Run(lambda _: gradients(theirs, x, dy, LSTM)),
    }
    before = peak(device)
    if device == "cuda":
        warm(runs)
    samples = as_many(clock, runs, *limits[:2], f"heat map, {shape}")
    return {"samples_in_seconds": samples, "peak_bytes": peak(device, before)}


TABLES = {"1": kernels, "2": layers, "heat": heat}


def reason_against(table: str, cell: Cell, known: Known, limits: Limits, most_tokens: float) -> str:
    """Why a cell is left out, by what smaller ones have taken; "" = it is not."""
    tokens = cell["batch"] * cell["steps"]
    if table == "heat" and tokens > most_tokens:
        return f"more than {most_tokens:,} steps in all"
    times_more = tokens / known.tokens if known.tokens else 0
    if known.bytes * times_more > limits.bytes:
        return f"would need {known.bytes * times_more / 2**30:.0f} GiB"
    if known.seconds * times_more > limits.round_seconds:
        return f"a round would take {known.seconds * times_more:.0f} s"
    return ""


def measure(table: str, report: dict[str, Any], options: argparse.Namespace, end: float) -> None:
    """Fills `report[table]`; it is written after every cell."""
    device, sizes = options.device, QUICK if options.quick else Sizes()
    limits = LIMITS[table]._replace(round_seconds=options.longest_round)
    if options.quick:
        limits = limits._replace(most=2)
    most_tokens: float = sizes.most_tokens
    if device == "cuda":
        limits = limits._replace(bytes=0.8 * torch.cuda.get_device_properties(0).total_memory)
        most_tokens = float("inf")
    known: dict[tuple[Any, ...], Known] = {}
    clock, cells = Clock(device), cells_of(table, sizes, device, options.dtypes)
    about = {"kind": device, "hidden_size": sizes.hidden_size, **environment(device)}
    report[table] = {**about, "cells": []}
    for number, cell in enumerate(cells):
        which = cell.get("layer"), cell.get("dtype")
        reason = reason_against(table, cell, known.get(which, Known()), limits, most_tokens)
        if time.monotonic() > end:
            reason = f"after {options.budget:g} s"
        print(f"table {table}: {number + 1} of {len(cells)}: {cell} {reason}", file=sys.stderr)
        try:
            result = (
                {"left_out": reason}
                if reason
                else TABLES[table](cell, device, clock, limits, sizes)
            )
        except torch.OutOfMemoryError:
            result = {"left_out": "out of memory"}
        except RuntimeError as error:
            if "CUDNN_STATUS_NOT_SUPPORTED" not in str(error):
                raise
            result = {"left_out": "cuDNN does not support it"}
        if "peak_bytes" in result:
            seconds = sum(map(min, result["samples_in_seconds"].values()))
            known_cell = Known(cell["batch"] * cell["steps"], seconds, result["peak_bytes"])
            known[which] = max(known.get(which, known_cell), known_cell)
        report[table]["cells"].append({**cell, **result})
        save(options.json, report)


def save(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report) + "\n")


def load(path: Path | None) -> dict[str, Any]:
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


def by_kind(report: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Reports by kind of device: the newest of each in a folder, but this one for its own."""
    reports = [load(path) for path in folder.rglob("*paper.json")]
    reports.sort(key=lambda other: max(table["date"] for table in other.values()))
    return {table["kind"]: other for other in [*reports, report] for table in other.values()}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = ["1", "2", "3", "heat"]
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda if there is one")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=GRADIENTS,
        default=list(GRADIENTS),
        help="of Table 2; bfloat16 on a CPU of the GILR-LSTM alone",
    )
    parser.add_argument("--budget", type=float, help="seconds after which no cell is begun")
    parser.add_argument(
        "--longest-round",
        type=float,
        default=LONGEST_ROUND,
        help="seconds; a cell with longer ones is left out (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="every sample; --quick writes none without it")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return options


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    end = time.monotonic() + (options.budget or float("inf"))
    # What is in a file can be drawn anywhere.
    needed = not (options.draw and options.json)
    if needed and options.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        return 2
    if options.json is None and not options.quick:
        name = "cpu"
        if options.device == "cuda":
            name = torch.cuda.get_device_name().lower().replace(" ", "-")
        options.json = RESULTS / f"{name}-paper.json"
    report = load(options.json)
    if not options.draw:
        with registered():
            for table in options.tables:
                if table != "3":
                    measure(table, report, options, end)
    runs = RESULTS / "long_memory.json"
    trainings = json.loads(runs.read_text()) if runs.exists() else []
    paper_tables.show(by_kind(report, RESULTS), options.tables, trainings)
    if options.json is not None:
        paper_tables.draw(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
