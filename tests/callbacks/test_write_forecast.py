"""The command line writes a forecast of what comes after a table's end as a table.

Seen to fail: predictions of a batch left out, the file written in its place, no look at the data.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lightning_lrnn.callbacks import WriteClasses, WriteForecast
from lightning_lrnn.cli import main
from lightning_lrnn.data import DataError

pytest.importorskip("pyarrow")

COMMON = (
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"),
    "--trainer.enable_model_summary=false",
)
WORDS = (
    *("--model=Forecaster", "--model.num_features=1", "--model.horizon=3", "--model.rnn=MinGRU"),
    *("--model.hidden_size=4", "--model.num_layers=1", "--data=SequenceTable", "--data.path=t.csv"),
    *("--data.task=forecast", "--data.target=sold", "--data.group=shop", "--data.time=day"),
    *("--data.window=8", "--data.horizon=3", "--data.batch_size=2", *COMMON),
)
WRITE = (
    "--trainer.callbacks+=lightning_lrnn.callbacks.WriteForecast",
    "--trainer.callbacks.path=new/forecast.csv",
)


@pytest.fixture(autouse=True)
def _sales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    days = [(k, shop, i) for k, shop in enumerate("abc") for i in range(29)]
    rows = [f"{shop},2024-02-{i + 1:02},{10 * i + k}" for k, shop, i in days]
    Path("t.csv").write_text("shop,day,sold\n" + "\n".join(rows))


def test_what_comes_next_is_a_table() -> None:
    assert main(["fit", *WORDS, "--trainer.max_steps=1"]) == 0
    (checkpoint,) = Path("checkpoints").glob("*.ckpt")
    words = ["predict", *WORDS, *WRITE, f"--ckpt_path={checkpoint}", "--data.predict=future"]
    assert main(words) == 0
    with Path("new/forecast.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    levels_of_file = [f"0.{k}" for k in range(1, 10)]
    assert list(rows[0]) == ["shop", "day", "steps_ahead", "target", *levels_of_file]
    assert [row["steps_ahead"] for row in rows] == ["1", "2", "3"] * 3
    assert [row["shop"] for row in rows] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert [row["day"] for row in rows] == ["2024-03-01", "2024-03-02", "2024-03-03"] * 3
    digits = [row[f"0.{k}"].strip("-0.").replace(".", "") for row in rows for k in range(1, 10)]
    assert 7 <= max(map(len, digits)) <= 9
    for row in rows:
        levels = [float(row[f"0.{k}"]) for k in range(1, 10)]
        assert levels == sorted(levels) and levels[0] > -1000
    assert [path.name for path in Path("new").iterdir()] == ["forecast.csv"]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["predict", *words]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_written_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)
    model = ["--model.hidden_size=4", "--model.num_layers=1", "--data.path=text", *COMMON]
    assert "not for LanguageModel and ByteText: leave it out" in answer(capsys, *model, *WRITE)
    cut = ["--trainer.limit_predict_batches=0.5", "--data.predict=future"]
    assert "predictions (3, 3, 1, 9) are wanted" in answer(capsys, *WORDS, *cut, *WRITE)

    def full(self: Path, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    message = answer(capsys, *WORDS, "--data.predict=future", *WRITE)
    assert "new/forecast.csv cannot be written (No space left on device)" in message
    assert not list(Path("new").iterdir())


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="`path` is empty"):
        WriteForecast("")


@pytest.mark.parametrize("path", ["f.xlsx", "f", "f.parquet"])
@pytest.mark.parametrize("callback", [WriteForecast, WriteClasses])
def test_another_kind_of_file_is_refused(callback: Any, path: str) -> None:
    """Seen to fail: a CSV table with the name of another kind."""
    with pytest.raises(DataError, match=rf"`path` must end in .csv, .* got '{path}'"):
        callback(path)
    callback("f.CSV")
