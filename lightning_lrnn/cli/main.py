"""The command `lightning-lrnn`.

Only what a subcommand needs is imported: `lightning-lrnn backends` starts without Lightning.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_lrnn.modules import LanguageModel

__all__ = ["main"]

LIGHTNING = {
    "fit": "train a model from a config",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint",
    "predict": "predict with a checkpoint",
}
OPTIONAL = {"wandb": "wandb", "matplotlib": "plot"}
"""Optional package -> the extra that brings it."""

INTERRUPTED = 130
"""What a shell says of a process that Ctrl-C ended."""

EXAMPLES = """\
examples:
  lightning-lrnn demo long-memory
  lightning-lrnn demo text
  lightning-lrnn demo switch
  lightning-lrnn configs copy byte_lm
  lightning-lrnn fit --config byte_lm.yaml
  lightning-lrnn test --config byte_lm.yaml --ckpt_path CKPT --model.backend serial
  lightning-lrnn generate CKPT --prompt "def "
  lightning-lrnn compare byte_lm --rnn torch.nn.LSTM GILRLSTM QRNN --steps 200
  lightning-lrnn plot runs/byte_lm
"""


class UserError(Exception):
    """A mistake in what was typed: one sentence that says what to do."""


def main(args: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        args: its words; those of the process if None.

    Returns:
        The exit status: 0, 2 for a user's mistake, told in one sentence on stderr, or 130 after
        Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    from lightning_lrnn.backends import BackendError

    try:
        if args and args[0] in LIGHTNING:
            return _lightning(args)
        parser = _parser()
        options, further = parser.parse_known_args(args)
        if further and not hasattr(options, "further"):
            parser.error(f"unrecognized arguments: {' '.join(further)}")
        options.further = further
        run: Callable[[argparse.Namespace], None] = options.run
        run(options)
    except (UserError, BackendError) as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        # Some callers raise with the requirement in the message and no name.
        missing = [p for p in OPTIONAL if error.name == p or (not error.name and p in str(error))]
        if not missing:
            raise
        return _complain(
            f"the optional package {missing[0]} is not installed; "
            f'`pip install "lightning-lrnn[{OPTIONAL[missing[0]]}]"` brings it'
        )
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` perhaps, has enough; closing stdout must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _complain(sentence: str) -> int:
    print(f"lightning-lrnn: {sentence}", file=sys.stderr)
    return 2


def _lightning(args: list[str]) -> int:
    from lightning_lrnn.cli.fit import CommandLineError, run
    from lightning_lrnn.data import DataError

    try:
        run(args)
    except (CommandLineError, DataError) as error:
        raise UserError(str(error)) from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lightning-lrnn",
        description="Linear recurrences for PyTorch Lightning: train, look and ask.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, purpose in LIGHTNING.items():
        commands.add_parser(name, help=purpose, add_help=False)

    generate = commands.add_parser(
        "generate",
        help="sample text from a checkpoint",
        description="Prints a prompt and how a trained LanguageModel goes on, as it is sampled.",
    )
    generate.add_argument("checkpoint", metavar="CKPT", help="a file that `fit` wrote")
    generate.add_argument("--prompt", default="def ", help="text to go on from (%(default)r)")
    generate.add_argument(
        "--length", type=_positive(int), default=400, help="bytes to sample (%(default)s)"
    )
    generate.add_argument(
        "--temperature",
        type=_positive(float),
        default=0.7,
        help="below 1 more likely text, above 1 more varied (%(default)s)",
    )
    generate.add_argument("--seed", type=_natural, default=0, help="of the sampling (%(default)s)")
    generate.add_argument(
        "--backend", default="auto", help="how the recurrence is computed (%(default)s)"
    )
    generate.set_defaults(run=_generate)

    compare = commands.add_parser(
        "compare",
        help="train a config with several layers and backends, and tabulate",
        description="Trains and validates a config with one layer after the other, each run in a "
        "process of its own, under the same data and seed. Options that are not listed here are "
        "those of `fit`, such as --data.batch_size 8.",
        allow_abbrev=False,
    )
    compare.add_argument(
        "config",
        metavar="CONFIG",
        help="a YAML, or a name of `configs list`: a config, or a comparison that names one",
    )
    compare.add_argument("--rnn", nargs="+", metavar="LAYER", help="as --model.rnn takes them")
    compare.add_argument(
        "--backend",
        nargs="+",
        metavar="NAME",
        help="for the layers of this package; those of torch.nn run once (auto)",
    )
    length = compare.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive(int), help="of training; else the config's")
    length.add_argument(
        "--seconds", type=_positive(int), help="of training at most, besides the config's steps"
    )
    compare.add_argument("--name", help="of the comparison (that of the config)")
    compare.add_argument(
        "--folder", default="runs/compare", help="in which its own folder is made (%(default)s)"
    )
    compare.add_argument(
        "--wandb",
        nargs="?",
        choices=("offline", "online"),
        const="offline",
        help="log to wandb too, the runs as one group (%(const)s)",
    )
    compare.set_defaults(run=_compare, further=[])

    plot = commands.add_parser(
        "plot",
        help="draw learning curves and memory horizons from CSV logs",
        description="Draws what a CSVLogger has written, of all runs in one figure.",
    )
    plot.add_argument(
        "runs", metavar="RUN", nargs="+", help="a folder with a metrics.csv, or one above"
    )
    plot.add_argument("--metric", help="such as loss or bits_per_byte (what is validated)")
    plot.add_argument("--output", help="of the PNG (plot.png in the first folder)")
    plot.set_defaults(run=_plot)

    backends = commands.add_parser(
        "backends",
        help="which backends run here, and why others do not",
        description="Lists the backends in the order in which `auto` tries them.",
    )
    backends.set_defaults(run=_backends)

    cells = commands.add_parser(
        "cells",
        help="the layers, their papers, and which backends run them",
        description="Lists the recurrent layers; each is a name for `--model.rnn`.",
    )
    cells.set_defaults(run=_cells)

    configs = commands.add_parser("configs", help="list or copy the configs that come along")
    actions = configs.add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser("list", help="print their names").set_defaults(run=_list_configs)
    copy = actions.add_parser("copy", help="copy one, to edit it")
    copy.add_argument("name", metavar="NAME", help="as `list` prints it")
    copy.add_argument("destination", metavar="DEST", nargs="?", default=".", help="file or folder")
    copy.add_argument("--force", action="store_true", help="overwrite a file")
    copy.set_defaults(run=_copy_config)

    cache = commands.add_parser("cache", help="show or delete the compiled kernels on disk")
    actions = cache.add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser("info", help="where they are, and their size").set_defaults(run=_cache_info)
    actions.add_parser("clear", help="delete them").set_defaults(run=_clear_cache)

    demo = commands.add_parser("demo", help="see it work, in a few minutes")
    subjects = demo.add_subparsers(title="demos", metavar="DEMO", required=True)
    text = subjects.add_parser(
        "text", help="train a byte language model on the standard library's source"
    )
    text.add_argument(
        "--seconds",
        type=_positive(float),
        default=90.0,
        help="training time of each model (%(default)s)",
    )
    text.add_argument("--folder", default="runs/demo", help="for logs and figures (%(default)s)")
    text.add_argument(
        "--seed", type=_natural, default=0, help="of weights and samples (%(default)s)"
    )
    text.set_defaults(run=_demo_text)

    memory = subjects.add_parser(
        "long-memory", help="remember the first of thousands of symbols, beside torch.nn.LSTM"
    )
    memory.add_argument(
        "--steps", type=_positive(int), default=4096, help="of a sequence (%(default)s)"
    )
    memory.add_argument(
        "--seconds",
        type=_positive(float),
        default=45.0,
        help="training time of each model, at most (%(default)s)",
    )
    memory.add_argument(
        "--folder", default="runs/demo-long-memory", help="for the figure (%(default)s)"
    )
    memory.add_argument(
        "--seed", type=_natural, default=0, help="of weights and data (%(default)s)"
    )
    memory.set_defaults(run=_demo_memory)

    switch = subjects.add_parser(
        "switch", help="switch a project that knows nothing of this package, before and after"
    )
    switch.add_argument("--rnn", default="auto", help="the layer to switch to (%(default)s)")
    switch.add_argument(
        "--steps", type=_positive(int), default=50, help="training steps of each run (%(default)s)"
    )
    switch.add_argument(
        "--folder", default="runs/demo-switch", help="for text and checkpoint (%(default)s)"
    )
    switch.add_argument(
        "--seed", type=_natural, default=0, help="of weights and dropout (%(default)s)"
    )
    switch.set_defaults(run=_demo_switch)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        # Subparsers are of this class too.
        raise UserError(f"{message}; `{self.prog} --help` shows what there is")


def _positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def parse(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    # argparse names it where `kind` fails.
    parse.__name__ = kind.__name__
    return parse


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 0")
    return value


_natural.__name__ = "int"


def _versions() -> str:
    from lightning_lrnn import __version__

    found = []
    for package in ("torch", "pytorch-lightning"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"lightning-lrnn {__version__} ({', '.join(found)})"


def _generate(options: argparse.Namespace) -> None:
    import torch

    from lightning_lrnn.backends import Request, resolve
    from lightning_lrnn.modules.checkpoint import CheckpointError, read

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolve(options.backend, Request(device, torch.float32))
    if not options.prompt:
        raise UserError("the prompt is empty; give at least one character, a newline perhaps")
    try:
        checkpoint = read(options.checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    model = _language_model(options.checkpoint, checkpoint, options.backend).to(device)
    # Sampled bytes may stop in the middle of a character, or be none at all; consoles differ in
    # what they can show.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    generator = torch.Generator(device).manual_seed(options.seed)
    print(options.prompt, end="", flush=True)
    for piece in model.generate(
        options.prompt.encode(), options.length, options.temperature, generator
    ):
        print(decoder.decode(piece), end="", flush=True)
    print(decoder.decode(b"", final=True))


def _language_model(path: str, checkpoint: dict[str, Any], backend: str) -> LanguageModel:
    """Made of what a file contains, which may be anything.

    Raises:
        UserError: if it is not one.
    """
    import inspect

    from lightning_lrnn.modules import LanguageModel

    options = checkpoint.get("hyper_parameters", {})
    # A subclass may have had more.
    known = {
        name: options[name]
        for name in inspect.signature(LanguageModel).parameters
        if name in options
    }
    try:
        model = LanguageModel(**{**known, "backend": backend})
        model.load_state_dict(checkpoint["state_dict"])
        return model
    # Whatever a wrong option or weight raises.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = options.get("_class_path", "another model")
        raise UserError(
            f"{path} is not a checkpoint of a LanguageModel but of {what} "
            f"({(lines or [type(error).__name__])[-1]}); give one that `lightning-lrnn fit` wrote"
        ) from error


def _compare(options: argparse.Namespace) -> None:
    import shlex

    from lightning_lrnn.cli.compare import command
    from lightning_lrnn.cli.configs import ConfigError, find_config, read_comparison
    from lightning_lrnn.cli.fit import CommandLineError

    if options.wandb and not find_spec("wandb"):
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
    try:
        with contextlib.ExitStack() as stack:
            config = find_config(options.config, Path(), stack)
            name = options.name or config.stem
            said = read_comparison(config) or {}
            if "config" in said:
                config = find_config(said["config"], config.parent, stack)
            # What is typed has the last word.
            rnns = options.rnn or said.get("rnn")
            if not rnns:
                raise UserError("name the layers, such as --rnn torch.nn.LSTM GILRLSTM QRNN")
            backends = options.backend or said.get("backend") or ["auto"]
            length = vars(options) if options.steps or options.seconds else said
            folder = _new_folder(Path(options.folder), name, not options.name)
            print(f"Into {folder}", flush=True)
            further = [*_length(length.get("steps"), length.get("seconds")), *options.further]
            results = command.main(str(config), rnns, backends, further, folder, options.wandb)
    except (CommandLineError, ConfigError) as error:
        raise UserError(str(error)) from error
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
    """Options of `fit` that end it after so many steps or, besides the config's, seconds."""
    if steps:
        return [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
    if seconds:
        clock = time.strftime("%H:%M:%S", time.gmtime(seconds))
        return [f"--trainer.max_time={seconds // 86_400:02}:{clock}"]
    return []


def _new_folder(parent: Path, name: str, may_number: bool) -> Path:
    """A folder that is not there yet: `name`, or name-2, name-3 and so on."""
    folder, number = parent / name, 1
    while folder.exists():
        if not may_number:
            raise UserError(f"{folder} exists; give another --name, or delete it")
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _plot(options: argparse.Namespace) -> None:
    from lightning_lrnn.cli import plot as _plot

    try:
        figure = _plot.main([Path(run) for run in options.runs], options.metric, options.output)
    except _plot.PlotError as error:
        raise UserError(str(error)) from error
    print(figure)


def _backends(options: argparse.Namespace) -> None:
    import torch

    from lightning_lrnn import backends

    here = {"cpu": True, "cuda": torch.cuda.is_available()}
    reasons = {device: backends.explain(device) for device in here}
    width = max(map(len, backends.names()))
    for name in backends.names():
        for row, (device, why) in enumerate(reasons.items()):
            # Some run on any device that PyTorch has, and have no reasons of their own.
            runs = "runs" if here[device] else f"no {device} device here"
            print(f"{'' if row else name:{width}}  {device:4}  {'; '.join(why[name]) or runs}")


def _cells(options: argparse.Namespace) -> None:
    from lightning_lrnn.cli.cells import cells_table

    print(cells_table(), end="")


def _list_configs(options: argparse.Namespace) -> None:
    from lightning_lrnn.cli.configs import config_texts

    configs = config_texts()
    width = max(map(len, configs), default=0)
    for name, text in configs.items():
        # Each begins with a comment that says what it is.
        print(f"{name:{width}}  {text.splitlines()[0].lstrip('# ')}")


def _copy_config(options: argparse.Namespace) -> None:
    from lightning_lrnn.cli.configs import config_texts
    from lightning_lrnn.core.files import write_whole

    configs = config_texts()
    name = options.name.removesuffix(".yaml") + ".yaml"
    if name not in configs:
        raise UserError(f"there is no config {options.name}; known are: {', '.join(configs)}")
    target = Path(options.destination)
    target = target / Path(name).name if target.is_dir() else target
    if target.exists() and not options.force:
        raise UserError(f"{target} exists; --force overwrites it")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent}; make it first")
    try:
        write_whole(target, configs[name])
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror})") from error
    if "/" in name:
        print(f"{target}\nits second line says how to start it")
    else:
        print(f"{target}\ntrain with it: lightning-lrnn fit --config {target}")


def _cache_info(options: argparse.Namespace) -> None:
    from lightning_lrnn.backends import kernel_cache

    try:
        folder = kernel_cache.cache_folder()
        number, size = kernel_cache.cache_size()
    except (OSError, RuntimeError) as error:
        raise UserError(f"the folder of compiled kernels cannot be read: {error}") from error
    moves = f"({kernel_cache.ENVIRONMENT_VARIABLE} moves it)"
    print(f"{folder}: {number} compiled kernels, {size / 1e6:.2f} MB {moves}")


def _clear_cache(options: argparse.Namespace) -> None:
    from lightning_lrnn.backends import kernel_cache

    try:
        folder = kernel_cache.cache_folder()
        number, size = kernel_cache.clear_cache()
    except (OSError, RuntimeError) as error:
        raise UserError(f"compiled kernels cannot be deleted: {error}") from error
    print(f"{folder}: {number} files deleted, {size / 1e6:.2f} MB")


def _demo_text(options: argparse.Namespace) -> None:
    from lightning_lrnn.cli.demos import text as demo

    demo.main(seconds=options.seconds, folder=options.folder, seed=options.seed)


def _demo_memory(options: argparse.Namespace) -> None:
    from lightning_lrnn.cli.demos import long_memory

    long_memory.main(options.steps, options.seconds, options.folder, options.seed)


def _demo_switch(options: argparse.Namespace) -> None:
    from lightning_lrnn import SwitchError
    from lightning_lrnn.cli.demos import switch as _demo_switch

    try:
        _demo_switch.main(options.rnn, options.steps, options.folder, options.seed)
    except (SwitchError, ValueError) as error:
        raise UserError(str(error)) from error
