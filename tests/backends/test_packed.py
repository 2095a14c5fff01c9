"""Two features of 16 bits in one word: the bits of the kernel that has one feature to a thread.

The kernel's own source on the host. Seen to fail: D, a distance or the grid not halved; the carry
by the number of packed chains; the kernel's MUTANTS, which stay part of the tests; each condition
of `can_be_packed` left out.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import emulated
import pytest
import torch
from gate_functions import FUNCTIONS, REAL
from host_kernel import all_apply, as_cuda, mutated, named, needs_compiler
from kernel_variants import KINDS, PACKED_KINDS, PASSES
from poison import poison
from torch.utils._pytree import tree_map_only

from lightning_lrnn.backends.cuda import launch, plan, warmup
from lightning_lrnn.backends.cuda.codegen import fused
from lightning_lrnn.backends.cuda.plan import steps
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY, trace
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh

FLAGS = list(itertools.product((False, True), repeat=2))


def everything(x, y):
    """Every operation, each by a weight of its own, and no state that grows."""
    first, second = zip(*(function(x, y) for function in REAL.values()), strict=True)
    first, second = (
        sum(term / (3 + i) for i, term in enumerate(terms)) for terms in (first, second)
    )
    return torch.tanh(first), second + torch.erf(x) * torch.sgn(y)


def biased(x, f, bias, scale):
    a = torch.sigmoid(f * scale + bias)
    return a, (1 - a) * x


def biased_output(h, x, f, bias, scale):
    return torch.tanh(h + bias) * torch.sigmoid(f) + x * scale


TILE = 16
"""Steps of the small tiles."""
PROGRAMS = {
    "plain": (IDENTITY, "", 2),
    "gilr": (trace(FUNCTIONS["gilr"][0]), "", 2),
    "lstm": (lstm.program, output_tanh.program, 4),
    "everything": (trace(everything), "", 2),
    "biased": (trace(biased), trace(biased_output), 2),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Few threads, so that few steps make many tiles, of 16 steps and of four columns."""
    cached = launch._planned, plan.macros
    changed = {"THREADS": 32, "SHORT": 0, "MAX_COLUMNS": 4, "PACKED": True}
    monkeypatch.setattr(plan, "steps", lambda *_: 2)
    monkeypatch.setattr(plan, "_is_crowded", lambda *_: False)
    for name, value in changed.items():
        monkeypatch.setattr(plan, name, value)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def made(kind, dtype, shape, masks, *, reverse=False, exclusive=False):
    torch.manual_seed(0)
    B, T, D = shape
    gate, readout, inputs = PROGRAMS[kind]
    pre = [torch.randn(shape).to(dtype) for _ in range(inputs)]
    if kind == "plain":
        pre[0] = torch.tanh(pre[0])
    if kind == "biased":  # of 32 and of 16 bits
        pre += [torch.randn(D), torch.randn(B, D).to(dtype)]
    lengths = torch.randint(0, T + 1, (B,)) if masks else None
    reset = torch.rand(B, T) < 0.05 if masks else None
    h0 = torch.randn(B, D)
    return Problem(gate, readout, tuple(pre), h0, lengths, reset, reverse, exclusive)


def computed(problem, compiler=None, *, packed=True, parallel=True, pair=False):
    """All that both passes give, or also the pair of a segment; every kernel is packed, or none."""
    torch.manual_seed(1)
    kept = None
    with (
        pytest.MonkeyPatch.context() as patch,
        as_cuda(compiler or emulated.compiler()) as seen,
    ):
        poison(patch)
        patch.setattr(plan, "PACKED", packed)
        kernels = launch.backend(problem, parallel=parallel)
        states = kernels.forward(problem)
        dy, dh_final = torch.randn_like(states.y), torch.randn_like(states.final)
        gradients, dh0 = kernels.backward(problem, states.h, Gradients(dy, dh_final))
        actual = [*states, *gradients, dh0]
        if pair:
            A, B, kept = kernels.pair(problem)
            C, _ = kernels.adjoint_impulse(problem, states.h, dy)
            actual += [A, B, C]
            # What it leaves for its pass is of one feature to a thread.
            assert (kept is None) == (problem.x.shape[1] <= TILE)
    possible = [m for m, _ in seen if m["LRNN_RESULT"] == "outputs" or kept is None]
    assert {macros["LRNN_PACKED"] for macros in possible} == {str(int(packed))}
    return actual, [macros for macros, _ in seen]


def same_bits(actual, expected):
    return all(map(torch.equal, actual, expected)) and all(x.isfinite().all() for x in expected)


CASES = [
    # Tiles of 16 steps and eight features, of which the first has more than a reach; 10 features
    # make a tile that is not whole.
    ("plain", torch.bfloat16, (1, 5_000, 8), True, "scan"),
    ("plain", torch.float16, (24, 48, 16), False, "pair"),
    ("lstm", torch.bfloat16, (24, 15, 16), False, "pair"),
    ("plain", torch.float16, (3, 50, 12), True, "serial"),
    ("gilr", torch.bfloat16, (24, 64, 8), False, "pair"),
    ("lstm", torch.bfloat16, (3, 200, 10), True, "scan"),
    ("lstm", torch.float16, (24, 48, 8), False, "scan"),
    ("everything", torch.bfloat16, (2, 60, 10), True, "scan"),
    ("biased", torch.bfloat16, (3, 200, 10), True, "scan"),
    ("biased", torch.float16, (2, 30, 14), True, "serial"),
]


@needs_compiler
@pytest.mark.parametrize(("kind", "dtype", "shape", "masks", "how"), CASES, ids=str)
def test_same_bits(kind, dtype, shape, masks, how):
    parallel, pair = how != "serial", how == "pair"
    for reverse, exclusive in FLAGS if shape[1] < 1_000 else FLAGS[1:3]:
        problem = made(kind, dtype, shape, masks, reverse=reverse, exclusive=exclusive)
        expected, single = computed(problem, packed=False, parallel=parallel, pair=pair)
        actual, variants = computed(problem, parallel=parallel, pair=pair)
        assert same_bits(actual, expected)
        chains = shape[0] * -(-shape[2] // 4)
        carry = "chained" if chains >= plan.CHAINS or not parallel else "folded"
        assert variants[0]["LRNN_CARRY"] == single[0]["LRNN_CARRY"] == carry


@needs_compiler
def test_steps_that_a_chunk_of_a_projection_holds():
    """Gradients written between each other, as a layer asks for them."""
    B, T, D = 2, 100, 12
    wide = torch.randn(B, T, 4 * D).to(torch.bfloat16)
    problem = Problem(*PROGRAMS["lstm"][:2], wide.chunk(4, -1), None, None, None, False, False)
    results = []
    for packed in (False, True):
        with pytest.MonkeyPatch.context() as patch, as_cuda(emulated.compiler()) as seen:
            patch.setattr(plan, "PACKED", packed)
            kernels = launch.backend(problem, parallel=True)
            h = kernels.forward(problem).h
            whole = torch.full_like(wide, torch.nan)
            kernels.backward(problem, h, Gradients(torch.ones_like(h), None, whole.chunk(4, -1)))
            results.append(whole)
        assert {macros["LRNN_PACKED"] for macros, _ in seen} == {str(int(packed))}
    assert same_bits(results[1:], results[:1])


@needs_compiler
def test_each_word_is_moved_once():
    """As many bytes as the kernel of single features moves, but for words between tiles."""
    problem = made("plain", torch.bfloat16, (24, 64, 16), False)
    moved = []
    for packed in (False, True):
        with pytest.MonkeyPatch.context() as patch, as_cuda(emulated.compiler()) as seen:
            patch.setattr(plan, "PACKED", packed)
            launch.backend(problem, parallel=True).forward(problem)
        ((_, traffic),) = seen
        moved.append((traffic.loaded, traffic.stored, traffic.words))
    assert moved[0] == moved[1]


def misaligned(x):
    """The same values, two bytes behind a multiple of four."""
    memory = torch.empty(x.numel() + 2, dtype=x.dtype)
    actual = memory[1 - memory.data_ptr() // 2 % 2 :][: x.numel()].view(x.shape)
    return actual.copy_(x)


def test_what_does_not_lie_in_pairs_is_not_packed():
    def layout(*tensors, D=8, lengths=None):
        return plan.layout_of((2, 20, D), lengths, tensors, reverse=False)

    x = torch.zeros(2, 20, 8, dtype=torch.bfloat16)
    row, state = torch.zeros(8, dtype=torch.bfloat16), torch.zeros(2, 8)
    rows_of_nine = torch.zeros(2, 20, 9, dtype=torch.bfloat16)[..., :8]
    packed = [
        (x,),
        (x, row),
        (x, state),
        (x, state[0]),
        (x.transpose(0, 1).clone().transpose(0, 1),),
    ]
    assert all(layout(*tensors) == "packed" for tensors in packed)
    assert layout(x, lengths=torch.tensor([3, 4])) == "packed"
    assert layout(torch.zeros(2, 20, 16, dtype=torch.float16)[..., 8:]) == "packed"
    for tensors in (
        (x, misaligned(x)),
        (x, x.transpose(1, 2).contiguous().transpose(1, 2)),
        (rows_of_nine,),
        (torch.zeros(1, dtype=torch.bfloat16).expand(2, 20, 8),),
        (x, misaligned(row)),
        (x, torch.zeros(1).expand(8)),
        (x, row.double()),
        (x, x.float()),
        (x.float(),),
        (x.to(torch.complex64),),
    ):
        assert layout(*tensors) == "apart"
    for D in (7, 9, 6):  # odd, or fewer than fill the columns of a block
        assert layout(torch.zeros(2, 20, D, dtype=torch.bfloat16), D=D) == "apart"
    assert layout(torch.zeros(2, 20, 10, dtype=torch.bfloat16)[..., :9], D=9) == "apart"
    assert layout(x.float(), D=1) == "apart"


@needs_compiler
def test_complex_numbers_are_not_packed():
    """Neither states nor what comes on the way, of sequences that could be."""
    rotated = trace(lambda x, size, angle: (torch.polar(torch.sigmoid(size), angle), x + 0 * x))
    passing = trace(lambda x, size, angle: (torch.abs(torch.polar(size, angle)) / 8, x))
    for gate, dtype in ((rotated, torch.complex64), (passing, torch.bfloat16)):
        pre = torch.randn(2, 9, 8).bfloat16(), torch.rand(8), torch.rand(8)
        problem = Problem(gate, "", pre, None, None, None, False, False)
        with as_cuda(emulated.compiler()) as seen:
            assert launch.backend(problem, parallel=True).forward(problem).h.dtype is dtype
        assert [macros["LRNN_PACKED"] for macros, _ in seen] == ["0"]


def test_nothing_is_packed_unless_asked_for(monkeypatch):
    monkeypatch.undo()
    x = torch.zeros(2, 20, 128, dtype=torch.bfloat16)
    assert plan.layout_of((2, 20, 128), None, (x,), reverse=False) == "apart"


def test_plan_counts_words(monkeypatch):
    """Half the columns, twice the words of a state, and the carry of the kernel of features."""
    monkeypatch.setattr(plan, "MAX_COLUMNS", 32)
    monkeypatch.setattr(plan, "THREADS", 256)
    kind = KINDS["bf16"]
    for step in PASSES:
        code = fused(*kind, step)
        for shape in ((2, 4_096, 192), (2, 4_096, 1_536), (1, 5_000, 66), (400, 3, 128)):
            single, packed = (
                plan.plan(code, kind.operands, plan.Pass(step, True, layout=layout), shape)
                for layout in ("apart", "packed")
            )
            macros, other = dict(packed.macros), dict(single.macros)
            assert macros["LRNN_PACKED"] == "1" and macros["LRNN_LAYOUT"] == "apart"
            for name in ("SCHEDULE", "CARRY", "COLUMNS", "STEPS"):
                assert macros[f"LRNN_{name}"] == other[f"LRNN_{name}"]
            assert (single.features, packed.features) == (1, 2)
            chains = [-(-shape[2] // 32), -(-shape[2] // 64)]
            if macros["LRNN_SCHEDULE"] == "scan":
                assert packed.grid * chains[0] == single.grid * chains[1]
                assert (packed.words - 1) * chains[0] == 2 * (single.words - 1) * chains[1]
            else:
                assert packed.grid == -(-single.grid // 2)


@pytest.mark.parametrize("B, carry", [(1, "folded"), (32, "chained")])
@pytest.mark.parametrize("step", ["forward", "backward"])
def test_backward_and_folded_only_whole_tiles_are_packed(monkeypatch, step, B, carry):
    monkeypatch.undo()
    code, operands = fused(*KINDS["bf16"], step), KINDS["bf16"].operands
    for T, whole in ((4_096, True), (4_097, False)):
        kind = plan.Pass(step, True, layout="packed")
        macros = dict(plan.plan(code, operands, kind, (B, T, 64)).macros)
        packed = whole or (step, carry) == ("forward", "chained")
        assert (macros["LRNN_CARRY"], macros["LRNN_PACKED"]) == (carry, str(int(packed)))
        assert macros["LRNN_TILES"] == "whole" or not whole


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [("bf16", 16, 16), ("gilr bf16", 16, 8), ("lstm with readout bf16", 8, 4)],
)
def test_steps_of_a_segment(name, forward, backward):
    """Those of single features, if not for a backward pass of many operations."""
    for step, expected in zip(PASSES, (forward, backward), strict=True):
        kind = PACKED_KINDS[name]
        assert steps(fused(*kind, step), kind.operands, plan.Pass(step, True, layout="packed")) == (
            expected
        )


@pytest.mark.parametrize("packed", [False, True])
def test_warmup_runs_packed_kernels(packed, monkeypatch):
    layouts = []

    def run_once(a, *, parallel, reverse=False):
        layouts.append(plan.layout_of(tuple(a.shape), None, (a,), reverse=reverse))

    monkeypatch.setattr(warmup, "missing", lambda: [])
    monkeypatch.setattr(warmup, "_run_once", run_once)
    monkeypatch.setattr(warmup, "MAX_COLUMNS", plan.MAX_COLUMNS)
    monkeypatch.setattr(plan, "PACKED", packed)
    warmup.warmup("cpu", torch.bfloat16)
    assert layouts.count("packed") == (5 if packed else 0)  # of one, two and three tiles


# name: (file, what stands there, what is put in its place)
MUTANTS = {
    "halves swapped": (
        "device.cuh",
        "{One::decode(Half(both)), One::decode(Half(both >> 16))}",
        "{One::decode(Half(both >> 16)), One::decode(Half(both))}",
    ),
    "halves swapped in a store": (
        "device.cuh",
        "static __device__ Element encode(Value v) { return One::encode(v); }",
        "static __device__ Element encode(Value v) { return One::encode(Two(v.y, v.x)); }",
    ),
    "the first feature stored twice": (
        "device.cuh",
        "encode(v.x) | unsigned(encode(v.y)) << 16",
        "encode(v.x) | unsigned(encode(v.x)) << 16",
    ),
    "the second feature not stored": (
        "device.cuh",
        "encode(v.x) | unsigned(encode(v.y)) << 16",
        "encode(v.x)",
    ),
    "the second feature's carry lost": (
        "carry.cuh",
        "tag | pieces.piece[i]",
        "tag | pieces.piece[i / 2 * 2]",
    ),
    "the past of the first feature for both": (
        "affine.cuh",
        "affine(A.y, x.y, B.y)",
        "affine(A.y, x.x, B.y)",
    ),
    "a past of 0 in one feature is one in both": (
        "affine.cuh",
        "affine(A.y, x.y, B.y)",
        "x.x == 0 ? B.y : affine(A.y, x.y, B.y)",
    ),
    "one choice for both features": (
        "pointwise.cuh",
        "where(conditions.y, v.y, w.y)",
        "where(conditions.x, v.y, w.y)",
    ),
    "an operation of one feature": (
        "pointwise.cuh",
        "return {name(v.x), name(v.y)};",
        "return {name(v.x), v.y};",
    ),
    "h0 rounded": (
        "recurrence.cu",
        "ends ? column->state_in(p.h0) :",
        "ends ? Gate::State::decode(Gate::State::encode(column->state_in(p.h0))) :",
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", named(MUTANTS))
def test_a_broken_kernel_is_noticed(name, tmp_path):
    sources = mutated(name and MUTANTS[name], tmp_path)
    compiler = SimpleNamespace(kernel=lambda macros: emulated.compiler().kernel(macros, sources))
    problems = [
        made("plain", torch.bfloat16, (2, 320, 16), False),
        made("everything", torch.bfloat16, (24, 48, 10), True),
    ]
    # The first feature's state is 0, and the product of the second one's decays infinite.
    problems[0].h0[:, ::2], problems[0].pre[1][:, :64, ::2] = 0, 0

    noticed = any(
        not same_bits(computed(problem, compiler)[0], computed(problem, packed=False)[0])
        for problem in problems
    )
    assert noticed == (name is not None) and all_apply(MUTANTS)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", PROGRAMS)
def test_on_a_gpu(kind, monkeypatch):
    monkeypatch.undo()
    for shape in ((2, 3_000, 66), (1, 70_000, 64), (64, 1_024, 256), (400, 40, 128)):
        on_cpu = made(kind, torch.bfloat16, shape, True)
        problem = Problem(*tree_map_only(torch.Tensor, lambda x: x.cuda(), on_cpu))
        results = []
        for packed in (False, True):
            monkeypatch.setattr(plan, "PACKED", packed)
            kernels = launch.backend(problem, parallel=True)
            states = kernels.forward(problem)
            gradients, dh0 = kernels.backward(problem, states.h, Gradients(states.y, None))
            results.append([*states, *gradients, dh0])
        for single, both in zip(*results, strict=True):
            torch.testing.assert_close(both, single, rtol=2e-2, atol=2e-2)
