"""How much memory this process has, in bytes, and giving back what it does not use."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["give_back", "process_memory", "process_peak", "resident"]

PROC = Path("/proc/self")


def process_memory() -> int | None:
    """What it has now. Where only the peak is known, that; else the peak starts anew from here."""
    if not (PROC / "status").is_file():
        return process_peak()
    with contextlib.suppress(OSError):
        (PROC / "clear_refs").write_text("5")
    return resident()


def resident() -> int | None:
    """What it has now; None where the system does not say."""
    return _status("VmRSS") if (PROC / "status").is_file() else None


def give_back() -> None:
    """Returns what the C library keeps of freed memory to the system, where it can (glibc)."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (TypeError, AttributeError, OSError):  # Windows; another C library
        return None


def process_peak() -> int | None:
    """The most that it has had; None where the system does not say."""
    if (PROC / "status").is_file():
        # Not `ru_maxrss`, which a process inherits from the one that started it.
        return _status("VmHWM")
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status(key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+) kB$", (PROC / "status").read_text(), re.M)
    return 1024 * int(found[1]) if found else None
