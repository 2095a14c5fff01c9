"""One sequence over several processes: error, collectives, time and peak memory of each rank.

    python benchmarks/ranks.py [--ranks 1 2 4] [--steps 65536 1048576 4194304] [--json PATH]
    python benchmarks/ranks.py --show

A training step of the long memory model (two GILR-LSTM layers of 16 units, one row of T symbols,
all activations kept), on one machine by gloo. Each run is of fresh processes, one thread each. Of a
first step after a short one: what a process grew by beyond parameters and inputs, and how many
collectives it took part in, of how many bytes (its result). Of a second one: the seconds from the
first process that begins to the last that ends, on as many cores as the machine has. The loss is
compared with that of one process, and of the gradients of all parameters their norms: the largest
difference, relative to the largest norm.

Then what each phase of a recurrence takes on one process, at (1, 65536, 256): the pass itself, and
what the other ranks are told of it, forward the pair and backward the impulse of the adjoint. And
what is expected of GPUs, which nothing of this has run on: see `expected`.

Writes benchmarks/results/ranks.json; of what is not asked for it keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timing import Clock, about, environment, in_turn, repeated

from lightning_lrnn import backends
from lightning_lrnn.backends import pairs
from lightning_lrnn.cli.tables import text_table
from lightning_lrnn.core import ranks as of_ranks
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.core.process_memory import process_memory, process_peak
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.gates import IDENTITY
from lightning_lrnn.modules import SequenceClassifier
from lightning_lrnn.nn.cells.gilr import gilr

RESULTS = Path(__file__).parent / "results" / "ranks.json"
GPU = Path(__file__).parent / "results" / "nvidia-h200" / "bench.json"
SHAPE = "(8, 4096, 2048)"
STEPS, RANKS = (65536, 1048576, 4194304), (1, 2, 4)
PHASES = (1, 65536, 256)
LAUNCH, NVLINK, NETWORK = 15e-6, 0.47e-6, 2.7e-6
"""Seconds: to start a collective from the host; of a hop between GPUs of one machine, and between
machines, as NCCL's own tuning has them (src/graph/tuning.cc)."""
PER_MACHINE = 8
FORWARD, BACKWARD = 1 + 8 / 12, 1 + 8 / 20
"""p and q: bytes of pass and pair over those of the pass, for an element in float32."""


class Counted:
    """PyTorch's collectives, with their results counted."""

    def __init__(self) -> None:
        self.inner, self.count, self.bytes = of_ranks.collectives(), 0, 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.inner, name)
        if name == "wait_tensor":
            return function

        def counted(*arguments: Any) -> Any:
            result = function(*arguments)
            self.count += 1
            self.bytes += result.nbytes
            return result

        return counted


def step(model: SequenceClassifier, batch: SequenceBatch) -> torch.Tensor:
    """Loss and gradients, which the ranks have added."""
    model.zero_grad()
    output, _ = model.run(batch, None)
    loss = model.loss(output, batch)
    ranks = model.group
    if ranks is not None:
        loss, whole, _ = model._shared(ranks, loss, output, batch)
    else:
        whole = loss.detach()
    loss.backward()
    if ranks is not None:
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= ranks.size
    return whole


def one(rank: int, size: int, steps: int, folder: str) -> None:
    """Runs in a process of its own, and writes its result to a file."""
    torch.set_num_threads(1)
    if size > 1:
        file = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=file, rank=rank, world_size=size)
    torch.manual_seed(0)
    memory = {"memory": [steps // 2, 2 * steps], "output_activation": "identity"}
    rnn = {"class_path": "GILRLSTM", "init_args": memory}
    model = SequenceClassifier(129, 2, rnn, hidden_size=16, dropout=0.0)
    torch.nn.init.normal_(model.head.weight, std=0.1)  # else no gradient reaches the layers
    model.group = dist.group.WORLD if size > 1 else None

    def batch(steps: int) -> SequenceBatch:
        symbols = torch.randint(0, 129, (1, steps), generator=torch.Generator().manual_seed(steps))
        whole = SequenceBatch(symbols, torch.tensor([1]))
        return model.segment(whole, rank, size) if size > 1 else whole

    step(model, batch(64))  # compiles
    local = batch(steps)
    counted = Counted()
    of_ranks.collectives = lambda: counted  # type: ignore[assignment]
    before = process_memory()
    loss = step(model, local)
    peak = process_peak()
    if before is None or peak is None:
        raise SystemExit("this system does not say how much memory a process has")
    result: dict[str, Any] = {"loss": loss.item(), "bytes": peak - before}
    result |= {"collectives": counted.count, "collective_bytes": counted.bytes}
    result["gradient"] = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    result["from"] = time.time()
    step(model, local)
    result["to"] = time.time()
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    if size > 1:
        dist.destroy_process_group()


def run(size: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one"]
        variables = os.environ | {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else None
        words = [[*command, str(rank), str(size), str(steps), folder] for rank in range(size)]
        children = [subprocess.Popen(w, env=variables) for w in words]
        if any([child.wait() for child in children]):
            raise SystemExit(f"{size} processes with {steps:,} steps failed")
        each = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]
    seconds = max(r["to"] for r in each) - min(r["from"] for r in each)
    result = {"ranks": size, "steps": steps, "seconds": seconds, "loss": each[0]["loss"]}
    result["gradient"] = each[0]["gradient"]
    result["bytes"] = [r["bytes"] for r in each]
    return result | {key: each[0][key] for key in ("collectives", "collective_bytes")}


def phases(rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of each phase of a rank's recurrence, in turn, by gate and phase."""
    runs = {}
    for name, gate in (("plain", IDENTITY), ("GILR", gilr.program)):
        a, b = torch.rand(PHASES), torch.randn(PHASES)
        problem = Problem(gate, "", (a, b), None, None, None, False, False)
        known = backends.prepared("scan", problem)
        h, gradients = known.forward(problem).h, Gradients(b, None)
        for label, call in {
            "forward": partial(known.forward, problem),
            "pair": partial(pairs.pair, "scan", problem),
            "backward": partial(known.backward, problem, h, gradients),
            "impulse": partial(pairs.adjoint_impulse, "scan", problem, h, b),
        }.items():
            call()
            runs[f"{name} {label}"] = repeated(call, 1, "cpu")
    return in_turn(Clock("cpu"), runs, rounds, "phases")


def show_phases(samples: dict[str, list[float]]) -> Iterator[str]:
    ms = {name: 1e3 * statistics.median(times) for name, times in samples.items()}
    for name in dict.fromkeys(key.split()[0] for key in ms):
        for step, label in (("forward", "pair"), ("backward", "impulse")):
            one, other = ms[f"{name} {step}"], ms[f"{name} {label}"]
            together = f"together {1 + other / one:.2f}"
            yield f"  {name} {step} {one:.1f} ms, {label} {other:.1f} ms: {together}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["steps", "ranks", "peak of a rank, MiB", "of one", "seconds", "collectives", "bytes",
              "loss, off by", "gradient, off by"]]  # fmt: skip
    for row in sorted(rows, key=lambda r: (r["steps"], r["ranks"])):
        alone = next((r for r in rows if r["steps"] == row["steps"] and r["ranks"] == 1), None)
        peak = max(row["bytes"])
        compared = ["", "", ""]
        if alone is not None:
            pairs = zip(row["gradient"], alone["gradient"], strict=True)
            off = max(abs(x - y) for x, y in pairs) / max(alone["gradient"])
            share = f"{peak / max(alone['bytes']):.2f}"
            compared = [share, f"{abs(row['loss'] / alone['loss'] - 1):.0e}", f"{off:.0e}"]
        lines.append([
            f"{row['steps']:,}", str(row["ranks"]), f"{peak / 2**20:,.0f}", compared[0],
            f"{row['seconds']:.2f}", str(row["collectives"]), f"{row['collective_bytes']:,}",
            *compared[1:],
        ])  # fmt: skip
    return text_table(lines, left=0)


def expected(ranks: int, features: int, steps: int, samples: dict[str, list[float]]) -> float:
    """Seconds of a plain recurrence (1, steps, features) in float32, forward and backward.

        t = N / R * (p f + q b) + 2 * (15 us + (R - 1) * hop)

    for N elements, f and b the measured seconds of an element forward and backward; on one GPU it
    is N * (f + b). The kernels of the pair and of the adjoint's impulse are taken to need as long
    for a byte as the pass: they read 8, it moves 12 forward and 20 backward. A collective, one in
    each pass, hands out 2 D numbers: it is bound by its start and its hops, not by the link's
    bandwidth.
    """
    elements = math.prod(int(n) for n in SHAPE.strip("()").split(","))
    f, b = (
        statistics.median(samples[f"scan {step}"]) / elements for step in ("forward", "backward")
    )
    local = steps * features / ranks
    if ranks == 1:
        return local * (f + b)
    hop = NVLINK if ranks <= PER_MACHINE else NETWORK
    return local * (FORWARD * f + BACKWARD * b) + 2 * (LAUNCH + (ranks - 1) * hop)


def predictions() -> Iterator[str]:
    report = json.loads(GPU.read_text())
    samples = report["samples_in_seconds"][SHAPE]
    yield f"expected of {report['device']}s, not measured: (1, T, 512), float32, both passes, ms"
    for steps in (1 << 20, 1 << 22):
        times = {R: 1e3 * expected(R, 512, steps * R, samples) for R in (1, 2, 8, 64)}
        shown = ", ".join(f"{R} GPUs {ms:.1f}" for R, ms in times.items() if R > 1)
        yield f"  T = {steps:,} for each GPU: one GPU {times[1]:.1f}, {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="what is there, without measuring")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        rank, size, steps = map(int, options.one[:3])
        return one(rank, size, steps, options.one[3])
    if not options.show:
        old = json.loads(options.json.read_text()) if options.json.is_file() else {"rows": []}
        rows = {(r["ranks"], r["steps"]): r for r in old["rows"]}
        for steps in options.steps:
            for size in options.ranks:
                rows[size, steps] = run(size, steps)
                print(f"{steps:,} steps, {size} ranks: done", file=sys.stderr, flush=True)
        report = {**environment("cpu"), "rows": list(rows.values()), "phases": phases()}
        options.json.write_text(json.dumps(report) + "\n")
    report = json.loads(options.json.read_text())
    print(about(report))
    print(table(report["rows"]))
    print(f"of {PHASES}, on one process")
    for line in show_phases(report["phases"]):
        print(line)
    for line in predictions():
        print(line)


if __name__ == "__main__":
    main()
