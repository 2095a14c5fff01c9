"""Every config trains, and logs what it promises. The folder is the list.

Proved against: a misspelt argument in a YAML, a callback taken out of one, `overwrite` left False
(the second run into one folder), nothing in `_LogConfig.save_config`, no summary in
`BackendReport._write`.
"""

from __future__ import annotations

import csv
import importlib.util
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_lrnn
from lightning_lrnn.cli import main

pytestmark = [
    # Windows are slices of memory: workers would only cost.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers:UserWarning"),
    # LightningCLI 2.6 calls what newer jsonargparse has renamed.
    pytest.mark.filterwarnings(r"ignore:[\s\S]*(Jsonargparse|deprecated in v4):DeprecationWarning"),
    # Lightning 2.6 asks torch 2.13 for the class of a leaf.
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning"),
]

CONFIGS = sorted(
    str(file) for file in files("lightning_lrnn.configs").iterdir() if file.name.endswith(".yaml")
)
TINY = (
    "--data.batch_size=2",
    "--data.window=16",
    "--model.hidden_size=8",
    "--model.num_layers=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
TWO_STEPS = (
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=1",
)
LOGGED = {
    "train/loss",
    "train/bits_per_byte",
    "val/loss",
    "val/bits_per_byte",
    "train/tokens_per_second",
    "train/gradient_norm",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs write into `runs` of the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Offline, with every folder of its own inside the test's."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    # Lightning's logger sets it too and leaves it set.
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(Path(variable).absolute()))
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    yield wandb
    wandb.finish()


def fit(config: str, *options: str) -> int:
    return main(["fit", "--config", config, "--data.path=text", *TINY, *options])


def needs_wandb(config: str, request: pytest.FixtureRequest) -> None:
    if "WandbLogger" in Path(config).read_text():
        request.getfixturevalue("wandb")


def metrics(log_dir: Path) -> dict[str, float]:
    """The last value of every metric that a CSVLogger wrote."""
    with (log_dir / "metrics.csv").open() as file:
        return {
            key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value
        }


def test_there_are_configs_to_sweep() -> None:
    assert len(CONFIGS) >= 3


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: Path(path).name)
def test_fast_dev_run(config: str, request: pytest.FixtureRequest) -> None:
    needs_wandb(config, request)
    assert fit(config, "--trainer.fast_dev_run=true") == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: Path(path).name)
def test_two_steps_log_what_is_promised(config: str, request: pytest.FixtureRequest) -> None:
    needs_wandb(config, request)
    assert fit(config, *TWO_STEPS) == 0

    (log_dir,) = Path("runs", Path(config).stem).glob("version_*")
    logged = metrics(log_dir)
    assert logged.keys() >= LOGGED
    hparams = yaml.safe_load((log_dir / "hparams.yaml").read_text())
    assert hparams["config"]["model"]["init_args"]["hidden_size"] == 8
    assert hparams["config"] == hparams["config"] | {"seed_everything": 0}
    if hparams["rnn"]["class_path"] == "torch.nn.LSTM":
        assert hparams["recurrence/backend"] == "none"
    else:
        assert hparams["recurrence/backend"] == lightning_lrnn.last_backend()
        assert any(key.startswith("horizon/") and key.endswith("/p50") for key in logged)
    assert (log_dir / "checkpoints" / "last.ckpt").is_file()
    assert (
        yaml.safe_load((log_dir / "config.yaml").read_text())["data"]["init_args"]["window"] == 16
    )


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
