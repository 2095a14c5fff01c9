"""Lightning's parser with checked configs, and its messages in one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning.cli import LightningArgumentParser

from lightning_lrnn.cli.configs import ConfigError, check_yaml
from lightning_lrnn.core.checks import UserError
from lightning_lrnn.nn.layer import Layer, not_found

__all__ = ["MODE", "FitParser", "one_sentence"]

MODE = "yaml of limited size"
"""The `parser_mode` of `FitParser`."""
LARGEST = 100_000
"""Values of a config, each where an anchor is used counted again."""
KEY_RNN = 'Parser key "rnn":'
NO_CLASS = re.compile(r"path but (\S+) either|path string: (\S+)")
NAMED_CLASS = re.compile(r"given class_path '([^']+)'")
WHY = re.compile(r"callable class: (.+?)\.* Got value")
"""What jsonargparse says of a layer that it does not find."""


class FitParser(LightningArgumentParser):
    """Raises `UserError` in place of printing the usage, which is hundreds of lines here."""

    def parse_args(  # type: ignore[override]
        self, args: Any = None, *more: Any, **options: Any
    ) -> Namespace:
        """Parses with null: jsonargparse writes an option of a class anew, and a null as None."""
        if isinstance(args, list) and len(args) == 1 and args[0].endswith("=None"):
            args = [f"{args[0].removesuffix('None')}null"]
        return super().parse_args(args, *more, **options)

    def parse_path(self, path: Any, *more: Any, **options: Any) -> Namespace:
        """Parses a config, after checks whose messages name the file, which `_load` cannot.

        Raises:
            ConfigError: for a file that cannot be read, bytes that are not text, and keys given
                twice.
        """
        if os.path.isfile(path):  # and not a URL
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
            check_yaml(content, str(path))
        config: Namespace = super().parse_path(path, *more, **options)
        return config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises; jsonargparse has a parser for every class, and reports from the innermost out."""
        if re.fullmatch(r"Option '\S+' is not accepted", message):
            names = [action.dest for action in self._actions]
            names = [name for name in names if not re.search(r"help$|^print_", name)]
            message += f"; there are {', '.join(names)}"
        elif message.startswith(KEY_RNN) and (name := NO_CLASS.search(message)):
            try:
                Layer.of(name[1] or name[2])
            except ValueError as error:
                why = WHY.search(message)
                message = f"{error} ({why[1]})" if why else str(error)
        named = NAMED_CLASS.search(message)
        missing = not_found(named[1]) if named and "." in named[1] else ""
        raise UserError("; ".join(filter(None, (one_sentence(message), missing)))) from ex


def one_sentence(message: str) -> str:
    """Puts a message into one line; of the alternatives that jsonargparse tried, those that count.

    Args:
        message: of jsonargparse or Lightning.
    """
    head, *rest = message.split("Does not validate against any of the Union subtypes")
    if not rest:
        return " ".join(message.split())
    tried = [
        " ".join(part.split()) for part in rest[-1].split("\n") if part.strip(" ").startswith("- ")
    ]
    reasons = [
        line.removeprefix("- ") for line in tried if line != "- Expected a <class 'NoneType'>"
    ]
    value = re.search(r"Given value: ([^\s(]+)$", rest[-1])
    got = f". Got value: {value[1]}" if value else ""
    return f"{' '.join(head.split())} {'; '.join(reasons)}{got}".strip()


def _load(text: str) -> Any:
    """Loads the YAML of a config or an option, as far as it is what was meant.

    Raises:
        ConfigError: if a key is given twice.
        UserError: if an anchor contains itself, or many anchors contain others.
    """
    check_yaml(text.encode("utf-8", "surrogateescape"), text.partition("\n")[0])
    config = get_loader("yaml")(text)
    left, rest = LARGEST, [config]
    while rest:
        value = rest.pop()
        inner = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(inner, list):
            continue
        left -= len(inner)
        rest += inner
        if left < 0:
            raise UserError(
                f"a config has more than {LARGEST:,} values, or an anchor (&) that contains itself "
                f"(*); write it out"
            )
    return config


set_loader(MODE, _load, (yaml.YAMLError,))
