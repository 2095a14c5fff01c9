"""Models of neuralforecast with its own settings, on its own generator of daily series."""

from __future__ import annotations

import numpy as np
import torch
from neuralforecast import NeuralForecast, models
from neuralforecast.utils import generate_series

from projects.project import Project, quiet, variants


class Forecasts(Project):
    """50 daily series with a weekly season; 14 days from 56, the last 14 for validation."""

    package = "neuralforecast"

    def fit(self) -> None:
        self.table = generate_series(50, freq="D", min_length=150, max_length=300)
        more = {"max_steps": self.steps, "enable_checkpointing": False}
        model = getattr(models, self.cell)(
            h=14,
            input_size=56,
            val_check_steps=self.steps,
            random_seed=self.seed,
            **quiet(self.watch, **more),
        )
        self.forecast = NeuralForecast([model], freq="D")
        self.forecast.fit(self.table, val_size=14)

    def validation(self) -> float:
        return self.forecast.models[0].valid_trajectories[-1][1]

    def output(self) -> torch.Tensor:
        table = self.forecast.predict(df=self.table)
        return torch.from_numpy(table[self.cell].to_numpy(np.float64))

    def reload(self) -> None:
        self.forecast.save(str(self.folder / "forecast"), overwrite=True, save_dataset=False)
        self.forecast = NeuralForecast.load(str(self.folder / "forecast"))


PROJECTS = variants(
    Forecasts,
    NeuralForecast_LSTM={"cell": "LSTM"},
    NeuralForecast_GRU={"cell": "GRU"},
    NeuralForecast_RNN={"cell": "RNN"},
)
