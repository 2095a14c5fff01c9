"""Projects of others before and after the switch: the same data, seeds, clipping and learning rate.

    python benchmarks/switch.py [--project NAME ...] [--seeds 3] [--steps 200]

Needs pytorch-forecasting. The projects are used as they are installed; only a callback is added.
The loss of a run is the mean over its last 20 steps. Writes benchmarks/results/switch.json, with
every loss of every run; of the projects that are not named it keeps what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import pydoc_data.topics
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_lrnn import SwitchRNN

RESULTS = Path(__file__).parent / "results" / "switch.json"
LAST = 20
LR = 1e-2
"""Of the forecasters; LightningLSTM has its own, 20, in its code."""

GILRLSTM: dict[str, Any] = {"rnn": "GILRLSTM"}
MINGRU: dict[str, Any] = {"rnn": "MinGRU"}
QRNN: dict[str, Any] = {"rnn": "QRNN", "options": {"window": 5}}
# Biases of the gates 0, as those of torch.nn nearly are: a start with little memory.
SHORT: dict[str, Any] = {"rnn": "GILRLSTM", "options": {"memory": [1, 1]}}

PROJECTS: dict[str, tuple[str, float, list[tuple[dict[str, Any], float]]]] = {
    "LightningLSTM": ("LSTM", 0.25, [(GILRLSTM, LR), (SHORT, LR)]),
    "DeepAR": ("LSTM", 0.1, [(GILRLSTM, LR), (GILRLSTM, 2 * LR), (QRNN, LR)]),
    "DeepAR GRU": ("GRU", 0.1, [(MINGRU, LR), (QRNN, LR)]),
    "RecurrentNetwork": ("LSTM", 0.1, [(GILRLSTM, LR), (QRNN, LR)]),
    "RecurrentNetwork GRU": ("GRU", 0.1, [(MINGRU, LR), (QRNN, LR)]),
    "TemporalFusionTransformer": ("LSTM", 0.1, [(GILRLSTM, LR)]),
}
"""Project -> its cell, the norm that gradients are clipped at, what it is switched to, and the
learning rate then; before it is `LR`."""


class Losses(pl.Callback):
    """Every loss, and the time of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.losses.append(float(outputs["loss"]))
        self.times.append(time.perf_counter())


@contextlib.contextmanager
def inside(folder: str) -> Iterator[None]:
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def language_model() -> tuple[pl.LightningModule, Any]:
    """Lightning's demo, on the topics of Python's help; it looks for its text in ./data."""
    from lightning.pytorch.demos.lstm import LightningLSTM
    from lightning.pytorch.demos.transformer import WikiText2

    Path("data").mkdir(exist_ok=True)
    text = "\n".join(pydoc_data.topics.topics.values())
    Path("data", "wikitext-2.txt").write_text(text, encoding="utf-8")
    return LightningLSTM(vocab_size=len(WikiText2().dictionary)), None


def forecaster(kind: str, cell: str, lr: float) -> tuple[pl.LightningModule, Any]:
    """A model of pytorch-forecasting on its own generator of autoregressive series."""
    import pytorch_forecasting
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data.examples import generate_ar_data

    table = generate_ar_data(seasonality=10.0, timesteps=120, n_series=20, seed=42)
    table["static"] = "2"
    columns: dict[str, Any] = {"time_idx": "time_idx", "target": "value", "group_ids": ["series"]}
    columns |= {"time_varying_unknown_reals": ["value"], "max_encoder_length": 30}
    columns |= {"max_prediction_length": 10}
    sizes: dict[str, Any] = {"hidden_size": 30, "dropout": 0.1}
    if kind == "TemporalFusionTransformer":
        columns |= {"min_encoder_length": 0, "add_relative_time_idx": True}
        columns |= {"static_categoricals": ["static"]}
        sizes |= {"hidden_continuous_size": 8, "attention_head_size": 1, "lstm_layers": 2}
    else:
        columns |= {"min_encoder_length": 10}
        sizes |= {"rnn_layers": 2, "cell_type": cell}
    data = TimeSeriesDataSet(table, **columns)
    make = getattr(pytorch_forecasting, kind)
    model = make.from_dataset(data, learning_rate=lr, **sizes)
    return model, data.to_dataloader(train=True, batch_size=64)


def train(
    project: str, switch: dict[str, Any] | None, lr: float, seed: int, steps: int
) -> dict[str, Any]:
    cell, clip, _ = PROJECTS[project]
    pl.seed_everything(seed, verbose=False)
    kind = project.split()[0]
    model, data = language_model() if kind == "LightningLSTM" else forecaster(kind, cell, lr)
    losses = Losses()
    pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=clip,
        callbacks=[losses, *([SwitchRNN(**switch)] if switch else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, data)
    seconds = [b - a for a, b in zip(losses.times, losses.times[1:], strict=False)]
    return {
        "project": project,
        "switch": switch,
        "lr": None if kind == "LightningLSTM" else lr,
        "seed": seed,
        "loss": statistics.fmean(losses.losses[-LAST:]),
        "ms_per_step": 1e3 * statistics.median(seconds),
        "losses": [round(loss, 4) for loss in losses.losses],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", nargs="+", choices=PROJECTS, default=list(PROJECTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for package in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(package).setLevel(logging.ERROR)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": []}
    runs = [run for run in results["runs"] if run["project"] not in options.project]
    print("| project | switched to | loss before | loss after, per seed | change | ms/step |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        for project in options.project:
            switches = PROJECTS[project][2]
            seeds = range(options.seeds)
            before = [train(project, None, LR, seed, options.steps) for seed in seeds]
            runs += before
            for switch, lr in switches:
                after = [train(project, switch, lr, seed, options.steps) for seed in seeds]
                runs += after
                print(row(before, after), flush=True)
    packages = ("torch", "lightning", "pytorch-forecasting", "lightning-lrnn")
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    versions = {package: version(package) for package in packages}
    result = {"steps": options.steps, "last": LAST, **machine, "versions": versions, "runs": runs}
    RESULTS.write_text(json.dumps(result) + "\n")


def row(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """Of the table: the worst change of a seed, as a part of what it was."""
    project, switch, lr = (after[0][key] for key in ("project", "switch", "lr"))
    name, _, cell = project.partition(" ")
    options = switch.get("options", {})
    layer = " ".join([switch["rnn"], *(f"{key} {value}" for key, value in options.items())])
    layer += f", lr {lr}" if lr != before[0]["lr"] else ""
    losses = [" ".join(f"{run['loss']:.3f}" for run in runs) for runs in (before, after)]
    speed = [statistics.median(run["ms_per_step"] for run in runs) for runs in (before, after)]
    pairs = zip(before, after, strict=True)
    worst = max((a["loss"] - b["loss"]) / abs(b["loss"]) for b, a in pairs)
    return (
        f"| {name}, {cell or 'LSTM'} | {layer} | {losses[0]} | {losses[1]} | {worst:+.0%} "
        f"| {speed[0]:.0f} -> {speed[1]:.0f} |"
    )


if __name__ == "__main__":
    main()
