"""Classes that are predicted come as a table with names.

Seen to fail: classes in another order, the length of a row left out, windows that write a step
twice, names of the data of a call before.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sequence_models import trainer
from torch import nn

from lightning_lrnn.callbacks import WriteClasses
from lightning_lrnn.cli import main
from lightning_lrnn.data import DataError, Digits, SequenceTable
from lightning_lrnn.modules import Forecaster, SequenceClassifier, SequenceTagger

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty trips of one to three hours; the speed tells the kind of a trip and of an hour."""
    monkeypatch.chdir(tmp_path)
    rows = ["city,trip,hour,speed,kind,moving"]
    for trip in range(30):
        for hour in range(1 + trip % 3):
            speed = (trip % 2) - (hour % 2)
            kind, moving = ("walk", "ride")[trip % 2], ("yes", "no")[hour % 2]
            rows.append(f"bonn,{trip},2024-01-01 {8 + hour:02}:00,{speed},{kind},{moving}")
    Path("t.csv").write_text("\n".join(rows))


def table(task: str, target: str, path: str = "t.csv", **options: Any) -> SequenceTable:
    given = {"features": ["speed"], "group": ["city", "trip"], "time": "hour", "batch_size": 4}
    given |= {"scaling": "none"} | options
    return SequenceTable(path, task, target, **given)


def rows_of(file: str) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def predicted(model: Any, data: Any = None, **options: Any) -> list[dict[str, str]]:
    callback = WriteClasses("new/classes.csv")
    run = trainer(Path(), callbacks=[callback], **options)
    run.predict(model, data)
    return rows_of("new/classes.csv")


@torch.inference_mode()
def test_each_sequence_has_its_class_and_all_probabilities() -> None:
    data = table("classify", "kind")
    model = SequenceClassifier(1, 2, hidden_size=4, num_layers=1, dropout=0)
    nn.init.normal_(model.head.weight)
    actual = predicted(model, data)
    assert data.classes == ["ride", "walk"]
    wanted = ["city", "trip", "class", "probability_ride", "probability_walk"]
    assert list(actual[0]) == wanted
    rows = data.part("test")
    assert len(actual) == len(rows)
    for i, row in enumerate(actual):
        trip = int(row["trip"])
        assert row["city"] == "bonn" and len(rows[i].inputs) == 1 + trip % 3
        p = model(rows[i].inputs[None])[0].softmax(-1)[0].tolist()
        assert float(row["probability_ride"]) == pytest.approx(p[0], rel=1e-4)
        assert float(row["probability_walk"]) == pytest.approx(p[1], rel=1e-4)
        assert row["class"] == ("ride" if p[0] > p[1] else "walk")


@torch.inference_mode()
@pytest.mark.parametrize("packed", [False, True])
def test_each_step_has_its_time_class_and_probability(packed: bool) -> None:
    data = table("tag", "moving", packed=packed, batch_size=8)
    model = SequenceTagger(1, 2, hidden_size=4, num_layers=1, dropout=0)
    actual = predicted(model, data)
    assert list(actual[0]) == ["city", "trip", "hour", "class", "probability"]
    rows = data.part("test")
    at = iter(actual)
    for i in range(len(rows)):
        p = model(rows[i].inputs[None])[0].softmax(-1)[0]
        for hour, step in enumerate(p):
            row = next(at)
            assert len(p) == 1 + int(row["trip"]) % 3
            assert row["hour"].startswith(f"2024-01-01T{8 + hour:02}:00")
            assert row["class"] == data.classes[int(step.argmax())]
            assert float(row["probability"]) == pytest.approx(float(step.max()), rel=1e-4)
    assert next(at, None) is None


@torch.inference_mode()
def test_a_step_of_several_windows_is_written_once_and_windows_say_where_they_start() -> None:
    for i, kind in enumerate(("a", "b") * 10):
        Path("clips", kind).mkdir(exist_ok=True, parents=True)
        np.save(f"clips/{kind}/{i}.npy", np.arange(7.0)[:, None] + i)
    actual = predicted(
        SequenceClassifier(1, 2, hidden_size=4, num_layers=1, dropout=0),
        SequenceTable("clips", "classify", window=3, stride=2),
    )
    assert list(actual[0])[:3] == ["series", "step", "class"]
    names = [row["series"] for row in actual[::3]]
    assert [row["step"] for row in actual] == ["1", "3", "5"] * len(names)
    assert all("/" in name for name in names) and len(set(names)) == len(names)

    Path("t.csv").write_text("x,y\n" + "\n".join(f"{k},{'ab'[k % 2]}" for k in range(40)))
    data = SequenceTable("t.csv", "tag", "y", split_by="time", window=4, stride=3)
    model = SequenceTagger(1, 2, hidden_size=4, num_layers=1, dropout=0)
    actual = predicted(model, data)
    rows = data.part("test")
    assert [len(rows[i].inputs) for i in range(len(rows))] == [4, 3]
    assert [row["step"] for row in actual] == ["35", "36", "37", "38", "39", "40"]
    p = torch.cat([model(rows[0].inputs[None])[0], model(rows[1].inputs[None])[0][:, 1:]], 1)
    wanted = p.softmax(-1)[0].max(-1).values.tolist()
    assert [float(row["probability"]) for row in actual] == pytest.approx(wanted, rel=1e-4)


def test_other_data_are_numbered() -> None:
    model = SequenceClassifier(8, 10, hidden_size=4, num_layers=1, dropout=0)
    data = Digits(steps="rows")
    actual = predicted(model, data, limit_predict_batches=2)
    assert [row["row"] for row in actual] == [str(i + 1) for i in range(64)]
    assert {row["class"] for row in actual} <= set(data.classes)
    # Without data that have names a class is its number.
    loader = data.predict_dataloader()
    model.head.bias.data[7] = 99
    actual = predicted(model, loader, limit_predict_batches=1)
    assert {row["class"] for row in actual} == {"7"} and list(actual[0])[2] == "probability_0"


def test_names_are_those_of_the_rows_that_are_predicted() -> None:
    data = table("classify", "kind")
    model = SequenceClassifier(1, 2, hidden_size=4, num_layers=1, dropout=0)
    run = trainer(Path(), callbacks=[WriteClasses()], max_steps=1)
    run.fit(model, data)
    run.predict(model, data)
    assert "trip" in rows_of("classes.csv")[0]
    # The trainer knows `data` still.
    run.predict(model, data.val_dataloader())
    actual = rows_of("classes.csv")
    assert [row["row"] for row in actual] == [str(i + 1) for i in range(len(data.part("val")))]
    assert "trip" not in actual[0]


def test_what_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table("classify", "kind")
    with pytest.raises(DataError, match="has 3 classes, the data 2 \\(ride, walk\\): predict with"):
        predicted(SequenceClassifier(1, 3), data)
    with pytest.raises(DataError, match="SequenceTagger, not for Forecaster: leave it out"):
        predicted(Forecaster(1, 2), data)
    Path("t.csv").write_text(Path("t.csv").read_text().replace("trip", "class", 1))
    with pytest.raises(DataError, match="a column 'class' of its own: give that of `group`"):
        predicted(SequenceClassifier(1, 2), table("classify", "kind", group=["city", "class"]))
    with pytest.raises(ValueError, match="`path` is empty"):
        WriteClasses("")
    monkeypatch.setattr(pl.Trainer, "world_size", 2)
    with pytest.raises(DataError, match="each of 2 processes has a part of the classes"):
        WriteClasses().on_predict_start(trainer(Path()), SequenceClassifier(1, 2))


def test_the_command_writes_them() -> None:
    words = (
        *("predict", "--model=SequenceClassifier", "--model.num_features=1"),
        *("--model.num_classes=2", "--data=SequenceTable", "--data.path=t.csv"),
        *("--data.task=classify", "--data.target=kind", "--data.group=trip"),
        *("--data.features=[speed]", "--trainer.accelerator=cpu", "--trainer.logger=false"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        "--trainer.callbacks+=lightning_lrnn.callbacks.WriteClasses",
        "--trainer.callbacks.path=trips.csv",
    )
    assert main(list(words)) == 0
    assert list(rows_of("trips.csv")[0])[:2] == ["trip", "class"]
