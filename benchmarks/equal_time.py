"""The text demo's models at equal size, time and steps: bits per byte of unseen files, by seed.

    python benchmarks/equal_time.py [--seeds 0 1 2 3 4] [--seconds 90] [--json PATH] [--draw]

What `lightning-lrnn demo text` trains: a surrogate LSTM and a torch.nn.LSTM, two residual layers of
1.2 million parameters each, for the same seconds, one after the other; and once more the surrogate
LSTM for as many steps as the torch.nn.LSTM made. Writes benchmarks/results/equal_time.json with
every step's loss; --draw prints what is there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in recurrence.py

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from timing import about, environment

from lightning_lrnn.cli.demos import text
from lightning_lrnn.cli.demos.quiet import quiet_lightning
from lightning_lrnn.data import ByteText

EQUAL = f"{text.OURS}, as many steps as torch.nn.LSTM"
RESULTS = Path(__file__).parent / "results" / "equal_time.json"


def measure(seeds: list[int], seconds: float) -> dict[str, Any]:
    quiet_lightning()
    runs = []
    for seed in seeds:
        data = ByteText(batch_size=text.BATCH_SIZE, window=text.WINDOW, seed=seed)
        of_seed: dict[str, dict[str, Any]] = {}
        for name, of in {**{name: name for name in text.MODELS}, EQUAL: text.OURS}.items():
            print(f"{name}, seed {seed}", flush=True)
            steps = of_seed["torch.nn.LSTM"]["steps"] if name == EQUAL else None
            with tempfile.TemporaryDirectory() as folder:
                found = text.train(text.MODELS[of], data, seconds, Path(folder), seed, steps)
            del found["horizons"]
            of_seed[name] = {"model": name, "seed": seed, **found}
        runs += of_seed.values()
    return {**environment("cpu"), "seconds": seconds, "runs": runs}


def show(report: dict[str, Any]) -> None:
    print(f"{about(report)}; {report['seconds']:g} s of training each")
    width = max(14, *(1 + len(run["model"]) for run in report["runs"]))
    print(f"{'':{width}}{'parameters':>12}{'steps':>8}{'bits per byte':>15}   by seed")
    for name in dict.fromkeys(run["model"] for run in report["runs"]):
        runs = [run for run in report["runs"] if run["model"] == name]
        bits = [run["bits_per_byte"] for run in runs]
        steps = statistics.median(run["steps"] for run in runs)
        by_seed = " ".join(f"{b:.3f}" for b in bits)
        line = (
            f"{name:{width}}{runs[0]['parameters']:12,}{steps:8.0f}{statistics.fmean(bits):15.3f}"
        )
        print(f"{line}   {by_seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=90.0, help="of each model (%(default)g)")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="what is there, without measuring")
    options = parser.parse_args()
    if not options.draw:
        report = measure(options.seeds, options.seconds)
        options.json.write_text(json.dumps(report) + "\n")
    show(json.loads(options.json.read_text()))


if __name__ == "__main__":
    main()
