"""Every sweep's commands are such as the command line takes. The folder is the list.

Seen to fail: a misspelt parameter and a layer that there is not in a sweep; a metric that is not
logged; a word of wandb's that it does not know; sweeps left out of `_configs`.
"""

from __future__ import annotations

import itertools
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_file import history

from lightning_lrnn.cli import main
from lightning_lrnn.cli.fit import UserError, parse

CONFIGS = files("lightning_lrnn.configs")
SWEEPS = sorted(str(f) for f in (CONFIGS / "sweeps").iterdir() if f.name.endswith(".yaml"))
KEYS = {"project", "program", "method", "metric", "parameters", "command"}
SMALL = [
    "--data.path=text",
    "--data.batch_size=2",
    "--model.hidden_size=8",
    "--trainer.max_steps=2",
]
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep stands beside the config that it is about."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 2000)
    assert main(["configs", "copy", "byte_lm"]) == 0


def values(parameter: dict[str, Any]) -> list[Any]:
    """All that are listed, or the ends of a distribution and what is between."""
    if "values" in parameter:
        return parameter["values"]
    if "value" in parameter:
        return [parameter["value"]]
    low, high = parameter["min"], parameter["max"]
    if parameter["distribution"] == "log_uniform_values":
        return [low, math.exp((math.log(low) + math.log(high)) / 2), high]
    assert parameter["distribution"] == "uniform"
    return [low, (low + high) / 2, high]


def expanded(sweep: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """The words that an agent of wandb runs, without those before the subcommand."""
    words = []
    for word in sweep["command"]:
        if word == "${args}":
            words += [f"--{name}={value}" for name, value in chosen.items()]
        elif word == "${program}":
            words.append(sweep["program"])
        elif word != "${env}":
            assert "${" not in word
            words.append(word)
    program, *rest = words
    assert program == "lightning-lrnn"
    return rest


def test_there_are_sweeps() -> None:
    assert len(SWEEPS) >= 2


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: Path(path).name)
def test_every_parameter_is_an_option(path: str) -> None:
    sweep = yaml.safe_load(Path(path).read_text())
    assert sweep.keys() == KEYS
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"]["goal"] in ("minimize", "maximize")
    choices = {name: values(parameter) for name, parameter in sweep["parameters"].items()}
    # Every value of every parameter at least once.
    columns = itertools.zip_longest(*choices.values())
    for row in columns:
        chosen = {
            name: all_of[0] if value is None else value
            for (name, all_of), value in zip(choices.items(), row, strict=True)
        }
        config = parse(expanded(sweep, chosen))["fit"]
        for name, value in chosen.items():
            section, key = name.split(".")
            actual = config[section]["init_args"][key]
            if key == "rnn":
                assert actual.class_path.rpartition(".")[2] == value.rpartition(".")[2]
            else:
                assert actual == value
        assert config["trainer"]["logger"].class_path.endswith("WandbLogger")


def test_an_unknown_parameter_is_seen() -> None:
    with pytest.raises(UserError, match="hidden_sizes"):
        parse(["fit", "--config", "byte_lm.yaml", "--model.hidden_sizes=3"])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: Path(path).name)
def test_the_metric_is_logged(path: str, wandb: Any) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load(Path(path).read_text())
    chosen = {name: values(parameter)[0] for name, parameter in sweep["parameters"].items()}
    words = expanded(sweep, chosen)
    # As wandb itself writes the options.
    theirs = create_sweep_command_args({"args": {k: {"value": v} for k, v in chosen.items()}})
    assert words[-len(chosen) :] == theirs["args"]
    own = [word for word in QUIET if word.partition("=")[0] not in " ".join(words)]
    # wandb's own process may have started in another folder.
    logs = Path("logs").absolute()
    logs.mkdir()
    assert main([*words, *SMALL, *own, f"--trainer.logger.save_dir={logs}"]) == 0
    wandb.finish()
    rows = history(logs)
    assert any(sweep["metric"]["name"] in row for row in rows)


def test_copying_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "list"]) == 0
    listed = capsys.readouterr().out
    for path in SWEEPS:
        name = f"sweeps/{Path(path).name}"
        assert name in listed
        assert main(["configs", "copy", name]) == 0
        assert Path(Path(path).name).read_text() == Path(path).read_text()
        second = Path(path).read_text().splitlines()[1]
        assert "wandb sweep" in second
