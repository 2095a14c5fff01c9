"""The workspace that launches of one thread and stream reuse: the bits of zeroed ones.

The kernel's own source on the host; the choice of the workspace with a device that is none. Seen
to fail: the kernel's MUTANTS, which stay part of the tests; what a pair keeps reused; each
condition of `workspace.reused` left out.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from types import SimpleNamespace

import emulated
import host_kernel
import pytest
import torch
from host_kernel import SOURCES, as_cuda, mutated, needs_compiler

from lightning_lrnn.backends.cuda import launch, plan, workspace
from lightning_lrnn.core import pytorch
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY

LAST = 2**31 - 1
"""The number of a launch that a tag has bits for."""


@pytest.fixture
def kept(monkeypatch):
    """No workspace from other tests."""
    kept = workspace._Kept()
    monkeypatch.setattr(workspace, "_kept", kept)
    return kept


@pytest.fixture
def small_tiles(kept):
    with emulated.small_tiles():
        yield


@contextlib.contextmanager
def reusing():
    """Kernels need no zeroed workspace."""
    planned = launch._planned

    def changed(*asked):
        code, how = planned(*asked)
        return code, how._replace(macros=(*how.macros, workspace.REUSED))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_planned", changed)
        yield


@contextlib.contextmanager
def on_host(seed=0, compiler=None):
    """Launches run on the emulator, in an order that follows from the seed; yields their macros."""
    with pytest.MonkeyPatch.context() as patch, as_cuda(compiler or emulated.compiler()) as seen:
        patch.setattr(host_kernel, "launch", partial(host_kernel.launch, seed=seed))
        yield seen


def made(dtype, shape, masks):
    """Random, with decays of size 1, so that what was reaches the end."""
    B, T, D = shape
    a, b = (torch.randn(shape, dtype=dtype) for _ in range(2))
    lengths = torch.randint(1, T + 1, (B,)) if masks else None
    reset = torch.rand(B, T) < 1 / T if masks else None
    h0 = torch.randn(B, D, dtype=torch.float32 if dtype.itemsize == 2 else dtype)
    return Problem(IDENTITY, "", (a / a.abs(), b), h0, lengths, reset, False, False)


def both_passes(problem):
    kernels = launch.backend(problem, parallel=True)
    states = kernels.forward(problem)
    dy = problem.x.flip(1).contiguous()
    gradients, dh0 = kernels.backward(problem, states.h, Gradients(dy, problem.h0))
    return [*states, *gradients, dh0]


CASES = [
    (torch.float32, (48, 40, 5), False),  # chained
    (torch.complex64, (2, 700, 3), True),  # from here on folded: 44 tiles
    (torch.bfloat16, (1, 40, 33), False),
    (torch.float64, (50, 60, 5), True),  # but for this
    (torch.float32, (1, 4_200, 8), False),  # more than a reach
]


@needs_compiler
@pytest.mark.slow
def test_launches_of_all_kinds_take_turns(small_tiles, kept):
    """On one workspace, each time on other numbers and with blocks in another order."""
    carries = set()
    for turn in range(3):
        torch.manual_seed(turn)
        for case in CASES:
            problem = made(*case)
            with on_host():
                expected = both_passes(problem)
            with reusing(), on_host(turn) as seen:
                actual = both_passes(problem)
            assert all(map(torch.equal, actual, expected))
            carries |= {macros["LRNN_CARRY"] for macros, _ in seen}
    assert carries == {"chained", "folded"}
    ((memory, left),) = kept.of.values()
    launches = 3 * 2 * len(CASES)
    assert workspace.LAUNCHES - left == launches and memory[0] == launches << 32


@needs_compiler
def test_what_a_pair_keeps_is_its_own(small_tiles, kept):
    problem = made(torch.complex64, (2, 300, 3), True)
    with on_host():
        kernels = launch.backend(problem, parallel=True)
        expected = kernels.after(kernels.pair(problem)[-1]).forward(problem)
    with reusing(), on_host():
        kernels = launch.backend(problem, parallel=True)
        given = kernels.pair(problem)[-1]
        assert kept.of == {}
        both_passes(made(torch.complex64, (2, 300, 3), False))  # in between
        assert all(map(torch.equal, kernels.after(given).forward(problem), expected))


@needs_compiler
def test_pairs_that_keep_nothing_take_turns(small_tiles, kept, monkeypatch):
    """Of a pass that is walked. Whoever ends a group writes to the words of others."""
    monkeypatch.setattr(plan, "WALK", 1)
    for turn in range(3):
        problem = made(torch.complex64, (2, 500, 3), True)
        with on_host():
            expected = launch.backend(problem, parallel=True).pair(problem)
        with reusing(), on_host(turn):
            actual = launch.backend(problem, parallel=True).pair(problem)
        assert actual[-1] is None and all(map(torch.equal, actual[:-1], expected[:-1]))
    ((memory, _),) = kept.of.values()
    assert memory[0] == 3 << 32


# name: (what stands in carry.cuh, what is put in its place)
MUTANTS = {
    "the same epoch again": ("(epoch + 1) << 32)", "epoch << 32)"),
    "any launch's tag": (
        "unsigned((found & ~kRestarts) >> 32) == launch",
        "found >= kPublished",
    ),
    "zeros for the first launch's": ("return {unsigned(epoch) + 1}", "return {unsigned(epoch)}"),
    "the count goes on": ("(epoch + 1) << 32)", "((epoch + 1) << 32) + number + 1)"),
    "the next epoch too early": ("number == gridDim.x - 1", "number == gridDim.x - 2"),
    "an epoch of 30 bits": ("kRestarts = Word(1) << 63", "kRestarts = Word(1) << 62"),
}


def stale(epoch):
    """A workspace after so many launches: words of all of them, the last one's most often."""
    words = workspace.WORDS
    tag = torch.randint(0, epoch + 1, (words,))
    tag[torch.rand(words) < 0.5] = epoch
    memory = (tag << 32) + torch.randint(0, 2**32, (words,))
    memory[torch.rand(words) < 0.5] |= torch.iinfo(torch.int64).min  # of pairs with a restart
    memory[0] = epoch << 32
    return memory if epoch else torch.zeros_like(memory)


@needs_compiler
@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_a_broken_kernel_is_noticed(name, small_tiles, kept, monkeypatch, tmp_path):
    """From the first launch on, and up to the last one before the host must start anew."""
    monkeypatch.setattr(workspace, "WORDS", 2**12)
    mutant = name and ("carry.cuh", *MUTANTS[name])
    assert name is None or (SOURCES / mutant[0]).read_text().count(mutant[1]) == 1
    sources, compiler = mutated(mutant, tmp_path), emulated.compiler()
    of_sources = SimpleNamespace(kernel=lambda macros: compiler.kernel(macros, sources))
    torch.manual_seed(0)

    def examine():
        for epoch in (0, LAST - 3):
            memory = stale(epoch)
            kept.of[torch.device("cpu"), 0] = memory, 10
            for turn in range(3):
                problem = made(torch.complex64, (2, 300, 3), True)
                with on_host():
                    expected = launch.backend(problem, parallel=True).forward(problem)
                with reusing(), on_host(turn, of_sources):
                    actual = launch.backend(problem, parallel=True).forward(problem)
                assert all(map(torch.equal, actual, expected)), "other bits"
            assert memory[0] == (epoch + 3) << 32

    if name is None:
        examine()
    else:
        with pytest.raises(AssertionError, match=r"other bits|deadlock"):
            examine()


@pytest.fixture
def machine(kept, monkeypatch):
    """Where the current stream is what a test says."""
    machine = SimpleNamespace(stream=0, captures=False)
    monkeypatch.setattr(pytorch, "current_stream", lambda index: machine.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: machine.captures)
    monkeypatch.setattr(workspace, "WORDS", 64)
    return machine


def taken(words=5):
    return workspace.reused(words, torch.device("cpu"))


def test_one_for_each_stream(machine):
    first = taken()
    assert len(first) == 64 and not first.any()
    assert taken(64) is first
    machine.stream = 1
    other = taken()
    assert other is not first and taken() is other
    machine.stream = 0
    assert taken() is first


def test_one_for_each_thread(machine):
    actual = []
    thread = threading.Thread(target=lambda: actual.extend([taken(), taken()]))
    first = taken()
    thread.start()
    thread.join()
    assert actual[0] is actual[1] is not first
    assert taken() is first


@pytest.mark.parametrize("why", ["captures", "large"])
def test_zeros_of_its_own(machine, why):
    """Of a graph; of many words."""
    first = taken().fill_(1)
    machine.captures = why == "captures"
    words = 65 if why == "large" else 5
    actual = [taken(words) for _ in range(2)]
    assert actual[0] is not actual[1]
    assert all(len(x) == words and not x.any() for x in actual)
    machine.captures = False
    assert taken() is first


def test_as_many_are_kept_as_there_are_streams_in_use(machine, kept):
    actual = []
    for machine.stream in range(workspace.STREAMS):
        actual.append(taken())
    machine.stream = 0
    assert taken() is actual[0]
    machine.stream = workspace.STREAMS  # in the place of 1, unused for longest
    taken()
    assert len(kept.of) == workspace.STREAMS
    machine.stream = 0
    assert taken() is actual[0]
    machine.stream = 1
    assert taken() is not actual[1]


def test_replaced_before_tags_come_again(machine, monkeypatch):
    assert workspace.LAUNCHES <= LAST
    monkeypatch.setattr(workspace, "LAUNCHES", 3)
    actual = [taken() for _ in range(7)]
    assert actual[0] is actual[1] is actual[2] is not actual[3]
    assert actual[3] is actual[4] is actual[5] is not actual[6]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 50_000, 40), (48, 5_000, 32)], ids=["folded", "chained"])
def test_on_a_gpu(shape, monkeypatch):
    """The bits of zeroed workspaces; of eager launches and graphs in turn, on two streams."""
    torch.manual_seed(0)
    inputs = [[torch.randn(shape, device="cuda").tanh() for _ in range(2)] for _ in range(3)]
    h0 = torch.randn(shape[0], shape[2], device="cuda")
    problems = [Problem(IDENTITY, "", tuple(pre), h0, None, None, False, False) for pre in inputs]
    expected = [both_passes(problem) for problem in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    with reusing():
        both_passes(problems[0])  # compiles, loads
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = both_passes(problems[0])
        for _ in range(10):
            graph.replay()
            actual = []
            for stream, problem in zip(streams, problems[1:], strict=True):
                with torch.cuda.stream(stream):
                    actual += [both_passes(problem) for _ in range(3)]
            torch.cuda.synchronize()
            wanted = [expected[1]] * 3 + [expected[2]] * 3
            for one, other in zip([replayed, *actual], [expected[0], *wanted], strict=True):
                assert all(map(torch.equal, one, other))
