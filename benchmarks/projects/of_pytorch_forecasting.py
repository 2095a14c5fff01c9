"""Models of pytorch-forecasting on its own generator of autoregressive series."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytorch_forecasting
import torch
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.data.examples import generate_ar_data

from projects.project import Project, quiet, variants


class Forecaster(Project):
    """20 series of 120 steps, the last 10 of each held out; encoders of up to 30."""

    package, architecture = "pytorch-forecasting", "DeepAR"

    def data(self) -> None:
        table = generate_ar_data(seasonality=10.0, timesteps=120, n_series=20, seed=42)
        table["static"] = "2"
        columns: dict[str, Any] = {"time_idx": "time_idx", "target": "value"}
        columns |= {"group_ids": ["series"], "time_varying_unknown_reals": ["value"]}
        columns |= {"max_encoder_length": 30, "max_prediction_length": 10}
        if self.architecture == "TemporalFusionTransformer":
            columns |= {"min_encoder_length": 0, "add_relative_time_idx": True}
            columns |= {"static_categoricals": ["static"]}
        else:
            columns |= {"min_encoder_length": 10}
        self.training = TimeSeriesDataSet(table[table.time_idx < 110], **columns)
        held_out = TimeSeriesDataSet.from_dataset(self.training, table, min_prediction_idx=110)
        self.loaders = [
            self.training.to_dataloader(train=True, batch_size=64),
            held_out.to_dataloader(train=False, batch_size=64),
        ]

    def fit(self) -> None:
        self.data()
        sizes: dict[str, Any] = {"hidden_size": 30, "dropout": 0.1}
        if self.architecture == "TemporalFusionTransformer":
            sizes |= {"hidden_continuous_size": 8, "attention_head_size": 1, "lstm_layers": 2}
        else:
            sizes |= {"rnn_layers": 2, "cell_type": self.cell}
        make = getattr(pytorch_forecasting, self.architecture)
        self.model = make.from_dataset(self.training, learning_rate=1e-2, **sizes)
        more = {"max_steps": self.steps, "max_epochs": -1, "enable_checkpointing": False}
        self.trainer = pl.Trainer(**quiet(self.watch, **more), gradient_clip_val=0.1)
        self.trainer.fit(self.model, self.loaders[0])

    def validation(self) -> float:
        plain = pl.Trainer(**quiet(self.watch), enable_checkpointing=False)
        return plain.validate(self.model, self.loaders[1], verbose=False)[0]["val_loss"]

    def output(self) -> torch.Tensor:
        x, _ = next(iter(self.loaders[1]))
        torch.manual_seed(0)
        with torch.no_grad():
            return self.model.eval()(x)["prediction"]

    def reload(self) -> None:
        path = self.folder / "forecaster.ckpt"
        self.trainer.save_checkpoint(path)
        self.model = type(self.model).load_from_checkpoint(path, weights_only=False)


PROJECTS = variants(
    Forecaster,
    DeepAR_LSTM={"cell": "LSTM"},
    DeepAR_GRU={"cell": "GRU"},
    RecurrentNetwork_LSTM={"architecture": "RecurrentNetwork", "cell": "LSTM"},
    RecurrentNetwork_GRU={"architecture": "RecurrentNetwork", "cell": "GRU"},
    TemporalFusionTransformer={"architecture": "TemporalFusionTransformer", "cell": "LSTM"},
)
