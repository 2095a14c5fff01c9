"""Atomic writes: a file has all of its new text, or keeps the old one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(target: Path, text: str) -> None:
    """Writes a text to a temporary file beside the target, and then moves it there.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
    """
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
