"""The error of data that cannot be used, and the words of its messages."""

from __future__ import annotations

__all__ = ["DataError", "printable", "why"]


class DataError(ValueError):
    """The data that were asked for cannot be used; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    r"""Text that can be written: what is not UTF-8 in the name of a file, as \udcff."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def why(error: BaseException) -> str:
    """What an error says, in one line, of those of the system without number and path."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__
