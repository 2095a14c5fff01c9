"""Sequences from a table or a folder of arrays of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.packages import package_file
from lightning_lrnn.data.sequence_data import SequenceData
from lightning_lrnn.data.sequences import SequenceRows
from lightning_lrnn.data.splits import PARTS, split
from lightning_lrnn.data.table_columns import (
    chosen,
    class_names,
    class_of,
    classes_of_steps,
    numbers,
)
from lightning_lrnn.data.table_files import Series, read_series
from lightning_lrnn.data.table_rows import (
    ForecastRows,
    Span,
    StepRows,
    forecast_starts,
    spans_by_time,
    step_spans,
)
from lightning_lrnn.data.table_scaling import Array, fit_scalings, refuse_gaps, scaled_inputs
from lightning_lrnn.data.windows import IGNORE

__all__ = ["SequenceTable"]

TASKS = ("forecast", "classify", "tag")
Name = str | int


class SequenceTable(SequenceData):
    """Series from a CSV or Parquet table, or from a folder of such tables or of NumPy arrays.

    A series is the rows of a group in order of time, or a file; see
    `lightning_lrnn.data.table_files.read_series` for how columns are named. A row is a step: gaps
    in time are not filled. Tables need `pip install "lightning-lrnn[table]"`.

    Tasks:

    - "forecast": from `window` steps of the features the next `horizon` values of the columns in
      `target`. All windows that are `stride` steps apart.
    - "classify": the class of a series, which is the one value of the column `target`, or the name
      of the folder of its file if there is no `target`. Series without class are left out.
    - "tag": the class of each step, the value of the column `target`; steps without one are left
      out (`IGNORE`).

    Parts: by group, as `lightning_lrnn.data.splits.split` deals them out by their names and, for
    "classify", classes; or by time, where each series is cut in three, and its last part is the
    test's. A window belongs to a part if all its targets lie there, otherwise to none. The inputs
    of a forecast may reach back into the part before, which is known by then.

    Scaling is fitted on the steps of the training part alone. A column that is constant there is
    divided by 1.

    Args:
        path: a file or a folder.
        task: "forecast", "classify" or "tag".
        target: the column, for a forecast also several.
        features: columns of the inputs; None for all but those in `group` and `time`, and for a
            forecast with, else without, those in `target`. What will be known of the future is no
            input of a forecast.
        group: column or columns that tell series apart; None if a file is a series.
        time: column to sort a series by, numbers or dates; None for the order of the file.
        window: steps of a sequence; None for whole series, but in forecasts.
        stride: steps from window to window; None for 1 in a forecast, else for `window`.
        horizon: steps ahead of a forecast.
        classes: names of the classes, in the order of their numbers; None for all in the data,
            sorted.
        split_by: "group" or "time"; None for "time" in a forecast, else for "group".
        scaling: "standard" for mean 0 and standard deviation 1 over all series of the training
            part; "group" for each series by itself, which can only be if split by time; "none".
        missing: what to do about features that are NaN: "error", or "mean" to put the mean of the
            training part there (0 after scaling).
        package: an installed package in whose folder `path` is.
        batch_size: see `SequenceData`, as for all that follow.
        val_fraction: ".
        test_fraction: ".
        seed: ".
        packed: ".
        bucket: ".
        drop_last: ".
        num_workers: ".

    Attributes:
        feature_names: columns of the inputs; from `setup` on.
        target_names: columns of the targets; from `setup` on.

    Raises:
        DataError: for arguments that cannot be, or not together. In `setup`: for columns that are
            not there, or are no numbers, and for parts without a window.
    """

    def __init__(
        self,
        path: str,
        task: Literal["forecast", "classify", "tag"],
        target: Name | list[Name] | None = None,
        features: list[Name] | None = None,
        group: Name | list[Name] | None = None,
        time: str | None = None,
        window: int | None = None,
        stride: int | None = None,
        horizon: int | None = None,
        classes: list[Name] | None = None,
        split_by: Literal["group", "time"] | None = None,
        scaling: Literal["standard", "group", "none"] = "standard",
        missing: Literal["error", "mean"] = "error",
        package: str | None = None,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        packed: bool = False,
        bucket: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            packed=packed,
            bucket=bucket,
            drop_last=drop_last,
            num_workers=num_workers,
        )
        self.path, self.package, self.task = path, package, task
        self.target, self.group, self.time = _names(target), _names(group), time
        self.features = None if features is None else _names(features)
        self.window, self.horizon = window, horizon or 0
        self.stride = stride or (1 if task == "forecast" else window) or 1
        self.split_by = split_by or ("time" if task == "forecast" else "group")
        self.scaling, self.missing = scaling, missing
        self.classes = _names(classes)
        self.feature_names: list[str] = []
        self.target_names: list[str] = []
        for name, value, known in (
            ("task", task, TASKS),
            ("split_by", self.split_by, ("group", "time")),
            ("scaling", scaling, ("standard", "group", "none")),
            ("missing", missing, ("error", "mean")),
        ):
            if value not in known:
                raise DataError(f"`{name}` must be one of {', '.join(known)}, got {value!r}")
        for name, size in (("window", window), ("stride", stride), ("horizon", horizon)):
            if size is not None and size < 1:
                raise DataError(f"`{name}` must be at least 1, got {size}")
        if problem := self._problem():
            raise DataError(problem)

    def _problem(self) -> str | None:
        """What is wrong with the arguments together."""
        forecast = self.task == "forecast"
        if forecast and not (self.target and self.window and self.horizon):
            return "`task: forecast` needs `target`, `window` and `horizon`"
        if forecast and self.classes:
            return "a forecast has no `classes`: leave them out, or take `task: classify` or `tag`"
        if not forecast and self.horizon:
            return f"`horizon` is for `task: forecast`, not for {self.task!r}: leave it out"
        if not forecast and len(self.target) > 1:
            return f"`task: {self.task}` has one column in `target`, got {', '.join(self.target)}"
        if self.task == "tag" and not self.target:
            return "`task: tag` needs `target`, the column with the class of each step"
        if self.task == "classify" and self.split_by == "time":
            return "a series has one class, so `task: classify` can only be split by group"
        if self.scaling == "group" and self.split_by == "group":
            return (
                "`scaling: group` needs `split_by: time`: of a group that is held out as a whole "
                "there is nothing to fit a scale on"
            )
        return None

    @property
    def num_targets(self) -> int:
        """Columns of a forecast."""
        self.setup()
        return len(self.target_names) if self.task == "forecast" else 0

    def make_parts(self) -> dict[str, SequenceRows]:
        """Reads, splits, scales and cuts."""
        path = Path(self.path).expanduser()
        if self.package is not None:
            path = package_file(self.package, self.path)
        series = read_series(path, self.group, self.time)
        self.target_names = chosen(self.target, series[0], "target")
        self.feature_names = self._features(series[0])
        features = [numbers(one, self.feature_names) for one in series]
        if self.task == "forecast":
            spans = self._spans(series)
            return self._forecasts(series, features, spans)
        return self._classes(series, features)

    def _features(self, series: Series) -> list[str]:
        if self.features is not None:
            return chosen(self.features, series, "features")
        apart = {*self.group, *([self.time] if self.time is not None else [])}
        if self.task != "forecast":
            apart |= set(self.target_names)
        if found := [name for name in series.columns if name not in apart]:
            return found
        raise DataError(f"{series.source} has no column left that could be a feature")

    def _spans(
        self, series: Sequence[Series], strata: Sequence[int] | None = None
    ) -> dict[str, list[Span]]:
        """The steps of each part."""
        if self.split_by == "time":
            cut = [
                spans_by_time(i, len(one), self.val_fraction, self.test_fraction)
                for i, one in enumerate(series)
            ]
            return {part: [spans[part] for spans in cut] for part in PARTS}
        names = [one.name for one in series]
        what = "series (files, or values of `group`)"
        parts = split(names, self.val_fraction, self.test_fraction, self.seed, strata, what)
        return {
            part: [Span(i, 0, len(series[i])) for i in members] for part, members in parts.items()
        }

    def _forecasts(
        self, series: Sequence[Series], features: list[Array], spans: dict[str, list[Span]]
    ) -> dict[str, SequenceRows]:
        values = [numbers(one, self.target_names) for one in series]
        scalings = fit_scalings(values, spans["train"], self.target_names, self.scaling)
        inputs = self._inputs(series, features, spans["train"])
        targets = [
            torch.from_numpy(scaling(value))
            for scaling, value in zip(scalings, values, strict=True)
        ]
        offset = [torch.tensor(scaling.mean[None], dtype=torch.float32) for scaling in scalings]
        scale = [torch.tensor(scaling.std[None], dtype=torch.float32) for scaling in scalings]
        window, horizon = self.window or 1, self.horizon
        parts: dict[str, SequenceRows] = {}
        for part, within in spans.items():
            starts = [
                (span.series, start)
                for span in within
                for start in forecast_starts(span, window, horizon, self.stride)
            ]
            if not starts:
                longest = max(span.stop - span.start for span in within)
                raise DataError(
                    f"no window of {window} steps with {horizon} to forecast has its targets in "
                    f"the {part} part, where the longest series has {longest} steps: make them "
                    "shorter, the part larger, or give more data"
                )
            parts[part] = ForecastRows(inputs, targets, starts, window, horizon, offset, scale)
        return parts

    def _classes(self, series: Sequence[Series], features: list[Array]) -> dict[str, SequenceRows]:
        column = self.target_names[0] if self.target_names else None
        if not self.classes:
            self.classes = class_names(series, column)
        strata: list[int] | None = None
        targets: list[Tensor]
        if self.task == "tag":
            assert column is not None
            targets = [
                torch.from_numpy(classes_of_steps(one, column, self.classes)) for one in series
            ]
        else:
            found = [class_of(one, column, self.classes) for one in series]
            kept = [i for i, number in enumerate(found) if number != IGNORE]
            series, features = [series[i] for i in kept], [features[i] for i in kept]
            strata = [found[i] for i in kept]
            targets = [torch.tensor(number) for number in strata]
        if len(self.classes) < 2:
            told = ", ".join(self.classes) or "none"
            raise DataError(f"at least two classes are needed, the data have {told}")
        spans = self._spans(series, strata)
        inputs = self._inputs(series, features, spans["train"])
        parts: dict[str, SequenceRows] = {}
        for part, within in spans.items():
            windows = [w for span in within for w in step_spans(span, self.window, self.stride)]
            if not windows:
                raise DataError(f"the {part} part has no steps: make it larger, or give more data")
            parts[part] = StepRows(inputs, targets, windows)
        return parts

    def _inputs(
        self, series: Sequence[Series], features: list[Array], train: Sequence[Span]
    ) -> list[Tensor]:
        """Scaled, without gaps."""
        if self.missing == "error":
            refuse_gaps(series, features, self.feature_names)
        return scaled_inputs(features, train, self.feature_names, self.scaling)


def _names(given: Name | Sequence[Name] | None) -> list[str]:
    if given is None:
        return []
    return [str(name) for name in ([given] if isinstance(given, (str, int)) else given)]
