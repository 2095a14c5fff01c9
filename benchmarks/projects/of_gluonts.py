"""DeepAR of GluonTS with its own settings, on daily series with a weekly season."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import ListDataset
from gluonts.torch import DeepAREstimator, PyTorchPredictor

from projects.project import Project, quiet

DAYS, AHEAD = 400, 14


class DeepAR(Project):
    """30 series of 400 days, the last 14 held out; 50 batches of 32 an epoch."""

    package, cell = "gluonts", "LSTM"

    def fit(self) -> None:
        draw = np.random.default_rng(0)
        t = np.arange(DAYS)
        season = draw.uniform(0.5, 2, (30, 1)) * np.sin(2 * np.pi * (t / 7 + draw.random((30, 1))))
        values = 10 + season + draw.normal(0, 0.05, (30, DAYS)).cumsum(1)
        values += draw.normal(0, 0.2, values.shape)
        start = pd.Period("2020-01-01", freq="D")
        self.past, whole = (
            ListDataset([{"target": row, "start": start} for row in rows], freq="D")
            for rows in (values[:, :-AHEAD], values)
        )
        batches = min(self.steps, 50)
        options = quiet(self.watch, max_epochs=self.steps // batches)
        estimator = DeepAREstimator(
            freq="D",
            prediction_length=AHEAD,
            num_batches_per_epoch=batches,
            trainer_kwargs=options | {"default_root_dir": str(self.folder)},
        )
        trained = estimator.train_model(self.past, whole)
        self.predictor, self.trainer = trained.predictor, trained.trainer

    def validation(self) -> float:
        return float(self.trainer.callback_metrics["val_loss"])

    def output(self) -> torch.Tensor:
        torch.manual_seed(0)
        samples = [forecast.samples for forecast in self.predictor.predict(self.past)]
        return torch.from_numpy(np.stack(samples))

    def reload(self) -> None:
        path = self.folder / "predictor"
        path.mkdir()
        self.predictor.serialize(path)
        self.predictor = PyTorchPredictor.deserialize(path)


PROJECTS = {"GluonTS-DeepAR": DeepAR}
