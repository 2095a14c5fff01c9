"""A parser for the commands that must start without jsonargparse.

`backends`, `cells`, `cache` and `configs` are how a user looks at an installation, a broken one
too, so they need PyTorch and the standard library only. `compare` takes its own options and leaves
all others to `fit`, which jsonargparse does not do. All other commands are functions with typed
signatures: see typed.py.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

from lightning_lrnn.core.checks import UserError

__all__ = ["Parser", "Passing"]


class Parser(argparse.ArgumentParser):
    """Raises `UserError` in place of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises, with the command whose help shows the options.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; `{self.prog} --help` shows what there is")


class Passing(Parser):
    """Leaves its words to the command, in the attribute `words` of the namespace."""

    def parse_known_args(  # type: ignore[override]
        self, args: list[str], namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Takes all words; none is left over."""
        return argparse.Namespace(words=args), []
