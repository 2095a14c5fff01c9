"""Sequences from a table or a folder of arrays of your own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from lightning_lrnn.core.checks import check_choice, check_counts, check_flags
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.packages import package_file
from lightning_lrnn.data.paths import check_path
from lightning_lrnn.data.samplers import Order, part_of_data
from lightning_lrnn.data.sequence_data import SequenceData, state_of
from lightning_lrnn.data.sequences import SequenceRows
from lightning_lrnn.data.splits import PARTS, split
from lightning_lrnn.data.tables.calendar import (
    TIME_FEATURES,
    category_names,
    is_steady,
    one_hot_names,
    refuse_unseen,
    with_calendar,
    with_categories,
)
from lightning_lrnn.data.tables.columns import (
    chosen,
    class_names,
    class_of,
    classes_of_steps,
    numbers,
)
from lightning_lrnn.data.tables.csv_files import CsvFormat
from lightning_lrnn.data.tables.files import Series, listed, read_series
from lightning_lrnn.data.tables.fitted import (
    MOST,
    Array,
    ColumnScaling,
    carried_on,
    gaps_of,
    refuse_gaps,
    refuse_unknown,
    report_filled,
)
from lightning_lrnn.data.tables.forecasts import (
    KnownSeries,
    forecast_table,
    known_series,
    report_early_ends,
    warn_of_short,
)
from lightning_lrnn.data.tables.grid import Grid, continued, on_grid, warn_of_jumps
from lightning_lrnn.data.tables.row_groups import RowGroups, RowReader
from lightning_lrnn.data.tables.rows import (
    ForecastRows,
    Span,
    StepRows,
    forecast_starts,
    spans_by_time,
    step_spans,
)
from lightning_lrnn.data.tables.streamed import (
    PoolOrder,
    StreamedForecasts,
    find_series,
    scaling_by,
    train_moments,
)
from lightning_lrnn.data.tables.times import check_format, check_zone
from lightning_lrnn.data.text.windows import IGNORE

__all__ = ["SequenceTable"]

TASKS = ("forecast", "classify", "tag")
Name = str | int
UNNAMED = re.compile(r"\s*|(Unnamed: \d+|__index_level_\d+__)(\.\d+)?")
"""Columns that pandas and pyarrow make of an index without name."""


class SequenceTable(SequenceData):
    """Series from a CSV or Parquet table, or from a folder of such tables or of NumPy arrays.

    A series is the rows of a group in order of time, or a file; see
    `lightning_lrnn.data.tables.files.read_series` for how columns are named. A row is a step: gaps
    in time are closed up, which a warning tells, but with `freq`. Tables need
    `pip install "lightning-lrnn[table]"`.

    Tasks:

    - "forecast": from `window` steps of the features the next `horizon` values of the columns in
      `target`. All windows that are `stride` steps apart. With `known` the inputs go on for the
      steps ahead, with what is known of them, 0 for the rest, and a last column that is 1 there:
      (window + horizon, F + 1), for a `Forecaster` with `ahead`.
    - "classify": the class of a series, which is the one value of the column `target`, or the name
      of the folder of its file if there is no `target`. Series without class are left out.
    - "tag": the class of each step, the value of the column `target`; steps without one are left
      out (`IGNORE`).

    Parts: by group, as `lightning_lrnn.data.splits.split` deals them out by their names and, for
    "classify", classes; or by time, where each series is cut in three, and its last part is the
    test's. A window belongs to a part if all its targets lie there, otherwise to none. The inputs
    of a forecast may reach back into the part before, which is known by then.

    Scaling is fitted on the steps of the training part alone. A column that is constant there is
    divided by 1. It is kept in the model's checkpoint, with the classes and the names of the
    columns: other data are scaled as those that the model was trained on, and a warning tells which
    columns are far from where they were, and which series are new. Parts may be empty then, until
    they are asked for.

    Not in memory: of a Parquet table that is sorted by group and time the windows of a forecast are
    read when they are asked for, by row groups, of which a few are in memory. In training row
    groups are shuffled, and the windows of as many as 128 MiB hold at a time. Each process reads
    its own part of the table, windows that lie side by side; when the data are set up processes
    share out what has to be read to find the series and to fit the scaling, which that of a trained
    model is not compared with.

    Args:
        path: a file or a folder.
        task: "forecast", "classify" or "tag".
        target: the column, for a forecast also several.
        features: columns of the inputs; None for all but those in `group` and `time`, and for a
            forecast with, else without, those in `target`; of a trained model, those it was trained
            with. Columns without a name, as pandas writes its index, are none. What `known`,
            `time_features` and `categories` make is added.
        group: column or columns that tell series apart; None if a file is a series.
        time: column to sort a series by, numbers or dates; None for the order of the file. Rows at
            the end whose targets are all empty are the future of a forecast, in no part.
        time_zone: of times without offset, such as "Europe/Berlin": what its clocks show. Forecasts
            are written in it.
        freq: spacing of the rows, as pandas names it ("1h", "15min", "D", "MS"), or a number for
            times that are numbers: rows that are missing are put in, told, and empty but for
            `group` and `categories` that do not change in a group, so that no window jumps. A
            target that is empty counts nowhere; for features see `missing`.
        time_features: of "hour", "weekday" and "month", as sin and cos; see
            `lightning_lrnn.data.tables.calendar.with_calendar`.
        categories: columns of names: each value has an input that is 1 where a row has it, of which
            the model's encoder makes an embedding. For empty cells see `missing`; a value that the
            model was not trained with is an error.
        known: features that are known of the steps ahead of a forecast, in the rows behind the last
            target; `time_features` and `categories` are as well. [] for these alone, None to use
            nothing of the future. A category that does not change in a group needs no such rows.
        window: steps of a sequence; None for whole series, but in forecasts.
        stride: steps from window to window; None for 1 in a forecast, else for `window`.
        horizon: steps ahead of a forecast.
        classes: names of the classes, in the order of their numbers; None for all in the data,
            sorted.
        split_by: "group" or "time"; None for "time" in a forecast, else for "group".
        scaling: "standard" for mean 0 and standard deviation 1 over all series of the training
            part; "group" for each series by itself, which can only be if split by time; "none".
        missing: what to do about features that have no value: "error", "mean" to put the mean of
            the training part there (0 after scaling), or "last" to put the value before there, the
            mean before the first. How many are filled is told. `known` features that end before the
            forecast does are an error.
        predict: what is predicted: the test part, or, of a forecast, the "future", what comes after
            the last known target of each series; see `forecast_table`.
        checkpoint: a file of a trained model, whose scaling and classes are taken. By `ckpt_path`,
            and of a model from `load_from_checkpoint`, they are taken without being named here.
        refit: fit scaling and classes to these data, whatever the model was trained with.
        separator: between the cells of a CSV table.
        decimal: "." or ",", of a CSV table.
        encoding: of a CSV table.
        thousands: what numbers of a CSV table may have between groups of three digits, such as ".".
        time_format: of times that are text, as `datetime.strptime` has it; None for dates that are
            told by themselves, see `lightning_lrnn.data.tables.times.to_times`.
        package: an installed package in whose folder `path` is.
        in_memory: False for a table that is larger than memory, see above.

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
        missing: Literal["error", "mean", "last"] = "error",
        predict: Literal["test", "future"] = "test",
        checkpoint: str | None = None,
        refit: bool = False,
        separator: str = ",",
        decimal: str = ".",
        encoding: str = "utf-8",
        time_format: str | None = None,
        time_zone: str | None = None,
        freq: str | float | None = None,
        time_features: list[str] | None = None,
        categories: Name | list[Name] | None = None,
        known: list[Name] | None = None,
        package: str | None = None,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        packed: bool = False,
        bucket: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
        in_memory: bool = True,
        thousands: str | None = None,
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
        check_path(path)
        check_path(package, what="package")
        self.path, self.package, self.task = path, package, task
        self.target, self.group = _names("target", target), _names("group", group)
        self.features = None if features is None else _names("features", features)
        self.time = time
        self.window, self.horizon = window, horizon or 0
        self.stride = stride or (1 if task == "forecast" else window) or 1
        by_task = "time" if task == "forecast" else "group"
        self.split_by = by_task if split_by is None else split_by
        self.scaling, self.missing, self.predict = scaling, missing, predict
        self.checkpoint, self.refit, self.in_memory = checkpoint, refit, in_memory
        self.time_format = time_format
        self.form = CsvFormat(separator, decimal, encoding, thousands)
        self.time_zone, self.grid = time_zone, None if freq is None else Grid(str(freq), time_zone)
        self.time_features = _names("time_features", time_features)
        self.categories = _names("categories", categories)
        self.known = None if known is None else _names("known", known)
        self._values: dict[str, list[str]] = {}
        self._steady: list[str] = []
        self.classes = self._named_classes = _names("classes", classes)
        self.feature_names: list[str] = []
        self.target_names: list[str] = []
        self._lacking: dict[str, str] = {}
        self._known: list[KnownSeries] = []
        for name, value, choices in (
            ("task", task, TASKS),
            ("split_by", self.split_by, ("group", "time")),
            ("scaling", scaling, ("standard", "group", "none")),
            ("missing", missing, ("error", "mean", "last")),
            ("predict", predict, ("test", "future")),
        ):
            check_choice(choices, DataError, **{name: value})
        for name in self.time_features:
            check_choice(TIME_FEATURES, DataError, time_features=name)
        for name, size in (("window", window), ("stride", stride), ("horizon", horizon)):
            if size is not None:
                check_counts(1, DataError, **{name: size})
        for name, names in (
            ("target", self.target),
            ("features", self.features or []),
            ("group", self.group),
            ("classes", self.classes),
            ("categories", self.categories),
            ("known", self.known or []),
        ):
            if twice := sorted({one for one in names if names.count(one) > 1}):
                raise DataError(f"`{name}` has {', '.join(twice)} more than once")
        check_flags(DataError, refit=refit, in_memory=in_memory)
        self.form.check()
        check_format(time_format)
        check_zone(time_zone)
        if problem := self._problem():
            raise DataError(problem)

    def _problem(self) -> str | None:
        """What is wrong with the arguments together."""
        if self.features == []:
            return "`features` is empty: leave it out for all columns"
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
        if not forecast and self.known is not None:
            return f"`known` is for `task: forecast`, not for {self.task!r}: leave it out"
        if self.time is None and (self.grid or self.time_features or self.time_zone):
            return "`freq`, `time_zone` and `time_features` need `time`, the column of the times"
        if both := sorted({*(self.known or [])} & {*self.target}):
            return f"`known` has the target {both[0]!r}, which is what is to be forecast"
        if not forecast and self.predict == "future":
            return f"`predict: future` is for `task: forecast`, not for {self.task!r}: leave it out"
        if self.task == "classify" and self.split_by == "time":
            return "a series has one class, so `task: classify` can only be split by group"
        if self.scaling == "group" and self.split_by == "group":
            return (
                "`scaling: group` needs `split_by: time`: of a group that is held out as a whole "
                "there is nothing to fit a scale on"
            )
        return None if self.in_memory else self._not_streamed()

    def _not_streamed(self) -> str | None:
        """What cannot be done with a table that is not in memory."""
        for refused, option in (
            (self.task != "forecast", f"`task: {self.task}`"),
            (self.predict == "future", "`predict: future`"),
            (self.scaling == "group", "`scaling: group`"),
            (self.bucket > 1, "`bucket`"),
            (self.grid is not None, "`freq`"),
            (self.known is not None, "`known`"),
            (bool(self.time_features), "`time_features`"),
            (bool(self.categories), "`categories`"),
            (self.missing == "last", "`missing: last`"),
        ):
            if refused:
                return f"{option} needs a table in memory: leave `in_memory` out"
        return None

    @property
    def num_targets(self) -> int:
        """Number of columns that are forecast; 0 for other tasks."""
        self.setup()
        return len(self.target_names) if self.task == "forecast" else 0

    @property
    def series(self) -> list[KnownSeries]:
        """Names and times of the series, in the order in which rows number them.

        Raises:
            DataError: if they are not in memory.
        """
        if not self.in_memory:
            raise DataError("the times of series need them in memory: leave `in_memory` out")
        self._make()
        return self._known

    def part(self, name: str) -> SequenceRows:
        """The rows of "train", "val" or "test", or, with `predict: future`, of "future".

        Raises:
            DataError: if there are none.
        """
        self._make()
        if name in self._lacking:
            raise DataError(self._lacking[name])
        return super().part(name)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the part that `predict` names, in order."""
        return self._loader(self.part(self.predict), batch_size=self.batch_size)

    def forecast_table(
        self, predictions: Sequence[Tensor], quantiles: Sequence[float]
    ) -> dict[str, list[Any]]:
        """What `Trainer.predict` returned, as columns of a table.

            table = data.forecast_table(trainer.predict(model, data), model.quantiles)
            pandas.DataFrame(table).to_csv("forecast.csv", index=False)

        The callback `lightning_lrnn.callbacks.WriteForecast` writes them without code.

        Args:
            predictions: batch by batch, (B, horizon, targets, levels), in the user's units.
            quantiles: the levels.

        Returns:
            The columns of `group` ("series" for several files), that of `time` ("step" without
            one), "steps_ahead" (1 to `horizon`), "target", and one for each level, such as "0.5".
            Rows are sorted as the predictions are: window, step ahead, target. Times beyond the
            table go on as in it.

        Raises:
            DataError: if they are not the predictions for these data, or two columns would have
                one name.
        """
        if not self.in_memory:
            raise DataError("a table of forecasts needs one in memory: leave `in_memory` out")
        rows = self.part(self.predict)
        predicted = (
            torch.cat([batch.cpu() for batch in predictions]) if predictions else torch.empty(0)
        )
        wanted = (len(rows), self.horizon, len(self.target_names), len(quantiles))
        if not isinstance(rows, ForecastRows) or tuple(predicted.shape) != wanted:
            raise DataError(f"predictions {wanted} are wanted, got {tuple(predicted.shape)}")
        return forecast_table(
            predicted.numpy(),
            rows,
            self._known,
            self.group,
            self.time,
            self.target_names,
            quantiles,
        )

    def make_parts(self) -> dict[str, SequenceRows]:
        """Reads the table, splits and scales it, and cuts it into windows."""
        path = Path(self.path)
        if self.package is not None:
            path = package_file(self.package, self.path)
        if self.checkpoint is not None and self.trained is None:
            self._take_fitted(state_of(self.checkpoint))
        if self.refit:
            self.trained = None
        table = None if self.in_memory else RowGroups(path)
        series = [table.columns()] if table else self._read(path)
        self._lacking = {}
        self.target_names = chosen(self.target, series[0], "target")
        self.feature_names = self._features(series[0])
        self.classes = self._named_classes
        self.fitted = {
            "task": self.task,
            "features": self.feature_names,
            "targets": self.target_names,
            "known": None if self.known is None else self._known_names(series[0]),
            "categories": self._values,
            "steady": self._steady,
            "freq": self.grid and self.grid.freq,
        }
        if self.trained is not None:
            self._take(self.trained)
        if table:
            parts = self._streamed(table)
        else:
            features = [numbers(one, self.feature_names, self.target_names) for one in series]
            make = self._forecasts if self.task == "forecast" else self._classes
            parts = make(series, features)
        self.fitted["classes"] = list(self.classes)
        if self._lacking and self.trained is None:
            raise DataError(next(iter(self._lacking.values())))
        return parts

    def _take(self, state: dict[str, Any]) -> None:
        """Takes the names of a trained model; raises for arguments that contradict them."""
        self.classes = self.classes or list(state["classes"])
        for argument, own, trained in (
            ("task", [self.task], [state["task"]]),
            ("features", self.feature_names, state["features"]),
            ("target", self.target_names, state["targets"]),
            ("classes", self.classes, state["classes"]),
            ("scaling", [self.scaling], [state["inputs"]["how"]]),
            ("known", *map(self._future_text, (self.fitted["known"], state.get("known")))),
            ("freq", *self._spacings(state.get("freq"))),
        ):
            if list(own) != list(trained):
                raise DataError(
                    f"the model was trained with `{argument}` {listed(trained)}, here it is "
                    f"{listed(own)}: give what it was trained with, or set `refit: true`"
                )

    def _future_text(self, known: Sequence[str] | None) -> list[str]:
        """What is known of the future by `known` and what is made, without the latter."""
        if known is None:
            return ["nothing of the future"]
        return sorted({*known} - {*self._made_names()}) or ["[], the calendar and categories alone"]

    def _spacings(self, trained: str | None) -> tuple[list[str], list[str]]:
        """`freq` here and in training, alike if they are the same; a model may know of none."""
        if trained is None or (self.grid and self.grid.is_spaced(trained)):
            return [], []
        return [self.grid.freq if self.grid else "left out"], [trained]

    def _read(self, path: Path) -> list[Series]:
        """All series, on the grid of `freq`, with the columns that are made of others."""
        form, zone = (self.form, self.time_format), self.time_zone
        series = read_series(path, self.group, self.time, *form, zone)
        beyond = self.horizon if self.predict == "future" else 0
        trained = {} if self.trained is None else self.trained
        known = trained.get("categories", {})
        self._values = {
            name: known.get(name) or category_names(series, name) for name in self.categories
        }
        refuse_unseen(series, self._values, self.path)
        self._steady = [
            name
            for name in trained.get("steady", self.categories)
            if name in self.categories and is_steady(series, name)
        ]
        steady = [*self.group, *self._steady]
        if self.grid is not None:
            series = on_grid(series, self.grid, steady, beyond)
        else:
            warn_of_jumps(series)
            if beyond and self.known is not None:
                series = [continued(one, steady, beyond) for one in series]
        series = [with_calendar(one, self.time_features) for one in series]
        return [with_categories(one, self._values) for one in series]

    def _made_names(self) -> list[str]:
        """The columns that are made from the calendar and from categories."""
        of_time = [f"{name}.{part}" for name in self.time_features for part in ("sin", "cos")]
        return of_time + [one for k, v in self._values.items() for one in one_hot_names(k, v)]

    def _sources(self) -> list[str]:
        """The features by their names in the table, where a category is one column."""
        made = {name: k for k, v in self._values.items() for name in one_hot_names(k, v)}
        return [made.get(name, name) for name in self.feature_names]

    def _known_names(self, series: Series) -> list[str]:
        """The features that are known of the steps ahead."""
        return list(
            dict.fromkeys([*chosen(self.known or [], series, "known"), *self._made_names()])
        )

    def _features(self, series: Series) -> list[str]:
        if self.features is not None:
            named = [name for name in self.features if name not in self.categories]
            of_user = chosen(named, series, "features")
            return list(dict.fromkeys([*of_user, *self._known_names(series)]))
        if self.trained is not None:
            return chosen(self.trained["features"], series, "features")
        apart = {*self.group, *([self.time] if self.time is not None else []), *self.categories}
        if self.task != "forecast":
            apart |= set(self.target_names)
        if others := [n for n in series.columns if n not in apart and not UNNAMED.fullmatch(n)]:
            return others
        raise DataError(f"{series.source} has no column left that could be a feature")

    def _spans(
        self, names: Sequence[str], steps: Sequence[int], strata: Sequence[int] | None = None
    ) -> dict[str, list[Span]]:
        """The steps of each part, of series that have so many."""
        if self.split_by == "time":
            cut = [
                spans_by_time(i, known, self.val_fraction, self.test_fraction)
                for i, known in enumerate(steps)
            ]
            return {part: [spans[part] for spans in cut] for part in PARTS}
        members_name = "series (files, or values of `group`)"
        try:
            parts = split(
                names, self.val_fraction, self.test_fraction, self.seed, strata, members_name
            )
        except DataError as error:
            if self.trained is None:
                raise
            # Too few to train on, which a trained model need not.
            parts = {"train": [], "val": [], "test": list(range(len(names)))}
            self._lacking = dict.fromkeys(("train", "val"), str(error))
        return {part: [Span(i, 0, steps[i]) for i in members] for part, members in parts.items()}

    def _forecasts(
        self, series: Sequence[Series], features: list[Array]
    ) -> dict[str, SequenceRows]:
        window, horizon = self.window or 1, self.horizon
        values = [numbers(one, self.target_names, self.target_names) for one in series]
        self._known = [known_series(one, value) for one, value in zip(series, values, strict=True)]
        steps = [known.steps for known in self._known]
        spans = self._spans([one.name for one in series], steps)
        starts = {
            part: [(i, start) for i, of_series in of_part for start in of_series]
            for part, of_part in self._starts(spans).items()
        }
        future = self.predict == "future"
        if future:
            starts["future"] = [(i, n - window) for i, n in enumerate(steps) if n >= window]
            if not starts["future"]:
                self._lacking["future"] = (
                    f"no series has the {window} steps of a window: make it shorter"
                )
        with_windows = {i for part in starts.values() for i, _ in part}
        known = {one.name: one.steps for one in self._known}
        warn_of_short(known, with_windows, window, horizon)
        if future:
            report_early_ends([self._known[i] for i, _ in starts["future"]])
        outputs = self._fitted("outputs", series, values, spans["train"], self.target_names)
        # What lies behind the last window is no input, nor is what no window has.
        behind = 0 if future else horizon
        needed = [n if i in with_windows else 0 for i, n in enumerate(steps)]
        until = [n + horizon - behind if n else 0 for n in needed]
        known_ahead = self._known_ahead(series, features, until)
        used = [max(0, n - behind) for n in needed]
        ahead = torch.zeros(features[0].shape[1]) if known_ahead is None else known_ahead
        gaps = [
            gaps_of(x, stop, ahead.bool().numpy(), last)
            for x, stop, last in zip(features, used, until, strict=True)
        ]
        inputs = self._inputs(series, features, spans["train"], gaps)
        beyond = torch.full((horizon, len(self.target_names)), torch.nan)
        targets = [
            torch.cat([outputs.scaled(one.name, value[:n]), beyond])
            for one, value, n in zip(series, values, steps, strict=True)
        ]
        scalings = [outputs.of(one.name) for one in series]
        # Of the user's values in float32 the last digits would be lost.
        offset = [torch.from_numpy(scaling.mean[None]) for scaling in scalings]
        scale = [torch.from_numpy(scaling.std[None]) for scaling in scalings]
        how = window, horizon, offset, scale, known_ahead
        return {
            part: ForecastRows(inputs, targets, of_part, *how)
            for part, of_part in starts.items()
            if of_part
        }

    def _known_ahead(
        self, series: Sequence[Series], features: list[Array], steps: Sequence[int]
    ) -> Tensor | None:
        """Which features are known of the steps ahead, bool (F,); None if none is used.

        `steps` are those that windows reach to, 0 of a series without any.
        """
        ahead = getattr(getattr(self.trainer, "lightning_module", None), "ahead", None)
        if ahead is not None and ahead is not (self.known is not None):
            raise DataError(
                "`model.ahead: true` and `data.known` go together: the model reads what is known "
                f"of the steps ahead; `known` is {self.known}, `ahead` {ahead}"
            )
        if self.known is None:
            return None
        names = self._known_names(series[0])
        known = np.array([name in names for name in self.feature_names])
        refuse_unknown(series, features, self._sources(), self.categories, known, steps)
        return torch.from_numpy(known)

    def _starts(self, spans: dict[str, list[Span]]) -> dict[str, list[tuple[int, range]]]:
        """Series and first steps of the windows of each part; tells which parts have none."""
        window, horizon = self.window or 1, self.horizon
        starts: dict[str, list[tuple[int, range]]] = {}
        for part, within in spans.items():
            starts[part] = [
                (span.series, forecast_starts(span, window, horizon, self.stride))
                for span in within
            ]
            if not any(of_series for _, of_series in starts[part]):
                longest = max((span.stop - span.start for span in within), default=0)
                self._lacking[part] = (
                    f"no window of {window} steps with {horizon} to forecast has its targets in "
                    f"the {part} part, where the longest series has {longest} steps: make them "
                    "shorter, the part larger, or give more data"
                )
        return starts

    def _streamed(self, table: RowGroups) -> dict[str, SequenceRows]:
        """Windows that are read from the table when they are asked for."""
        apart = getattr(self.trainer, "world_size", 1) > 1
        apart = apart and distributed.is_available() and distributed.is_initialized()
        extents = find_series(table, self.group, self.time, self.target_names, apart)
        spans = self._spans(
            [extent.name for extent in extents], [extent.known for extent in extents]
        )
        names = list(dict.fromkeys([*self.feature_names, *self.target_names]))
        reader = RowReader(table, names)
        moments = None
        if self.trained is None:
            train_rows = [
                (extents[i].first + start, extents[i].first + stop)
                for i, start, stop in spans["train"]
            ]
            moments = train_moments(reader, train_rows, apart)

        def scaling(key: str, of: list[str]) -> tuple[list[int], ColumnScaling]:
            columns = [names.index(name) for name in of]
            return columns, self._scaling(
                key, lambda: moments and scaling_by(moments, columns, of, self.scaling)
            )

        targets, outputs = scaling("outputs", self.target_names)
        features, inputs = scaling("inputs", self.feature_names)
        fill = self.missing == "mean"
        cut = self._starts(spans)
        used = (i for part in cut.values() for i, of_series in part if of_series)
        known = {extent.name: extent.known for extent in extents}
        warn_of_short(known, used, self.window or 1, self.horizon)
        return {
            part: StreamedForecasts(
                reader,
                extents,
                starts,
                features,
                inputs,
                fill,
                targets,
                outputs,
                self.window or 1,
                self.horizon,
            )
            for part, starts in cut.items()
            if part not in self._lacking
        }

    def _order(self, rows: SequenceRows) -> Order:
        if isinstance(rows, StreamedForecasts):
            return PoolOrder(rows, self.seed, *part_of_data(self.trainer))
        return super()._order(rows)

    def _loader(
        self, rows: SequenceRows, loader_class: type[DataLoader[Any]] = DataLoader, **options: Any
    ) -> DataLoader[Any]:
        if isinstance(rows, StreamedForecasts) and "sampler" not in options:
            repeat = not getattr(self.trainer, "predicting", False)
            options["sampler"] = PoolOrder(rows, None, *part_of_data(self.trainer), repeat)
        return super()._loader(rows, loader_class, **options)

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
            numbers_of_classes = [class_of(one, column, self.classes) for one in series]
            labelled = [i for i, number in enumerate(numbers_of_classes) if number != IGNORE]
            series, features = [series[i] for i in labelled], [features[i] for i in labelled]
            strata = [numbers_of_classes[i] for i in labelled]
            targets = [torch.tensor(number) for number in strata]
        if len(self.classes) < 2:
            told = ", ".join(self.classes) or "none"
            raise DataError(f"at least two classes are needed, the data have {told}")
        steps = [len(one) for one in series]
        self._known = [
            KnownSeries(one.name, one.groups, len(one), one.times, one.zone) for one in series
        ]
        spans = self._spans([one.name for one in series], steps, strata)
        gaps = [np.isnan(x) for x in features]
        inputs = self._inputs(series, features, spans["train"], gaps)
        parts: dict[str, SequenceRows] = {}
        for part, within in spans.items():
            windows = [w for span in within for w in step_spans(span, self.window, self.stride)]
            if windows:
                parts[part] = StepRows(inputs, targets, windows)
            else:
                told = f"the {part} part has no steps: make it larger, or give more data"
                self._lacking.setdefault(part, told)
        return parts

    def _inputs(
        self,
        series: Sequence[Series],
        features: list[Array],
        train: Sequence[Span],
        gaps: Sequence[NDArray[np.bool_]],
    ) -> list[Tensor]:
        """Scaled and without gaps (T, F), of which only those count that a window has."""
        if self.missing == "error":
            refuse_gaps(series, gaps, self._sources(), self.categories)
        report_filled(series, gaps, self._sources(), self.missing)
        scaling = self._fitted("inputs", series, features, train, self.feature_names)
        if self.missing == "last":
            features = [carried_on(x) for x in features]
        return [scaling.inputs(one.name, x) for one, x in zip(series, features, strict=True)]

    def _fitted(
        self,
        key: str,
        series: Sequence[Series],
        values: Sequence[Array],
        train: Sequence[Span],
        names: Sequence[str],
    ) -> ColumnScaling:
        of_series = [one.name for one in series]
        return self._scaling(
            key, lambda: ColumnScaling.fit(values, train, names, self.scaling, of_series)
        )

    def _scaling(self, key: str, fit: Callable[[], ColumnScaling | None]) -> ColumnScaling:
        """Fitted here, or that of the trained model."""
        own: ColumnScaling | None = None
        try:
            own = fit()
        except DataError:
            if self.trained is None:
                raise
        if self.trained is None:
            assert own is not None
            scaling = own
        else:
            scaling = ColumnScaling.from_state(self.trained[key])
            if own is not None:
                self._warn_of_shifts(key, scaling, own)
                # A series that the model has never seen has no other scaling than its own.
                scaling.each.update({k: v for k, v in own.each.items() if k not in scaling.each})
        self.fitted[key] = scaling.state()
        return scaling

    def _warn_of_shifts(self, key: str, trained: ColumnScaling, own: ColumnScaling) -> None:
        """Warns of columns far from where they were in training, and of groups that are new."""
        apart = set(self._made_names())
        if key == "inputs":
            apart |= {*self.target_names}  # told as outputs
        if lines := trained.shifts(own, apart):
            more = f"\n  and {len(lines) - MOST} more" if len(lines) > MOST else ""
            warnings.warn(
                f"{self.path} is scaled as what the model was trained on, from which its {key} are "
                "far (mean ± standard deviation of the training part):\n  "
                + "\n  ".join(lines[:MOST])
                + f"{more}\n`refit: true` would scale it by itself",
                stacklevel=2,
            )
        new = [name for name in own.each if name not in trained.each]
        if new and key == "outputs":
            warnings.warn(
                f"{len(new)} series were not in training, and are scaled by the first steps of "
                f"their own, their training part: {listed(new, MOST)}",
                stacklevel=2,
            )


def _names(argument: str, names: Name | Sequence[Name] | None) -> list[str]:
    if names is None:
        return []
    listed_up = names if isinstance(names, (list, tuple)) else [names]
    if not all(isinstance(name, (str, int)) for name in listed_up):
        raise DataError(f"`{argument}` must be names, or numbers, got {names!r}")
    return [str(name) for name in listed_up]
