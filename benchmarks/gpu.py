"""What needs a GPU, in stages: the most telling first, all in at most nine minutes.

    python benchmarks/gpu.py [ab] [test] [sanitize] [bench] [rivals] [paper] [--limit SECONDS]
        [--force] [--output FOLDER]

ab compares variants of the kernel, bench the recurrence with what is promised, rivals with other
packages; paper measures the paper's tables. Without a name: all six, each for as long as `LIMITS_S`
says. What is not timed runs side by side. Needs only what the interpreter has: the package need not
be installed; pytest-xdist is used where it is. Results go, as they come, to
benchmarks/results/<GPU>/: `stages.json` with the machine, the versions, the commit and the outcome
of each stage; `ab.json`, `bench.json`, `rivals.json` and `paper.json` with every raw sample; a log
of each command. A stage that passed for the same sources on the same GPU is not run again, unless
forced; one that had no time for all it measures is `partial`, and goes on where it stopped: an
interrupted run is continued by the same command.

Exit status: 0 all passed, 1 a stage did not, 2 nothing can run here, with the reasons.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMITS_S = {"ab": 130, "test": 180, "sanitize": 180, "bench": 110, "rivals": 60, "paper": 60}
"""Tests and sanitizer run side by side: nine minutes in all."""
TOOLS = {
    # The bindings ask the driver for entry points that not every version has.
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": [],
    "initcheck": [],
    "synccheck": [],
}
UNTIMED = ("test", "sanitize")
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "numba",
    "cuda-core",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
    "pytorch-lightning",
    "pytest",
)


def assemble(site: Path) -> None:
    """Puts the package together as an installation would: the sources and configs inside it."""
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lightning_lrnn", site / "lightning_lrnn", ignore=leave)
    for inner in ("cuda_src", "configs"):
        shutil.copytree(ROOT / inner, site / "lightning_lrnn" / inner, ignore=leave)


def environment(site: Path) -> dict[str, str]:
    """Of children, and theirs: they find the assembled package, wherever they start."""
    paths = [str(site), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # `python -m` and `python -c` do not put the folder they start in before PYTHONPATH.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "passive",
    }


def digest() -> str:
    """Of everything that decides the results: works without git, and sees uncommitted changes."""
    parts = hashlib.sha256()
    for inner in ("cuda_src", "lightning_lrnn", "tests", "benchmarks", "pyproject.toml"):
        path = ROOT / inner
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".cu", ".cuh", ".py", ".toml"):
                parts.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes())
    return parts.hexdigest()[:16]


def output_of(*command: str) -> str | None:
    """What a command prints; None if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_properties(0)
    return {
        "device": gpu.name,
        "compute_capability": [gpu.major, gpu.minor],
        "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "driver": output_of(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i0"
        ),
        "torch_cuda": torch.version.cuda,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: number for name in PACKAGES if (number := installed(name))},
    }


def reasons_against(site: Path) -> list[str]:
    """Why nothing can run here; [] = it can."""
    try:
        import torch
    except ImportError as error:
        return [f"this interpreter ({sys.executable}) has no PyTorch: {error}"]
    sys.path.insert(0, str(site))
    from lightning_lrnn.backends.cuda import availability

    if reasons := availability.missing():
        return reasons
    return [] if torch.cuda.is_available() else ["PyTorch cannot use the GPU (see nvidia-smi)"]


def portable(word: str) -> str:
    """A word of a command without the places of this machine, which a record need not keep."""
    if word == sys.executable:
        return "python"
    path = Path(word)
    if not path.is_absolute():
        return word
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


RUNNING: set[subprocess.Popen] = set()


def kill(child: subprocess.Popen) -> None:
    """With its own children, which hold its pipe open."""
    if os.name != "posix":
        child.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def side_by_side(calls: dict[str, Callable[[], dict]]) -> dict[str, dict]:
    """Their results; what they run ends with this process's interruption."""
    with ThreadPoolExecutor(max(1, len(calls))) as pool:
        try:
            futures = {name: pool.submit(call) for name, call in calls.items()}
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            for child in list(RUNNING):
                kill(child)
            raise


def run(command: list[str], log: Path, site: Path, limit_s: float, **variables: str) -> dict:
    """Runs a command for a limited time; its output is shown and logged."""
    print(f"$ {' '.join(command)}", flush=True)
    start = time.perf_counter()
    expired = threading.Event()
    with (
        log.open("wb") as log_file,
        subprocess.Popen(
            command,
            cwd=site,
            env={**environment(site), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as child,
    ):

        def end() -> None:
            expired.set()
            kill(child)

        RUNNING.add(child)
        timer = threading.Timer(limit_s, end)
        timer.start()
        try:
            for line in child.stdout or ():
                log_file.write(line)
                sys.stdout.write(f"{log.stem}  {line.decode(errors='replace')}")
                sys.stdout.flush()
            status = child.wait()
        except BaseException:
            end()
            raise
        finally:
            timer.cancel()
            RUNNING.discard(child)
    return {
        "command": " ".join(map(portable, command)),
        "status": "timeout" if expired.is_set() else "failed" if status else "passed",
        "exit": status,
        "seconds": round(time.perf_counter() - start, 1),
        "log": log.name,
    }


def confirm(result: dict, log: Path, pattern: str) -> dict:
    """An exit status of 0 passes only together with the words that say something was checked."""
    match = re.search(pattern, log.read_text(errors="replace"))
    result["said"] = match and match.group()
    if result["status"] == "passed" and not match:
        result["status"] = "failed"
    return result


def stage_test(site: Path, results: Path, limit_s: float) -> dict:
    log = results / "test.log"
    command = [sys.executable, "-m", "pytest", "-c", f"{ROOT / 'pyproject.toml'}", "-m", "gpu"]
    command += ["--rootdir", f"{ROOT}", "-p", "no:cacheprovider", "-q", f"{ROOT / 'tests'}"]
    if importlib.util.find_spec("xdist"):
        # pytest-benchmark, which nothing here uses, warns of it.
        command += ["-n", f"{max(1, (os.cpu_count() or 1) - len(TOOLS))}", "-p", "no:benchmark"]
    return confirm(run(command, log, site, limit_s), log, r"[1-9]\d* passed.*")


def stage_sanitize(site: Path, results: Path, limit_s: float) -> dict:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        return {"status": "unavailable", "reason": "compute-sanitizer is not on the PATH"}
    command = [sanitizer, "--error-exitcode", "9"]
    # Every tensor its own allocation, so that an access beside it is one beside an allocation.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    pattern = (
        r"exercised [1-9]\d* launches[\s\S]*exercised gates[\s\S]*SUMMARY: 0 (errors|hazards).*"
    )

    def watched(tool: str) -> dict:
        log = results / f"{tool}.log"
        exercised = [*TOOLS[tool], sys.executable, __file__, "--exercise"]
        result = run([*command, "--tool", tool, *exercised], log, site, limit_s, **variables)
        return confirm(result, log, pattern)

    tools = side_by_side({tool: partial(watched, tool) for tool in TOOLS})
    failed = [result["status"] for result in tools.values() if result["status"] != "passed"]
    return {"status": failed[0] if failed else "passed", "tools": tools}


def stage_ab(site: Path, results: Path, limit_s: float) -> dict:
    return benchmark(site, results, limit_s, "ab", "ab.py", resumes=True)


def stage_bench(site: Path, results: Path, limit_s: float) -> dict:
    return recurrences(site, results, limit_s, "bench")


def stage_rivals(site: Path, results: Path, limit_s: float) -> dict:
    return recurrences(site, results, limit_s, "rivals", "--rivals")


def stage_paper(site: Path, results: Path, limit_s: float) -> dict:
    return benchmark(site, results, limit_s, "paper", "paper.py")


def recurrences(site: Path, results: Path, limit_s: float, name: str, *options: str) -> dict:
    plot = ("--plot", f"{results / name}.png")
    return benchmark(site, results, limit_s, name, "recurrence.py", *plot, *options, resumes=True)


def benchmark(
    site: Path,
    results: Path,
    limit_s: float,
    name: str,
    script: str,
    *options: str,
    resumes: bool = False,
) -> dict:
    """A script that samples; one that resumes keeps what an earlier run of the stage measured."""
    samples, earlier = (results / f"{name}{suffix}" for suffix in (".json", ".earlier"))
    earlier.unlink(missing_ok=True)
    if samples.exists():
        samples.rename(earlier)
    command = [sys.executable, f"{ROOT / 'benchmarks' / script}", "--device", "cuda"]
    command += ["--json", f"{samples}", "--budget", f"{0.75 * limit_s:g}", *options]
    if resumes and earlier.exists():
        command += ["--resume", f"{earlier}"]
    result = run(command, results / f"{name}.log", site, limit_s)
    earlier.unlink(missing_ok=True)
    if result["status"] == "passed":
        if not samples.exists():
            result["status"] = "failed"
        elif json.loads(samples.read_text()).get("left_out"):
            result["status"] = "partial"
    return {**result, "samples": samples.name}


STAGES = {
    "ab": stage_ab,
    "test": stage_test,
    "sanitize": stage_sanitize,
    "bench": stage_bench,
    "rivals": stage_rivals,
    "paper": stage_paper,
}


def exercise() -> None:
    """A few launches of every kind, checked against the loop: what compute-sanitizer watches."""
    import torch

    from lightning_lrnn.backends.cuda import plan
    from lightning_lrnn.backends.operands import STORAGE

    launches = 0
    for dtype in STORAGE:
        size = max(dtype.itemsize, 4)
        # With many rows the carry is chained, with few it is folded.
        for D, (B, flag) in itertools.product((1, 5, 40), ((2, False), (plan.CHAINS, True))):
            # Two tiles and a few steps, whatever their length.
            T = 2 * plan.SEGMENT // size * plan.THREADS // plan.columns(D) + 8
            # Rows of one feature, whole, are moved 16 bytes at a time.
            launches += exercised(dtype, (B, T, D), flag, parts=D > 1, schedules=(True, False))
    segments = plan.THREADS // plan.MAX_COLUMNS
    tile, fold = plan.SEGMENT // 4 * segments, max(segments, 16)
    # Tiles, groups and a reach are folded; whole tiles are chained; so many columns are walked.
    for B, T in ((1, (fold * fold + 5) * tile), (plan.CHAINS, 8 * tile), (plan.WALK // 32, 120)):
        launches += exercised(torch.float32, (B, T, 32), False)
    torch.cuda.synchronize()
    print(f"exercised {launches} launches", flush=True)


def exercised(
    dtype: Any,
    shape: tuple[int, int, int],
    flag: bool,
    *,
    parts: bool = False,
    schedules: tuple[bool, ...] = (True,),
) -> int:
    """Both passes in these schedules; how many launches that was.

    Inputs are made on the CPU and copied, so that few kernels but ours run.

    Args:
        dtype: of the sequences.
        shape: (B, T, D).
        flag: walked in reverse if set, else exclusive.
        parts: with lengths and resets.
        schedules: parallel over time, or not.
    """
    import torch

    from lightning_lrnn.backends.cuda import launch
    from lightning_lrnn.core import reference
    from lightning_lrnn.core.problem import Gradients, Problem
    from lightning_lrnn.gates import IDENTITY

    B, T, D = shape
    state = torch.float32 if dtype.itemsize == 2 else dtype
    exact = torch.complex128 if dtype.is_complex else torch.float64
    a, b, dy = (torch.randn(B, T, D, dtype=dtype) / 2 for _ in range(3))
    h0, dh_final = (torch.randn(B, D, dtype=state) for _ in range(2))
    lengths = torch.tensor([T - 5, T] * (B // 2)) if parts else None
    reset = torch.rand(B, T) < 0.01 if parts else None
    flags = {"reverse": flag, "exclusive": not flag}
    leaves = [x.to(exact).requires_grad_() for x in (a, b, h0)]
    ends = reference.linear_recurrence(*leaves, lengths=lengths, reset=reset, **flags)
    expected = torch.autograd.grad(ends, leaves, [x.to(exact) for x in (dy, dh_final)])
    on = [x if x is None else x.cuda() for x in (a, b, h0, dy, dh_final, lengths, reset)]
    a, b, h0, dy, dh_final, lengths, reset = on
    for parallel in schedules:
        problem = Problem(IDENTITY, "", (a, b), h0, lengths, reset, flag, not flag)
        kernels = launch.backend(problem, parallel=parallel)
        y, h, h_final = kernels.forward(problem)
        (da, db), dh0 = kernels.backward(problem, h, Gradients(dy, dh_final))
        loose = 3e-2 if dtype.itemsize == 2 else 1e-4
        for x, wanted in zip((y, h_final, da, db, dh0), (*ends, *expected), strict=True):
            torch.testing.assert_close(x.cpu().to(exact), wanted, rtol=loose, atol=loose)
    return 2 * len(schedules)


def exercise_gates(device: str = "cuda", names: tuple[str, ...] = ("scan", "serial")) -> None:
    """The same for gates compiled into the kernel, with a readout and parameters."""
    import torch

    import lightning_lrnn as lrnn

    @lrnn.gate
    def gate(x, f, bias, scale):
        a = torch.sigmoid(f * scale + bias)
        return a, (1 - a) * torch.tanh(x)

    @lrnn.gate
    def readout(h, x, f, bias, scale):
        return torch.sigmoid(f) * torch.tanh(h) + x * bias

    cases = itertools.product((torch.float32, torch.bfloat16), (1, 40), (False, True), names)
    for dtype, D, flag, name in cases:
        T = 700
        pre = [torch.randn(shape).to(dtype) for shape in ((2, T, D), (2, T, D), (D,), (2, D))]
        lengths, reset = torch.tensor([T - 5, T]), torch.rand(2, T) < 0.01
        dy = torch.randn(2, T, D).to(dtype)
        results = []
        for on, wide, backend in (("cpu", torch.float64, "serial"), (device, dtype, name)):
            leaves = [p.to(on, wide).requires_grad_() for p in pre]
            y, _ = lrnn.gated_recurrence(
                gate, *leaves, readout=readout, reverse=flag, exclusive=not flag,
                lengths=lengths.to(on), reset=reset.to(on), backend=backend,
            )  # fmt: skip
            gradients = torch.autograd.grad(y, leaves, dy.to(on, wide))
            results.append([x.detach().cpu().double() for x in (y, *gradients)])
        loose = 1e-1 if dtype == torch.bfloat16 else 1e-3
        for wanted, x in zip(*results, strict=True):
            scale = 1 + wanted.abs().max()
            torch.testing.assert_close(x / scale, wanted / scale, rtol=loose, atol=loose / 10)
    print("exercised gates", flush=True)


def recorded(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What earlier runs of the same sources on the same GPU left."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    same = all(record.get(key) == value for key, value in identity.items())
    return record.get("stages", {}) if same else {}


def save(path: Path, content: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def run_stages(
    names: list[str], folder: Path, site: Path, force: bool, limit_s: float | None = None
) -> int:
    about = machine()
    results = folder / re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    results.mkdir(parents=True, exist_ok=True)
    path = results / "stages.json"
    identity = {"sources": digest(), "machine": about}
    commit = {
        "commit": os.environ.get("LIGHTNING_LRNN_COMMIT") or output_of("git", "rev-parse", "HEAD"),
        "uncommitted": output_of("git", "status", "--porcelain", "--untracked-files=no"),
    }
    stages = recorded(path, identity)

    def run_stage(name: str) -> dict:
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        limit = LIMITS_S[name] if limit_s is None else limit_s
        return {"date": date, **STAGES[name](site, results, limit)}

    due = []
    for name in names:
        if stages.get(name, {}).get("status") == "passed" and not force:
            print(f"{name}: passed on {stages[name]['date']}, not run again (--force does)")
        else:
            due.append(name)
            if name not in stages or force:  # of other sources, or not wanted
                (results / f"{name}.json").unlink(missing_ok=True)
    untimed = [name for name in due if name in UNTIMED]
    groups = [untimed if name in UNTIMED else [name] for name in due]
    for group in (group for i, group in enumerate(groups) if group not in groups[:i]):
        stages |= side_by_side({name: partial(run_stage, name) for name in group})
        save(path, {**identity, **commit, "stages": stages})
    for name in names:
        print(f"{name}: {stages[name]['status']} {stages[name].get('reason', '')}".rstrip())
    print(f"results: {path}")
    return int(any(stages[name]["status"] != "passed" for name in names))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="stage", help=", ".join(STAGES))
    parser.add_argument("--force", action="store_true", help="run stages again that passed")
    parser.add_argument("--limit", type=float, help="seconds of each stage")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--exercise", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if options.exercise:
        exercise()
        exercise_gates()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        assemble(site)
        if reasons := reasons_against(site):
            print("no GPU stage can run here: " + "; ".join(reasons), file=sys.stderr)
            return 2
        names, folder = options.stages or list(STAGES), options.output.resolve()
        return run_stages(names, folder, site, options.force, options.limit)


if __name__ == "__main__":
    sys.exit(main())
