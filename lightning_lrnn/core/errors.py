"""The error of what a user gave to a command."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """What the user gave cannot work; the message is one sentence that says what to do.

    The command answers it with that sentence and the status 2.
    """
