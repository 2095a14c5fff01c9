"""The thread pool, and what is walked on it, under what a training process does to them.

Seen to fail: no renewal of the pool after a fork; the caller waiting for threads instead of working
itself; a call that does not wait for the others; one that closes the work to nobody; work offered
and done in two steps, between which a signal handler raises; two calls in one slot; the pool never
growing; a fork while another thread compiles, with the compiler's lock held in the child; a lock of
the compiler that is not reentrant; scratch memory of the walk shared between calls.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from array import array

import pytest
import torch

import lightning_lrnn as lrnn
from lightning_lrnn.backends import kernel_cache
from lightning_lrnn.backends.cpu import threads as _threads
from lightning_lrnn.backends.cpu import walk


@pytest.fixture(autouse=True)
def _threads_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Pieces:
    """Work that keeps to what `_threads.run` asks of compiled code."""

    def __init__(self, pieces, work=lambda slot: None):
        self.pieces, self.work = iter(range(pieces)), work
        self.done, self.slots, self.others = [], {}, 0
        self.changed = threading.Condition()

    def __call__(self, address, slot):
        with self.changed:
            self.slots[slot] = threading.get_ident()
            self.others += slot > 0
        while (piece := next(self.pieces, None)) is not None:
            self.work(slot)
            self.done.append(piece)
        with self.changed:
            self.others -= slot > 0
            self.changed.notify_all()
            if slot == 0:
                assert self.changed.wait_for(lambda: not self.others, 30)


def run(pieces, threads=None):
    _threads.run(pieces, array("q", [0] * 3), threads or _threads.count())


def test_every_piece_is_done_once():
    pieces = Pieces(100)
    run(pieces)
    assert sorted(pieces.done) == list(range(100))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_so_many_threads_work_together_in_slots_of_their_own(threads):
    barrier = threading.Barrier(threads)
    # Each slot waits for the others in its first piece.
    pieces = Pieces(threads, lambda slot: barrier.wait(20))
    run(pieces, threads)
    assert sorted(pieces.slots) == list(range(threads))


def test_slot_0_is_the_calling_thread():
    pieces = Pieces(50)
    run(pieces)
    assert pieces.slots[0] == threading.get_ident()


def test_concurrent_and_nested_callers():
    done = []

    def branch(slot):
        inner = Pieces(10)
        run(inner)
        done.extend(inner.done)

    callers = [
        threading.Thread(target=run, args=(Pieces(10, branch),), daemon=True) for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    assert len(done) == 800


def test_works_alone_where_no_thread_starts(monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_threads, "_pool", _threads._Pool())
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    test_every_piece_is_done_once()


def test_works_alone_where_no_thread_can_be_told(monkeypatch):
    class Full:
        def put(self, work):
            raise MemoryError

    monkeypatch.setattr(_threads._pool, "works", Full())
    pieces = Pieces(100)
    with pytest.raises(MemoryError):
        run(pieces)
    assert len(pieces.done) == 100


def test_the_walk_returns_when_all_is_written(monkeypatch):
    missing, run_now = [], _threads.run

    def spy(function, task, threads, kept):
        y = kept[0][3].fill_(float("nan"))
        run_now(function, task, threads, kept)
        missing.append(y[:, -1, -1].tolist())

    monkeypatch.setattr(_threads, "run", spy)
    for _ in range(200):
        recurrence()
    assert len(missing) == 200 and missing == missing[:1] * 200


def test_who_comes_late_touches_nothing(monkeypatch):
    walked, run_now = [], _threads.run
    monkeypatch.setattr(_threads, "run", lambda *work: walked.append(work) or run_now(*work))
    before = recurrence()
    walker, task, threads, kept = walked[0]
    y = kept[0][3]
    assert threads == 3 and y.numpy().tobytes() == before
    task[walk.FIELDS.index("taken")] = 0
    y.zero_()
    walker(task.buffer_info()[0], 1)
    assert not y.any()


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
    counts, run = [], _threads.run

    def spy(function, task, threads, kept):
        counts.append(threads)
        run(function, task, threads, kept)

    monkeypatch.setattr(_threads, "run", spy)
    work()
    assert counts and min(counts) == 3


def in_child(expected, queue):
    torch.set_num_threads(3)
    run(Pieces(6, lambda slot: time.sleep(0.01)))
    queue.put((recurrence() == expected, _threads._pool.size))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    expected = recurrence()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=in_child, args=(expected, queue)) for _ in range(2)]
    # One more user of the pool in the middle of its work while the process forks.
    busy = threading.Thread(target=run, args=(Pieces(12, lambda slot: time.sleep(0.05)),))
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
        assert same and alive == 2


FORKED = """
import multiprocessing
import torch
import lightning_lrnn as lrnn

torch.set_num_threads(2)
a = torch.empty(64, 512, 256).uniform_()  # by one thread
for _ in range(2):
    lrnn.linear_recurrence(a, a)

def child():
    assert torch.equal(torch.zeros(1 << 20), torch.zeros(1 << 20))  # by two

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(30)
hanging = process.exitcode is None
process.kill()
assert not hanging
"""


def test_no_thread_of_openmp_is_started():
    """Those of a parent make the operators of a forked child wait for ever.

    Seen to fail: zeros by PyTorch in the place of an initial state.
    """
    words = [sys.executable, "-W", "ignore:.*fork:DeprecationWarning", "-c", FORKED]
    result = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("at_exit", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_the_interpreter_exits(at_exit):
    code = f"""
import atexit, threading, time
import torch
import lightning_lrnn as lrnn
from lightning_lrnn.backends.cpu import threads as _threads
torch.set_num_threads(3)
x = torch.ones(4, 2000, 128)
work, run = [], _threads.run
_threads.run = lambda *arguments: work.append(arguments) or run(*arguments)
lrnn.linear_recurrence(x, x, backend="scan")
(walker, task, threads, kept), = work
assert threads == 3

def again(times=1):  # PyTorch's own operators abort when a daemon is in them at the exit
    for _ in range(times):
        fresh = task[:]
        fresh[:5] = fresh[:5].__class__("q", [0] * 5)
        run(walker, fresh, threads, kept)

if {at_exit}:
    atexit.register(again)
threading.Thread(target=again, args=(10**6,), daemon=True).start()
time.sleep(0.2)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


INTERRUPTED = """
import random, signal, time
import torch
import lightning_lrnn as lrnn

torch.set_num_threads(2)
random.seed(0)
shape = 3, 3000, 256  # of two threads one waits for the other
x, y = torch.rand(shape), torch.rand(shape)
leaf = torch.rand(shape, requires_grad=True)
layer = lrnn.nn.GILRLSTM(16, 256, batch_first=True, backend="scan")

def forward():
    return lrnn.linear_recurrence(x, y, backend="scan")

def backward():
    return torch.autograd.grad(lrnn.linear_recurrence(leaf, y, backend="scan")[0], leaf, y)

def layers():
    layer(x[:, :300, :16])[0].square().sum().backward()
    layer.zero_grad()

armed, hits = False, 0

def interrupt(*_):
    global hits
    if armed:
        hits += 1
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
for work in (forward, backward, layers):
    hits = 0
    work()
    begin = time.perf_counter()
    work()
    took = time.perf_counter() - begin
    for trial in range(100):
        try:
            armed = True
            # In every third trial several in a row.
            again = 0 if trial % 3 else 1e-4
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, took), again)
            while True:
                work()
        except KeyboardInterrupt:
            armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        others = [torch.full(shape, 7.0) for _ in range(3)]  # perhaps where memory was freed
        time.sleep(took / 3)
        assert all((other == 7).all() for other in others), (work, trial)
    assert hits >= 100, hits
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
@pytest.mark.slow
def test_interrupts_leave_no_thread_behind_that_writes():
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr


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
    ("context", "workers"),
    [
        pytest.param(
            *("fork", 2),
            marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork"),
        ),
        ("spawn", 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_data_loader_give_the_same_bits(context, workers):
    expected = recurrence(), gradients()
    loader = torch.utils.data.DataLoader(
        Recurrences(),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        timeout=60,
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


HANDLED = """
import signal

x, within, children = torch.ones(1, 2, 3), [], []

def use(i):  # compiles
    gate = lrnn.gates.gate(lambda f, x: (torch.sigmoid(f), i * x))
    state = lrnn.gated_recurrence(gate, x, x, backend="scan")[1]
    torch.testing.assert_close(state / i, expected)

def handle(*_):
    if len(within) > len(children) or len(within) == 6:
        return
    within.append(0)
    use(100 + len(within))
    child = os.fork()
    if not child:
        use(200 + len(within))
        os._exit(0)
    children.append(child)

expected = torch.sigmoid(x[:, 0]) + 1
use(1)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.02)
i = 1000
while len(children) < 6:
    use(i)
    i += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
def test_threads_forked_children_and_signal_handlers_compile_at_once(tmp_path):
    """The handler within a compilation, and it forks there."""
    code = COMPILED_AT_ONCE + HANDLED
    result = subprocess.run(
        [sys.executable, "-W", "ignore:.*fork:DeprecationWarning", "-c", code],
        env=os.environ | {kernel_cache.ENVIRONMENT_VARIABLE: str(tmp_path / "kernels")},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
