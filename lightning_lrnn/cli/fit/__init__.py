"""The commands of Lightning's trainer: `fit`, `validate`, `test` and `predict`."""

from lightning_lrnn.cli.fit.command import main, parse, run
from lightning_lrnn.core.checks import UserError

__all__ = ["UserError", "main", "parse", "run"]
