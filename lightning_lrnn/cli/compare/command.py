"""The command `lightning-lrnn compare`: layers, length and folder of a comparison.

Its parser is argparse's: the options that it does not know are those of `fit`, whose parser checks
them, and jsonargparse does not parse a part of a command line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_lrnn.cli.compare import comparison
from lightning_lrnn.cli.configs import find_config, read_comparison
from lightning_lrnn.cli.parser import Parser
from lightning_lrnn.core.checks import UserError

__all__ = ["compare", "main"]


def main(words: list[str]) -> None:
    """Runs the command; see `compare`."""
    options, further = _parser().parse_known_args(words[1:])
    compare(**vars(options), further=further)


def compare(
    config: str,
    rnn: list[Any] | None = None,
    backend: list[str] | None = None,
    steps: int | None = None,
    seconds: int | None = None,
    name: str | None = None,
    folder: str = "runs/compare",
    wandb: str | None = None,
    further: list[str] | None = None,
) -> None:
    """Trains and validates a config with several layers, and prints where the results are.

    Options that are None are those of the config, if it is a comparison.

    Args:
        config: file or name of a config, or of a comparison, which names one.
        rnn: layers, as `--model.rnn` takes them.
        backend: for the layers of this package.
        steps: of training; None for the config's.
        seconds: of training at most, besides the config's steps.
        name: of the comparison; None for that of the config, numbered where its folder exists.
        folder: in which the comparison's own folder is made.
        wandb: "offline" or "online" to log to wandb too.
        further: options of `fit`.

    Raises:
        UserError: if an option does not make sense, or no run has come to an end.
    """
    if wandb and not find_spec("wandb"):
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
    with contextlib.ExitStack() as stack:
        path = find_config(config, Path(), stack)
        own_folder_name = name or path.stem
        configured = read_comparison(path) or {}
        if "config" in configured:
            path = find_config(configured["config"], path.parent, stack)
        rnns = rnn or configured.get("rnn")
        if not rnns:
            raise UserError("name the layers, such as --rnn torch.nn.LSTM GILRLSTM QRNN")
        backends = backend or configured.get("backend") or ["auto"]
        if not (steps or seconds):
            steps, seconds = configured.get("steps"), configured.get("seconds")
        own_folder = _new_folder(Path(folder), own_folder_name, not name)
        print(f"Into {own_folder}", flush=True)
        options = [*_length(steps, seconds), *(further or [])]
        results = comparison.run(str(path), rnns, backends, options, own_folder, wandb)
    _report(results, own_folder)


def _report(results: dict[str, Any], folder: Path) -> None:
    if all("error" in run for run in results["runs"]):
        raise UserError(f"no run has come to an end; {folder} has what each one said")
    figure = 'none: `pip install "lightning-lrnn[plot]"` brings matplotlib'
    if find_spec("matplotlib"):
        from lightning_lrnn.cli.compare.figure import draw

        figure = str(draw(results, folder / "compare.png"))
    print(
        f"Figure    {figure}\nNumbers   {folder / 'results.json'}\n"
        f"Curves    lightning-lrnn plot {shlex.quote(str(folder))}"
    )


def _length(steps: int | None, seconds: int | None) -> list[str]:
    """Options of `fit` that limit its steps or, besides the config's steps, its seconds."""
    if steps:
        return [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
    if seconds:
        clock = time.strftime("%H:%M:%S", time.gmtime(seconds))
        return [f"--trainer.max_time={seconds // 86_400:02}:{clock}"]
    return []


def _new_folder(parent: Path, name: str, may_number: bool) -> Path:
    """A folder without results: `name`, or name-2, name-3 and so on."""
    folder, number = parent / name, 1
    while folder.exists():
        if not may_number:
            if _has_failed(folder):
                return folder
            raise UserError(f"{folder} exists; give another --name, or delete it")
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _has_failed(folder: Path) -> bool:
    """Whether a comparison in this folder has ended without any result."""
    try:
        results = json.loads((folder / "results.json").read_text())
        return all("error" in run for run in results["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _parser() -> Parser:
    parser = Parser(
        prog="lightning-lrnn compare",
        description="Trains and validates a config with one layer after the other, each run in a "
        "process of its own, under the same data and seed. Options that are not listed here are "
        "those of `fit`, such as --data.batch_size 8.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="a YAML, or a name of `configs list`: a config, or a comparison that names one",
    )
    parser.add_argument(
        "--rnn", nargs="+", metavar="LAYER", help="a name, a path or JSON, as --model.rnn takes it"
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        metavar="NAME",
        help="for the layers of this package; those of torch.nn run once (auto)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive, help="of training; else the config's")
    length.add_argument(
        "--seconds", type=_positive, help="of training at most, besides the config's steps"
    )
    parser.add_argument("--name", help="of the comparison (that of the config)")
    parser.add_argument(
        "--folder", default="runs/compare", help="in which its own folder is made (%(default)s)"
    )
    parser.add_argument(
        "--wandb",
        nargs="?",
        choices=("offline", "online"),
        const="offline",
        help="log to wandb too, the runs as one group (%(const)s)",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


_positive.__name__ = "int"  # which argparse names where it raises ValueError
