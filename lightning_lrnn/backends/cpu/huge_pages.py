"""Memory of results on a CPU."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from torch import Tensor

__all__ = ["LARGE_PAGE", "in_large_pages", "resolved"]

LARGE_PAGE = 1 << 21
"""Bytes, on x86 and, with ordinary pages of 4096 bytes, on ARM."""
MADV_HUGEPAGE = 14


def in_large_pages(x: Tensor) -> Tensor:
    """The same, its memory in large pages if it is large and new."""
    if x.nbytes < LARGE_PAGE // 8:  # x may be a part of its storage
        return x
    storage = x.untyped_storage()
    if storage.nbytes() >= 2 * LARGE_PAGE and sys.platform == "linux":
        begin = -(-storage.data_ptr() // LARGE_PAGE) * LARGE_PAGE
        end = (storage.data_ptr() + storage.nbytes()) // LARGE_PAGE * LARGE_PAGE
        # Advice: where it cannot be followed, nothing happens.
        _madvise()(begin, end - begin, MADV_HUGEPAGE)
    return x


@cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def resolved(x: Tensor) -> Tensor:
    """In memory what it stands for: a conjugate is made."""
    return x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x
