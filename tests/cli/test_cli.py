"""The command: its subcommands, its answers to mistakes, other backends for a checkpoint.

Seen to fail: `save_hyperparameters()` without `ignore` and without `on_save_checkpoint` (both tests
of another backend), `resolve` left out of `generate`, `--force` ignored, a bare `except Exception`
in `main`, `add_arguments_to_parser` without the default model, or with it whatever is named, or no
default beside a config; jsonargparse's own words for a layer that is not found, no list of options,
no value of a wrong one, no `fixed_options`; a config written in place, no limit of size in the
loader, no `Monitors`, nothing taken out of what is logged, Lightning's order of int and float for
limits, configs taken for typed words.
"""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Union

import pytest
import torch
from commands import OPTIONS, TINY, error_line
from pytorch_lightning import Trainer

import lightning_lrnn
from lightning_lrnn.backends import kernel_cache
from lightning_lrnn.cli import fit, main
from lightning_lrnn.cli.configs import config_texts
from lightning_lrnn.cli.fit import command as fit_command
from lightning_lrnn.cli.fit import parse
from lightning_lrnn.cli.fit.saved_config import SavedConfig, without_secrets
from lightning_lrnn.cli.fit.words import Words
from lightning_lrnn.modules import Forecaster, LanguageModel
from lightning_lrnn.nn import CELLS


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained for two steps with the backend `serial`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").write_text("def f(x):\n    return x + 1\n" * 800)
    options = (*OPTIONS, *TINY, "--model.backend=serial", f"--trainer.default_root_dir={folder}")
    words = ["fit", f"--data.path={folder / 'text'}", "--trainer.max_steps=2", *options]
    assert main(words) == 0
    assert lightning_lrnn.last_backend() == "serial"
    (path,) = folder.glob("checkpoints/*.ckpt")
    return str(path)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith(
        f"lightning-lrnn {lightning_lrnn.__version__} (torch "
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("fit", "test", "generate", "backends", "cells", "configs", "cache", "demo"):
        assert f"\n    {command}" in text


def test_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lightning_lrnn", "configs", "copy", "no_such"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "there is no config no_such; known are: adding.yaml, byte_lm.yaml" in result.stderr


def test_missing_package_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> None:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    monkeypatch.setattr("lightning_lrnn.cli.backends.main", fail)
    assert 'pip install "lightning-lrnn[wandb]"' in error_line(capsys, "backends")


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("lightning_lrnn.cli.backends.main", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["backends"])


def test_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(lightning_lrnn.backends.names())
    for (name, reasons), line in zip(
        lightning_lrnn.backends.explain("cpu").items(), lines[::2], strict=True
    ):
        assert line.split(maxsplit=2) == [name, "cpu", "; ".join(reasons) or "runs"]
    if not torch.cuda.is_available():
        assert not any("runs" in line for line in lines[1::2])


def test_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cells"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [f"nn.{name}" for name in CELLS]
    assert len({len(row) for row in rows}) == 1


def test_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "list"]) == 0
    listed = capsys.readouterr().out
    assert "byte_lm.yaml" in listed
    # Whole sentences, however many lines they take.
    assert "adding problem, after Hochreiter &" in " ".join(listed.split())
    entries = re.split(r"\n(?=\S)", listed.strip())
    assert len(entries) == len(config_texts())
    assert all(entry.endswith(".") for entry in entries)
    assert "lightning-lrnn fit" not in listed
    assert main(["configs", "copy", "byte_lm"]) == 0
    assert "--config byte_lm.yaml" in capsys.readouterr().out
    original = Path("byte_lm.yaml").read_text()
    Path("byte_lm.yaml").write_text("mine")
    assert "--force overwrites it" in error_line(capsys, "configs", "copy", "byte_lm.yaml", ".")
    assert Path("byte_lm.yaml").read_text() == "mine"
    assert main(["configs", "copy", "byte_lm", "byte_lm.yaml", "--force"]) == 0
    assert Path("byte_lm.yaml").read_text() == original


def test_a_run_that_fails_leaves_no_empty_folder(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--data.path=text", *OPTIONS, *TINY]
    logger = "{class_path: CSVLogger, init_args: {save_dir: runs, name: mine}}"
    words = [*(w for w in words if "logger" not in w), f"--trainer.logger={logger}"]
    assert main([*words, "--trainer.max_steps=1", "--data.path=nowhere"]) == 2
    assert "there is no file or folder 'nowhere'" in capsys.readouterr().err
    assert not list(Path("runs").rglob("version_*"))


def test_a_config_is_copied_whole_or_not_at_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.yaml").write_text("mine")
    write = Path.write_text

    def half(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        write(self, text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    message = error_line(capsys, "configs", "copy", "byte_lm", "mine.yaml", "--force")
    assert "mine.yaml cannot be written (No space left on device)" in message
    error_line(capsys, "configs", "copy", "byte_lm", "new.yaml")
    assert Path("mine.yaml").read_text() == "mine"
    assert {path.name for path in Path().iterdir()} == {"text", "mine.yaml"}


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_lrnn.cli.generate.main", interrupt)
    assert main(["generate", "any.ckpt"]) == 130
    assert capsys.readouterr() == ("", "\n")


SELF = "&a {trainer: {max_steps: 1}, model: {init_args: *a}}"
BOMB = "[&a [x, x, x, x, x, x, x, x, x, x]" + "".join(
    f", &{'abcdefg'[i + 1]} [{', '.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(6)
)


@pytest.mark.parametrize("text", [SELF, BOMB + "]"], ids=["itself", "others"])
@pytest.mark.parametrize("command", ["fit", "fit by words", "compare"])
def test_an_anchor_without_end(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("endless.yaml").write_text(text)
    words = {
        "fit": ["--config=endless.yaml"],
        "fit by words": [f"--model={text}"],
        "compare": ["endless.yaml", "--rnn=QRNN"],
    }[command]
    assert main([command.partition(" ")[0], *words]) == 2
    assert "or an anchor (&) that contains itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        ("EarlyStopping", "val/no_such"),
        ("ModelCheckpoint", "val/no_such"),
        ("ModelCheckpoint", "x"),
    ],
)
def test_a_monitor_that_is_not_there(
    callback: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--trainer.callbacks+={callback}", f"--trainer.callbacks.monitor={name}"]
    words += ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.path=text"]
    assert main(["fit", *OPTIONS, *TINY, *words]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert callback in message and repr(name) in message and "val/bits_per_byte" in message


def test_secrets_are_not_logged() -> None:
    keys = {"api_key": "SECRET", "name": "run", "password": "SECRET"}
    config = {
        "trainer": {"logger": [{"class_path": "CometLogger", "init_args": dict(keys)}]},
        "data": {"init_args": {"hub_token": "SECRET", "url": "s3://me:SECRET@host/a", "tokens": 8}},
    }
    assert without_secrets(config) == {
        "trainer": {"logger": [{"class_path": "CometLogger"}]},
        "data": {"init_args": {"hub_token": "***", "url": "s3://***@host/a", "tokens": 8}},
    }


def test_what_is_made_can_be_sent_to_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_command.FitCLI, "_run_subcommand", lambda self, name: None)
    words = ["fit", *OPTIONS, *TINY, "--trainer.devices=2", "--trainer.strategy=ddp_spawn"]
    cli = fit.run([*words, "--data.path=text"])
    trainer, _, _ = pickle.loads(pickle.dumps((cli.trainer, cli.model, cli.datamodule)))
    (saved,) = (c for c in trainer.callbacks if isinstance(c, SavedConfig))
    saved.parser.save(saved.config, "config.yaml")
    assert parse(["fit", "--config=config.yaml"]).fit.model.init_args.hidden_size == 8


def test_what_fit_logs_has_no_options_of_loggers() -> None:
    Path("own.yaml").write_text(
        "trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: r, name: SECRET}}}"
    )
    words = [word for word in OPTIONS if "logger" not in word]
    words = [*words, *TINY, "--data.path=text", "--trainer.max_steps=1"]
    assert main(["fit", "--config=own.yaml", *words]) == 0
    (file,) = Path("r/SECRET").glob("*/hparams.yaml")
    assert "CSVLogger" in file.read_text()
    assert "SECRET" not in file.read_text()


def test_cache(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel_cache.ENVIRONMENT_VARIABLE, str(Path("cache").absolute()))
    name = kernel_cache.key([b"a kernel"])
    kernel_cache.write(name, b"cubin" * 10_000)
    kernel_cache.write(name, b"object" * 10_000, "o")
    assert main(["cache", "info"]) == 0
    assert ": 2 compiled kernels, 0.11 MB" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert ": 2 files deleted, 0.11 MB" in capsys.readouterr().out
    assert kernel_cache.read(name) is None


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_backend_of_the_command_line_evaluates(command: str, checkpoint: str) -> None:
    words = [command, f"--ckpt_path={checkpoint}", "--data.path=text", *OPTIONS]
    assert main([*words, "--trainer.limit_predict_batches=1", "--model.backend=scan"]) == 0
    assert lightning_lrnn.last_backend() == "scan"


def test_backend_of_the_command_line_resumes(checkpoint: str) -> None:
    words = ["fit", f"--ckpt_path={checkpoint}", "--data.path=text", *OPTIONS]
    words += ["--trainer.max_epochs=-1", "--trainer.max_steps=4"]
    assert main([*words, "--model.backend=scan"]) == 0
    assert lightning_lrnn.last_backend() == "scan"
    (resumed,) = Path("checkpoints").glob("*.ckpt")
    saved = torch.load(resumed, weights_only=True)
    assert saved["global_step"] == 4
    assert saved["hyper_parameters"]["hidden_size"] == 8


@pytest.mark.parametrize("backend", ["serial", "scan"])
def test_generate(backend: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", checkpoint, "--prompt", "def ", "--length", "30", "--backend", backend]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*words, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("def ")
    assert lightning_lrnn.last_backend() == backend


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "Forecaster", "--model.num_features=1"],
        ["--model.num_features=1", "--model=Forecaster"],
        ["--model.num_features=1", "--model.class_path", "Forecaster"],
        ["--model.num_features=1", "--model={class_path: Forecaster}"],
        ["--model.num_features=1", "--config=own.yaml"],
        ["--config", "own.yaml", "--model.num_features=1"],
        ["--model=Forecaster", "--model.num_features=1", "--config=options.yaml"],
        ["--model.num_features=1", "--config={model: {class_path: Forecaster}}"],
    ],
)
def test_a_class_that_is_named_has_its_own_defaults(words: list[str]) -> None:
    Path("own.yaml").write_text("{model: {class_path: Forecaster}}")
    Path("options.yaml").write_text("{trainer: {max_steps: 3}, model: {init_args: {lr: 0.5}}}")
    model = parse(["fit", *words, "--model.horizon=2"]).fit.model
    assert model.class_path == "lightning_lrnn.modules.Forecaster"
    assert model.init_args.num_features == 1
    # Not those of the class that is taken where none is named.
    own = {name: p.default for name, p in inspect.signature(Forecaster).parameters.items()}
    other = {name: p.default for name, p in inspect.signature(LanguageModel).parameters.items()}
    assert own["hidden_size"] != other["hidden_size"]
    assert model.init_args.hidden_size == own["hidden_size"]
    assert model.init_args.dropout == own["dropout"]


def test_a_limit_is_saved_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # `typing` caches unions, so that Lightning's may have this order.
    for name in ("limit_val_batches", "limit_test_batches"):
        monkeypatch.setitem(Trainer.__init__.__annotations__, name, Union[float, int, None])  # noqa: UP007
    words = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1.0"]
    trainer = parse(["fit", *words]).fit.trainer
    assert type(trainer.limit_val_batches) is int
    assert type(trainer.limit_test_batches) is float


def test_own_module_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_module.py").write_text(
        "from lightning_lrnn.modules import LanguageModel\n"
        "class Own(LanguageModel):\n"
        "    def __init__(self, twist: float = 1.0, backend: str = 'auto') -> None:\n"
        "        super().__init__(hidden_size=8, num_layers=1, backend=backend)\n"
        "        Own.seen = twist\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["fit", "--model=own_module.Own", "--model.twist=2.5", "--model.backend=serial"]
    assert main([*words, "--data.path=text", *OPTIONS, "--trainer.fast_dev_run=true"]) == 0
    assert lightning_lrnn.last_backend() == "serial"
    assert sys.modules["own_module"].Own.seen == 2.5


def test_who_names_an_option() -> None:
    Path("own.yaml").write_text("{model: {class_path: QRNN, init_args: {lr: 1}, dropout: 0.1}}")
    typed = ["--model.rnn.window=3", "--model.init_args.warmup_steps", "5", "--model.help", "A"]
    typed += ["--model={class_path: A, init_args: {hidden_size: 8}}", "--data.window=9"]
    typed += ["--model.dict_kwargs={twist: 1}", "--model.class_path=B"]
    words = Words(["--config", "own.yaml", *typed])
    assert words.typed_options() == {"rnn", "warmup_steps", "hidden_size", "twist"}
    assert words.configured_options() == {"lr", "dropout"}
    assert words.class_path("model") == "QRNN"
    assert words.class_path("data") is None
    assert Words(["--data=A", "--data.class_path=B"]).class_path("data") == "A"


@pytest.mark.parametrize(
    ("words", "batches"),
    [
        ("--trainer.limit_val_batches=1", 1),
        ("--trainer.limit_val_batches=1.0", 4),
        ("--trainer.limit_val_batches 1", 1),
        ("--trainer.limit_val_batches=3", 3),
        ("--config=one.yaml", 1),
        ("--config=one.yaml --trainer.limit_val_batches=1.0", 4),
    ],
)
def test_one_batch_is_not_all_of_them(
    words: str, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("one.yaml").write_text("trainer: {limit_val_batches: 1}")
    counted: list[int] = []
    monkeypatch.setattr(LanguageModel, "validation_step", lambda self, batch, i: counted.append(i))
    options = [word for word in OPTIONS if "limit" not in word and "window" not in word]
    options += ["--data.window=64", "--data.path=text", "--data.val_fraction=0.02"]
    assert main(["validate", *options, *TINY, *words.split(" ")]) == 0
    assert len(counted) == batches
