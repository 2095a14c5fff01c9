"""The error that the command answers with one sentence and the status 2."""

from __future__ import annotations

__all__ = ["CommandLineError"]


class CommandLineError(Exception):
    """What the user typed cannot work; the message is one sentence that says what to do."""
