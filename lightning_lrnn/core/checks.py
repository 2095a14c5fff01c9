"""Checks of arguments; errors name the argument and its value."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

__all__ = [
    "UserError",
    "check_choice",
    "check_counts",
    "check_flags",
    "check_numbers",
    "plain_numbers",
]


class UserError(Exception):
    """An error of the user's input; the message is one sentence that says what to do.

    The command answers it with that sentence and the status 2.
    """


Error = type[Exception]


def check_flags(error: Error = ValueError, /, **options: Any) -> None:
    """Raises for options that are not True or False; 0 and 1 are, as `torch.nn` takes them."""
    for name, value in options.items():
        if not (isinstance(value, int) and value in (0, 1)):
            raise error(f"`{name}` must be True or False, got {value!r}")


def check_counts(least: int = 1, error: Error = ValueError, /, **options: Any) -> None:
    """Raises for options that are not integers of at least `least`."""
    for name, value in options.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise error(f"`{name}` must be an integer of at least {least}, got {value!r}")


def check_numbers(
    least: float, most: float = math.inf, error: Error = ValueError, /, **options: Any
) -> None:
    """Raises for options that are not finite numbers from `least` to `most`; NaN is none."""
    for name, value in options.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (number and least <= value <= most and value < math.inf):
            bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise error(f"`{name}` must be a number {bounds}, got {value!r}")


def check_choice(known: Collection[str], error: Error = ValueError, /, **options: Any) -> None:
    """Raises for options that are not one of the known words."""
    for name, value in options.items():
        if not isinstance(value, str) or value not in known:
            raise error(f"`{name}` must be one of {', '.join(known)}, got {value!r}")


def plain_numbers(values: Any) -> list[float] | None:
    """Numbers in any collection, a tensor too, as floats; None for anything else."""
    if isinstance(values, str | bytes):
        return None
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return None
