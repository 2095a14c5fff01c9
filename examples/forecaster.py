"""Subclassing Forecaster: forecasts that start from the last value, on the weather of Seattle."""

import pytorch_lightning as pl
import torch

from lightning_lrnn.data import SequenceTable
from lightning_lrnn.modules import Forecaster


class ChangeForecaster(Forecaster):
    """Predicts how much the target will have changed; its first feature is the target's past."""

    def forward(self, inputs, state=None, reset=None, lengths=None):
        raw, state = super().forward(inputs, state, reset, lengths)
        location = torch.zeros_like(raw)
        location[..., 0] = inputs[:, -1, :1, None]  # as both are scaled alike
        return raw + location, state


def main(epochs=15):
    data = SequenceTable(
        "_data/seattle-weather.csv",
        "forecast",
        package="vega_datasets",
        features=["temp_max", "temp_min", "precipitation", "wind"],
        target="temp_max",
        time="date",
        window=28,
        horizon=3,
        val_fraction=0.25,
        test_fraction=0.25,
    )
    found = {}
    for kind in (Forecaster, ChangeForecaster):
        pl.seed_everything(0)
        model = kind(4, 3, head="student_t", hidden_size=32, num_layers=1, dropout=0.2)
        trainer = pl.Trainer(
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        (found[kind.__name__],) = trainer.test(model, data, verbose=False)
    for name, figures in found.items():
        print(f"{name:16s} MAE {figures['test/mae']:.2f} °C, CRPS {figures['test/crps']:.2f} °C")
    return found


if __name__ == "__main__":
    main()
