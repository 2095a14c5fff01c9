"""One token through four layers, against the time that their matrices alone take.

    python benchmarks/step.py [--seconds 20] [--json PATH] [--draw]

Batch 1, 512 inputs and units, float32, on a CPU, with 1 and 2 threads. For every layer

    matmuls     its matrices by `torch.mv(out=)`, into tensors that are there: nothing else
    recorded    `lightning_lrnn.RecordedStep`
    step        `Stack.step` in inference mode
    forward     a sequence of one step, in inference mode

and, of the same sizes, a step of `torch.nn.LSTM`. Steps are compared with `forward` over a sequence
before they are timed; all are timed in turn. Writes benchmarks/results/step.json; --draw prints
what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import Clock, Run, about, as_many, environment
from torch import Tensor

import lightning_lrnn as lrnn
from lightning_lrnn.cli.tables import text_table

RESULTS = Path(__file__).parent / "results" / "step.json"
SIZE, LAYERS, STEPS = 512, 4, 16
THREADS = (1, 2)
CELLS = {"GILRLSTM": {}, "MinGRU": {}, "QRNN": {"window": 2}, "SRU": {}}
LSTM = "torch.nn.LSTM"
MOST = 2000


def layers(name: str, size: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == LSTM:
        return torch.nn.LSTM(size, size, LAYERS)
    return lrnn.nn.CELLS[name](size, size, LAYERS, **CELLS[name])


def matmuls(module: torch.nn.Module) -> Callable[[], None]:
    """All matrices, each times a vector, in order."""
    matrices = [p.detach() for p in module.parameters() if p.ndim == 2]
    products = [(W, torch.randn(W.shape[1]), torch.empty(W.shape[0])) for W in matrices]

    def run() -> None:
        for W, x, y in products:
            torch.mv(W, x, out=y)

    return run


class Stepper:
    """`take(x, state)`, each step from the state after the one before."""

    def __init__(self, take: Callable[..., Any]) -> None:
        self.take, self.state = take, None

    def __call__(self, x: Tensor) -> Tensor:
        y, self.state = self.take(x, self.state)
        return y


def ways(module: torch.nn.Module, size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, what maps an input (1, 1, size) to an output, from the state before on."""
    if isinstance(module, torch.nn.LSTM):
        return {"forward": Stepper(module)}

    def step(x: Tensor, state: Any) -> Any:
        y, state = module.step(x[0], state)
        return y[None], state

    recorded = lrnn.RecordedStep(module, torch.zeros(1, 1, size))
    return {"recorded": recorded, "step": Stepper(step), "forward": Stepper(module)}


def difference(module: torch.nn.Module, way: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The largest, of steps from `forward` over the sequence; raises where they disagree."""
    expected, _ = module(x)
    outputs = torch.cat([way(x_t[None]).clone() for x_t in x])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    return float((outputs - expected).abs().max())


def timed(function: Callable[..., Any], *arguments: Tensor) -> Run:
    return Run(lambda _: function(*arguments))


@torch.inference_mode()
def measure(name: str, threads: int, seconds: float, size: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    with torch.inference_mode(False):
        module = layers(name, size)
        of_steps = ways(module, size)
    sequence = torch.randn(STEPS, 1, size)
    differences = {
        way: difference(module, function, sequence) for way, function in of_steps.items()
    }
    runs = {"matmuls": timed(matmuls(module))}
    runs |= {way: timed(function, sequence[:1]) for way, function in of_steps.items()}
    clock = Clock("cpu")
    as_many(clock, runs, seconds / 20, MOST, name)  # warms up
    samples = as_many(clock, runs, seconds, MOST, f"{name}, {threads} thread{'s' * (threads > 1)}")
    return {
        "layer": name,
        "threads": threads,
        "parameters": sum(p.numel() for p in module.parameters()),
        "largest_difference": differences,
        "microseconds": {
            way: {
                "median": 1e6 * statistics.median(times),
                "least": 1e6 * min(times),
                "samples": len(times),
            }
            for way, times in samples.items()
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["median, µs", "threads", "matmuls", "recorded", "step", "forward"]]
    for row in rows:
        median = {way: of_way["median"] for way, of_way in row["microseconds"].items()}
        cells = [row["layer"], str(row["threads"]), f"{median['matmuls']:.0f}"]
        for way in ("recorded", "step", "forward"):
            ratio = f" ({median[way] / median['matmuls']:.2f})" if way in median else ""
            cells.append(f"{median[way]:.0f}{ratio}" if way in median else "")
        lines.append(cells)
    return text_table(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each layer and threads")
    parser.add_argument("--size", type=int, default=SIZE, help="inputs and units")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    options = parser.parse_args(arguments)
    if not options.draw:
        rows = [
            measure(name, threads, options.seconds, options.size)
            for threads in THREADS
            for name in (*CELLS, LSTM)
        ]
        record = {
            "size": options.size,
            "layers": LAYERS,
            "batch": 1,
            "dtype": "float32",
            "environment": environment("cpu"),
            "steps": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(options.json.read_text())
    print(f"{about(record['environment'])}\n{table(record['steps'])}")


if __name__ == "__main__":
    main()
