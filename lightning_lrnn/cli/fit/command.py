"""`lightning-lrnn fit|validate|test|predict`: LightningCLI with checkpoints that are data only."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_lrnn.backends import BackendError
from lightning_lrnn.cli.fit import failures
from lightning_lrnn.cli.fit.callbacks import Monitors, Restored
from lightning_lrnn.cli.fit.checkpoint_file import checkpoint_file
from lightning_lrnn.cli.fit.checkpoint_options import checkpoint_options
from lightning_lrnn.cli.fit.checks import check_intervals, check_layer
from lightning_lrnn.cli.fit.parser import MODE, FitParser, one_sentence
from lightning_lrnn.cli.fit.process_group import ProcessGroup
from lightning_lrnn.cli.fit.saved_config import SavedConfig
from lightning_lrnn.cli.fit.stop import STATUS, Stop
from lightning_lrnn.cli.fit.words import Words
from lightning_lrnn.core.checks import UserError

# Imported here so that `--model LanguageModel` and `--data ByteText` work by their short names.
from lightning_lrnn.data import ByteText, DataError
from lightning_lrnn.modules import LanguageModel
from lightning_lrnn.modules.checkpoint import CheckpointFiles, check, read
from lightning_lrnn.nn.layer import not_found

__all__ = ["FitCLI", "main", "parse", "run"]

DEFAULTS = {"model": LanguageModel, "data": ByteText}
USAGE = {
    command: {
        "usage": f"lightning-lrnn {command} [--config FILE] [--model CLASS] [--ckpt_path FILE] "
        f"[options]"
    }
    for command in LightningCLI.subcommands()
}
"""In place of a list of all options, which follow with their help."""
REGISTRY = "registry:"
"""What a name in Lightning's registry of models begins with, which is not read before it runs."""
LIMITS = (
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    "overfit_batches",
)
"""Options of which 1 is one batch, and 1.0 all of them."""


class FitCLI(LightningCLI):
    """Parses and runs one of Lightning's subcommands.

    Args:
        args: the subcommand and its options.
        **options: see LightningCLI.
    """

    def __init__(self, args: list[str], **options: Any) -> None:
        self._words = Words(args[1:])
        self._options_of: str | None = None
        self._overruled: dict[str, Any] = {}
        super().__init__(args=args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sets the classes that are named, or else the default ones, and the type of limits."""
        for part, default in DEFAULTS.items():
            path = self._words.class_path(part) or f"{default.__module__}.{default.__qualname__}"
            _set_class(parser, part, path)
        action: Any
        for action in parser._actions:
            if action.dest.removeprefix("trainer.") in LIMITS:
                # `typing` may have Lightning's union in the other order, by which 1 becomes 1.0.
                action._typehint = int | float | None

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the command line, and sets `config`."""
        # Lightning's own warns that sys.argv has arguments too, which is so under pytest.
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Adds the options of a checkpoint; Lightning's own has the checkpoint choose classes."""
        command = self.config.subcommand
        config = self.config[command]
        if config.get("weights_only") is None:
            config["weights_only"] = True
        config["ckpt_path"] = path = checkpoint_file(command, config)
        if path and not path.startswith(REGISTRY):
            self._add_options_of(path, command, config)

    def _add_options_of(self, path: str, command: str, config: Namespace) -> None:
        checkpoint = read(path, config["weights_only"])
        check(checkpoint, path, resumes=command == "fit")
        if not isinstance(model := config.get("model"), Namespace):
            return
        options, self._overruled = checkpoint_options(checkpoint, path, model, self._words)
        if not options:
            return
        self._options_of = path
        configured = model.get("init_args") or {}
        tree: dict[str, Any] = {"class_path": model.class_path, "init_args": {}}
        for name, value in options.items():
            part = "init_args" if name in configured else "dict_kwargs"
            tree.setdefault(part, {})[name] = value
        try:
            self.config = self.parser.parse_object({command: {"model": tree}}, self.config)
        except UserError as error:
            raise UserError(f"{path} has options that do not fit: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Checks what would make objects of a layer's options, or be divided by."""
        config = self.config[self.config.subcommand]
        check_layer(config.get("model"))
        check_intervals(config.get("trainer") or {})

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """Returns the trainer, with checkpoints that are read and written by this package."""
        try:
            trainer = super().instantiate_trainer(**options)
        except (MisconfigurationException, ValueError, TypeError) as error:
            if not failures.is_of_lightning(error):
                raise
            raise UserError(one_sentence(str(error))) from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._stop = Stop(trainer)
        callbacks += [self._stop, ProcessGroup()]
        callbacks.insert(0, Monitors())
        path = self.config[self.subcommand].get("ckpt_path")
        if path and self.subcommand == "fit":
            callbacks.append(Restored(path, self._overruled))
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            self._run(subcommand)
        except BaseException:
            _remove_empty_folders(self.trainer)
            raise

    def _run(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            # Lightning's exception is an exit with the status of success.
            self._stop.end_children()
            raise SystemExit(STATUS) from None
        except (UserError, DataError, BackendError):
            raise
        except Exception as error:
            path = self.config[subcommand].get("ckpt_path")
            sentence = failures.of_run(error, path, self._overruled)
            if sentence is None:
                raise
            raise UserError(sentence) from error

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"`--seed_everything`: {one_sentence(str(error))}") from error

    def instantiate_classes(self) -> None:
        """Makes trainer, model and data.

        Raises:
            UserError: if their options do not make sense.
        """
        try:
            super().instantiate_classes()
        except (MemoryError, RuntimeError, ValueError) as error:
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise error.__cause__ from None
            sentence = failures.of_construction(error, self._options_of)
            if sentence is None:
                raise
            raise UserError(sentence) from error


def _remove_empty_folders(trainer: pl.Trainer) -> None:
    """Removes folders of loggers to which nothing was written before a run failed."""
    for logger in trainer.loggers:
        if folder := getattr(logger, "log_dir", None):
            # There is none, it is not empty, or it is in no file system of this machine.
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


class _ParseOnly(FitCLI):
    """Parses, and neither makes nor runs anything."""

    def _set_seed(self) -> None:
        return

    def instantiate_classes(self) -> None:
        return

    def _run_subcommand(self, subcommand: str) -> None:
        return


def _set_class(parser: LightningArgumentParser, part: str, path: str) -> None:
    """Sets the class of a part as its default."""
    try:
        parser.set_defaults({part: {"class_path": path}})
    except (ValueError, AttributeError, ImportError) as error:
        # What a module that is there fails to import is the user's to see.
        if isinstance(error, ImportError) and not path.startswith(f"{error.name}."):
            raise
        raise UserError(
            f"there is no class {path!r} for `--{part}` "
            f"({not_found(path) or one_sentence(str(error))}); give its "
            f"name, or the path that it is imported by"
        ) from error


def main(words: list[str]) -> None:
    """Runs a subcommand, which is the first of the words."""
    try:
        run(words)
    except DataError as error:
        raise UserError(str(error)) from error


def run(args: list[str], callbacks: Sequence[pl.Callback] = ()) -> LightningCLI:
    """Parses and runs one of Lightning's subcommands.

    Args:
        args: the subcommand and its options.
        callbacks: of the trainer, beside those of the config.

    Returns:
        What has run: its `trainer`, `model` and `datamodule`.

    Raises:
        UserError: if the arguments do not make sense.
    """
    defaults = {"callbacks": list(callbacks)} if callbacks else None
    return _new(FitCLI, args, trainer_defaults=defaults)


def parse(args: list[str]) -> Namespace:
    """Returns the configuration that `run` would run.

    Args:
        args: the subcommand and its options.

    Raises:
        UserError: if the arguments do not make sense.
    """
    config: Namespace = _new(_ParseOnly, args).config
    return config


def _new(cli: type[FitCLI], args: list[str], **options: Any) -> FitCLI:
    return cli(
        model_class=pl.LightningModule,
        datamodule_class=pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # A run that names no seed is reproducible too.
        seed_everything_default=0,
        parser_class=FitParser,
        parser_kwargs={"prog": "lightning-lrnn", "parser_mode": MODE, **USAGE},
        save_config_callback=SavedConfig,
        # With a WandbLogger every run has the same log folder, and the second would fail.
        save_config_kwargs={"overwrite": True},
        # The modules have their own optimizer, with its options among theirs.
        auto_configure_optimizers=False,
        args=args,
        **options,
    )
