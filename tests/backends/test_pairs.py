"""What a stretch does to the state that comes in: compiled code as the recurrences themselves.

On CUDA the kernel's own source on the host: as two recurrences by the same kernel, and as the
CPU's in float64.

Seen to fail: parts folded in the wrong order; an odd part left out; A taken for B; resets not
passed on; the adjoint of the other direction; what is not finite not left to the recurrences; the
kernel's MUTANTS, which stay part of the tests; A and B in the dtype of the sequences.
"""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from types import SimpleNamespace

import emulated
import host_kernel
import pytest
import torch
from host_kernel import SOURCES, as_cuda, needs_compiler
from torch.utils._pytree import tree_map_only

from lightning_lrnn import backends
from lightning_lrnn.backends import pairs
from lightning_lrnn.backends.base import Pairs
from lightning_lrnn.backends.cuda import launch, plan
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.gates import IDENTITY, trace
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh

SHAPES = (2, 50, 5), (1, 1, 1), (1, 40_000, 33), (3, 9_000, 8)
"""The third is divided in parts of time."""
READOUT = trace(lambda h, a, b: h.tanh() * b)
PROGRAMS = {
    "plain": (IDENTITY, ""),
    "gilr": (gilr.program, READOUT),
    "lstm": (lstm.program, output_tanh.program),
}
FLAGS = list(itertools.product((False, True), repeat=2))
EXACT = {"rtol": 1e-9, "atol": 1e-12}
NEAR = {"rtol": 2e-4, "atol": 2e-5}


def made(kind, shape, dtype, masks, *, reverse, exclusive):
    gate, readout = PROGRAMS[kind]
    B, T, D = shape
    inputs = 4 if kind == "lstm" else 2
    pre = [torch.randn(B, T, D, dtype=dtype) for _ in range(inputs)]
    if kind == "plain":
        pre[0] = pre[0] / pre[0].abs().clamp(min=1)
    lengths = torch.randint(0, T + 1, (B,)) if masks else None
    reset = torch.rand(B, T) < 0.3 / T if masks else None
    return Problem(gate, readout, tuple(pre), None, lengths, reset, reverse, exclusive)


def near(dtype):
    return EXACT if dtype in (torch.float64, torch.complex128) else NEAR


def by_recurrences(name, problem, h, dy, monkeypatch):
    """A, B and C without what a backend has for them."""
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "Pairs", ())
        return *pairs.pair(name, problem), pairs.adjoint_impulse(name, problem, h, dy)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("plain", torch.float64), ("plain", torch.complex128), ("plain", torch.float32),
        ("plain", torch.bfloat16), ("gilr", torch.float64), ("gilr", torch.bfloat16),
        ("lstm", torch.float64),
    ],
    ids=str,
)  # fmt: skip
def test_pairs_are_those_of_the_recurrences(kind, dtype, shape, masks, monkeypatch):
    torch.manual_seed(0)
    for reverse, exclusive in FLAGS:
        problem = made(kind, shape, dtype, masks, reverse=reverse, exclusive=exclusive)
        backend = backends.prepared("scan", problem)
        pair = backend.pair(problem) if isinstance(backend, Pairs) else None
        if pair is None:
            assert kind == "plain" and shape[2] < 8
            continue
        _, h, _ = backend.forward(problem)
        dy = torch.randn(shape, dtype=h.dtype)
        found = (*pair, backend.adjoint_impulse(problem, h, dy))
        expected = by_recurrences("scan", problem, h, dy, monkeypatch)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **near(dtype))


def test_what_is_not_finite_is_left_to_the_recurrences():
    T = 40_000
    a, b = torch.full((1, T, 33), 2.0), torch.zeros(1, T, 33)
    b[:, -1] = 3.0
    problem = Problem(IDENTITY, "", (a, b), None, None, None, False, False)
    assert backends.prepared("scan", problem).pair(problem) is None
    A, B = pairs.pair("scan", problem)
    assert A.isinf().all() and torch.equal(B, torch.full((1, 33), 3.0))


@pytest.fixture
def small_tiles(monkeypatch):
    """The kernel on the host among the backends, with few threads: few steps make many tiles."""
    modules = {**backends._modules(), "emulated": "emulated:BACKEND"}
    monkeypatch.setattr(backends, "_modules", lambda: modules)
    cached = launch._planned, plan.steps, plan.macros
    with monkeypatch.context() as patch:
        for name, value in {"THREADS": 64, "SEGMENT": 8, "SHORT": 0}.items():
            patch.setattr(plan, name, value)
        for function in cached:
            function.cache_clear()
        backends.forget()
        yield
    for function in cached:
        function.cache_clear()
    backends.forget()


def widened(x):
    """On a CPU, in double precision."""
    if not (x.is_complex() or x.is_floating_point()):
        return x.cpu()
    return x.to("cpu", torch.complex128 if x.is_complex() else torch.float64)


CASES = [
    # Tiles of 16 steps for 5 to 8 features in float32: the first has 313, more than a reach.
    ("plain", torch.float32, (2, 5_000, 8), True),
    ("plain", torch.float32, (1, 256, 32), False),
    ("plain", torch.complex64, (2, 300, 5), True),
    ("plain", torch.float64, (3, 60, 33), True),
    ("plain", torch.bfloat16, (2, 700, 1), False),
    ("gilr", torch.bfloat16, (3, 700, 5), True),
    ("lstm", torch.float32, (3, 700, 5), True),
]


def agrees(name, device, case, monkeypatch):
    """The pair by a kernel, as two recurrences by the same kernel, and as the CPU's in float64."""
    torch.manual_seed(0)
    kind, dtype, shape, masks = case
    for reverse, exclusive in FLAGS if shape[1] < 1_000 else FLAGS[1:3]:
        problem = made(kind, shape, dtype, masks, reverse=reverse, exclusive=exclusive)
        problem = Problem(*tree_map_only(torch.Tensor, lambda x: x.to(device), problem))
        backend = backends.prepared(name, problem)
        assert isinstance(backend, Pairs)
        h = backend.forward(problem).h
        dy = torch.randn(shape, dtype=h.dtype, device=device)
        emulated.launches.clear()
        found = (*backend.pair(problem), backend.adjoint_impulse(problem, h, dy))
        if name == "emulated":
            passes = [macros["LRNN_PASS"] for macros, _ in emulated.launches]
            assert passes == ["forward", "backward"]
        same = by_recurrences(name, problem, h, dy, monkeypatch)
        wide, h, dy = tree_map_only(torch.Tensor, widened, (problem, h, dy))
        exact = by_recurrences("scan", Problem(*wide), h, dy, monkeypatch)
        for one, other, true in zip(found, same, exact, strict=True):
            assert one.dtype == other.dtype == problem.state_dtype
            torch.testing.assert_close(one, other, **near(dtype))
            torch.testing.assert_close(one.cpu(), true.to(one.dtype), **near(dtype))


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case, small_tiles, monkeypatch):
    agrees("emulated", "cpu", case, monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        # Over two reaches; chains that fill a device; columns that are walked by the passes.
        ("plain", torch.float32, (1, 70_000, 64), True),
        ("gilr", torch.bfloat16, (8, 3_000, 512), True),
        ("lstm", torch.float32, (4, 300, 8_192), False),
    ],
    ids=str,
)
def test_kernel_on_a_gpu(case, monkeypatch):
    agrees("scan", "cuda", case, monkeypatch)


@needs_compiler
@pytest.mark.parametrize(("kind", "read"), [("plain", 8), ("gilr", 8)])
def test_kernel_reads_once_and_writes_nothing_else(kind, read):
    """By the plan's own tiles."""
    shape = (1, 3 * 128, 64)
    problem = made(kind, shape, torch.float32, False, reverse=False, exclusive=False)
    problem = problem._replace(readout="")
    _, h, _ = emulated.BACKEND.forward(problem)
    emulated.launches.clear()
    emulated.BACKEND.pair(problem)
    emulated.BACKEND.adjoint_impulse(problem, h, h)
    (_, forward), (_, backward) = emulated.launches
    assert forward.loaded == read * h.numel() and forward.stored == 2 * 4 * 64
    assert backward.stored == 4 * 64
    # Two tiles tell the third their pairs: two words for each of 64 columns.
    assert forward.words == backward.words == 2 * 2 * 64


@needs_compiler
def test_serial_has_no_pair():
    problem = made("plain", (1, 9, 3), torch.float32, False, reverse=False, exclusive=False)
    h = problem.x
    with as_cuda(emulated.compiler()) as seen:
        walked = launch.backend(problem, parallel=False)
        assert walked.pair(problem) is walked.adjoint_impulse(problem, h, h) is None
    assert not seen


def of_kernel(problem, h, dy, compiler):
    with as_cuda(compiler):
        kernels = launch.backend(problem, parallel=True)
        return *kernels.pair(problem), kernels.adjoint_impulse(problem, h, dy)


@needs_compiler
def test_same_bits_in_every_order_of_execution(small_tiles, monkeypatch):
    problem = made("plain", (2, 500, 5), torch.complex64, True, reverse=True, exclusive=False)
    results = []
    for seed in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(host_kernel, "launch", partial(host_kernel.launch, seed=seed))
            results.append(of_kernel(problem, problem.x, problem.x, emulated.compiler()))
    assert all(all(map(torch.equal, results[0], other)) for other in results[1:])


@needs_compiler
def test_what_overflows_harms_no_zero_and_no_later_document(small_tiles):
    """B of states of 0 stays finite, and A is 0 behind a reset, whatever was before."""
    T = 1_000
    a, b = torch.full((2, T, 3), 2.0), torch.zeros(2, T, 3)
    b[:, -1] = 3.0
    reset = torch.zeros(2, T, dtype=torch.bool)
    b[1, 0], reset[1, T - 9] = float("inf"), True
    problem = Problem(IDENTITY, "", (a, b), None, None, reset, False, False)
    A, B, _ = of_kernel(problem, b, b, emulated.compiler())
    assert A[0].isinf().all() and (A[1] == 0).all() and (B == 3).all()


# name: (file, what stands there, what is put in its place)
MUTANTS = {
    "offset dropped": ("affine.cuh", "apply(later, earlier.B)", "later.B"),
    "a reset ignored": ("affine.cuh", "return stretch.restarts ?", "return false ?"),
    "a reset not told": ("carry.cuh", "(tag & kRestarts) != 0", "false"),
    "A behind a reset": ("recurrence.cu", "walk.restarts ? Value(0) : walk.A", "walk.A"),
    "A of the last tile": (
        "affine.cuh",
        "{affine(later.A, earlier.A, Value(0)), apply",
        "{later.A, apply",
    ),
    "the border of the other direction": (
        "recurrence.cu",
        "const Index ahead = p.reverse;",
        "const Index ahead = 0;",
    ),
    "the walk of the other direction": (
        "recurrence.cu",
        "bool(p.reverse) != (kPass == Pass::backward)",
        "bool(p.reverse)",
    ),
    "no conjugates": ("recurrence.cu", "a[s] = conj(a[s]);", ""),
    "the last tile of a group alone": ("recurrence.cu", "if (ends_group)\n", "if (false)\n"),
    "groups before the last one left out": ("recurrence.cu", "if (ends_reach)\n", "if (false)\n"),
    "reaches before the last one left out": (
        "recurrence.cu",
        "if (ends_reach && reach > 0)",
        "if (false)",
    ),
    "groups after tiles": (
        "recurrence.cu",
        "combine(fold(shared, segment, lane, chain.group(group - in_reach), in_reach), pair)",
        "combine(pair, fold(shared, segment, lane, chain.group(group - in_reach), in_reach))",
    ),
    "a group in the place of its last tile": (
        "recurrence.cu",
        "ends_group ? chain.group(group)",
        "false ? chain.group(group)",
    ),
    "the walk ends where padding does": (
        "recurrence.cu",
        "(tile + 1) * kTile >= column.length",
        "(tile + 1) * kTile >= column.problem.T",
    ),
    "no wait": ("carry.cuh", "while (!glance.complete())", "while (false)"),
}


@pytest.fixture
def cases(small_tiles):
    """Problems with what the recurrences themselves give, in tiles of 16 steps."""
    torch.manual_seed(0)
    cases = []
    for reverse in (False, True):
        problem = made("plain", (2, 5_000, 3), torch.complex64, True, reverse=reverse,
                       exclusive=False)  # fmt: skip
        problem = problem._replace(lengths=torch.tensor([5_000, 4_200]))
        problem.reset[1] = False
        problem.reset[0, 4_990 if not reverse else 10] = True  # in the last tile of the walk
        a, b = problem.pre
        problem = problem._replace(pre=(a / a.abs(), b))  # so that A reaches the end
        wide = problem._replace(pre=[p.to(torch.complex128) for p in problem.pre])
        h, dy = torch.randn_like(b), torch.randn_like(b)
        with pytest.MonkeyPatch.context() as patch:
            true = by_recurrences("scan", wide, h.to(torch.complex128), dy.to(torch.complex128),
                                  patch)  # fmt: skip
        cases.append((problem, h, dy, [x.to(torch.complex64) for x in true]))
    return cases


@needs_compiler
@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_a_broken_kernel_is_noticed(name, cases, tmp_path):
    sources = tmp_path / "cuda_src"
    shutil.copytree(SOURCES, sources)
    if name is not None:
        file, old, new = MUTANTS[name]
        text = (sources / file).read_text()
        assert old in text, "the mutant no longer applies"
        (sources / file).write_text(text.replace(old, new))
    compiler = SimpleNamespace(kernel=lambda macros: emulated.compiler().kernel(macros, sources))

    def examine():
        for problem, h, dy, expected in cases:
            found = of_kernel(problem, h, dy, compiler)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    if name is None:
        examine()
        return
    with pytest.raises(AssertionError, match=r"not close|deadlock"):
        examine()
