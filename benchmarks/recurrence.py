"""Times the recurrence against a copy, torch.addcmul and baselines: `make bench`.

Every implementation is checked against float64 before it is timed, on the shape that is timed. All
of a case (a shape, a dtype, a gate) are timed in turn, round after round; shown are minima and
medians, GB/s of the least traffic, and the percent of a copy of equal bytes. On CUDA kernels alone
are timed, the host's part in lines of its own, the second-level cache is flushed by reading before
every sample, slow implementations are sampled less often, and every goal has a line, also where it
was not measured. A case is measured again, at most three times, while the reference's own median
exceeds 1.5 times its minimum; after that it is marked void.

    python benchmarks/recurrence.py [--device cpu|cuda] [--gates plain,lstm] [--dtypes float32]
        [--rivals] [--quick] [--json PATH] [--resume PATH] [--csv PATH] [--plot PNG]
        [--budget SECONDS] [--draw]

Writes benchmarks/results/cpu-recurrence.json, on CUDA what --json says. --draw prints what is
there.
"""

from __future__ import annotations

import argparse
import ast
import csv
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import goals
import implementations
import torch
from goals import PASSES, SMALL, TABLE_1, Case, Samples, step_of
from implementations import ASSOCIATIVE, STEPS, WORKLOADS, Implementation, Judge, Workload
from timing import Clock, Run, about, environment, host_seconds, in_turn, replayed

from lightning_lrnn.backends import prepared
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY

SHAPES = {
    "cpu": [(8, 1024, 256), (32, 256, 512), (1, 65536, 32), (1, 1048576, 1)],
    # The most telling first: a budget may end the list early.
    "cuda": [
        (8, 4096, 2048), (1, 65536, 256), (16, 16384, 128), (1, 1048576, 32),
        *((65536 // T, T, 256) for T in (256, 4096, 16, 64, 1024, 16384)),
        (1, 1048576, 1),
    ],
}  # fmt: skip
QUICK = [(2, 64, 16)]
COMPILED = {(8, 4096, 2048), (1, 65536, 256)}
"""On CUDA torch.compile is timed at these alone, as a baseline: some ten seconds each."""
RESULTS = Path(__file__).parent / "results" / "cpu-recurrence.json"
SHORT_S, CALLS = 1e-3, 20
"""Calls shorter than this are replayed so many at once."""
SERIES_S = {"cpu": math.inf, "cuda": 0.1}
"""Seconds of samples per implementation: slow ones shall not take the others' time."""


def runs_of(
    case: Case, compared: dict[str, Implementation], device: str, passes: tuple[str, ...]
) -> dict[str, Run]:
    """The references, and the passes of implementations as "NAME forward" and so on."""
    workload, dtype = WORKLOADS[case.gate], getattr(torch, case.dtype)
    torch.manual_seed(0)
    pre = workload.pre(case.shape, dtype, device)
    leaves = [p.detach().requires_grad_() for p in pre]
    dy = torch.randn(case.shape, device=device).to(dtype)
    runs: dict[str, Run] = {}
    for step in ("forward", "backward"):
        half = workload.bytes(case.shape, dtype, step) // 2
        source, target = (torch.empty(half, dtype=torch.uint8, device=device) for _ in range(2))
        runs[f"copy for {step}"] = Run(lambda _, s=source, t=target: t.copy_(s))
    if case.gate == "plain":
        a, b = pre
        # Right before ours, so that on a CPU both find the same in the caches.
        runs["addcmul"] = Run(lambda _: torch.addcmul(b, a, dy))

    def forward(implementation: Implementation) -> Run:
        def timed(_: object) -> object:
            with torch.no_grad():
                return implementation(*pre)

        return Run(timed)

    def backward(implementation: Implementation) -> Run:
        return Run(lambda y: torch.autograd.grad(y, leaves, dy), lambda: implementation(*leaves))

    def both(implementation: Implementation) -> Run:
        return Run(lambda _: torch.autograd.grad(implementation(*leaves), leaves, dy))

    timers = dict(zip(PASSES, (forward, backward, both), strict=True))
    for name, implementation in compared.items():
        for step in passes:
            runs[f"{name} {step}"] = timers[step](implementation)
    return runs


def measure(
    case: Case, compared: dict[str, Implementation], device: str, rounds: int
) -> tuple[Samples, dict[str, tuple[float, int]]]:
    """Samples in seconds, and by pass the first call's seconds and peak memory."""
    torch.compiler.reset()  # else, after eight variants, what is compiled would run uncompiled
    clock = Clock(device, ahead=True)
    runs = runs_of(case, compared, device, PASSES if device == "cuda" else PASSES[::2])
    first = {}
    for name, run in list(runs.items()):
        if sys.stderr.isatty():
            print(f"\r\033[K  {case}: {name}: compile", end="", file=sys.stderr)
        try:
            first[name] = clock.first(run)
        except Exception as error:
            if name.startswith(goals.OURS):
                raise
            implementations.left_out(f"{case}: {name}", f"{type(error).__name__}: {error}")
            del runs[name]
    return in_turn(clock, runs, rounds, str(case), SERIES_S[device]), first


def show(case: Case, samples: Samples) -> None:
    reference = goals.reference(samples)
    workload, dtype = WORKLOADS[case.gate], getattr(torch, case.dtype)
    median = goals.medians(samples)
    print(f"\n{case}{'   VOID: the machine was too noisy' if goals.void(samples) else ''}")
    print(f"  {'':46}{'min ms':>9}{'median':>9}{'GB/s':>8}{'% copy':>8}{'/ ' + reference:>19}")
    for name, times in samples.items():
        moved, percent = bytes_of(name, workload, case, dtype), ""
        if step_of(name)[0]:
            percent = f"{goals.of_a_copy(median, *step_of(name)):.0f}"
        print(
            f"  {name:46}{1e3 * min(times):9.3f}{1e3 * median[name]:9.3f}"
            f"{moved / median[name] / 1e9:8.1f}{percent:>8}{median[name] / median[reference]:19.2f}"
        )


def bytes_of(name: str, workload: Workload, case: Case, dtype: torch.dtype) -> int:
    forward, backward = (workload.bytes(case.shape, dtype, s) for s in ("forward", "backward"))
    if name == "addcmul":
        return 4 * torch.Size(case.shape).numel() * dtype.itemsize
    if name.endswith("forward + backward"):
        return forward + backward
    return backward if name.endswith("backward") else forward


def small_problems(rounds: int) -> Samples:
    """Seconds of a call under graph replay: the small shapes, and those of the paper's Table 1."""

    clock, samples = Clock("cuda"), {}
    for shape in [*SMALL, *TABLE_1]:
        calls, runs = {}, {}
        for name, function in kernels(shape).items():
            function()  # compiles
            seconds = clock.seconds(Run(lambda _, function=function: function()))
            calls[name] = CALLS if seconds < SHORT_S else 1
            runs[name] = replayed(function, calls[name])
        of_shape = in_turn(clock, runs, rounds, f"{shape}, graphs", SERIES_S["cuda"])
        samples |= {name: [t / calls[name] for t in times] for name, times in of_shape.items()}
    return samples


def kernels(shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    a, b = WORKLOADS["plain"].pre(shape, torch.float32, "cuda")
    ours = implementations.ours(WORKLOADS["plain"], "cuda")
    problem = Problem(IDENTITY, "", (a, b), None, None, None, False, False)
    judge = Judge(WORKLOADS["plain"], shape, torch.float32, "cuda")
    runs: dict[str, Callable[[], object]] = {}
    for name in ("scan", "serial"):
        judge.check(name, ours[name])
        known, run = prepared(name, problem), ours[name]
        runs[f"{shape} {name} forward"] = partial(run, a, b)
        runs[f"{shape} {name} backward"] = partial(known.backward, problem, b, Gradients(b, None))
    return runs | {f"{shape} {STEPS} forward": partial(ours[STEPS], a, b)}


def host_costs() -> dict[str, float]:
    scan = implementations.ours(WORKLOADS["plain"], "cuda")["scan"]
    pre = WORKLOADS["plain"].pre((1, 16, 32), torch.float32, "cuda")
    leaves = [p.clone().requires_grad_() for p in pre]
    with torch.no_grad():
        without = host_seconds(lambda: scan(*pre))
    return {"without gradient": without, "differentiable": host_seconds(lambda: scan(*leaves))}


def show_all(report: dict[str, Any], cuda: bool) -> None:
    measured = {parse(name): times for name, times in report["samples_in_seconds"].items()}
    for name, seconds in goals.medians(report.get("replayed_seconds", {})).items():
        print(f"  {name:46}{1e6 * seconds:9.1f} us, graph replay")
    for case, samples in measured.items():
        show(case, samples)
    if report.get("left_out"):
        print(f"\nleft out for lack of time: {'; '.join(report['left_out'])}")
    telling = {case: times for case, times in measured.items() if not goals.void(times)}
    reached = goals_of(report, telling) if cuda else []
    if not cuda:
        for case, samples in telling.items():
            reached += goals.on_cpu(case, samples)
    if reached:
        print("\nGoals")
    for goal in reached:
        print(goal)


def goals_of(report: dict[str, Any], measured: dict[Case, Samples]) -> list[goals.Goal]:
    """Every goal on CUDA, also of cases not measured; those against baselines where they ran."""
    baselines = "host_seconds" not in report
    reached = [] if baselines else goals.of_host(report["host_seconds"])
    reached += [] if baselines else goals.of_small(report["replayed_seconds"])
    for case in dict.fromkeys([*every_case("cuda", baselines=baselines), *measured]):
        reached += goals.on_cuda(case, measured.get(case, {}), baselines=baselines)
    return reached


def every_case(device: str, *, baselines: bool) -> list[Case]:
    """All cases of a run; on CUDA those of which most is promised first."""
    if device == "cpu":
        return [Case(shape) for shape in SHAPES["cpu"]]
    gates = ["plain", "lstm"] if baselines else list(WORKLOADS)
    parts = itertools.product(SHAPES["cuda"], ("float32", "bfloat16"), gates)
    cases = [Case(*each) for each in parts]
    return sorted(cases, key=lambda case: goals.percent_promised(case, "forward") is None)


def parse(text: str) -> Case:
    """The case whose `str` is `text`."""
    shape, _, rest = text.partition(")")
    words = [word for word in rest.split(", ") if word]
    dtype = next((word for word in words if word not in WORKLOADS), "float32")
    gate = next((word for word in words if word in WORKLOADS), "plain")
    return Case(ast.literal_eval(f"{shape})"), dtype, gate)


def implementations_of(case: Case, options: argparse.Namespace) -> dict[str, Implementation]:
    """Ours and, of the plain recurrence, baselines; each checked before it is timed."""
    workload, device = WORKLOADS[case.gate], options.device
    dtype = getattr(torch, case.dtype)
    compared = implementations.ours(workload, device)
    if case.gate == "plain":
        if options.rivals or (device == "cpu" and not options.quick):
            compared |= implementations.baselines(device)
    compiled = device == "cpu" or (options.rivals and case.shape in COMPILED)
    if options.quick or not compiled:
        for name in ("compiled gates + scan", ASSOCIATIVE):
            compared.pop(name, None)
    judge = Judge(workload, case.shape, dtype, device)
    for name, implementation in list(compared.items()):
        if name == implementations.NO_CARRY:
            continue  # wrong by design
        try:
            judge.check(name, implementation)
        except Exception as error:
            if name.startswith(goals.OURS):
                raise
            implementations.left_out(name, f"{type(error).__name__}: {error}")
            del compared[name]
    return compared


def chosen(options: argparse.Namespace) -> list[Case]:
    """What is to be measured, the most telling first."""
    if options.quick:
        gates, dtypes = options.gates or ["plain"], options.dtypes or ["float32"]
        return [Case(*parts) for parts in itertools.product(QUICK, dtypes, gates)]
    if options.device == "cpu":
        gates, dtypes = options.gates or ["plain"], options.dtypes or ["float32"]
        return [Case(*parts) for parts in itertools.product(SHAPES["cpu"], dtypes, gates)]
    return [
        case
        for case in every_case("cuda", baselines=options.rivals)
        if case.gate in (options.gates or WORKLOADS)
        and case.dtype in (options.dtypes or ("float32", "bfloat16"))
    ]


def write_csv(path: Path, report: dict[str, Any]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "implementation", "min s", "median s", "samples"])
        for case, samples in report["samples_in_seconds"].items():
            for name, times in samples.items():
                rows.writerow([case, name, min(times), statistics.median(times), len(times)])


def save(options: argparse.Namespace, report: dict[str, Any]) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.csv:
        write_csv(options.csv, report)
    if options.plot:
        from plot import draw

        draw(report, options.plot)


def words(choices: dict[str, Any] | tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(choices):
            known = ", ".join(choices)
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {known}")
        return chosen

    return parse


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(SHAPES), default="cpu")
    parser.add_argument("--gates", type=words(WORKLOADS), help="plain; on CUDA all")
    parser.add_argument(
        "--dtypes", type=words(("float32", "bfloat16")), help="float32; on CUDA all"
    )
    parser.add_argument("--rounds", type=int, default=25, help="samples of each (%(default)s)")
    parser.add_argument(
        "--rivals", action="store_true", help="those of other packages; on a CPU always"
    )
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--budget", type=float, help="seconds after which no case is begun")
    parser.add_argument("--json", type=Path, help="write every sample here")
    parser.add_argument("--resume", type=Path, help="keep the samples of this file")
    parser.add_argument("--csv", type=Path, help="write minima and medians here")
    parser.add_argument("--plot", type=Path, help="draw the percents of a copy here, as PNG")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    start, options = time.monotonic(), arguments(argv)
    cuda = options.device == "cuda"
    if options.json is None and not cuda and not options.quick:
        options.json = RESULTS
    if options.draw:
        report = json.loads(options.json.read_text())
        print(about(report))
        show_all(report, cuda)
        return 0
    if cuda and not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        return 2
    cases = chosen(options)
    report: dict[str, Any] = {
        **environment(options.device),
        "samples_in_seconds": {},
        "first_call_seconds": {},
        "peak_bytes": {},
    }
    if options.resume:
        report |= json.loads(options.resume.read_text())
        report.pop("left_out", None)
    print(about(report))
    rounds = 3 if options.quick else options.rounds
    if cuda and not options.rivals and "host_seconds" not in report:
        report["host_seconds"] = host_costs()
        report["replayed_seconds"] = small_problems(rounds)
    due = [case for case in cases if str(case) not in report["samples_in_seconds"]]
    for number, case in enumerate(due):
        if options.budget and time.monotonic() - start > options.budget:
            report["left_out"] = [str(case) for case in due[number:]]
            save(options, report)
            break
        compared = implementations_of(case, options)
        for _ in range(3):
            samples, first = measure(case, compared, options.device, rounds)
            if not goals.void(samples):
                break
            print(f"  {case}: noisy, once more", file=sys.stderr)
        report["samples_in_seconds"][str(case)] = samples
        report["first_call_seconds"][str(case)] = {n: seconds for n, (seconds, _) in first.items()}
        if cuda:
            report["peak_bytes"][str(case)] = {n: peak for n, (_, peak) in first.items()}
        print(f"{case}: measured", file=sys.stderr, flush=True)
        save(options, report)
    show_all(report, cuda)
    return 0


if __name__ == "__main__":
    sys.exit(main())
