"""What a model was trained with goes with it: other tables are scaled so, and forecast beyond.

Seen to fail: a scaling fitted anew by `test`; classes numbered by the new table; a difference not
told; `refit` ignored; the future cut from the parts; times of the future one step early; offsets in
float32; predictions in another order than their table.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from loaded_rows import all_rows

from lightning_lrnn.data import DataError, Digits, SequenceTable
from lightning_lrnn.data.tables.fitted import ColumnScaling
from lightning_lrnn.data.tables.rows import Span
from lightning_lrnn.modules import Forecaster, SequenceClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is scaled as what the model was trained on:UserWarning"),
]


def trainer(folder: Path, steps: int = 1) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder,
    )


def classify(file: Path, values: list[float], **options: Any) -> SequenceTable:
    """A series for each value, which it has at every step; high is above 5."""
    lines = [
        f"{i},{value},{'high' if value > 5 else 'low'}"
        for i, value in enumerate(values)
        for _ in range(3)
    ]
    file.write_text("\n".join(["id,x,label", *lines]) + "\n")
    return SequenceTable(str(file), "classify", "label", group="id", **options)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[SequenceClassifier, Path]:
    """A classifier of values of 0 and 10, trained for a step, and its checkpoint."""
    model = SequenceClassifier(1, 2, rnn="MinGRU", hidden_size=4, num_layers=1)
    data = classify(tmp_path / "old.csv", [0.0, 10.0] * 10)
    runs = trainer(tmp_path)
    runs.fit(model, data)
    runs.save_checkpoint(tmp_path / "m.ckpt")
    return model, tmp_path / "m.ckpt"


def xs(data: SequenceTable) -> set[float]:
    """Scaled values of the test part."""
    return {round(float(x), 4) for row in all_rows(data, "test") for x in row.inputs[:, 0]}


@pytest.mark.parametrize("way", ["memory", "load_from_checkpoint", "ckpt_path", "checkpoint"])
def test_another_table_is_scaled_as_the_model_was_trained(
    trained, tmp_path: Path, way: str
) -> None:
    model, file = trained
    values = [10.0] * 12
    given = {"checkpoint": str(file)} if way == "checkpoint" else {}
    data = classify(tmp_path / "new.csv", values, **given)
    if way == "load_from_checkpoint":
        model = SequenceClassifier.load_from_checkpoint(file, weights_only=True)
    if way in ("memory", "load_from_checkpoint"):
        trainer(tmp_path).test(model, data, verbose=False)
    elif way == "ckpt_path":
        fresh = SequenceClassifier(1, 2, rnn="MinGRU", hidden_size=4, num_layers=1)
        trainer(tmp_path).test(fresh, data, ckpt_path=file, weights_only=True, verbose=False)
    # A single class, and no training part to speak of: the model has both.
    assert xs(data) == {1.0} and data.classes == ["high", "low"]


def test_a_run_goes_on_with_its_own_scaling(trained, tmp_path: Path) -> None:
    _, file = trained
    data = classify(tmp_path / "new.csv", [0.0, 20.0] * 10)
    data.setup()
    assert xs(data) == {-1.0, 1.0}
    fresh = SequenceClassifier(1, 2, rnn="MinGRU", hidden_size=4, num_layers=1)
    trainer(tmp_path, 2).fit(fresh, data, ckpt_path=file, weights_only=True)
    assert xs(data) == {-1.0, 3.0}


def test_a_difference_is_told(trained, tmp_path: Path) -> None:
    _, file = trained
    with pytest.warns(UserWarning, match=r"\n  x: 5 ± 5 in training, 15 ± 15 here\n`refit"):
        classify(tmp_path / "new.csv", [0.0, 30.0] * 10, checkpoint=str(file)).setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify(tmp_path / "old.csv", [0.0, 10.0] * 10, checkpoint=str(file)).setup()
        classify(tmp_path / "new.csv", [0.0, 14.0] * 10, checkpoint=str(file)).setup()
        classify(tmp_path / "new.csv", [8.0] * 20, checkpoint=str(file)).setup()
        anew = classify(tmp_path / "new.csv", [0.0, 20.0] * 10, checkpoint=str(file), refit=True)
        assert xs(anew) == {-1.0, 1.0}


def test_only_what_lies_elsewhere_is_told() -> None:
    """Seen to fail: a line for every column whose mean differs in the sixth digit."""

    def fit(columns: Any, how: str = "standard") -> ColumnScaling:
        values = [np.array([[v + d, v - d] for v, d in columns]).T]
        return ColumnScaling.fit(values, [Span(0, 0, 2)], list("abcdef"), how, ["s"])

    trained = [(10, 2), (10, 2), (10, 2), (10, 2), (5, 0), (5, 0)]
    other = [(11.9, 2), (12.1, 2), (10, 4.1), (10, 0), (5, 0), (6, 0)]
    for how, place in (("standard", ""), ("group", " of s")):
        assert fit(trained, how).shifts(fit(other, how), "") == [
            f"b{place}: 10 ± 2 in training, 12.1 ± 2 here",
            f"c{place}: 10 ± 2 in training, 10 ± 4.1 here",
            f"f{place}: always 5 in training, always 6 here",
        ]
    assert len(fit(trained).shifts(fit(other), "bc")) == 1
    assert not fit(trained, "none").shifts(fit(other, "none"), "")


def test_groups_that_are_new_are_told(tmp_path: Path) -> None:
    """Each by its own training part, as `scaling: group` has it; a calendar is never told."""
    options = {"scaling": "group", "time_features": ["month"]}
    old = sales(tmp_path, **options)
    old.setup()
    new = sales(tmp_path, **options)
    text = (tmp_path / "sales.csv").read_text()
    text = text.replace("2024-01", "2024-03").replace("2024-02", "2024-04")
    (tmp_path / "sales.csv").write_text(text.replace("\na,", "\nc,"))
    new.load_state_dict(old.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        new.setup()
    (message,) = {str(w.message) for w in caught}
    assert (
        message.startswith("1 series were not in training, and are scaled by") and ": c" in message
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "none"}, "trained with `scaling` standard, here it is none: .*`refit: true`"),
        ({"classes": ["low", "high"]}, "trained with `classes` high, low, here it is low, high"),
        ({"features": ["x", "id"]}, "trained with `features` x, here it is x, id"),
    ],
)
def test_what_contradicts_the_model_is_refused(trained, tmp_path, options, message) -> None:
    data = classify(tmp_path / "new.csv", [0.0, 10.0] * 10, checkpoint=str(trained[1]), **options)
    with pytest.raises(DataError, match=message):
        data.setup()


def test_checkpoints_without_a_scaling(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\3\4")
    for name, message in (("bare", "has nothing that"), ("broken", "cannot be"), ("no", "no file")):
        data = classify(
            tmp_path / "t.csv", [0.0, 10.0] * 10, checkpoint=str(tmp_path / f"{name}.ckpt")
        )
        with pytest.raises(DataError, match=message):
            data.setup()


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")
def test_an_order_of_pixels_is_the_models() -> None:
    first, second = Digits(permute=True), Digits(permute=True, seed=1)
    first.setup()
    second.setup()
    before = all_rows(second, "val")[0].inputs
    second.load_state_dict(first.state_dict())
    after = all_rows(second, "val")[0].inputs
    assert sorted(before.flatten().tolist()) == sorted(after.flatten().tolist())
    assert not torch.equal(before, after)
    assert torch.equal(second.fitted["order"], first.fitted["order"])


# The future.


def sales(tmp_path: Path, future: int = 0, **options: Any) -> SequenceTable:
    """Two shops of 60 days; what is sold is the number of the day, in b a thousand more."""
    days = np.datetime64("2024-01-01") + np.arange(60 + future)
    lines = [
        f"{shop},{days[t]},{'' if t >= 60 else start + t}"
        for t in range(60 + future)
        for shop, start in (("b", 1000), ("a", 0))
    ]
    (tmp_path / "sales.csv").write_text("\n".join(["shop,day,sold", *lines]))
    given = {"target": "sold", "group": "shop", "time": "day", "window": 8, "horizon": 3}
    return SequenceTable(str(tmp_path / "sales.csv"), "forecast", **(given | options))


@pytest.mark.parametrize("future", [0, 2, 5])
@pytest.mark.parametrize("missing", ["error", "mean"])
def test_the_future_comes_after_the_last_known_target(tmp_path, future: int, missing: str) -> None:
    data = sales(tmp_path, future, predict="future", missing=missing)
    given = data.part("future")
    assert len(given) == 2
    for row, first in zip((given[0], given[1]), (0, 1000), strict=True):
        assert row.offset is not None and row.scale is not None
        past = row.offset + row.scale * row.inputs
        wanted = torch.arange(first + 52.0, first + 60).double()
        torch.testing.assert_close(past[:, 0], wanted, rtol=0, atol=0.01)
        assert row.targets.shape == (3, 1) and row.targets.isnan().all()
    # The parts are those without rows of the future.
    plain = sales(tmp_path)
    for part in ("train", "val", "test"):
        pairs = zip(all_rows(data, part), all_rows(plain, part), strict=True)
        assert all(torch.equal(x.inputs, y.inputs) for x, y in pairs)
    assert not any(row.targets.isnan().any() for row in all_rows(data, "test"))


@pytest.mark.parametrize("predict", ["future", "test"])
def test_a_forecast_is_a_table_with_its_times(tmp_path: Path, predict: Any) -> None:
    data = sales(tmp_path, 2, predict=predict, scaling="group", batch_size=4)
    model = Forecaster(1, 3, hidden_size=4, num_layers=1, rnn="MinGRU")
    table = data.forecast_table(trainer(tmp_path).predict(model, data), model.quantiles)
    levels = [f"{q:g}" for q in model.quantiles]
    assert list(table) == ["shop", "day", "steps_ahead", "target", *levels]
    windows = {"future": 1, "test": 7}[predict]
    assert table["steps_ahead"] == [1, 2, 3] * 2 * windows
    assert table["shop"] == ["a"] * 3 * windows + ["b"] * 3 * windows
    assert set(table["target"]) == {"sold"}
    if predict == "future":
        assert table["day"] == ["2024-03-01", "2024-03-02", "2024-03-03"] * 2
    else:
        assert table["day"][:4] == ["2024-02-21", "2024-02-22", "2024-02-23", "2024-02-22"]
    assert min(table["0.5"][3 * windows :]) > 900 > max(table["0.5"][: 3 * windows])
    with pytest.raises(DataError, match=r"predictions \(\d+, 3, 1, 9\) are wanted, got \(0,\)"):
        data.forecast_table([], model.quantiles)


def test_a_column_that_the_table_of_forecasts_has_itself(tmp_path: Path) -> None:
    """Seen to fail: two columns of one name were one of double length."""
    path = tmp_path / "t.csv"
    path.write_text("steps_ahead,y\n" + "\n".join(f"{k},{k % 5}" for k in range(60)))
    data = SequenceTable(
        str(path), "forecast", "y", time="steps_ahead", window=4, horizon=2, predict="future"
    )
    with pytest.raises(DataError, match="has a column 'steps_ahead' of its own"):
        data.forecast_table([torch.zeros(1, 2, 1, 1)], [0.5])


def test_a_short_new_table_is_forecast(tmp_path: Path) -> None:
    old = sales(tmp_path)
    old.setup()
    new = sales(tmp_path, predict="future")
    lines = (tmp_path / "sales.csv").read_text().splitlines()
    (tmp_path / "sales.csv").write_text("\n".join([lines[0], *lines[-16:]]))
    new.load_state_dict(old.state_dict())
    assert len(new.part("future")) == 2
    with pytest.raises(
        DataError, match=r"no window of 8 steps with 3 to forecast .* the train part"
    ):
        new.part("train")
    with pytest.raises(DataError, match="no window of 58 steps"):
        sales(tmp_path, window=58).setup()


def test_large_targets_come_back_whole(tmp_path: Path) -> None:
    wh = 2_100_000_000 + 300 * np.arange(300)
    (tmp_path / "t.csv").write_text("wh\n" + "\n".join(map(str, wh)))
    data = SequenceTable(str(tmp_path / "t.csv"), "forecast", "wh", window=9, horizon=2)
    batch = next(iter(data.test_dataloader()))
    actual = batch.offset + batch.scale * batch.targets
    torch.testing.assert_close(
        actual[0, :, 0], torch.tensor(wh[255:257]).double(), rtol=0, atol=0.01
    )
    model = Forecaster(1, 2, hidden_size=4, num_layers=1, rnn="MinGRU")
    (first, *_) = trainer(tmp_path).predict(model, data)
    assert first.dtype == torch.float64


def test_only_a_forecast_has_a_future() -> None:
    with pytest.raises(DataError, match="`predict: future` is for `task: forecast`"):
        SequenceTable("nowhere", "classify", predict="future")


def test_an_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    data = classify(tmp_path / "t.csv", [0.0, 10.0] * 10)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    lines = [f"{i - 1 if i else ''},{line}" for i, line in enumerate(lines)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data.setup()
    assert data.feature_names == ["x"]
