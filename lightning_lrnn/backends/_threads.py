"""A few threads for compiled code that runs without the interpreter's lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["count", "run_all"]

_pool: ThreadPoolExecutor | None = None
_size = 0
_lock = threading.Lock()


def count() -> int:
    """Threads to use: as many as PyTorch's own operators."""
    return torch.get_num_threads()


def run_all(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> None:
    """Calls a function with each tuple of arguments, side by side; returns when all are done.

    The calling thread does the last call itself. Any number of threads may call this at once; what
    they submit shares the pool. The function must not call it in turn. The first exception is
    raised after all calls have ended.
    """
    *others, own = calls
    futures = []
    if others:
        try:
            futures = [_workers(len(others)).submit(function, *call) for call in others]
        except RuntimeError:  # the interpreter is shutting down and starts no threads any more
            others = others[len(futures) :]
            for call in others:
                function(*call)
    try:
        function(*own)
    finally:
        for future in futures:
            future.exception()
    for future in futures:
        future.result()


def _workers(size: int) -> ThreadPoolExecutor:
    """The pool, grown where `size` workers are more than it has."""
    global _pool, _size
    with _lock:
        if _pool is None or size > _size:
            # The old one finishes what it was given; its threads then end.
            old, _pool, _size = _pool, ThreadPoolExecutor(size, "lightning_lrnn"), size
            if old is not None:
                old.shutdown(wait=False)
        return _pool


def _forget() -> None:
    """In a forked child: the parent's threads do not exist there, its lock may be held."""
    global _pool, _size, _lock
    _pool, _size, _lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
