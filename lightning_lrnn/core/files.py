"""A file that is written is there as a whole, or what was there before still stands."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(target: Path, text: str) -> None:
    """Writes a text beside its place, and moves it there when all of it is written.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
    """
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        part.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
