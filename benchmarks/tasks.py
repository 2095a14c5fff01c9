"""How soon the configs `next_symbol`, `adding` and `copying` solve their task, by seed.

    python benchmarks/tasks.py [--tasks adding] [--seeds 0 1 2] [--seconds 600] [--json PATH]
        [--draw]

Every run is `lightning-lrnn fit --config TASK.yaml` with a seed of weights and data. Solved is what
the config's EarlyStopping says. Writes benchmarks/results/tasks.json, with every validation; keeps
runs that are not asked for. --draw prints what is there.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer
from timing import environment

from lightning_lrnn.cli.fit import run
from lightning_lrnn.cli.tables import text_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "tasks.json"
CONFIGS = HERE.parent / "configs"
TASKS = ("next_symbol", "adding", "copying")


class Noted(pl.Callback):
    """Every validation, with the time since training began."""

    def __init__(self) -> None:
        self.start = 0.0
        self.validation: list[tuple[float, int, float]] = []

    def on_train_start(self, trainer, module) -> None:
        self.start = time.perf_counter()

    def on_validation_end(self, trainer, module) -> None:
        value = float(trainer.callback_metrics[trainer.early_stopping_callback.monitor])
        seconds = round(time.perf_counter() - self.start, 1)
        self.validation.append((seconds, trainer.global_step, value))


def train(task: str, seed: int, seconds: float) -> dict[str, Any]:
    noted = Noted()
    args = ["fit", "--config", str(CONFIGS / f"{task}.yaml"), "--trainer.logger", "false"]
    args += ["--seed_everything", str(seed), "--data.init_args.seed", str(seed)]
    args += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    print(f"{task}, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        args += ["--trainer.default_root_dir", folder]
        cli = run(args, [noted, Timer(timedelta(seconds=seconds))])
    stopping = cli.trainer.early_stopping_callback
    assert isinstance(stopping, EarlyStopping)
    *_, last = noted.validation[-1]
    return {
        "task": task,
        "seed": seed,
        "limit_seconds": seconds,
        "metric": stopping.monitor.removeprefix("val/"),
        "threshold": stopping.stopping_threshold,
        "solved": bool(stopping.monitor_op(torch.tensor(last), stopping.stopping_threshold)),
        "rows_of_a_batch": cli.datamodule.batch_size,
        "parameters": sum(p.numel() for p in cli.model.parameters()),
        "environment": environment(str(cli.trainer.strategy.root_device)),
        "validation": noted.validation,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """By task, the medians over the seeds that solved it, of all if none did."""
    rows = [["task", "metric", "solved", "updates", "seconds", "at last"]]
    for task in TASKS:
        group = [run for run in runs if run["task"] == task]
        if not group:
            continue
        solved = [run for run in group if run["solved"]] or group
        seconds, steps, value = (
            statistics.median(run["validation"][-1][i] for run in solved) for i in range(3)
        )
        share = f"{sum(run['solved'] for run in group)}/{len(group)}"
        cells = (share, f"{steps:.0f}", f"{seconds:.0f}", f"{value:.3f}")
        rows.append([task, group[0]["metric"], *cells])
    return text_table(rows, left=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of a run")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where runs are kept")
    parser.add_argument("--draw", action="store_true", help="what is there, without training")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    runs = json.loads(options.json.read_text()) if options.json.exists() else []
    for task in () if options.draw else options.tasks:
        for seed in options.seeds:
            runs = [run for run in runs if (run["task"], run["seed"]) != (task, seed)]
            runs.append(train(task, seed, options.seconds))
            runs.sort(key=lambda run: (run["task"], run["seed"]))
            options.json.write_text(json.dumps(runs) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
