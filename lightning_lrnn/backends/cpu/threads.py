"""A few threads for compiled code that runs without the interpreter's lock.

The code is called by all of them with the same arguments and hands out the work by itself; whoever
is free takes the next piece, the calling thread included, which waits only for pieces that others
have begun. So nothing can wait for a thread that will never come: not after a fork (the child
starts threads of its own when it first needs them), not when many threads or nested calls share the
pool, not while the interpreter shuts down.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import threading
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

__all__ = ["FIELDS", "count", "have_cores", "run"]

FIELDS = "lock", "acquire", "release"
"""The first words of every task: a lock that is held, and the addresses of the interpreter's
functions (lock, 1) that waits for it and (lock) that releases it."""

Work = tuple[Callable[[int, int], None], int, int, Any]
"""A function, its two arguments, and what is kept alive until it is done."""


def count() -> int:
    """Threads to use: as many as PyTorch's own operators."""
    return torch.get_num_threads()


def have_cores() -> bool:
    """Whether there are cores for these threads beside PyTorch's own.

    After each of PyTorch's operators the threads of OpenMP hold their cores for milliseconds and
    look for more work, unless `OMP_WAIT_POLICY` is passive.
    """
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return True
    # macOS has no affinity of processes.
    of_process = getattr(os, "sched_getaffinity", None)
    cores = len(of_process(0)) if of_process else os.cpu_count() or 1
    return cores >= 2 * count() - 1  # the calling thread is one of both


def run(
    function: Callable[[int, int], None], task: array[int], threads: int, alive: Any = None
) -> None:
    """Calls a function side by side in some threads; returns when all is done.

    Nothing leaves earlier, whatever signal handlers raise: from the first thread that may begin to
    the end of the work the calling thread runs no bytecode, and only between two of them a handler
    is called. It is called, and what it raises is raised, before or after. Any thread may call this
    at any time.

    Args:
        function: of the address of the task and of a slot, 0 in the calling thread, 1, 2, ... in
            others. Not made of bytecode. It takes work items until none is left; in slot 0 it
            returns when the items of all others are done, for which it may wait at the lock. In
            others it may be called at any time later.
        task: what the function shares between its calls, which no other run has; 0 in the first
            words, `FIELDS`.
        threads: at most so many, the calling thread included.
        alive: what must stay alive until all is done.
    """
    address = task.buffer_info()[0]
    if threads == 1:
        function(address, 0)
        return
    _pool.grow(threads - 1)
    lock = _locks.pop() if _locks else _held_lock()
    task[: len(FIELDS)] = array("q", [lock, _ACQUIRE, _RELEASE])
    offer, held = _pool.works.put, [alive]
    calls = [partial(offer, (function, address, slot, (task, held))) for slot in range(1, threads)]
    calls.append(partial(function, address, 0))
    try:
        deque(map(partial.__call__, calls), maxlen=0)
    except BaseException:
        function(address, 0)  # nothing is left, unless a thread could not be told of the work
        raise
    finally:
        _locks.append(lock)
    held.clear()  # a thread that comes late keeps the task alone


def _address(name: str) -> int:
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


_ACQUIRE, _RELEASE = _address("PyThread_acquire_lock"), _address("PyThread_release_lock")
_locks: list[int] = []
"""Those not in use, each held; used again: who has released one may still be busy with that."""


def _held_lock() -> int:
    allocate = ctypes.PYFUNCTYPE(ctypes.c_void_p)(_address("PyThread_allocate_lock"))
    acquire = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(_ACQUIRE)
    lock: int | None = allocate()
    if lock is None:
        raise MemoryError("no lock for the threads of a recurrence")
    acquire(lock, 1)
    return lock


class _Pool:
    """Threads that wait for work; none is ever in the way of an exit."""

    def __init__(self) -> None:
        self.works: SimpleQueue[Work] = SimpleQueue()
        self.size = 0
        # A signal handler may come here while its thread is here.
        self.lock = threading.RLock()

    def grow(self, size: int) -> None:
        if self.size >= size:
            return
        with self.lock:
            while self.size < size:
                try:
                    # `threading` has locks of its own, which a signal handler would wait for.
                    _thread.start_new_thread(_serve, (self.works,))
                except RuntimeError:  # at exit, or at the limit of threads: the caller works alone
                    return
                self.size += 1


def _serve(works: SimpleQueue[Work]) -> None:
    while True:
        function, address, slot, alive = works.get()
        function(address, slot)
        del alive  # which is freed before the next task


_pool = _Pool()


def _renew() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    # In the child the parent's threads do not exist, and its locks may be held.
    os.register_at_fork(after_in_child=_renew)
