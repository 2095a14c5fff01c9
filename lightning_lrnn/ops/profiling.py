"""Lets one observer stand around every recurrence; while there is none it costs a comparison."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

__all__ = ["observe", "observed"]

Result = TypeVar("Result")
Observer = Callable[[], AbstractContextManager[Any]]

_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Sets what is entered before a recurrence is computed, forward or backward, and left after.

    Args:
        observer: makes a context for each; None for no more of them.
    """
    global _observer
    _observer = observer


def observed(compute: Callable[..., Result]) -> Callable[..., Result]:
    """The same function, with the observer around it."""

    @functools.wraps(compute)
    def computing(*arguments: Any, **options: Any) -> Result:
        if _observer is None:
            return compute(*arguments, **options)
        with _observer():
            return compute(*arguments, **options)

    return computing
