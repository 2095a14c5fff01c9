"""How much memory this process has, in bytes; None where the system does not say."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

__all__ = ["process_memory", "process_peak"]

PROC = Path("/proc/self")


def process_memory() -> int | None:
    """What it has now. Where only the peak is known, that; else the peak starts anew from here."""
    if not (PROC / "status").is_file():
        return process_peak()
    with contextlib.suppress(OSError):
        (PROC / "clear_refs").write_text("5")
    return _status("VmRSS")


def process_peak() -> int | None:
    """The most that it has had."""
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
