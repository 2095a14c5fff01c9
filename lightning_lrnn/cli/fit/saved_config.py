"""The resolved config of a run: saved beside its logs, and logged without secrets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback

__all__ = ["SavedConfig", "without_secrets"]

SECRET = re.compile(r"key$|token$|secret|passw|credential|webhook", re.IGNORECASE)
URL_PASSWORD = re.compile(r"(\w://)[^/@\s]+@")


@dataclass(frozen=True)
class _Written:
    """Saves a config as a parser would, and can be pickled for other processes, unlike a parser."""

    text: str

    def save(self, config: Any, path: str, **options: Any) -> None:
        Path(path).write_text(self.text, encoding="utf-8")


class SavedConfig(SaveConfigCallback):
    """Saves the resolved config beside the logs, and logs it to every logger."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        written: Any = _Written(parser.dump(config, skip_none=False))
        nothing: Any = None
        super().__init__(written, nothing, **options)
        self._logged = json.loads(parser.dump(config, skip_none=False, format="json"))
        self._logged.pop("config", None)
        self._logged = without_secrets(self._logged)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Logs the config as hyperparameters."""
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": self._logged})


def without_secrets(value: Any, name: str = "") -> Any:
    """Returns a config without options of loggers, passwords and keys.

    A logger's options give access to its service, and would be logged by every other logger.

    Args:
        value: a config, or a value in it.
        name: key of the value.
    """
    if isinstance(value, list):
        return [without_secrets(item, name) for item in value]
    if isinstance(value, str):
        return "***" if SECRET.search(name) else URL_PASSWORD.sub(r"\1***@", value)
    if not isinstance(value, dict):
        return value
    if name == "logger":
        return {"class_path": value.get("class_path")}
    return {key: without_secrets(item, str(key)) for key, item in value.items()}
