"""Resident memory of this process, in bytes, and the return of freed memory to the system."""

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
    """Resident memory now, after which the peak is reset; the peak where only that is known."""
    if not (PROC / "status").is_file():
        return process_peak()
    with contextlib.suppress(OSError):
        (PROC / "clear_refs").write_text("5")
    return resident()


def resident() -> int | None:
    """Resident memory now; None where the system does not report it."""
    return _status("VmRSS") if (PROC / "status").is_file() else None


def give_back() -> None:
    """Returns freed memory that the C library holds to the system; glibc only."""
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
    """Peak of the resident memory; None where the system does not report it."""
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
    match = re.search(rf"^{key}:\s+(\d+) kB$", (PROC / "status").read_text(), re.M)
    return 1024 * int(match[1]) if match else None
