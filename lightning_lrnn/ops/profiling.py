"""A profiling hook around every recurrence; without one a recurrence costs a comparison more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["observe", "observer"]

Observer = Callable[[], AbstractContextManager[Any]]

observer: Observer | None = None


def observe(new: Observer | None) -> None:
    """Sets the observer, whose context is around each forward and backward of a recurrence.

    Args:
        new: makes a context for each; None removes the observer.
    """
    global observer
    observer = new
