"""What is said of data that cannot be used."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """The data that were asked for cannot be used; the message says why and what to do."""
