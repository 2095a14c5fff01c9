"""The error that the command line answers with one sentence."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """What the user asked for cannot work; the message is one sentence that says what to do."""
