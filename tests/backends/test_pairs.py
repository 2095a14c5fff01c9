"""What a segment does to the state that comes in: compiled code as the recurrences themselves.

On CUDA the kernel's own source on the host: as two recurrences by the same kernel, and as the
CPU's in float64.

Seen to fail: parts folded in the wrong order; an odd part left out; A taken for B; resets not
passed on; the adjoint of the other direction; what is not finite not left to the recurrences; the
kernel's MUTANTS, which stay part of the tests; A and B in the dtype of the sequences.
"""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace

import emulated
import host_kernel
import pytest
import torch
from host_kernel import all_apply, as_cuda, mutated, named, needs_compiler
from torch.utils._pytree import tree_map_only

from lightning_lrnn import backends
from lightning_lrnn.backends import pairs
from lightning_lrnn.backends.base import Pairs
from lightning_lrnn.backends.cuda import launch, plan
from lightning_lrnn.core.problem import Gradients, Problem
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
    "weighted": (trace(lambda a, b, w: (a.sigmoid(), b * w)), ""),
}
FLAGS = list(itertools.product((False, True), repeat=2))
EXACT = {"rtol": 1e-9, "atol": 1e-12}
NEAR = {"rtol": 2e-4, "atol": 2e-5}


def made(kind, shape, dtype, masks, *, reverse, exclusive):
    gate, readout = PROGRAMS[kind]
    B, T, D = shape
    inputs = 4 if kind == "lstm" else 2
    pre = [torch.randn(B, T, D, dtype=dtype) for _ in range(inputs)]
    if kind == "weighted":
        pre.append(torch.randn(D, dtype=dtype))
    if kind == "plain":
        pre[0] = pre[0] / pre[0].abs().clamp(min=1)
    lengths = torch.randint(0, T + 1, (B,)) if masks else None
    reset = torch.rand(B, T) < 0.3 / T if masks else None
    return Problem(gate, readout, tuple(pre), None, lengths, reset, reverse, exclusive)


def near(dtype):
    return EXACT if dtype in (torch.float64, torch.complex128) else NEAR


def the_pair(forward, backward):
    """A, B and C of what the two functions return, without what they keep."""
    return *forward[:2], backward[0]


def by_recurrences(name, problem, h, dy, monkeypatch):
    """A, B and C without what a backend has for them."""
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "Pairs", ())
        return the_pair(pairs.pair(name, problem), pairs.adjoint_impulse(name, problem, h, dy))


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
        actual = the_pair(pair, backend.adjoint_impulse(problem, h, dy))
        expected = by_recurrences("scan", problem, h, dy, monkeypatch)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, **near(dtype))


def test_what_is_not_finite_is_left_to_the_recurrences():
    T = 40_000
    a, b = torch.full((1, T, 33), 2.0), torch.zeros(1, T, 33)
    b[:, -1] = 3.0
    problem = Problem(IDENTITY, "", (a, b), None, None, None, False, False)
    assert backends.prepared("scan", problem).pair(problem) is None
    A, B, given = pairs.pair("scan", problem)
    assert given is None
    assert A.isinf().all() and torch.equal(B, torch.full((1, 33), 3.0))


@pytest.fixture
def small_tiles():
    """The kernel on the host among the backends; few steps make many tiles."""
    with emulated.small_tiles():
        yield


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
        actual = the_pair(backend.pair(problem), backend.adjoint_impulse(problem, h, dy))
        if name == "emulated":
            passes = [macros["LRNN_PASS"] for macros, _ in emulated.launches]
            assert passes == ["forward", "backward"]
        same = by_recurrences(name, problem, h, dy, monkeypatch)
        wide, h, dy = tree_map_only(torch.Tensor, widened, (problem, h, dy))
        exact = by_recurrences("scan", Problem(*wide), h, dy, monkeypatch)
        for one, other, true in zip(actual, same, exact, strict=True):
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
    (_, forward), (_, backward) = first, second = emulated.launches
    assert forward.loaded == read * h.numel() and forward.stored == 2 * 4 * 64
    assert backward.stored == 4 * 64
    # Two words for each of 64 columns: all tiles tell the last their pairs, in whose places it
    # leaves what lies before each, as in its own and in that of its group.
    for macros, traffic in (first, second):
        others = 3 * 128 // (8 * int(macros["LRNN_STEPS"])) - 1
        assert traffic.words == 2 * 64 * (2 * others + 1 + 1)


@needs_compiler
def test_serial_has_no_pair():
    problem = made("plain", (1, 9, 3), torch.float32, False, reverse=False, exclusive=False)
    h = problem.x
    with as_cuda(emulated.compiler()) as seen:
        walked = launch.backend(problem, parallel=False)
        assert walked.pair(problem) is walked.adjoint_impulse(problem, h, h) is None
    assert not seen


def broken(mutant, folder):
    """Compiles the sources of a mutant; as they are for None."""
    sources = mutated(mutant, folder)
    return SimpleNamespace(kernel=lambda macros: emulated.compiler().kernel(macros, sources))


def of_kernel(problem, h, dy, compiler):
    with as_cuda(compiler):
        kernels = launch.backend(problem, parallel=True)
        return the_pair(kernels.pair(problem), kernels.adjoint_impulse(problem, h, dy))


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


def remembering(problem):
    """With decays of size 1, so that what was reaches the end."""
    a, b = problem.pre
    return problem._replace(pre=(a / a.abs(), b))


def both_passes(name, problem, h0, dy, c):
    """Of the second phase: all that a segment puts out, and what reaches it from either end.

    Returns:
        the hidden states too, which the backward pass reads.
    """
    given = pairs.pair(name, problem)[-1]
    problem = problem._replace(h0=h0)
    y, h, final = pairs.after(name, problem, given).forward(problem)
    given_back = pairs.adjoint_impulse(name, problem, h, dy)[-1]
    dpre, dh0 = pairs.after(name, problem, given_back).backward(problem, h, Gradients(dy, c))
    return h, [y, final, *dpre, dh0], (given, given_back)


GIVEN = [
    # Over two reaches of 256 tiles of 16 steps; of a segment alone; wide; of one feature.
    ("plain", torch.complex64, (2, 5_000, 3), True),
    ("plain", torch.float32, (2, 5_000, 8), False),
    ("plain", torch.float32, (1, 300, 33), True),
    ("plain", torch.float64, (2, 900, 5), True),
    ("plain", torch.bfloat16, (2, 700, 1), False),
    ("gilr", torch.bfloat16, (3, 700, 5), True),
    ("lstm", torch.float32, (3, 700, 5), True),
    ("weighted", torch.float32, (3, 700, 5), True),
]
ROUNDED = {torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def given_states_agree(name, device, case):
    """A second phase that waits for nobody, and the CPU's passes in float64."""
    torch.manual_seed(0)
    kind, dtype, shape, masks = case
    for reverse, exclusive in FLAGS if shape[1] < 1_000 else FLAGS[1:3]:
        problem = made(kind, shape, dtype, masks, reverse=reverse, exclusive=exclusive)
        problem = remembering(problem) if kind == "plain" else problem
        problem = Problem(*tree_map_only(torch.Tensor, lambda x: x.to(device), problem))
        state = {"dtype": problem.state_dtype, "device": device}
        h0, c = (torch.randn(shape[0], shape[2], **state) for _ in range(2))
        dy = torch.randn(shape, dtype=problem.hidden_dtype, device=device)
        emulated.launches.clear()
        h, actual, given = both_passes(name, problem, h0, dy, c)
        assert [g.numel() for g in given] == [
            pairs.kept_words(name, problem, backward=backward) for backward in (False, True)
        ]
        if name == "emulated":
            (forward, _), (f, said), (backward, _), (b, said_back) = emulated.launches
            assert f["LRNN_CARRY"] == b["LRNN_CARRY"] == "given"
            assert said.words == said_back.words == 0, "tells others"
            for first, second in ((forward, f), (backward, b)):
                assert first["LRNN_RESULT"] == "pair" and second["LRNN_RESULT"] == "outputs"
                assert first["LRNN_STEPS"] == second["LRNN_STEPS"]
        wide, h, h0, dy, c = tree_map_only(torch.Tensor, widened, (problem, h, h0, dy, c))
        wide = Problem(*wide)._replace(h0=h0)
        y, _, final = backends.prepared("scan", wide).forward(wide)
        dpre, dh0 = backends.prepared("scan", wide).backward(wide, h, Gradients(dy, c))
        for one, true in zip(actual, [y, final, *dpre, dh0], strict=True):
            tolerance = ROUNDED.get(one.dtype, near(dtype))
            scale = max(1.0, float(true.abs().max()))
            torch.testing.assert_close(widened(one) / scale, true / scale, **tolerance)


@needs_compiler
@pytest.mark.parametrize("case", GIVEN, ids=str)
def test_second_phase_waits_for_nobody(case, small_tiles):
    given_states_agree("emulated", "cpu", case)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        *[case for case in GIVEN if case[2] != (1, 300, 33)],
        ("plain", torch.float32, (1, 70_000, 64), True),
        ("gilr", torch.bfloat16, (8, 3_000, 512), True),
    ],
    ids=str,
)
def test_second_phase_on_a_gpu(case):
    given_states_agree("scan", "cuda", case)


@needs_compiler
def test_second_phase_of_few_steps_is_given_nothing(small_tiles, monkeypatch):
    problem = made("plain", (2, 16, 8), torch.float32, False, reverse=False, exclusive=False)
    for T, words in ((16, 0), (17, 1 + 2 * 2 * (2 + 1 + 1) * 8)):
        longer = problem._replace(pre=[torch.ones(2, T, 8)] * 2)
        given = pairs.pair("emulated", longer)[-1]
        assert (0 if given is None else given.numel()) == words
        assert pairs.kept_words("emulated", longer, backward=False) == words
    # Where columns fill the device, each is walked.
    monkeypatch.setattr(plan, "WALK", 16)
    launch._planned.cache_clear()
    assert pairs.pair("emulated", longer)[-1] is None
    assert pairs.kept_words("emulated", longer, backward=False) == 0


@needs_compiler
def test_what_is_given_is_read_and_stays(small_tiles):
    """The same bits again, whatever order blocks are started in."""
    problem = made("plain", (2, 500, 5), torch.complex64, True, reverse=True, exclusive=False)
    given = pairs.pair("emulated", problem)[-1]
    before, results = given.clone(), []
    for seed in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host_kernel, "launch", partial(host_kernel.launch, seed=seed))
            results.append(pairs.after("emulated", problem, given).forward(problem))
        assert torch.equal(given, before)
    assert all(all(map(torch.equal, results[0], other)) for other in results[1:])


@needs_compiler
def test_operators_take_only_what_a_pair_has_left(small_tiles):
    problem = made("plain", (2, 500, 5), torch.float32, False, reverse=False, exclusive=False)
    gate, readout, pre, *rest = problem
    operators = torch.ops.lightning_lrnn
    *_, given = operators.pair(gate, readout, pre, *rest[1:4], "emulated")
    y, _, _ = operators.gated_recurrence(gate, readout, pre, *rest, "emulated", given)
    true = backends.prepared("scan", problem).forward(problem).y
    torch.testing.assert_close(y, true)
    # No value depends on it: autograd and vmap leave it out.
    leaf = pre[1].clone().requires_grad_()
    y, *_ = operators.gated_recurrence(gate, readout, [pre[0], leaf], *rest, "emulated", given)
    (of_leaf,) = torch.autograd.grad(y.sum(), leaf)
    of_true = backends.prepared("scan", problem).backward(
        problem, true, Gradients(torch.ones_like(true), None)
    )
    torch.testing.assert_close(of_leaf, of_true[0][1])
    y, *_ = torch.vmap(
        lambda b: operators.gated_recurrence(gate, readout, [pre[0], b], *rest, "emulated", given)
    )(pre[1][None])
    torch.testing.assert_close(y[0], true)
    for wrong, name in ((given[1:], "emulated"), (given.int(), "emulated"), (given, "scan")):
        with pytest.raises(ValueError, match="`given` must be what the pair"):
            operators.gated_recurrence(gate, readout, pre, *rest, name, wrong)
        states = true, None, true, None
        with pytest.raises(ValueError, match="`given` must be what the pair"):
            operators.gated_backward(gate, readout, pre, *states, *rest[1:], name, wrong)


# name: (file, what stands there, what is put in its place)
GIVEN_MUTANTS = {
    "what lies before the tile before": (
        "recurrence.cu",
        "read_pair<Value>(chain.tile(tile))",
        "read_pair<Value>(chain.tile(tile > 0 ? tile - 1 : 0))",
    ),
    "the state of the neighbour": (
        "recurrence.cu",
        "shared.state_in[lane] = given_state(",
        "shared.state_in[(lane + 1) % kColumns] = given_state(",
    ),
    "a reset ignored": ("carry.cuh", "(glance.found[0] & kRestarts) != 0", "false"),
    "padding walked": (
        "recurrence.cu",
        "const Index left = column.length -",
        "const Index left = p.T -",
    ),
    "groups left out": (
        "recurrence.cu",
        "read_pair<Value>(chain.group(group))",
        "Pair::identity()",
    ),
    "groups after tiles": (
        "recurrence.cu",
        "apply(tiles, apply(groups,",
        "apply(groups, apply(tiles,",
    ),
    "reaches left out": (
        "recurrence.cu",
        "read_pair<Value>(chain.reach(reach > 0 ? reach - 1 : 0))",
        "Pair::identity()",
    ),
    "the reach of the tile": ("recurrence.cu", "reach > 0 ? reach - 1 : 0", "reach"),
    "no state that comes in": (
        "recurrence.cu",
        "initial = column.state_in(column.problem.initial)",
        "initial = column.state_in(nullptr)",
    ),
    "a tile with its own": (
        "recurrence.cu",
        "publish_pair(pairs + i * kSlot, found.before);",
        "publish_pair(pairs + i * kSlot, combine(found.before, pair));",
    ),
    "tiles of a thread in the wrong order": (
        "recurrence.cu",
        "found.before = combine(found.before, pair);",
        "found.before = combine(pair, found.before);",
    ),
    "a group's last tile left as it was": (
        "recurrence.cu",
        "if (leaves) publish_pair(chain.tile(tile), before);",
        "",
    ),
    "a reach's last group left as it was": (
        "recurrence.cu",
        "if (leaves) publish_pair(chain.group(group), before);",
        "",
    ),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", named(GIVEN_MUTANTS))
def test_a_broken_second_phase_is_noticed(name, small_tiles, tmp_path):
    """Forward, after a pair by the same sources: rows of 313 tiles, the second with a reset."""
    torch.manual_seed(0)
    problem = made("plain", (3, 5_000, 5), torch.complex64, True, reverse=False, exclusive=False)
    problem = remembering(problem)._replace(lengths=torch.tensor([5_000, 5_000, 320]))
    problem.reset[...] = False
    problem.reset[1, 4_900] = True
    problem.pre[1][1, :4_900] = float("nan")
    h0 = torch.randn(3, 5, dtype=torch.complex64)
    wide = Problem(*tree_map_only(torch.Tensor, widened, problem))._replace(h0=widened(h0))
    true = backends.prepared("scan", wide).forward(wide)
    compiler = broken(GIVEN_MUTANTS.get(name), tmp_path)

    def examine():
        with as_cuda(compiler):
            kernels = launch.backend(problem, parallel=True)
            given = kernels.pair(problem)[-1]
            actual = kernels.after(given).forward(problem._replace(h0=h0))
        for one, exact in zip(actual, true, strict=True):
            torch.testing.assert_close(widened(one), exact, rtol=1e-3, atol=1e-3, equal_nan=True)

    if name is None:
        assert all_apply(GIVEN_MUTANTS)
        examine()
        return
    with pytest.raises(AssertionError, match=r"not close|deadlock"):
        examine()


# name: (file, what stands there, what is put in its place)
MUTANTS = {
    "offset dropped": ("affine.cuh", "apply(later, earlier.B)", "later.B"),
    "a reset ignored": ("affine.cuh", "return pair.restarts ?", "return false ?"),
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
    "the last tile of a group alone": ("recurrence.cu", "if (ends_group) {", "if (false) {"),
    "groups before the last one left out": ("recurrence.cu", "if (ends_reach) {", "if (false) {"),
    "reaches before the last one left out": (
        "recurrence.cu",
        "if (ends_reach && reach > 0)",
        "if (false)",
    ),
    "groups after tiles": (
        "recurrence.cu",
        "publish_pair(chain.group(group), before);\n    pair = combine(before, pair);",
        "publish_pair(chain.group(group), before);\n    pair = combine(pair, before);",
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
    "no wait": ("carry.cuh", "while (!glance.complete(slot.tag))", "while (false)"),
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
@pytest.mark.parametrize("name", named(MUTANTS))
def test_a_broken_kernel_is_noticed(name, cases, tmp_path):
    compiler = broken(MUTANTS.get(name), tmp_path)

    def examine():
        for problem, h, dy, expected in cases:
            actual = of_kernel(problem, h, dy, compiler)
            for one, other in zip(actual, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    if name is None:
        assert all_apply(MUTANTS)
        examine()
        return
    with pytest.raises(AssertionError, match=r"not close|deadlock"):
        examine()
