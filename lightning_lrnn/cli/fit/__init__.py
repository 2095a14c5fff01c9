"""The commands of Lightning's trainer: `fit`, `validate`, `test` and `predict`."""

from lightning_lrnn.cli.errors import CommandLineError
from lightning_lrnn.cli.fit.command import main, parse, run

__all__ = ["CommandLineError", "main", "parse", "run"]
