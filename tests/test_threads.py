"""The thread pool, and what is walked on it, under what a training process does to them.

Seen to fail: no renewal of the pool after a fork; the caller waiting for threads instead of working
itself; an exception of a helper dropped; pieces handed out twice; the pool never growing; a fork
while another thread compiles, with the compiler's lock held in the child; scratch memory of the
walk shared between calls.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

import lightning_lrnn as lrnn
from lightning_lrnn import _kernel_cache
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


X = torch.linspace(-1, 1, 4 * 2000 * 128).view(4, 2000, 128)
"""Enough for three threads. Nothing here computes with it by PyTorch's own operators: those hang
with more than one thread in a forked child, whose OpenMP threads stayed behind."""


@lrnn.gates.gate
def gilr(f, z):
    decay = torch.sigmoid(f)
    return decay, (1 - decay) * torch.tanh(z)


def recurrence() -> bytes:
    return lrnn.linear_recurrence(X, X, backend="scan")[0].numpy().tobytes()


def gradients() -> bytes:
    f, z = X.detach().requires_grad_(), X.detach().requires_grad_()
    y, _ = lrnn.gated_recurrence(gilr, f, z, backend="scan")
    y.backward(X)
    return f.grad.numpy().tobytes() + z.grad.numpy().tobytes()


@pytest.mark.parametrize("work", [recurrence, gradients])
def test_this_is_work_for_several_threads(monkeypatch, work):
    counts, run_all = [], _threads.run_all

    def spy(function, pieces):
        counts.append(len(pieces))
        run_all(function, pieces)

    monkeypatch.setattr(_threads, "run_all", spy)
    work()
    assert counts and min(counts) == 3


def in_child(expected, queue):
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
from lightning_lrnn import _kernel_cache
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


@pytest.mark.parametrize("work", [recurrence, gradients])
def test_models_in_several_threads_give_the_same_bits(work):
    expected, wrong = work(), []

    def use():
        for _ in range(5):
            if work() != expected:
                wrong.append(1)

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not wrong


class Recurrences(torch.utils.data.Dataset):
    """A data set that computes: what a worker of a DataLoader may do."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        assert torch.utils.data.get_worker_info() is not None
        torch.set_num_threads(1 + index % 3)
        return recurrence(), gradients()


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(
            "fork", marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
        ),
        "spawn",
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_data_loader_give_the_same_bits(context):
    expected = recurrence(), gradients()
    loader = torch.utils.data.DataLoader(
        Recurrences(), batch_size=None, num_workers=2, multiprocessing_context=context, timeout=60
    )
    assert [tuple(item) == expected for item in loader] == [True] * 4


COMPILED_AT_ONCE = """
import os, threading, time
import torch
import lightning_lrnn as lrnn

def gate(i):
    return lrnn.gates.gate(lambda f, x: (torch.sigmoid(f), i * x))

x, gates, results = torch.ones(1, 2, 3), [gate(i) for i in range(1, 7)], {}
lrnn.linear_recurrence(x, x, backend="scan")  # what Numba compiles

def use(i):
    results[i] = lrnn.gated_recurrence(gates[i % 6], x, x, backend="scan")[1] / (i % 6 + 1)

threads = [threading.Thread(target=use, args=(i,)) for i in range(12)]
for thread in threads:
    thread.start()
children = []
for i in range(6):
    time.sleep(0.01)
    child = os.fork()
    if not child:
        use(i)
        os._exit(0)
    children.append(child)
for thread in threads:
    thread.join()
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
for result in results.values():
    torch.testing.assert_close(result, results[0])
assert len(results) == 12
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_threads_and_forked_children_compile_at_once(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", COMPILED_AT_ONCE],
        env=os.environ | {_kernel_cache.ENVIRONMENT_VARIABLE: str(tmp_path / "kernels")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
