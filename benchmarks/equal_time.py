"""The text demo's models at equal size, time and steps: bits per byte of unseen files, by seed.

    python benchmarks/equal_time.py [--seeds 0 1 2 3 4] [--seconds 90] [--jobs 2] [--draw]
    python benchmarks/equal_time.py --rates 2e-3 3e-3 5e-3 8e-3 [--jobs 2]

What `lightning-lrnn demo text` trains: a torch.nn.LSTM and the surrogate RNN that `rnn: auto` puts
in its place, two residual layers of 1.2 million parameters each. First both are timed in turn, a
training step of the one, then a step of the other, so that whatever else the machine does meets
both alike; the trainer's own share, the same for both, is left out. Then each makes as many steps
as fit into the seconds, and the surrogate RNN once more as many as the torch.nn.LSTM: what is
learned in so many steps does not depend on how busy the machine is, so that `--jobs` trainings may
run at once, on a thread each. Writes benchmarks/results/equal_time.json with every timed step and
the loss of every step. --rates trains both at each learning rate, with a seed that is none of the
others, for equal_time_rates.json. --draw prints what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from timing import about, environment

from lightning_lrnn.cli.demos import text as demo
from lightning_lrnn.cli.demos.quiet import quiet_lightning
from lightning_lrnn.data import ByteText

OURS, THEIRS = demo.OURS, demo.THEIRS
EQUAL = f"{OURS}, as many steps"
FOLDER = Path(__file__).parent / "results"
SEARCH_SEED = 99
ROUNDS = 100


def text(seed: int) -> ByteText:
    return ByteText(batch_size=demo.BATCH_SIZE, window=demo.WINDOW, seed=seed)


def step_seconds(rounds: int) -> dict[str, list[float]]:
    return demo.step_seconds(text(0), rounds)


def median_ms(samples: list[float]) -> float:
    return 1e3 * statistics.median(samples)


def all_trained(tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[dict[str, Any]]:
    """The results of `trained`, in order."""
    if jobs == 1:
        yield from itertools.starmap(trained, tasks)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(trained, *zip(*tasks, strict=True))


def trained(name: str, seed: int, steps: int, options: dict[str, Any]) -> dict[str, Any]:
    quiet_lightning()
    print(f"{name}, seed {seed}, {steps} steps at {options['lr']:g}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = demo.train(options, text(seed), steps, Path(folder), seed)
    del result["horizons"]
    return {"model": name, "seed": seed, "lr": options["lr"], **result}


def measure(seeds: list[int], seconds: float, path: Path, jobs: int = 1) -> None:
    samples = step_seconds(ROUNDS)
    steps = demo.fitting(seconds, samples)
    plan = {OURS: (OURS, steps[OURS]), THEIRS: (THEIRS, steps[THEIRS])}
    plan[EQUAL] = OURS, steps[THEIRS]
    tasks = [(name, seed, n, demo.MODELS[of]) for seed in seeds for name, (of, n) in plan.items()]
    report = {**environment("cpu"), "seconds": seconds, "step_seconds": samples}
    note(report, all_trained(tasks, jobs), path)


def search(rates: list[float], seconds: float, path: Path, jobs: int = 1) -> None:
    """Both at each learning rate, each for as many steps as fit into the seconds."""
    samples = step_seconds(ROUNDS)
    steps = demo.fitting(seconds, samples)
    tasks = [
        (name, SEARCH_SEED, n, demo.MODELS[name] | {"lr": rate})
        for rate in rates
        for name, n in steps.items()
    ]
    report = {**environment("cpu"), "seconds": seconds, "step_seconds": samples}
    note(report, (run | {"curve": []} for run in all_trained(tasks, jobs)), path)


def note(report: dict[str, Any], results: Iterable[dict[str, Any]], path: Path) -> None:
    """Writes the report after every run."""
    runs: list[dict[str, Any]] = []
    for run in results:
        runs.append(run)
        path.write_text(json.dumps(report | {"runs": runs}) + "\n")


def show(report: dict[str, Any]) -> None:
    print(f"{about(report)}; {report['seconds']:g} s of training each")
    by_model: dict[str, list[dict[str, Any]]] = {}
    for run in report["runs"]:
        by_model.setdefault(run["model"], []).append(run)
    width = 1 + max(map(len, by_model))
    print(f"{'':{width}}{'parameters':>12}{'steps':>8}{'bits per byte':>15}   by seed")
    for name, runs in by_model.items():
        bits = [run["bits_per_byte"] for run in runs]
        steps = statistics.median(run["steps"] for run in runs)
        by_seed = " ".join(f"{b:.3f}" for b in bits)
        line = (
            f"{name:{width}}{runs[0]['parameters']:12,}{steps:8.0f}{statistics.fmean(bits):15.3f}"
        )
        print(f"{line}   {by_seed}")
    if "step_seconds" in report:
        of_step = (f"{name} {median_ms(x):.1f} ms" for name, x in report["step_seconds"].items())
        print(f"A step, in turn: {', '.join(of_step)}")
    for name, budget in ((OURS, "time"), (EQUAL, "steps")):
        if name in by_model:
            less = fewer(by_model[name], by_model[THEIRS])
            print(f"Fewer bits than {THEIRS} after equal {budget}: {less}")


def fewer(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """How many bits less, in the mean and by seed."""
    pairs = zip(ours, theirs, strict=True)
    less = [their["bits_per_byte"] - our["bits_per_byte"] for our, their in pairs]
    return f"{statistics.fmean(less):.3f}; by seed {min(less):.3f} to {max(less):.3f}"


def show_rates(report: dict[str, Any]) -> None:
    print(f"\nBits per byte by learning rate, seed {SEARCH_SEED}, {report['commit']}")
    rates = list(dict.fromkeys(run["lr"] for run in report["runs"]))
    print(f"{'':16}" + "".join(f"{rate:9g}" for rate in rates))
    for name in demo.MODELS:
        bits = {run["lr"]: run["bits_per_byte"] for run in report["runs"] if run["model"] == name}
        print(f"{name:16}" + "".join(f"{bits[rate]:9.3f}" for rate in rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=90.0, help="of each model (%(default)g)")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to try instead")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (%(default)d)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the records")
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    options = parser.parse_args()
    quiet_lightning()
    record, rates = (options.folder / f"equal_time{end}.json" for end in ("", "_rates"))
    if options.rates:
        search(options.rates, options.seconds, rates, options.jobs)
    elif not options.draw:
        measure(options.seeds, options.seconds, record, options.jobs)
    if record.exists():
        show(json.loads(record.read_text()))
    if rates.exists():
        show_rates(json.loads(rates.read_text()))


if __name__ == "__main__":
    main()
