"""`lightning-lrnn fit|validate|test|predict`: LightningCLI, its defaults and its error messages."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_lrnn.backends import BackendError

# Imported here so that `--model LanguageModel` and `--data ByteText` work by their short names.
from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel, RecurrentModule
from lightning_lrnn.nn.layer import Layer

__all__ = ["CommandLineError", "parse", "run"]

KEY_RNN = 'Parser key "rnn":'
NO_CLASS = re.compile(r"path but (\S+) either|path string: (\S+)")
WHY = re.compile(r"callable class: (.+?)\.* Got value")
"""What jsonargparse says of a layer that it does not find."""

# Not files: words that Lightning resolves itself.
CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")


class CommandLineError(Exception):
    """What the user typed cannot work; the message is one sentence that says what to do."""


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises instead of printing the usage, which is hundreds of lines here.

        jsonargparse has a parser for every class, and reports from the innermost outwards.
        """
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
        raise CommandLineError(_plain(message)) from ex


class _LogConfig(SaveConfigCallback):
    """Saves the resolved config beside the logs, and logs it to every logger."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        config = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
        config.pop("config", None)
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": config})


class _CLI(LightningCLI):
    def __init__(self, args: list[str], **options: Any) -> None:
        # Not the default class for a class that is named later: it would leave that its options,
        # where both have options of the same name.
        self._defaults = {
            part: {"class_path": _named(part, args) or _path(kind)}
            for part, kind in {"model": LanguageModel, "data": ByteText}.items()
        }
        super().__init__(args=args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(self._defaults)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns that sys.argv has arguments too, which is so under pytest.
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        _check_layer(config.get("model"))
        checkpoint = config.get("ckpt_path")
        if checkpoint is None or "://" in checkpoint or checkpoint.startswith(CHECKPOINT_WORDS):
            return
        if not Path(checkpoint).is_file():
            raise CommandLineError(
                f"there is no checkpoint {checkpoint}; `fit` writes them into the folder "
                f"`checkpoints` beside its logs"
            )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse's own has the whole config in it; what a class said about its arguments
            # is the cause.
            if isinstance(error.__cause__, (ValueError, BackendError)):
                raise CommandLineError(_plain(str(error.__cause__))) from error
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise error.__cause__ from None
            raise


class _Parsing(_CLI):
    """Neither makes nor runs anything."""

    def _set_seed(self) -> None:
        return

    def instantiate_classes(self) -> None:
        return

    def _run_subcommand(self, subcommand: str) -> None:
        return


def run(args: list[str], callbacks: Sequence[pl.Callback] = ()) -> LightningCLI:
    """Parses and runs one of Lightning's subcommands.

    Args:
        args: the subcommand and its options.
        callbacks: of the trainer, beside those of the config.

    Returns:
        What has run: its `trainer`, `model` and `datamodule`.

    Raises:
        CommandLineError: if the arguments do not make sense.
    """
    return _made(_CLI, args, trainer_defaults={"callbacks": list(callbacks)} if callbacks else None)


def parse(args: list[str]) -> Namespace:
    """The configuration that `run` would run.

    Raises:
        CommandLineError: if the arguments do not make sense.
    """
    config: Namespace = _made(_Parsing, args).config
    return config


def _made(kind: type[_CLI], args: list[str], **options: Any) -> _CLI:
    return kind(
        model_class=pl.LightningModule,
        datamodule_class=pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # A run that names no seed is reproducible too.
        seed_everything_default=0,
        parser_class=_Parser,
        parser_kwargs={"prog": "lightning-lrnn"},
        save_config_callback=_LogConfig,
        # With a WandbLogger every run has the same log folder, and the second would fail.
        save_config_kwargs={"overwrite": True},
        # The modules have their own optimizer, with its options among theirs.
        auto_configure_optimizers=False,
        args=args,
        **options,
    )


def _named(part: str, args: Sequence[str]) -> str | None:
    """The class of the model or the data that the command line or a config on it names first."""
    for arg, after in pairwise([*args, ""]):
        name, _, value = arg.partition("=")
        value = value or after
        if name in (f"--{part}", f"--{part}.class_path"):
            return _class_path(value)
        if name not in ("--config", "-c") or not Path(value).is_file():
            continue
        config = _loaded(Path(value).read_text(errors="replace"))
        if isinstance(config, dict) and (found := _class_path(config.get(part))):
            return found
    return None


def _class_path(given: Any) -> str | None:
    """Of a class that is named by itself, or with its options."""
    given = _loaded(given) if isinstance(given, str) else given
    given = given.get("class_path") if isinstance(given, dict) else given
    return given if isinstance(given, str) else None


def _loaded(text: str) -> Any:
    """YAML; None for what is none, which parsing it will tell."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _check_layer(model: Any) -> None:
    """Refuses a layer's options before jsonargparse makes objects of them.

    A checkpoint may have set them, and where an option's type is open jsonargparse makes an object
    of any class that is named there.
    """
    rnn = model.get("init_args", {}).get("rnn") if isinstance(model, Namespace) else None
    if not isinstance(rnn, Namespace):
        return
    module, _, name = model.class_path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    if isinstance(kind, type) and issubclass(kind, RecurrentModule):
        try:
            Layer.of(rnn.as_dict(), kind.decided)
        except ValueError as error:
            raise CommandLineError(_plain(str(error))) from error


def _plain(message: str) -> str:
    """In one line; of the alternatives that jsonargparse tried, only those that say something."""
    head, *rest = message.split("Does not validate against any of the Union subtypes")
    if not rest:
        return " ".join(message.split())
    tried = [
        " ".join(part.split()) for part in rest[-1].split("\n") if part.strip(" ").startswith("- ")
    ]
    told = [line.removeprefix("- ") for line in tried if line != "- Expected a <class 'NoneType'>"]
    value = re.search(r"Given value: ([^\s(]+)$", rest[-1])
    got = f". Got value: {value[1]}" if value else ""
    return f"{' '.join(head.split())} {'; '.join(told)}{got}".strip()


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
