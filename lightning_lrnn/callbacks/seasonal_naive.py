"""The seasonal naive forecast as a baseline for the model's metrics."""

from __future__ import annotations

import math
from itertools import chain, islice
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.probes.season import NaiveErrors, naive_errors, season_of
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.tables.rows import ForecastRows

__all__ = ["SeasonalNaive"]


class SeasonalNaive(Callback):
    """Compares a Forecaster with the seasonal naive forecast: the value of a season before.

        naive_{t+k} = y_{t+k-js}    j = 1, 2, ... the least for which it is known at step t

    for a season of s steps. In validation and test it logs, in the user's units and over the
    windows and targets of the model's own metrics,

        <stage>/naive_mae           mean |y - naive|
        <stage>/skill               1 - crps / naive_mae, of the CRPS that the model logs

    The CRPS of a point forecast is its absolute error, so that naive_mae compares with the model's
    crps and mae alike; its mean pinball loss, over levels that are symmetric about 1/2, is half of
    that. A skill of 0.3 is a CRPS 30 % below that of the baseline; below 0 the model is worse. At
    the end of `fit`, `validate` and `test` a line has both, and MAE beside MAE.

    A season is a number of rows of the data, whose `freq` fills in missing ones. A target that is
    NaN is left out. So is a known target without a known value in any season before; the printed
    line has the number of these. Where processes share the windows, the metrics are of all.

    Args:
        season: steps; "auto" for those of a day, if steps are shorter, of a week (7) for days, of a
            year for weeks (52), months (12) and quarters (4), by the times of the data.

    Raises:
        ValueError: for a season that cannot be. lightning_lrnn.data.DataError, when a run starts:
            for other models, other data than a SequenceTable in memory, a season that is longer
            than the known steps before a window's targets, and times without a clear season.
    """

    def __init__(self, season: int | Literal["auto"] = "auto") -> None:
        number = isinstance(season, int) and not isinstance(season, bool)
        if season != "auto" and not (number and season > 0):
            raise ValueError(
                f"`season` must be 'auto' or a number of steps of at least 1, got {season!r}"
            )
        self.season = season
        self._steps = self._batches = 0
        # By stage and number of batches, as they do not depend on the model.
        self._cached: dict[tuple[str, int], NaiveErrors] = {}
        self._line = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the data of a run before."""
        self._cached, self._line, self._steps = {}, "", 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises for models and data without this baseline, before anything is trained."""
        if trainer.enable_validation:
            self._prepare(trainer, pl_module, "val")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises for models and data without this baseline."""
        self._prepare(trainer, pl_module, "val")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises for models and data without this baseline."""
        self._prepare(trainer, pl_module, "test")

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *of_batch: Any
    ) -> None:
        """Counts evaluated batches, which may be fewer than there are."""
        self._batches += 1

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *of_batch: Any
    ) -> None:
        """See `on_validation_batch_end`."""
        self._batches += 1

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the baseline and the skill."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the baseline and the skill."""
        self._log(trainer, pl_module, "test")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line of the last validation."""
        self._print_line()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line, unless training goes on."""
        if trainer.state.fn == "validate":
            self._print_line()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line."""
        self._print_line()

    def _print_line(self) -> None:
        if self._line:
            rank_zero_info(self._line)

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sets the season; raises where there is no baseline."""
        data = getattr(trainer, "datamodule", None)
        rows = self._rows(trainer, stage) if hasattr(pl_module, "quantiles") else None
        if rows is None:
            raise DataError(
                "SeasonalNaive is for a Forecaster and a SequenceTable with `task: forecast` in "
                f"memory, not for {type(pl_module).__name__} and {type(data).__name__}: leave it "
                "out, or `in_memory`"
            )
        series = data.series  # type: ignore[union-attr]
        self._batches = 0
        if not self._steps:
            self._steps = season_of(series) if self.season == "auto" else int(self.season)
        index, start = min(rows.starts, key=lambda at: at[1])
        if start + rows.window < self._steps:
            raise DataError(
                f"a season is {self._steps} steps, but of {series[index].name} only "
                f"{start + rows.window} are known before the targets of a window of the {stage} "
                f"part: give the data a `window` of {self._steps}, or a shorter `season`"
            )

    @staticmethod
    def _rows(trainer: pl.Trainer, stage: str) -> ForecastRows | None:
        """The windows of the data for a stage; None for other data."""
        data: Any = getattr(trainer, "datamodule", None)
        rows = data.part(stage) if hasattr(type(data), "series") else None
        return rows if isinstance(rows, ForecastRows) else None

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        errors = self._summed(trainer, self._errors(trainer, stage))
        logged = trainer.callback_metrics
        if not {f"{stage}/crps", f"{stage}/mae"} <= logged.keys():
            raise DataError(
                f"SeasonalNaive needs {stage}/crps and mae, which {type(pl_module).__name__} does "
                "not log: leave the callback out"
            )
        crps = logged[f"{stage}/crps"].double().cpu()
        naive = torch.tensor(errors.total, dtype=torch.float64) / errors.targets
        skill = 1 - crps / naive
        values = {f"{stage}/naive_mae": naive.float(), f"{stage}/skill": skill.float()}
        pl_module.log_dict(values, batch_size=1, sync_dist=True)
        if not trainer.sanity_checking:
            mae = float(logged[f"{stage}/mae"])
            self._line = self._summary(stage, mae, float(crps), float(naive), errors)

    def _errors(self, trainer: pl.Trainer, stage: str) -> NaiveErrors:
        """The baseline's errors in the windows that this process has evaluated."""
        key = stage, self._batches
        if key not in self._cached:
            loop = trainer.validate_loop if stage == "val" else trainer.test_loop
            if trainer.state.fn == "fit":
                loop = trainer.fit_loop.epoch_loop.val_loop
            # Not `trainer.val_dataloaders`: those of `fit`, also in a later `validate`.
            loader: Any = loop._combined_loader.iterables  # type: ignore[union-attr]
            rows = self._rows(trainer, stage)
            if rows is None or getattr(loader, "dataset", ...) is not rows:
                raise DataError(
                    "SeasonalNaive needs the windows of the SequenceTable itself: give the trainer "
                    "the data, not loaders, or leave the callback out"
                )
            windows = chain.from_iterable(islice(loader.batch_sampler, self._batches))
            self._cached[key] = naive_errors(rows, windows, self._steps)
        return self._cached[key]

    @staticmethod
    def _summed(trainer: pl.Trainer, errors: NaiveErrors) -> NaiveErrors:
        """Errors summed over processes; those that share a sequence count the same."""
        if trainer.world_size == 1:
            return errors
        local = torch.tensor(errors, dtype=torch.float64, device=trainer.strategy.root_device)
        total, targets, left_out = trainer.strategy.all_gather(local).view(-1, 3).sum(0).tolist()
        return NaiveErrors(total, int(targets), int(left_out))

    def _summary(
        self, stage: str, mae: float, crps: float, naive: float, errors: NaiveErrors
    ) -> str:
        # Between a point forecast and quantiles the CRPS alone would say too much.
        less, skill = (1 - of_model / naive if naive else -math.inf for of_model in (mae, crps))
        line = (
            f"SeasonalNaive, {stage}: the MAE of the values one season of {self._steps} steps "
            f"before is {naive:.4g}, the model's {mae:.4g}, {abs(less):.1%} "
            f"{'less' if less > 0 else 'more'}. The model's CRPS, which also counts its other "
            f"quantiles, is {crps:.4g}: skill {skill:.1%}."
        )
        if errors.left_out:
            line += (
                f" {errors.left_out:,} targets are known in no season before, and left out of it; "
                f"{errors.targets:,} are in."
            )
        return line
