"""The seasonal naive forecast beside a model's metrics, compared with a loop over the table.

Seen to fail: a season too few behind the first one ahead, NaN not gone back over, all windows in
the place of those that were evaluated, figures of one process, loaders of a call before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import pytorch_lightning as pl
import torch
from sequence_models import trainer

from lightning_lrnn.callbacks import SeasonalNaive, seasonal_naive
from lightning_lrnn.callbacks.probes.season import carried, naive_errors, season_of
from lightning_lrnn.data import DataError, Digits, SequenceTable
from lightning_lrnn.data.tables.forecasts import KnownSeries
from lightning_lrnn.modules import Forecaster, SequenceClassifier
from lightning_lrnn.strategies import SequenceParallelStrategy

pytest.importorskip("pyarrow")

SHOPS, DAYS, WINDOW, HORIZON = "ab", 80, 9, 8
TARGETS = ["sold", "lost"]


@pytest.fixture(autouse=True)
def _sales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("sales.csv"))


def write(path: Path) -> np.ndarray[Any, Any]:
    """A table of days, and its values (shops, days, targets); a tenth of them is NaN."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(len(SHOPS), DAYS, len(TARGETS))) * [100, 3] + [1000, 0]
    values[rng.random(values.shape) < 0.1] = np.nan
    days = np.datetime64("2024-01-01") + np.arange(DAYS)
    rows = [
        ",".join([SHOPS[i], str(days[t]), "1", *("" if math.isnan(v) else repr(v) for v in of_day)])
        for i, of_shop in enumerate(values.tolist())
        for t, of_day in enumerate(of_shop)
    ]
    path.write_text("\n".join(["shop,day,open,sold,lost", *rows]))
    return values


def sales(path: str = "sales.csv", **options: Any) -> SequenceTable:
    given = {"target": TARGETS, "features": ["open"], "group": "shop", "time": "day"}
    given |= {"window": WINDOW, "horizon": HORIZON, "batch_size": 3, "test_fraction": 0.25}
    given |= {"val_fraction": 0.25, "scaling": "group"} | options
    return SequenceTable(path, "forecast", **given)


def model(**options: Any) -> Forecaster:
    given = {"hidden_size": 4, "num_layers": 1, "rnn": "MinGRU", "num_targets": len(TARGETS)}
    return Forecaster(1, HORIZON, **given | options)


def by_a_loop(data: SequenceTable, part: str, windows: int, season: int) -> tuple[float, int]:
    """The mean of |y - naive| over the first windows of a part, and how many targets have none."""
    values, errors, left_out = write(Path("again.csv")), [], 0
    for series, start in data.part(part).starts[:windows]:  # type: ignore[attr-defined]
        middle = start + WINDOW
        for t in range(middle, middle + HORIZON):
            for k in range(len(TARGETS)):
                before = range(t - season, -1, -season)
                known = [
                    values[series, s, k]
                    for s in before
                    if s < middle and not math.isnan(values[series, s, k])
                ]
                if math.isnan(values[series, t, k]):
                    continue
                if known:
                    errors.append(abs(values[series, t, k] - known[0]))
                left_out += not known
    return float(np.mean(errors)), left_out


@pytest.mark.parametrize(("season", "steps"), [("auto", 7), (3, 3), (8, 8), (1, 1)])
def test_the_baseline_is_that_of_the_windows_that_were_evaluated(
    season: Any, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(seasonal_naive, "rank_zero_info", said.append)
    data, callback = sales(), SeasonalNaive(season)
    run = trainer(Path(), callbacks=[callback], limit_val_batches=4, num_sanity_val_steps=1)
    forecaster = model()
    run.fit(forecaster, data)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    naive, left_out = by_a_loop(data, "val", 4 * 3, steps)
    assert left_out == 0
    assert logged["val/naive_mae"] == pytest.approx(naive, rel=1e-5)
    assert logged["val/skill"] == pytest.approx(1 - logged["val/crps"] / naive, rel=1e-5)
    assert len(said) == 1 and f"one season of {steps} steps before is {naive:.4g}" in said[0]
    mae, crps = (float(logged[f"val/{name}"]) for name in ("mae", "crps"))
    change = f"{abs(1 - mae / naive):.1%} {'less' if mae < naive else 'more'}"
    assert f"the model's {mae:.4g}, {change}. " in said[0]
    assert f"is {crps:.4g}: skill {1 - crps / naive:.1%}." in said[0]

    (actual,) = run.test(forecaster, data, verbose=False)
    naive, _ = by_a_loop(data, "test", 10**6, steps)
    assert actual["test/naive_mae"] == pytest.approx(naive, rel=1e-5)
    assert actual["test/skill"] == pytest.approx(1 - actual["test/crps"] / naive, rel=1e-5)
    assert len(said) == 2 and said[1].startswith("SeasonalNaive, test: ")


def test_a_perfect_and_a_useless_baseline() -> None:
    """The value of a season before, in a table that repeats, is right; the model is none of it."""
    rows = [f"a,{np.datetime64('2024-01-01') + t},1,{t % 7},0" for t in range(DAYS)]
    Path("sales.csv").write_text("\n".join(["shop,day,open,sold,lost", *rows]))
    run = trainer(Path(), callbacks=[SeasonalNaive()])
    (actual,) = run.validate(model(), sales(), verbose=False)
    assert actual["val/naive_mae"] == 0 and actual["val/skill"] == -math.inf
    run = trainer(Path(), callbacks=[SeasonalNaive(1)])
    (actual,) = run.validate(model(), sales(), verbose=False)
    assert actual["val/naive_mae"] > 0 and actual["val/skill"] > -math.inf


def test_targets_without_a_season_before_are_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = Path("sales.csv").read_text().splitlines()
    for t in range(5, DAYS - 20, 7):
        shop, day, opened, *_ = lines[1 + t].split(",")
        lines[1 + t] = f"{shop},{day},{opened},,"
    Path("sales.csv").write_text("\n".join(lines))
    said: list[str] = []
    monkeypatch.setattr(seasonal_naive, "rank_zero_info", said.append)
    data = sales()
    trainer(Path(), callbacks=[SeasonalNaive()]).test(model(), data, verbose=False)
    actual = naive_errors(data.part("test"), range(len(data.part("test"))), 7)
    assert actual.left_out > 0
    assert f"{actual.left_out} targets are known in no season before" in said[0]


def test_values_are_carried_by_whole_seasons() -> None:
    nan = math.nan
    values = torch.tensor([[nan], [1.0], [nan], [2.0], [nan], [nan], [5.0], [nan]])
    actual = carried(values, 3)[:, 0].tolist()
    # Steps 0, 3 and 6 are of one kind, 1, 4 and 7 of another; 2 and 5 are never known.
    assert actual[1:2] + actual[3:5] + actual[6:] == [1.0, 2.0, 1.0, 5.0, 1.0]
    assert math.isnan(actual[0]) and math.isnan(actual[2]) and math.isnan(actual[5])


def test_a_validation_after_fit_is_of_its_own_data() -> None:
    run = trainer(Path(), callbacks=[SeasonalNaive(3)], max_steps=1)
    forecaster = model()
    run.fit(forecaster, sales())
    other = sales(val_fraction=0.4, refit=True)
    (actual,) = run.validate(forecaster, other, verbose=False)
    assert actual["val/naive_mae"] == pytest.approx(by_a_loop(other, "val", 10**6, 3)[0], rel=1e-5)
    with pytest.raises(DataError, match="give the trainer the data, not loaders"):
        run.validate(forecaster, sales().val_dataloader(), verbose=False)


START = np.datetime64("2024-01-01T00:00:00")


def every(count: int, unit: str) -> np.ndarray[Any, Any]:
    return START + np.arange(40) * np.timedelta64(count, unit)


def months(count: int) -> np.ndarray[Any, Any]:
    return (np.datetime64("2020-01") + np.arange(0, 12 * count, count)).astype("datetime64[us]")


@pytest.mark.parametrize(
    ("times", "season"),
    [
        (every(1, "h"), 24),
        (every(6, "h"), 4),
        (every(15, "m"), 96),
        (every(30, "m"), 48),
        (every(1, "D"), 7),
        (every(7, "D"), 52),
        (months(1), 12),
        (months(3), 4),
        (every(1, "h") - START, 24),
    ],
)
def test_the_season_of_times(times: Any, season: int) -> None:
    one = KnownSeries("north", (), len(times), times)
    assert season_of([one, KnownSeries("new", (), 1, times[:1])]) == season


def test_times_that_do_not_say_the_season() -> None:
    def refused(message: str, *times: Any) -> None:
        with pytest.raises(DataError, match=message):
            season_of([KnownSeries(f"s{i}", (), 40, t) for i, t in enumerate(times)])

    refused("no column `time`: name it, or give", None)
    refused("those of s0 are numbers: give the season", np.arange(40))
    refused("those of s0 are 0:07:00 apart", every(7, "m"))
    refused("those of s0 are 366 days, 0:00:00 apart", every(366, "D"))
    refused("finds 24 steps for s0, 7 steps for s1: give it", every(1, "h"), every(1, "D"))
    refused("needs a series of two steps", every(1, "h")[:1])


@pytest.mark.parametrize("season", [0, -1, 2.5, True, "weekly", None])
def test_a_season_that_cannot_be(season: Any) -> None:
    with pytest.raises(ValueError, match=f"must be 'auto' or a number of steps.*{season!r}"):
        SeasonalNaive(season)


def started(callback: SeasonalNaive, module: Any, data: Any) -> None:
    trainer(Path(), callbacks=[callback], max_steps=1).fit(module, data)


def test_what_has_no_baseline_is_refused_before_training() -> None:
    with pytest.raises(DataError, match="not for SequenceClassifier and Digits: leave it out"):
        started(SeasonalNaive(), SequenceClassifier(8, 10), Digits(steps="rows"))
    message = "50 steps, but of a only 40 are known before the targets of a window of the val part"
    with pytest.raises(DataError, match=message):
        started(SeasonalNaive(50), model(), sales())
    frame = __import__("pandas").read_csv("sales.csv").assign(day=[*range(DAYS)] * 2)
    frame.to_parquet("sales.parquet", index=False)
    with pytest.raises(DataError, match=r"not for Forecaster and SequenceTable: .*`in_memory`"):
        large = sales("sales.parquet", in_memory=False, scaling="standard")
        started(SeasonalNaive(2), model(), large)

    class Bare(Forecaster):
        def make_evaluation_metrics(self) -> Any:
            return super(Forecaster, self).make_evaluation_metrics()

    with pytest.raises(DataError, match="needs val/crps and mae, which Bare does not log"):
        run = trainer(Path(), callbacks=[SeasonalNaive()])
        run.validate(Bare(1, HORIZON, len(TARGETS)), sales(), verbose=False)


def in_group(rank: int, folder: Path, alone: dict[str, float]) -> None:
    """A validation and a test by all processes of a group, with two strategies."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    environment |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": 1, "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    strategies: list[Callable[[], Any]] = [lambda: "ddp", lambda: SequenceParallelStrategy(2)]
    for make in strategies:
        pl.seed_everything(1, verbose=False)
        options = {"devices": 2, "strategy": make(), "callbacks": [SeasonalNaive()]}
        run = trainer(folder, **options)
        (actual,) = run.validate(model(), sales(f"{folder}/sales.csv"), verbose=False)
        for name, value in alone.items():
            assert actual[name] == pytest.approx(value, rel=1e-4), (make(), name)


@pytest.mark.slow
def test_processes_that_share_the_windows(tmp_path: Path) -> None:
    pl.seed_everything(1, verbose=False)
    run = trainer(tmp_path, callbacks=[SeasonalNaive()])
    data = sales()
    (alone,) = run.validate(model(), data, verbose=False)
    assert len(data.part("val")) % 2 == 0
    names = ("val/naive_mae", "val/skill", "val/mae", "val/crps")
    processes.spawn(in_group, tmp_path, tmp_path, {name: alone[name] for name in names})
