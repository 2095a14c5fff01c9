"""Models of Darts on a noisy sum of waves and an autoregression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.models import BlockRNNModel, RNNModel

from projects.project import Project, quiet, variants

HELD_OUT = 100


class Forecasts(Project):
    """1,000 steps of a series; 24 steps are seen, float64 as Darts has it where nothing is said."""

    package, block = "darts", False

    def fit(self) -> None:
        noise = np.random.default_rng(0).normal(size=1_000)
        for t in range(1, len(noise)):
            noise[t] += 0.7 * noise[t - 1]
        t = np.arange(len(noise))
        waves = np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 7)
        series = TimeSeries.from_values((waves + 0.1 * noise)[:, None])
        self.series, held_out = series[:-HELD_OUT], series[-HELD_OUT:]
        more: dict[str, Any] = {"max_steps": self.steps, "enable_checkpointing": False}
        self.model = self.make(
            n_epochs=self.steps,
            random_state=self.seed,
            work_dir=str(self.folder),
            pl_trainer_kwargs=quiet(self.watch, **more),
        )
        self.model.fit(self.series, val_series=held_out, verbose=False)

    def make(self, **more: Any) -> Any:
        if self.block:
            return BlockRNNModel(24, 12, model=self.cell, **more)
        return RNNModel(24, model=self.cell, training_length=36, **more)

    def validation(self) -> float:
        return float(self.model.trainer.callback_metrics.get("val_loss", "nan"))

    def output(self) -> torch.Tensor:
        return torch.from_numpy(self.model.predict(30, self.series, verbose=False).values())

    def reload(self) -> None:
        path = str(self.folder / "darts.pt")
        self.model.save(path)
        self.model = type(self.model).load(path, trusted=True)  # it has callbacks


PROJECTS = variants(
    Forecasts,
    Darts_RNNModel_RNN={"cell": "RNN"},
    Darts_RNNModel_LSTM={"cell": "LSTM"},
    Darts_BlockRNNModel_GRU={"cell": "GRU", "block": True},
)
