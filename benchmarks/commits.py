"""Is a commit slower than an earlier one? The same calls of two checkouts, timed in turn on a CPU.

    python benchmarks/commits.py COMMIT [--rounds 3] [--processes 3] [--only TEXT] [--json PATH]
    python benchmarks/commits.py --show

Timed are calls of recurrence.py (the package's own backends, plain and with a gate), layer_times.py
(a layer's forward and backward pass), step.py (one token) and of the host alone (a recurrence that
is too small to take time). Each checkout is a process of its own with the same interpreter; a
sample of the one follows a sample of the other, so that a slow spell of the machine meets both.
Whether malloc gives a result's pages back and asks for them again, which makes calls up to twice as
slow, depends on what a process did before: here it keeps them, and there are several processes of
each. Before they are timed the outputs of both are compared bit by bit. Shown are medians of the
ratios of neighbouring samples, now / then. Writes benchmarks/results/commits.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "commits.json"
KEEPS_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""For glibc; other systems do not read it."""
WARM_UP = 15
"""Calls before any is timed; fewer, if they take a second."""
SAMPLE_S = 0.05
"""What a sample takes at least: shorter calls are repeated."""
SHAPES = [(8, 1024, 256), (32, 256, 512), (1, 65536, 32), (1, 1048576, 1)]
SMALL = (1, 4, 8)
LAYERS = "GILRLSTM", "GILR", "MinGRU", "QRNN", "SRU"
LAYER_SHAPES = [(8, 64, 32, 64), (64, 1024, 128, 256), (4, 16384, 128, 256), (1, 65536, 64, 64)]
TOKENS = "GILRLSTM", "MinGRU", "QRNN", "SRU"


def recurrences() -> dict[str, Callable[[], Any]]:
    import torch

    try:
        import implementations
    except ImportError:  # of a commit that has it by its former name
        import contenders as implementations

    calls: dict[str, Callable[[], Any]] = {}
    for shape in [SMALL, *SHAPES]:
        for gate in ("plain", "gilr", "lstm"):
            workload = implementations.WORKLOADS[gate]
            torch.manual_seed(0)
            pre = workload.pre(shape, torch.float32, "cpu")
            leaves = [p.detach().requires_grad_() for p in pre]
            dy = torch.randn(shape)
            for name, run in implementations.ours(workload, "cpu").items():
                if name not in ("scan", "serial"):
                    continue

                def forward(run: Any = run, pre: Any = pre) -> Any:
                    with torch.no_grad():
                        return [run(*pre)]

                def both(run: Any = run, leaves: Any = leaves, dy: Any = dy) -> Any:
                    return torch.autograd.grad(run(*leaves), leaves, dy)

                part = "host" if shape == SMALL else "recurrence"
                calls[f"{part} {shape} {gate} {name} forward"] = forward
                calls[f"{part} {shape} {gate} {name} forward + backward"] = both
    return calls


def layers() -> dict[str, Callable[[], Any]]:
    import torch

    import lightning_lrnn as lrnn

    calls: dict[str, Callable[[], Any]] = {}
    for shape in LAYER_SHAPES:
        batch, steps, inputs, units = shape
        torch.manual_seed(1)
        x, dy = torch.randn(batch, steps, inputs), torch.randn(batch, steps, units)
        for name in LAYERS:
            torch.manual_seed(0)
            layer = getattr(lrnn.nn, name)(inputs, units, batch_first=True)

            def both(layer: Any = layer, x: Any = x, dy: Any = dy) -> Any:
                y = layer(x)[0]
                return [y.detach(), *torch.autograd.grad(y, list(layer.parameters()), dy)]

            calls[f"layer {shape} {name} forward + backward"] = both
    return calls


def tokens() -> dict[str, Callable[[], Any]]:
    import step
    import torch

    calls: dict[str, Callable[[], Any]] = {}
    for name in TOKENS:
        module = step.layers(name, step.SIZE)
        x = torch.randn(1, 1, step.SIZE)
        for way, function in step.ways(module, step.SIZE).items():

            def one(function: Any = function, x: Any = x) -> Any:
                with torch.inference_mode():
                    return [function(x)]

            calls[f"step {name} {way}"] = one
    return calls


def warmed_up(call: Callable[[], Any]) -> float:
    """Seconds of the last one of `WARM_UP` calls, or of a second: the heap grows in the first."""
    begin = time.perf_counter()
    for _ in range(WARM_UP):
        start = time.perf_counter()
        call()
        if (now := time.perf_counter()) - begin > 1:
            break
    return now - start


def worker(pipe: Any) -> None:
    """Answers, one JSON text a line: all names; a digest of what NAME computes; seconds of NAME."""
    import torch

    calls = recurrences() | layers() | tokens()
    repeats: dict[str, int] = {}
    print(json.dumps({"names": list(calls), "torch": torch.__version__}), file=pipe, flush=True)
    for line in sys.stdin:
        name = line.strip()
        call = calls[name]
        if name not in repeats:
            digest = hashlib.sha256()
            for tensor in call():
                digest.update(tensor.detach().contiguous().numpy().tobytes())
            repeats[name] = max(1, round(SAMPLE_S / warmed_up(call)))
            answer: Any = digest.hexdigest()
        else:
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            answer = (time.perf_counter() - start) / repeats[name]
        print(json.dumps(answer), file=pipe, flush=True)


class Checkout:
    """A process whose package and benchmarks are those of the folder."""

    def __init__(self, folder: Path) -> None:
        paths = os.pathsep.join([str(folder), str(folder / "benchmarks")])
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            cwd=folder,
            env={**os.environ, **KEEPS_PAGES, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names = self.answer()["names"]

    def answer(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit(f"a worker ended with {self.process.wait()}: its error is above")
        return json.loads(line)

    def ask(self, name: str) -> Any:
        assert self.process.stdin
        print(name, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def measure(calls: dict[str, Any], then: Checkout, now: Checkout, rounds: int, only: str) -> None:
    """Adds to `calls` the samples of one process of each checkout."""
    for name in now.names:
        if name not in then.names or only not in name:
            continue
        if sys.stderr.isatty():
            print(f"\r\033[K  {name} ", end="", file=sys.stderr, flush=True)
        same = then.ask(name) == now.ask(name)
        of_call = calls.setdefault(name, {"same_bits": True, "then_and_now_in_seconds": []})
        of_call["same_bits"] &= same
        for count in range(rounds):
            order = (then, now) if count % 2 else (now, then)
            seconds = {checkout: checkout.ask(name) for checkout in order}
            of_call["then_and_now_in_seconds"].append((seconds[then], seconds[now]))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def show(report: dict[str, Any]) -> None:
    from timing import about

    from lightning_lrnn.cli.tables import text_table

    print(f"{about(report)}; then: {report['then']}")
    rows = [["", "then, us", "now, us", "now / then", "quartiles", "bits"]]
    ratios: dict[str, list[float]] = {}
    for name, of_call in report["calls"].items():
        then, now = zip(*of_call["then_and_now_in_seconds"], strict=True)
        low, middle, high = statistics.quantiles(b / a for a, b in zip(then, now, strict=True))
        ratios.setdefault(name.split()[0], []).append(middle)
        times = (f"{1e6 * statistics.median(each):.1f}" for each in (then, now))
        bits = "same" if of_call["same_bits"] else "other"
        rows.append([name, *times, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", bits])
    print(text_table(rows))
    for part, of_part in ratios.items():
        text = f"{part}: now / then {statistics.geometric_mean(of_part):.2f} over {len(of_part)}"
        print(f"{text}, from {min(of_part):.2f} to {max(of_part):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", help="the earlier one")
    parser.add_argument("--rounds", type=int, default=3, help="samples in a process (%(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="of each commit (%(default)s)")
    parser.add_argument("--only", default="", help="calls whose name has this text")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="what is there, without measuring")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        pipe, sys.stdout = sys.stdout, sys.stderr  # so that no other output gets into the answers
        return worker(pipe)
    if options.show:
        return show(json.loads(options.json.read_text()))
    if not options.commit:
        parser.error("which commit? A tag or a hash of this repository")
    from timing import environment

    calls: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "then"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(earlier), options.commit], check=True)
        try:
            for _ in range(options.processes):
                then, now = Checkout(earlier), Checkout(ROOT)
                measure(calls, then, now, options.rounds, options.only)
                then.close()
                now.close()
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)
    report = {**environment("cpu"), "then": options.commit, "calls": calls}
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
