"""Whether code can be compiled for this CPU."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

__all__ = ["missing"]


@cache
def missing() -> list[str]:
    """Why there is no compiled code here; [] = there is."""
    if find_spec("llvmlite") is None:
        return ["llvmlite is not installed: pip install llvmlite"]
    return []
