"""Lets one observer stand around every recurrence; while there is none it costs a comparison."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["observe", "observer"]

Observer = Callable[[], AbstractContextManager[Any]]

observer: Observer | None = None


def observe(new: Observer | None) -> None:
    """Sets what is entered before a recurrence is computed, forward or backward, and left after.

    Args:
        new: makes a context for each; None for no more of them.
    """
    global observer
    observer = new
