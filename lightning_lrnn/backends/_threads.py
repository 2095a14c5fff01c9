"""A few threads for compiled code that runs without the interpreter's lock.

Work comes in pieces. Whoever is free takes the next one, the calling thread included, which waits
only for pieces that others have begun. So nothing can wait for a thread that will never come: not
after a fork (the child starts threads of its own when it first needs them), not when many threads
or nested calls share the pool, not while the interpreter shuts down.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any

import torch

__all__ = ["count", "run_all"]


def count() -> int:
    """Threads to use: as many as PyTorch's own operators."""
    return torch.get_num_threads()


def run_all(function: Callable[..., Any], pieces: Iterable[tuple[Any, ...]]) -> None:
    """Calls a function with each tuple of arguments, side by side; returns when all are done.

    At most `count()` pieces are worked on at a time, in order of their start, the first of them by
    the calling thread. Any thread may call this at any time.

    Args:
        function: should run without the interpreter's lock for most of its time.
        pieces: the arguments of each call.

    Raises:
        BaseException: the first one that a call raised. Calls not begun by then are left out.
    """
    job = _Job(function, pieces)
    if len(job.pieces) == 1:
        function(*job.pieces[0])
        return
    helpers = min(count(), len(job.pieces)) - 1
    if helpers > 0:
        _pool.offer(job, helpers)
    job.work()
    job.wait()


class _Job:
    def __init__(self, function: Callable[..., Any], pieces: Iterable[tuple[Any, ...]]) -> None:
        self.function = function
        self.pieces = list(pieces)[::-1]
        self.lock = threading.Lock()
        self.begun = 0
        self.error: BaseException | None = None
        self.waiter: threading.Lock | None = None

    def work(self) -> None:
        """Takes pieces until none is left."""
        while True:
            with self.lock:
                if not self.pieces:
                    return
                piece = self.pieces.pop()
                self.begun += 1
            error = None
            try:
                self.function(*piece)
            except BaseException as raised:  # handed to the caller, KeyboardInterrupt too
                error = raised
            with self.lock:
                self.begun -= 1
                if error is not None:
                    self.error = self.error or error
                    self.pieces.clear()
                if self.waiter is not None and not self.begun:
                    self.waiter.release()

    def wait(self) -> None:
        """Returns when the pieces that others have begun are done; raises what a call raised."""
        with self.lock:
            if self.begun:
                self.waiter = threading.Lock()
                self.waiter.acquire()
        if self.waiter is not None:
            self.waiter.acquire()
        try:
            if self.error is not None:
                raise self.error
        finally:
            self.error = None  # its traceback refers to this job


class _Pool:
    """Threads that wait for jobs; they are daemons: none is ever in the way of an exit."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.size = 0
        self.lock = threading.Lock()

    def offer(self, job: _Job, helpers: int) -> None:
        if self.size < helpers:
            self.grow(helpers)
        for _ in range(helpers):
            self.jobs.put(job)

    def grow(self, size: int) -> None:
        with self.lock:
            while self.size < size:
                thread = threading.Thread(
                    target=_serve, args=(self.jobs,), name="lightning_lrnn", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # at exit, or at the limit of threads: the caller works alone
                    return
                self.size += 1


def _serve(jobs: SimpleQueue[_Job]) -> None:
    while True:
        job = jobs.get()
        job.work()
        del job  # not kept alive until the next one


_pool = _Pool()


def _renew() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    # In the child the parent's threads do not exist, and its locks may be held.
    os.register_at_fork(after_in_child=_renew)
