"""How often, and how soon, the configs `long_memory_*` solve their task, by seed.

    python benchmarks/long_memory.py --steps 1024 8192 [--seeds 0 1 2]
        [--rnn GILRLSTM torch.nn.LSTM] [--seconds 300] [--json PATH]
        [--set data.init_args.sampling=balanced trainer.gradient_clip_val=0]

Every run is `lightning-lrnn fit --config long_memory_STEPS.yaml` with a seed of weights and data;
that of `torch.nn.LSTM` differs in the layer alone: a `MemoryLSTM` with the memory of the config.
Solved is a run if a validation found every held-out sequence right; its time is then that of the
training and of all validations up to and with that one. Writes benchmarks/results/long_memory.json,
with the accuracy of every batch, and a figure beside it; it keeps runs that are not asked for.
Without --steps it prints and draws what is there.
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
from pytorch_lightning.callbacks import Timer
from timing import environment

from lightning_lrnn.cli.figures import new_figure, save
from lightning_lrnn.cli.fit import run
from lightning_lrnn.cli.tables import text_table
from lightning_lrnn.core.process_memory import process_peak

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "long_memory.json"
CONFIGS = HERE.parent / "configs"
LAYERS = "GILRLSTM", "torch.nn.LSTM"
WINDOW = 20
"""Batches over which the figure's accuracy is a mean."""


class Noted(pl.Callback):
    """Every batch and every validation, with the time since training began."""

    def __init__(self) -> None:
        self.start = 0.0
        self.training: list[tuple[float, float]] = []
        self.validation: list[tuple[float, int, float]] = []

    def on_train_start(self, trainer, module) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        right = float(trainer.callback_metrics["train/accuracy"])
        self.training.append((self.seconds(), right))
        if index % 20 == 0:
            last = [right for _, right in self.training[-20:]]
            share = statistics.fmean(last)
            done = f"    {self.seconds():6.0f} s   step {trainer.global_step:5,}"
            print(f"{done}   {share:4.0%} of the last batches right", flush=True)

    def on_validation_end(self, trainer, module) -> None:
        right = float(trainer.callback_metrics["val/accuracy"])
        self.validation.append((self.seconds(), trainer.global_step, right))
        print(f"    {self.seconds():6.0f} s   {right:.2%} of held-out right", flush=True)

    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 2)


def train(steps: int, rnn: str, seed: int, seconds: float, changed: list[str]) -> dict[str, Any]:
    noted = Noted()
    args = ["fit", "--config", str(CONFIGS / f"long_memory_{steps}.yaml")]
    if rnn == "torch.nn.LSTM":
        args += ["--model.rnn", "lightning_lrnn.nn.MemoryLSTM"]
        args += ["--model.rnn.memory", f"[{steps // 2},{2 * steps}]"]
    args += ["--seed_everything", str(seed), "--data.init_args.seed", str(seed)]
    args += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    args += ["--trainer.logger", "false"]
    for change in changed:
        option, _, value = change.partition("=")
        args += [f"--{option}", value]
    print(f"{steps:,} steps, {rnn}, seed {seed} {' '.join(changed)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        args += ["--trainer.default_root_dir", folder]
        cli = run(args, [noted, Timer(timedelta(seconds=seconds))])
    return {
        "steps": steps,
        "rnn": rnn,
        "layer": cli.model.hparams["rnn"],
        "seed": seed,
        "changed": changed,
        "sampling": cli.datamodule.sampling,
        "batch_size": cli.datamodule.batch_size,
        "held_out": cli.datamodule.held_out,
        "limit_seconds": seconds,
        "solved": bool(noted.validation) and noted.validation[-1][2] == 1,
        "seconds": max((s for s, *_ in noted.training[-1:] + noted.validation[-1:]), default=0.0),
        "optimizer_steps": len(noted.training),
        "parameters": sum(p.numel() for p in cli.model.parameters()),
        "peak_bytes_of_process": process_peak(),
        "environment": environment(cli.trainer.strategy.root_device.type),
        "training": noted.training,
        "validation": noted.validation,
    }


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["steps"], run["rnn"], " ".join(run["changed"]), run["seed"]


def kept(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def table(runs: list[dict[str, Any]]) -> str:
    """Medians of the runs that solved it, of all if none did; of the end if it was not solved."""
    heads = ["layer", "length", "solved", "updates", "seconds", "slowest", "right", "MiB", "set"]
    rows = [heads]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trial in sorted(runs, key=key):
        groups.setdefault(key(trial)[:3], []).append(trial)
    for (steps, rnn, changed), group in groups.items():
        solved = [trial for trial in group if trial["solved"]] or group
        seconds = [trial["seconds"] for trial in solved]
        right = [trial["validation"][-1][2] for trial in group if trial["validation"]]
        row = [
            rnn,
            f"{steps:,}",
            f"{sum(trial['solved'] for trial in group)}/{len(group)}",
            f"{statistics.median(trial['optimizer_steps'] for trial in solved):.0f}",
            f"{statistics.median(seconds):.0f}",
            f"{max(seconds):.0f}",
            f"{statistics.median(right):.1%}" if right else "",
            f"{max(trial['peak_bytes_of_process'] for trial in group) / 2**20:.0f}",
            changed.replace("init_args.", ""),
        ]
        rows.append(row)
    return text_table(rows)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over wall time, as the paper's figure 2: a panel for every length."""
    runs = [trial for trial in runs if not trial["changed"]]
    if not runs:
        return
    lengths = sorted({trial["steps"] for trial in runs})
    figure = new_figure(420 * len(lengths), 360)
    panels = figure.subplots(1, len(lengths), squeeze=False)[0]
    for axes, steps in zip(panels, lengths, strict=True):
        for trial in runs:
            if trial["steps"] != steps:
                continue
            color = "C0" if trial["rnn"] == "GILRLSTM" else "C1"
            seconds, right = zip(*trial["training"], strict=True)
            means = [
                statistics.fmean(right[max(0, i - WINDOW) : i]) for i in range(1, len(right) + 1)
            ]
            label = trial["rnn"] if trial["seed"] == 0 else None
            axes.plot([s / 60 for s in seconds], means, color=color, alpha=0.6, lw=1, label=label)
            if trial["solved"]:
                axes.plot(trial["seconds"] / 60, 1, "o", color=color, markersize=4)
        axes.axhline(0.5, color="0.5", linestyle=":", label="chance")
        axes.plot([], [], "o", color="0.5", markersize=4, label="solved")
        axes.set(xlabel="minutes", title=f"{steps:,} steps", ylim=(0, 1.05))
        axes.legend(fontsize=8, loc="lower right")
    panels[0].set_ylabel(f"right answers, mean of {WINDOW} batches")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, nargs="*", default=[], help="lengths that have configs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10), help="0 to 9")
    parser.add_argument("--rnn", nargs="+", choices=LAYERS, default=["GILRLSTM"])
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of a run")
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", dest="changed")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where runs are kept")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for steps in options.steps:
        for rnn in options.rnn:
            for seed in options.seeds:
                run = train(steps, rnn, seed, options.seconds, options.changed)
                runs = [other for other in kept(options.json) if key(other) != key(run)] + [run]
                options.json.write_text(json.dumps(sorted(runs, key=key)) + "\n")
    runs = kept(options.json)
    print(table(runs))
    draw(runs, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
