"""The long memory demo, benchmark and configs, at lengths that take seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import BENCHMARKS, ROOT

from lightning_lrnn.cli import main
from lightning_lrnn.cli.demos import long_memory as _demo_memory
from lightning_lrnn.nn import GILRLSTM, MemoryLSTM

CONFIGS = ROOT / "configs"


def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 128 steps a GILR-LSTM learns it in a few seconds; nothing learns it in none."""
    folder = tmp_path / "demo"
    options = ["demo", "long-memory", "--steps", "128", "--seconds", "600", "--folder", str(folder)]
    train, layers = _demo_memory._train, []

    def only_ours(rnn: Any, data: Any, seconds: float, seed: int) -> Any:
        layers.append((rnn.func, rnn.keywords["memory"]))
        return train(rnn, data, seconds if rnn.func is GILRLSTM else 0.0, seed)

    monkeypatch.setattr(_demo_memory, "_train", only_ours)
    assert main(options) == 0
    shown = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    # The baseline starts with the same memory.
    assert layers == [(GILRLSTM, (64, 256)), (MemoryLSTM, (64, 256))]
    actual, lstm = (results["models"][name] for name in ("GILR-LSTM", "torch.nn.LSTM"))
    assert actual["solved"] and actual["right"] == actual["held_out"] == 200
    assert "200 of 200 right: solved after" in shown and "GILR-LSTM      solved it in" in shown
    assert not lstm["solved"] and len(lstm["curve"]) == 1 and lstm["right"] < 200
    assert "torch.nn.LSTM  not within 0 s, 1 updates of" in shown
    assert (folder / "demo.png").stat().st_size > 10_000 and str(folder / "demo.png") in shown


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, on a config of 32 steps."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("long_memory", None)
    import long_memory

    text = (CONFIGS / "long_memory_1024.yaml").read_text()
    for long, short in (("1024", "32"), ("[512, 2048]", "[16, 64]"), ("1000\n", "20\n")):
        assert long in text
        text = text.replace(long, short)
    (tmp_path / "long_memory_32.yaml").write_text(text)
    monkeypatch.setattr(long_memory, "CONFIGS", tmp_path)
    monkeypatch.chdir(tmp_path)
    return long_memory


def run(benchmark: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, Any]]:
    arguments = ["long_memory.py", "--json", "runs.json", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    runs: list[dict[str, Any]] = json.loads(Path("runs.json").read_text())
    return runs


def test_benchmark(benchmark: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (actual,) = run(benchmark, monkeypatch, "--steps", "32", "--seeds", "3", "--seconds", "60")
    assert actual["solved"] and actual["seed"] == 3 and actual["sampling"] == "paired"
    *_, (seconds, step, right) = actual["validation"]
    assert right == 1 and step == actual["optimizer_steps"] == len(actual["training"])
    assert seconds == actual["seconds"] >= actual["training"][-1][0]
    assert all(right == 1 for _, right in actual["training"][-20:])
    assert {"commit", "threads", "processor", "torch"} <= actual["environment"].keys()
    assert Path("runs.png").stat().st_size > 10_000
    # Others are kept; what is changed is another run; the limit ends it.
    more = ["--steps", "32", "--seeds", "3", "--seconds", "0.05"]
    runs = run(benchmark, monkeypatch, *more, "--set", "data.init_args.sampling=random")
    assert [one["changed"] for one in runs] == [[], ["data.init_args.sampling=random"]]
    assert runs[1]["sampling"] == "random" and not runs[1]["solved"]
    assert len(runs[1]["training"]) < len(actual["training"]) and runs[1]["validation"]
    runs = run(benchmark, monkeypatch, *more, "--rnn", "torch.nn.LSTM")
    layer = runs[2]["layer"]
    assert layer["class_path"] == "lightning_lrnn.nn.torch_rnn.MemoryLSTM"
    assert layer["init_args"]["memory"] == [16, 64]
    assert [one["rnn"] for one in runs] == ["GILRLSTM", "GILRLSTM", "torch.nn.LSTM"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["GILRLSTM", "32", "1/1"] in [line[:3] for line in lines]
    assert ["torch.nn.LSTM", "32", "0/1"] in [line[:3] for line in lines]


def test_configs_differ_in_length_alone() -> None:
    actual = []
    for steps in (1024, 8192, 65536, 1048576):
        config = yaml.safe_load((CONFIGS / f"long_memory_{steps}.yaml").read_text())
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        assert data.pop("steps") == steps
        assert data.pop("held_out") == (1000 if steps <= 8192 else 100)
        assert model["rnn"]["init_args"].pop("memory") == [steps // 2, 2 * steps]
        assert model.pop("checkpoint_time", None) == (None if steps <= 8192 else 16384)
        config["trainer"]["logger"]["init_args"].pop("name")
        config["trainer"].pop("log_every_n_steps")
        actual.append(config)
    assert all(config == actual[0] for config in actual)
