"""`lightning-lrnn fit|validate|test|predict`: LightningCLI, its defaults and its error messages."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from jsonargparse import Namespace
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_lrnn.backends import BackendError
from lightning_lrnn.cli.configs import ConfigError
from lightning_lrnn.cli.process_group import ProcessGroup
from lightning_lrnn.cli.resume import (
    Said,
    configs_in,
    last_checkpoint,
    loaded,
    options_of,
    trainer_option,
)
from lightning_lrnn.cli.stop import STATUS, Stop
from lightning_lrnn.core.checks import check_counts

# Imported here so that `--model LanguageModel` and `--data ByteText` work by their short names.
from lightning_lrnn.data import ByteText, DataError
from lightning_lrnn.modules import LanguageModel, RecurrentModule
from lightning_lrnn.modules.base import ResumeError
from lightning_lrnn.modules.checkpoint import CheckpointError, CheckpointFiles, check, read
from lightning_lrnn.nn.layer import Layer

__all__ = ["CommandLineError", "parse", "run"]

KEY_RNN = 'Parser key "rnn":'
NO_CLASS = re.compile(r"path but (\S+) either|path string: (\S+)")
REGISTRY = "registry:"
"""What a name in Lightning's registry of models begins with, which is not read before it runs."""
MONITOR = "Early stopping conditioned on metric"
LARGEST = 100_000
"""Values of a config, each where an anchor is used counted again."""
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""Parts of an optimizer's state that have the shape of the parameter."""
LIMITS = (
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    "overfit_batches",
)
"""Options of which 1 is one batch, and 1.0 all of them."""
UNUSABLE = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What the system says of a place where nothing can be written."""
SECRET = re.compile(r"key$|token$|secret|passw|credential|webhook", re.IGNORECASE)
URL_PASSWORD = re.compile(r"(\w://)[^/@\s]+@")
WHY = re.compile(r"callable class: (.+?)\.* Got value")
"""What jsonargparse says of a layer that it does not find."""


class CommandLineError(Exception):
    """What the user typed cannot work; the message is one sentence that says what to do."""


class _Parser(LightningArgumentParser):
    def parse_args(  # type: ignore[override]
        self, args: Any = None, *more: Any, **options: Any
    ) -> Namespace:
        """With null: jsonargparse writes an option of a class anew, and a null as None."""
        if isinstance(args, list) and len(args) == 1 and args[0].endswith("=None"):
            args = [f"{args[0].removesuffix('None')}null"]
        return super().parse_args(args, *more, **options)

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


@dataclass(frozen=True)
class _Written:
    """What a parser would save, for processes that no parser can be sent to."""

    text: str

    def save(self, config: Any, path: str, **options: Any) -> None:
        Path(path).write_text(self.text, encoding="utf-8")


class _LogConfig(SaveConfigCallback):
    """Saves the resolved config beside the logs, and logs it to every logger."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        written: Any = _Written(parser.dump(config, skip_none=False))
        nothing: Any = None
        super().__init__(written, nothing, **options)
        self._logged = json.loads(parser.dump(config, skip_none=False, format="json"))
        self._logged.pop("config", None)
        self._logged = _without_secrets(self._logged)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": self._logged})


class _Restored(pl.Callback):
    """Looks after what a checkpoint restores in optimizers.

    Gives them the figures that were typed, and refuses states that are not of their parameters:
    Lightning takes any number of them, PyTorch whatever has the right number of groups.
    """

    def __init__(self, path: str, before: dict[str, Any]) -> None:
        self._path, self._before = path, before
        self._numbers: dict[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares numbers and shapes.

        Raises:
            CheckpointError: for states of other optimizers or parameters.
        """
        there: dict[str, Sequence[Any]] = {
            "optimizer_states": trainer.optimizers,
            "lr_schedulers": trainer.lr_scheduler_configs,
        }
        for name, number in self._numbers.items():
            if number != len(there[name]):
                raise CheckpointError(
                    f"{self._path} has {number} `{name}` for {len(there[name])} of this run; give "
                    f"a checkpoint of this model"
                )
        for optimizer in trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name in MOMENTS:
                    value = state.get(name, parameter)
                    if getattr(value, "shape", None) != parameter.shape:
                        raise CheckpointError(
                            f"{self._path} has `optimizer_states` of other parameters: {name} is "
                            f"{tuple(getattr(value, 'shape', ()))} for one of "
                            f"{tuple(parameter.shape)}; give a checkpoint of this model"
                        )

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Changes what the optimizers and their schedules are about to be restored from."""
        self._numbers = {
            name: len(checkpoint[name]) for name in ("optimizer_states", "lr_schedulers")
        }
        if not isinstance(pl_module, RecurrentModule):
            return
        groups = [g for state in checkpoint["optimizer_states"] for g in state["param_groups"]]
        if (lr := self._before.get("lr")) is not None:
            for group in groups:
                for name in ("lr", "initial_lr"):
                    if name in group:
                        group[name] *= pl_module.lr / lr
            for schedule in checkpoint["lr_schedulers"]:
                for name in {"base_lrs", "_last_lr"} & set(schedule):
                    schedule[name] = [rate * pl_module.lr / lr for rate in schedule[name]]
        if "weight_decay" in self._before:
            for group in groups:
                if group.get("weight_decay") == self._before["weight_decay"]:
                    group["weight_decay"] = pl_module.weight_decay


class _Monitors(pl.Callback):
    """Refuses a monitored metric that nothing logs: Lightning warns, and keeps no best model."""

    def __init__(self) -> None:
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, once validation has logged what it logs."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = True
            self._look(trainer, "val")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, when no more can come."""
        if self._validated:
            self._look(trainer, "")

    def _look(self, trainer: pl.Trainer, prefix: str) -> None:
        there = trainer.callback_metrics
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and name.startswith(prefix) and name not in there:
                raise CommandLineError(
                    f"{type(callback).__name__} monitors {name!r}, which nothing logs; there are "
                    f"{', '.join(sorted(there))}"
                )


class _CLI(LightningCLI):
    def __init__(self, args: list[str], **options: Any) -> None:
        try:
            configs = configs_in(args)
        except ConfigError as error:
            raise CommandLineError(str(error)) from error
        for given in (*configs, *(loaded(arg.partition("=")[2] or arg) for arg in args)):
            _check_size(given)
        self._args = args
        self._options_of: str | None = None
        self._overruled: dict[str, Any] = {}
        # Not the default class for a class that is named later: it would leave that its options,
        # where both have options of the same name.
        self._defaults = {
            part: {"class_path": _named(part, args) or _path(kind)}
            for part, kind in {"model": LanguageModel, "data": ByteText}.items()
        }
        super().__init__(args=args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for part, default in self._defaults.items():
            try:
                parser.set_defaults({part: default})
            except (ValueError, AttributeError, ImportError) as error:
                path = default["class_path"]
                # What a module that is there fails to import is the user's to see.
                if isinstance(error, ImportError) and not path.startswith(f"{error.name}."):
                    raise
                raise CommandLineError(
                    f"there is no class {path!r} for `--{part}` ({_plain(str(error))}); give its "
                    f"name, or the path that it is imported by"
                ) from error

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns that sys.argv has arguments too, which is so under pytest.
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Adds the options of a checkpoint; Lightning's own has the checkpoint choose classes."""
        command = self.config.subcommand
        config = self.config[command]
        if config.get("weights_only") is None:
            config["weights_only"] = True
        try:
            config["ckpt_path"] = _file(command, config)
            if config["ckpt_path"] and not config["ckpt_path"].startswith(REGISTRY):
                self._take_up(command, config)
        except CheckpointError as error:
            raise CommandLineError(str(error)) from error

    def _take_up(self, command: str, config: Namespace) -> None:
        path = config["ckpt_path"]
        checkpoint = read(path, config["weights_only"])
        check(checkpoint, path, resumes=command == "fit")
        if not isinstance(model := config.get("model"), Namespace):
            return
        taken, self._overruled, told = options_of(checkpoint, path, model, Said(self._args))
        for words in told:
            rank_zero_info(f"{path}: {words}")
        if not taken:
            return
        self._options_of = path
        own = model.get("init_args") or {}
        given: dict[str, Any] = {"class_path": model.class_path, "init_args": {}}
        for name, value in taken.items():
            given.setdefault("init_args" if name in own else "dict_kwargs", {})[name] = value
        try:
            self.config = self.parser.parse_object({command: {"model": given}}, self.config)
        except CommandLineError as error:
            raise CommandLineError(f"{path} has options that do not fit: {error}") from error

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        _check_layer(config.get("model"))
        _check_intervals(config.get("trainer") or {})

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """With checkpoints that are read and written by this package."""
        given = self.config[self.config.subcommand].get("trainer") or {}
        for name in LIMITS:
            # jsonargparse makes 1.0 of it, and Lightning takes that for all batches.
            if given.get(name) == 1 and type(trainer_option(self._args, name)) is int:
                options.setdefault(name, 1)
        try:
            trainer = super().instantiate_trainer(**options)
        except (MisconfigurationException, ValueError, TypeError) as error:
            if not _of_lightning(error):
                raise
            raise CommandLineError(_plain(str(error))) from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._stop = Stop(trainer)
        callbacks += [self._stop, ProcessGroup()]
        callbacks.insert(0, _Monitors())
        path = self.config[self.subcommand].get("ckpt_path")
        if path and self.subcommand == "fit":
            callbacks.append(_Restored(path, self._overruled))
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            # Lightning's exception is an exit with the status of success.
            self._stop.end_children()
            raise SystemExit(STATUS) from None
        except CheckpointError as error:
            raise CommandLineError(str(error)) from error
        except ResumeError as error:
            path = self.config[subcommand]["ckpt_path"]
            raise CommandLineError(f"{path}: {error}") from error
        except (CommandLineError, DataError, BackendError):
            raise
        except Exception as error:
            path = self.config[subcommand].get("ckpt_path")
            if path and _of_checkpoint(error):
                raise CommandLineError(_misfit(path, error, self._overruled)) from error
            # Its messages say what is configured wrongly.
            if _of_lightning(error) or MONITOR in str(error):
                raise CommandLineError(_plain(str(error))) from error
            if isinstance(error, UNUSABLE) and error.filename:
                raise CommandLineError(
                    f"{error.filename} cannot be used ({error.strerror}); choose another folder"
                ) from error
            raise

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise CommandLineError(f"`--seed_everything`: {_plain(str(error))}") from error

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (MemoryError, RuntimeError) as error:
            if "allocate" not in str(error) and not isinstance(error, MemoryError):
                raise
            raise CommandLineError(
                f"there is not enough memory for this model ({_plain(str(error))[:200]}); make it "
                f"smaller, by `hidden_size` perhaps"
            ) from error
        except ValueError as error:
            # jsonargparse's own has the whole config in it; what a class said about its arguments
            # is the cause.
            known = (ValueError, BackendError, *([TypeError] if self._options_of else []))
            if isinstance(error.__cause__, known):
                whose = f"{self._options_of} has options that do not fit: "
                told = f"{whose if self._options_of else ''}{error.__cause__}"
                raise CommandLineError(_plain(told)) from error
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


def _file(command: str, config: Namespace) -> str | None:
    """The file that is meant, None to start from nothing.

    Raises:
        CommandLineError: if there is none and there has to be one.
    """
    path: str | None = config.get("ckpt_path")
    if path is not None and not path.strip():
        raise CommandLineError("`--ckpt_path` is empty: give a file, or leave it out")
    if path == "best":
        raise CommandLineError(
            "`--ckpt_path best` is the best of a training in the same process, and there was none; "
            "give the file, from the folder `checkpoints` beside the logs"
        )
    if path == "hpc":
        saved = Path(config.trainer.get("default_root_dir") or ".").glob("hpc_ckpt_*.ckpt")
        numbered = [
            (int(n[1]), str(f)) for f in saved if (n := re.search(r"_(\d+)\.ckpt$", f.name))
        ]
        path = max(numbered)[1] if numbered else path
    if path != "last":
        return path
    file, where = last_checkpoint(config.trainer)
    if file is None and command != "fit":
        raise CommandLineError(
            f"there is no last checkpoint, no {where}; `fit` writes one with `save_last: true` of "
            f"a ModelCheckpoint, or give another file"
        )
    if file is None:
        # As a job does that is submitted with this option from the start.
        rank_zero_info(f"There is no last checkpoint yet, no {where}: training starts anew.")
        return None
    rank_zero_info(f"The last checkpoint is {file}.")
    return str(file)


def _of_checkpoint(error: BaseException) -> bool:
    """Whether it was raised while a trainer took up a checkpoint, or of what it took up.

    Progress, schedules and states of optimizers are taken as they come and fail when they are used.
    """
    trace, file = error.__traceback__, Path()
    while trace is not None:
        code = trace.tb_frame.f_code
        file = Path(code.co_filename)
        if file.name == "checkpoint_connector.py" and code.co_name.lstrip("_").startswith("res"):
            return True
        trace = trace.tb_next
    return any(part in file.as_posix() for part in ("torch/optim/", "pytorch_lightning/loops/"))


def _of_lightning(error: BaseException) -> bool:
    """Whether Lightning's trainer refused what is configured, in words of its own."""
    if isinstance(error, MisconfigurationException):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1].filename.replace("\\", "/")
    inside = "/pytorch_lightning/" in last or "/lightning_fabric/" in last
    return inside and isinstance(error, (ValueError, TypeError))


def _check_intervals(trainer: Any) -> None:
    """Refuses intervals that Lightning would divide by."""
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (value := trainer.get(name)) is not None:
            check_counts(1, CommandLineError, **{f"trainer.{name}": value})
    if (value := trainer.get("val_check_interval")) in (0, 0.0):
        raise CommandLineError(f"`trainer.val_check_interval` must be above 0, got {value}")


def _misfit(path: str, error: Exception, overruled: dict[str, Any]) -> str:
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    if words and words[0].startswith("Error(s) in loading state_dict"):
        words = words[1:]
    first = words[0] if words else type(error).__name__
    typed = ", ".join(f"--model.{name}" for name in overruled)
    remedy = (
        f"leave out {typed}, which the checkpoint has otherwise"
        if typed
        else "give a checkpoint of this model, data and trainer"
    )
    return f"{path} does not fit what is configured ({first[:300]}); {remedy}"


def _without_secrets(value: Any, name: str = "") -> Any:
    """A config for others to see: no options of loggers, no passwords and keys.

    A logger's options are there to reach a service, and one logger would tell them to another.
    """
    if isinstance(value, list):
        return [_without_secrets(item, name) for item in value]
    if isinstance(value, str):
        return "***" if SECRET.search(name) else URL_PASSWORD.sub(r"\1***@", value)
    if not isinstance(value, dict):
        return value
    if name == "logger":
        return {"class_path": value.get("class_path")}
    return {key: _without_secrets(item, str(key)) for key, item in value.items()}


def _named(part: str, args: Sequence[str]) -> str | None:
    """The class of the model or the data that the command line or a config on it names first."""
    for arg, after in pairwise([*args, ""]):
        name, _, value = arg.partition("=")
        value = value or after
        if name in (f"--{part}", f"--{part}.class_path"):
            return _class_path(value)
        if name not in ("--config", "-c") or not Path(value).is_file():
            continue
        config = loaded(Path(value).read_text(errors="replace"))
        if isinstance(config, dict) and (found := _class_path(config.get(part))):
            return found
    return None


def _class_path(given: Any) -> str | None:
    """Of a class that is named by itself, or with its options."""
    given = loaded(given) if isinstance(given, str) else given
    given = given.get("class_path") if isinstance(given, dict) else given
    return given if isinstance(given, str) else None


def _check_size(config: Any) -> None:
    """Refuses a YAML with an anchor that contains itself, or many anchors that contain others."""
    left, rest = LARGEST, [config]
    while rest:
        value = rest.pop()
        inner = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(inner, list):
            continue
        left -= len(inner)
        rest += inner
        if left < 0:
            raise CommandLineError(
                f"a config has more than {LARGEST:,} values, or an anchor (&) that contains itself "
                f"(*); write it out"
            )


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
