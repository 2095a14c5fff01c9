"""The error of the command line itself."""

from __future__ import annotations

from lightning_lrnn.core.errors import UserError

__all__ = ["CommandLineError"]


class CommandLineError(UserError):
    """What the user typed cannot work; the message is one sentence that says what to do."""
