"""The thread pool under what a training process does to it.

Seen to fail: no renewal of the pool after a fork; the caller waiting for threads instead of working
itself; an exception of a helper dropped; pieces handed out twice; the pool never growing.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time

import pytest
import torch

import lightning_lrnn as lrnn
from lightning_lrnn.backends import _threads


@pytest.fixture(autouse=True)
def _threads_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_every_piece_is_done_once():
    done = []
    _threads.run_all(done.append, [(i,) for i in range(100)])
    assert sorted(done) == list(range(100))
    _threads.run_all(done.append, [])
    assert len(done) == 100


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_follows_the_number_of_threads_of_torch(threads):
    torch.set_num_threads(threads)
    together, most, lock = 0, 0, threading.Lock()
    barrier = threading.Barrier(threads)

    def work(first):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        if first:
            barrier.wait(20)  # passes only if so many threads are at work
        time.sleep(0.001)
        with lock:
            together -= 1

    _threads.run_all(work, [(i < threads,) for i in range(30)])
    assert most == threads


def test_the_calling_thread_works_too():
    names = set()
    _threads.run_all(lambda: names.add(threading.current_thread()), [()] * 50)
    assert threading.current_thread() in names


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exceptions_reach_the_caller_and_the_pool_goes_on(error):
    def fail(i):
        time.sleep(0.001)
        if i % 2:
            raise error(str(i))

    for _ in range(20):
        with pytest.raises(error):
            _threads.run_all(fail, [(i,) for i in range(10)])
    test_every_piece_is_done_once()


def test_the_first_exception_leaves_the_rest_undone():
    begun = []

    def fail(i):
        begun.append(i)
        raise ValueError

    with pytest.raises(ValueError):
        _threads.run_all(fail, [(i,) for i in range(1000)])
    assert len(begun) <= torch.get_num_threads()


def test_concurrent_and_nested_callers():
    done, lock = [], threading.Lock()

    def leaf(i):
        with lock:
            done.append(i)

    def branch(i):
        _threads.run_all(leaf, [(i * 10 + j,) for j in range(10)])

    callers = [
        threading.Thread(
            target=_threads.run_all, args=(branch, [(c * 10 + i,) for i in range(10)]), daemon=True
        )
        for c in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    assert sorted(done) == list(range(800))


def test_works_alone_where_no_thread_starts(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_threads, "_pool", _threads._Pool())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    test_every_piece_is_done_once()


X = torch.linspace(-1, 1, 4 * 500 * 40).view(4, 500, 40)


def recurrence() -> bytes:
    return lrnn.linear_recurrence(X, X, backend="scan")[0].numpy().tobytes()


def in_child(expected, queue):
    # PyTorch's own OpenMP threads do not survive a fork: no large operation of it here.
    torch.set_num_threads(3)
    _threads.run_all(time.sleep, [(0.01,)] * 6)
    queue.put((recurrence() == expected, threading.active_count()))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    expected = recurrence()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=in_child, args=(expected, queue)) for _ in range(2)]
    # One more user of the pool in the middle of its work while the process forks.
    busy = threading.Thread(target=_threads.run_all, args=(time.sleep, [(0.05,)] * 12))
    busy.start()
    for child in children:
        child.start()
    busy.join()
    for child in children:
        child.join(30)
        hanging = child.exitcode is None
        child.kill()
        assert not hanging
    for _ in children:
        same, alive = queue.get()
        assert same and alive >= 3


@pytest.mark.parametrize("at_exit", [False, True])
def test_the_interpreter_exits(at_exit):
    code = f"""
import atexit, threading, time
import torch
from lightning_lrnn.backends import _threads
torch.set_num_threads(3)
run = lambda: _threads.run_all(time.sleep, [(0.01,)] * 9)
if {at_exit}:
    atexit.register(run)
else:
    run()
threading.Thread(target=_threads.run_all, args=(time.sleep, [(0.2,)] * 9), daemon=True).start()
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_models_in_several_threads_give_the_same_bits():
    expected, wrong = recurrence(), []

    def use():
        for _ in range(10):
            if recurrence() != expected:
                wrong.append(1)

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not wrong
