"""A training step of torch.nn's layers and of what `rnn: auto` puts in their place, on a CPU.

    python benchmarks/stand_in_times.py [--rounds 5] [--json PATH] [--draw] [--quick]

As users run it: threads and OpenMP as they are. A step is forward, backward and one of SGD, of both
layers in turn, round after round; the first of each, which compiles, is not counted. Four large
shapes, and small ones as forecasters have them, which are repeated until a sample takes some
milliseconds. Writes benchmarks/results/stand_in_times.json; --draw prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from timing import Clock, Run, about, environment, in_turn
from torch import nn

import lightning_lrnn as lrnn
from lightning_lrnn.cli.tables import text_table

RESULTS = Path(__file__).parent / "results" / "stand_in_times.json"
LARGE = [(64, 1024, 128, 256), (4, 16384, 128, 256), (1, 65536, 64, 64), (1, 65536, 128, 256)]
SMALL = [(64, 30, 30, 30), (64, 50, 5, 16), (32, 100, 32, 64), (64, 100, 64, 64)]
QUICK = [(2, 16, 4, 8)]
REPEATED = 20
"""Steps of a small shape in a sample."""


def times(
    layer_class: type[nn.RNNBase], shape: tuple[int, ...], rounds: int
) -> dict[str, list[float]]:
    """Seconds of a step of the layer as it is, and of the one in its place."""
    B, T, input_size, hidden_size = shape
    torch.manual_seed(0)
    x = torch.randn(B, T, input_size)
    steps = REPEATED if shape not in LARGE else 1
    runs = {}
    for name in ("stock", "auto"):
        module: Any = nn.ModuleDict({"rnn": layer_class(input_size, hidden_size, batch_first=True)})
        if name == "auto":
            lrnn.replace_rnn(module)
        optimizer = torch.optim.SGD(module.parameters(), 1e-3)

        def step(_: object, rnn: Any = module["rnn"], optimizer: Any = optimizer) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                rnn(x)[0].square().mean().backward()
                optimizer.step()

        runs[name] = Run(step)
    clock, title = Clock("cpu"), f"{layer_class.__name__} {shape}"
    in_turn(clock, runs, 1, f"{title}, warm-up")
    samples = in_turn(clock, runs, rounds, title)
    return {name: [seconds / steps for seconds in s] for name, s in samples.items()}


def measure(shapes: list[tuple[int, ...]], rounds: int) -> dict[str, Any]:
    cases = []
    for shape in shapes:
        for layer_class in (nn.LSTM,) if shape in LARGE else (nn.LSTM, nn.GRU, nn.RNN):
            print(f"{layer_class.__name__} {shape}", file=sys.stderr, flush=True)
            seconds = times(layer_class, shape, rounds)
            cases.append(
                {"layer": layer_class.__name__, "shape": shape, "samples_in_seconds": seconds}
            )
    return {**environment("cpu"), "cases": cases}


def show(report: dict[str, Any]) -> None:
    rows = [["(B, T, input, hidden)", "layer", "ms", "auto ms", "ratio"]]
    for case in report["cases"]:
        stock, auto = (
            1e3 * statistics.median(case["samples_in_seconds"][name]) for name in ("stock", "auto")
        )
        times = f"{stock:.1f}", f"{auto:.1f}", f"{auto / stock:.2f}"
        rows.append([str(tuple(case["shape"])), case["layer"], *times])
    print(f"{about(report)}\n\n{text_table(rows, left=2)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="every sample; --quick writes none without it")
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it runs")
    options = parser.parse_args(argv)
    path = options.json or (None if options.quick else RESULTS)
    if options.draw and path:
        report = json.loads(path.read_text())
    else:
        report = measure(QUICK if options.quick else LARGE + SMALL, options.rounds)
        if path:
            path.write_text(json.dumps(report) + "\n")
    show(report)


if __name__ == "__main__":
    main()
