"""The command `lightning-lrnn`: its subcommands, and the answer to what goes wrong in them.

A subcommand is imported when it is called, so that each starts with what it needs only.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from lightning_lrnn.cli.parser import Parser, Passing
from lightning_lrnn.core.checks import UserError

__all__ = ["main"]

COMMANDS = {
    "fit": ("fit", "train a model from a config"),
    "validate": ("fit", "validate a checkpoint"),
    "test": ("fit", "test a checkpoint"),
    "predict": ("fit", "predict with a checkpoint"),
    "generate": ("generate", "sample text from a checkpoint"),
    "compare": ("compare.command", "train a config with several layers and backends, and tabulate"),
    "plot": ("plot", "draw learning curves and memory horizons from CSV logs, or a forecast"),
    "backends": ("backends", "which backends run here, and why others do not"),
    "cells": ("cells", "the layers, their papers, and which backends run them"),
    "configs": ("configs", "list or copy the configs that come along"),
    "cache": ("cache", "show or delete the compiled kernels on disk"),
    "demo": ("demos.command", "see it work, in a few minutes"),
}
"""Subcommand -> the module in `lightning_lrnn.cli` whose `main` runs it, and its purpose."""

OPTIONAL = {"wandb": "wandb", "matplotlib": "plot"}
"""Optional package -> the extra that brings it."""

UNUSABLE = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Errors of the system where nothing can be written."""

INTERRUPTED = 130
"""The status that a shell reports for a process that Ctrl-C ended."""

EXAMPLES = """\
examples:
  lightning-lrnn demo long-memory
  lightning-lrnn demo text
  lightning-lrnn demo switch
  lightning-lrnn demo classify
  lightning-lrnn demo ranks
  lightning-lrnn configs copy byte_lm
  lightning-lrnn fit --config byte_lm.yaml
  lightning-lrnn test --config byte_lm.yaml --ckpt_path CKPT --model.backend serial
  lightning-lrnn generate CKPT --prompt "def "
  lightning-lrnn compare byte_lm --rnn torch.nn.LSTM GILRLSTM QRNN --steps 200
  lightning-lrnn plot runs/byte_lm
"""


def main(args: list[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        args: the command line; that of the process if None.

    Returns:
        The exit status: 0; 2 for a mistake of the user, which one sentence on stderr explains; or
        130 after Ctrl-C.
    """
    from lightning_lrnn.backends import BackendError

    # A user's own modules, after all others: of those that a config names Python looks there too.
    added = "" not in sys.path
    if added:
        sys.path.append("")
    try:
        options = _parser().parse_args(args)
        module, _ = COMMANDS[options.command]
        import_module(f"lightning_lrnn.cli.{module}").main([options.command, *options.words])
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
    except UNUSABLE as error:
        if not error.filename:
            raise
        return _complain(f"{error.filename} cannot be used ({error.strerror}); choose another")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` perhaps, has enough; closing stdout must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if added:
            sys.path.remove("")
    return 0


def _complain(sentence: str) -> int:
    print(f"lightning-lrnn: {sentence}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    """Parses the name of a subcommand, and leaves what follows to it."""
    parser = Parser(
        prog="lightning-lrnn",
        description="Linear recurrences for PyTorch Lightning: train, look and ask.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, parser_class=Passing
    )
    for name, (_, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    return parser


def _versions() -> str:
    from lightning_lrnn import __version__

    versions = []
    for package in ("torch", "pytorch-lightning"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"lightning-lrnn {__version__} ({', '.join(versions)})"
